"""What `trustcxr verify` found: every figure of a study computed again from its tables."""

from typing import Any

from trustcxr.results.flat import Document, Records


class Difference(Document):
    """A figure that is not what the tables give."""

    file: str = ""
    key: str = ""
    said: Any = None
    computed: Any = None


class VerifiedDocument(Document):
    """`figures`: how many were computed again; `differences`: those that differ.

    `unchecked`: what could not be computed, and why.
    """

    study: str = ""
    folder: str = ""
    notice: str = ""
    written_by: str = ""
    figures: int = 0
    files: int = 0
    differences: Records[Difference] = []
    unchecked: list[str] = []

    @property
    def agrees(self) -> bool:
        """Whether every figure that was computed again is as it was said."""
        return not self.differences
