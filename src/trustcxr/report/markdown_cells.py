"""Cells and rows of Markdown."""

import re
from collections.abc import Sequence

from trustcxr.report.tables.cells import Cell
from trustcxr.results.documents import Share

_TAG = re.compile(r"<(?=[A-Za-z/!?])")


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Rows of Markdown: the header, its rule, the lines."""
    return [row(cells) for cells in (header, ["---"] * len(header), *lines)]


def row(cells: Sequence[str]) -> str:
    """One row of Markdown; what would end a cell or the row, or begin a tag of HTML, is escaped."""
    inside = (_TAG.sub("&lt;", text).replace("|", "\\|").replace("\n", " ") for text in cells)
    return f"| {' | '.join(inside)} |"


def percent(share: Share, digits: int = 1) -> str:
    """A share with its interval, in percent: 82.3 [79.0, 85.3]; empty where it was not measured."""
    if share.value is None:
        return ""
    inside = share.interval
    ends = f" [{', '.join(f'{100 * end:.{digits}f}' for end in inside)}]" if inside else ""
    return f"{100 * share.value:.{digits}f}{ends}"


def decimal(share: Share, *, signed: bool = False) -> str:
    """A figure with its interval: 0.123 [0.100, 0.150]; empty where it was not measured."""
    if share.value is None:
        return ""
    sign, inside = "+" if signed else "", share.interval
    ends = f" [{', '.join(f'{end:{sign}.3f}' for end in inside)}]" if inside else ""
    return f"{share.value:{sign}.3f}{ends}"


def cell_of(cell: Cell) -> str:
    """A cell of a report's table, its small print in brackets."""
    return f"{cell.text} ({cell.small})" if cell.small else cell.text
