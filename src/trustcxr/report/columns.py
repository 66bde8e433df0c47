"""Rows as tables on stdout that a terminal has room for, however narrow it is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table

_BETWEEN = 3  # letters between two columns: a line with a space on both sides


@dataclass(frozen=True)
class _Column:
    """A column: its cells, the width that its longest word needs, and that at which no cell wraps."""

    name: str
    cells: tuple[str, ...]
    least: int
    widest: int
    right: bool


def print_rows(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Rows as a table on stdout, of which nothing is cut.

    In a narrow terminal cells wrap between words; columns that find no room even so stand in a further table below,
    beside the first column again.
    """
    from rich.console import Console

    console = Console()
    columns = [_column(name, [row[name] for row in rows]) for name in rows[0]]
    for number, part in enumerate(_parts(columns, console.width)):
        if number:
            console.print()
        console.print(_table("" if number else title, part, console.width, _of_first(columns, console.width)))


def _column(name: str, values: Sequence[object]) -> _Column:
    from rich.cells import cell_len

    cells = tuple(str(value) for value in values)
    lines = [line for cell in (name, *cells) for line in cell.splitlines()]
    least = max((cell_len(word) for line in lines for word in line.split()), default=1)
    widest = max((cell_len(line) for line in lines), default=1)
    text = isinstance(values[0], str) and not values[0][:1].isdigit()
    return _Column(name, cells, least, widest, right=not text)


def _parts(columns: Sequence[_Column], width: int) -> Iterator[list[_Column]]:
    """The columns in as many tables as they need, the first column in each."""
    first, others, beginning = columns[0], columns[1:], _of_first(columns, width)
    part, taken = [first], beginning
    for column in others:
        needed = _BETWEEN + column.least
        if len(part) > 1 and taken + needed > width:
            yield part
            part, taken = [first], beginning
        part.append(column)
        taken += needed
    yield part


def _of_first(columns: Sequence[_Column], width: int) -> int:
    """The least width of the first column: its longest word, or what leaves a third to the columns beside it."""
    if len(columns) == 1:
        return min(columns[0].least, width)
    beside = max(width // 3, *(column.least for column in columns[1:]))
    return min(columns[0].least, max(width - _BETWEEN - beside, (width - _BETWEEN) // 2))


def _widths(columns: Sequence[_Column], width: int, first: int) -> list[int]:
    """What each column gets: its longest word, the first `first`, and what is left over where cells wrap most."""
    found = [first, *(min(column.least, max(width - _BETWEEN - first, 1)) for column in columns[1:])]
    for _ in range(width - sum(found) - _BETWEEN * (len(columns) - 1)):
        wanting = [place for place, column in enumerate(columns) if found[place] < column.widest]
        if not wanting:
            break
        found[max(wanting, key=lambda place: columns[place].widest / found[place])] += 1
    return found


def _table(title: str, columns: Sequence[_Column], width: int, first: int) -> "Table":
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table(title=escape(title) or None, title_justify="left", show_edge=False, pad_edge=False)
    for column, wide in zip(columns, _widths(columns, width, first), strict=True):
        justify: Literal["left", "right"] = "right" if column.right else "left"
        table.add_column(Text(column.name), justify=justify, overflow="fold", width=wide)
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, cells))
    return table
