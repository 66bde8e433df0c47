"""Every table of the page as files for a paper: CSV, and LaTeX that needs the package booktabs."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trustcxr.report.tables.cells import Cell, Table
from trustcxr.results import files

FOLDER = "report-tables"
_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}"}
_LATEX |= {"^": "\\textasciicircum{}", "<": "$<$", ">": "$>$", "−": "$-$", "–": "--", "×": "$\\times$", "·": "$\\cdot$"}
_LATEX |= {"\u00a0": "~", "±": "$\\pm$", "\n": " "}


def write(parts: Mapping[str, Any], folder: Path) -> list[Path]:
    """NAME.csv and NAME.tex of every table among the page's parts, into `folder`; their paths."""
    written = []
    for name, table in tables(parts):
        with (
            files.replacing(folder / f"{name}.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as f,
        ):
            csv.writer(f).writerows(lines(table))
        with files.replacing(folder / f"{name}.tex") as temporary:
            temporary.write_text(latex(table), encoding="utf-8")
        written += [folder / f"{name}.csv", folder / f"{name}.tex"]
    return written


def tables(parts: Mapping[str, Any]) -> Iterator[tuple[str, Table]]:
    """The tables of the page that have rows, by a name for a file; of a table a run, numbered."""
    for name, part in parts.items():
        if isinstance(part, Table) and part.rows:
            yield name.replace("_", "-"), part
        elif isinstance(part, list):
            several = [found["table"] for found in part if isinstance(found, dict) and "table" in found]
            for place, table in enumerate(several, 1):
                yield f"{name.replace('_', '-')}-{place}", table


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
