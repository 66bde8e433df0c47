"""What `trustcxr prune` lists: decoded images and checkpoints that take room."""

from typing import Literal

from trustcxr.results.flat import Document


class Prunable(Document):
    """A folder that may go: `days` since it was last read or written, `held` who uses it, `why` it stays."""

    kind: Literal["store", "unfinished store", "checkpoint", "finished checkpoint"] = "store"
    path: str = ""
    what: str = ""
    bytes: int = 0
    days: float = 0.0
    held: str = ""
    why: str = ""
    removed: bool = False

    @property
    def old(self) -> bool:
        """Whether it would be removed: nobody holds it, and nothing speaks for keeping it."""
        return not self.held and not self.why


class PruneDocument(Document):
    """All of them, and how many bytes are or would be free."""

    cache: str = ""
    older_than: float = 0.0
    found: list[Prunable] = []
    removable: int = 0
    freed: int = 0
