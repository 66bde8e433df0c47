"""Cells and tables: a value, its interval, a note."""

from dataclasses import dataclass

from trustcxr.report import words
from trustcxr.report.study_folder import Run
from trustcxr.results.documents import Share


@dataclass(frozen=True)
class Cell:
    """One cell. `value` is the exact number of study.json, so that a table can be checked against it."""

    text: str
    small: str = ""
    beside: str = ""  # a second line of small print
    value: float | None = None
    note: str = ""  # class names of the style sheet: good, bad, quiet; prose, why, text


@dataclass(frozen=True)
class Table:
    """A table with a header row; the first `heads` columns are row headers."""

    header: list[str]
    rows: list[list[Cell]]
    heads: int = 1
    caption: str = ""

    def is_text(self, column: int) -> bool:
        """Whether a column is of words, which begin at its left."""
        return bool(self.rows) and any(note in self.rows[0][column].note.split() for note in ("prose", "why", "text"))


def share(found: Share | float | None) -> Cell:
    """A share of one as a figure out of a hundred, its interval in small print."""
    value, ends = _parts(found)
    return Cell(words.hundred(value), words.between(ends, 1, scale=100), value=words.finite(value))


def plain(found: Share | float | None, digits: int = 3) -> Cell:
    """A number as it is, its interval in small print."""
    value, ends = _parts(found)
    return Cell(words.decimal(value, digits), words.between(ends, digits), value=words.finite(value))


def gained(found: Share, beside: str = "", note: str = "") -> Cell:
    """A difference with its sign, its interval with as many digits as tell on which side of zero it lies."""
    return Cell(words.signed(found.value), words.between(found.interval, reveal=True), beside, found.value, note)


def _parts(found: Share | float | None) -> tuple[float | None, tuple[float, float] | None]:
    return (found.value, found.interval) if isinstance(found, Share) else (found, None)


def whole(value: float | None) -> Cell:
    """A count."""
    return Cell(words.count(value), value=words.finite(value))


def _names(run: Run) -> list[Cell]:
    return [Cell(run.model), Cell(run.defence, run.qualifier)]
