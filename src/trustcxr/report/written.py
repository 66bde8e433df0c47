"""Every table of the page as files for a paper: CSV, and LaTeX that needs the package booktabs."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from trustcxr.report.tables.cells import Cell, Table
from trustcxr.results import files

FOLDER = "report-tables"
_PLAIN = " !$'()*+,-./:;=?@[]_|~"  # needs no escape in an address within quotes
_FIGURE = re.compile(r"[-+][\d.]*(e[-+]?\d+)?%?( to [-+]?[\d.]+%?)?")
_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}"}
_LATEX |= {"^": "\\textasciicircum{}", "<": "$<$", ">": "$>$", "−": "$-$", "–": "--", "×": "$\\times$", "·": "$\\cdot$"}
_LATEX |= {"\u00a0": "~", "±": "$\\pm$", "\n": " "}


class Download(NamedTuple):
    """A table as a file that the page itself holds: what it is, its name, its data: address."""

    kind: str
    name: str
    address: str


def write(parts: Mapping[str, object], folder: Path) -> list[Path]:
    """NAME.csv and NAME.tex of every table among the page's parts, into `folder`; their paths."""
    written = []
    for name, table in tables(parts):
        for path, text in ((folder / f"{name}.csv", comma(table)), (folder / f"{name}.tex", latex(table))):
            with files.replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8", newline="")
            written.append(path)
    return written


def downloads(name: str, table: Table) -> list[Download]:
    """A table as CSV and as LaTeX, each whole in its address, so that no script and no other file is needed."""
    found = (("CSV", "csv", "text/csv", comma(table)), ("LaTeX", "tex", "text/plain", latex(table)))
    return [
        Download(said, f"{name}.{ending}", f"data:{kind};charset=utf-8,{quote(text, safe=_PLAIN)}")
        for said, ending, kind, text in found
    ]


def tables(parts: Mapping[str, object]) -> Iterator[tuple[str, Table]]:
    """The tables of the page that have rows, by a name for a file; of a table a run, numbered."""
    for name, part in parts.items():
        if isinstance(part, Table) and part.rows:
            yield name.replace("_", "-"), part
        elif isinstance(part, list):
            for place, table in enumerate(_inside(part), 1):
                yield f"{name.replace('_', '-')}-{place}", table


def _inside(parts: Iterable[object]) -> Iterator[Table]:
    """The tables of a list: by themselves, in a pair or a mapping, or of something that has one or several parts."""
    for part in parts:
        if isinstance(part, Table):
            if part.rows:
                yield part
        elif isinstance(part, dict):
            yield from _inside(part.values())
        elif isinstance(part, tuple):
            yield from _inside(part)
        elif isinstance(found := getattr(part, "table", None), Table):
            yield found
        elif isinstance(found := getattr(part, "parts", None), list):
            yield from _inside(found)


def comma(table: Table) -> str:
    """The rows as CSV."""
    text = io.StringIO()
    csv.writer(text).writerows(map(guarded, lines(table)))
    return text.getvalue()


def guarded(row: Iterable[object]) -> list[object]:
    """A row of CSV in which no text is a formula: a spreadsheet carries out what begins with = + - @, but for figures.

    >>> from trustcxr.report.written import guarded
    >>> guarded(["=1+1", "-0.5", "+3.0", -2])
    ["'=1+1", '-0.5', '+3.0', -2]
    """
    return [f"'{value}" if _formula(value) else value for value in row]


def _formula(value: object) -> bool:
    return isinstance(value, str) and value.startswith(tuple("=+-@\t\r")) and not _FIGURE.fullmatch(value)


def lines(table: Table) -> Iterator[list[str]]:
    """Rows of CSV as the page prints them; the small print of a column is a column after it."""
    small = [any(_small(row[k]) for row in table.rows) for k in range(len(table.header))]
    named = [[title, f"{title} (small print)"] if small[k] else [title] for k, title in enumerate(table.header)]
    yield [title for pair in named for title in pair]
    for row in table.rows:
        pairs = ([cell.text, _small(cell)] if small[k] else [cell.text] for k, cell in enumerate(row))
        yield [text for pair in pairs for text in pair]


def latex(table: Table) -> str:
    """A tabular; the small print of a cell stands behind its figure."""
    columns = "l" * table.heads + "r" * (len(table.header) - table.heads)
    body = [" & ".join(_cell(cell) for cell in row) + r" \\" for row in table.rows]
    head = " & ".join(map(escaped, table.header)) + r" \\"
    rules = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(["% needs \\usepackage{booktabs}", *rules, ""])


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_LATEX.get(c, c) for c in text)


def _cell(cell: Cell) -> str:
    small = _small(cell)
    return escaped(cell.text) + (rf" {{\scriptsize {escaped(small)}}}" if small else "")


def _small(cell: Cell) -> str:
    return "; ".join(part for part in (cell.small, cell.beside) if part)
