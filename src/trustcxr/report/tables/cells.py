"""Cells and tables: a value, its interval, a note."""

from dataclasses import dataclass
from typing import Any

from trustcxr.report import words
from trustcxr.report.study_folder import Run


@dataclass(frozen=True)
class Cell:
    """One cell. `value` is the exact number of study.json, so that a table can be checked against it."""

    text: str
    small: str = ""
    beside: str = ""  # a second line of small print
    value: float | None = None
    note: str = ""  # a class name of the style sheet: good, bad, quiet


@dataclass(frozen=True)
class Table:
    """A table with a header row; the first `heads` columns are row headers."""

    header: list[str]
    rows: list[list[Cell]]
    heads: int = 1
    caption: str = ""


def share(value: Any, ci: Any = None) -> Cell:
    """A share of one as a figure out of a hundred, its interval in small print."""
    return Cell(words.hundred(value), words.between(ci, 1, scale=100), value=words.finite(value))


def plain(value: Any, digits: int = 3, ci: Any = None) -> Cell:
    """A number as it is, its interval in small print."""
    return Cell(words.decimal(value, digits), words.between(ci, digits), value=words.finite(value))


def whole(value: Any) -> Cell:
    """A count."""
    return Cell(words.count(value), value=words.finite(value))


def _names(run: Run) -> list[Cell]:
    return [Cell(run.model), Cell(run.defence, run.qualifier)]
