"""What `trustcxr verify` found: every figure of a study computed again from its tables."""

from typing import Any

from trustcxr.results.flat import Document


class Difference(Document):
    """A figure that is not what the tables give."""

    file: str = ""
    key: str = ""
    said: Any = None
    computed: Any = None


class VerifiedDocument(Document):
    """`figures`: how many were computed again, of so many `runs`; `differences`: those that differ.

    `unchecked`: what could not be computed, and why.
    """

    study: str = ""
    folder: str = ""
    notice: str = ""
    written_by: str = ""
    runs: int = 0
    figures: int = 0
    files: int = 0
    differences: list[Difference] = []
    unchecked: list[str] = []

    @property
    def agrees(self) -> bool:
        """Whether figures of runs were computed again, and every one is as it was said."""
        return self.runs > 0 and not self.differences
