"""Write a table as HTML, Markdown, CSV or LaTeX, and build its cells."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from trustcxr.registry import RANDOM_MAP
from trustcxr.report import formatting
from trustcxr.report.load import Run
from trustcxr.storage import atomic
from trustcxr.storage.schemas import Share

if TYPE_CHECKING:
    from markupsafe import Markup

FOLDER = "report-tables"
_PLAIN = " !$'()*+,-./:;=?@[]_|~"  # needs no escape in an address within quotes
_FIGURE = re.compile(r"[-+][\d.]*(e[-+]?\d+)?%?( to [-+]?[\d.]+%?)?")
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}"}
_LATEX |= {"^": "\\textasciicircum{}", "<": "$<$", ">": "$>$", "−": "$-$", "–": "--", "×": "$\\times$", "·": "$\\cdot$"}
_LATEX |= {"\u00a0": "~", "±": "$\\pm$", "∞": "$\\infty$", "\n": " "}

_BROAD = 13  # columns that do not fit in a window of 1280 pixels


@dataclass(frozen=True)
class Cell:
    """A cell. `value` is the exact number of study.json, so that tests can compare them."""

    text: str
    small: str = ""
    second: str = ""  # a second line of small print
    value: float | None = None
    note: str = ""  # class names of the style sheet: good, bad, quiet; prose, why, text
    shade: str = ""  # background of a cell of a matrix

    @property
    def small_print(self) -> str:
        """Return both lines of small print in one."""
        return "; ".join(filter(None, (self.small, self.second)))


@dataclass(frozen=True)
class Table:
    """A table with a title and a header row; the first `heads` columns are row headers."""

    title: str
    header: list[str]
    rows: list[list[Cell]]
    heads: int = 1
    caption: str = ""

    @property
    def name(self) -> str:
        """Return the title as a file name without an ending."""
        return re.sub(r"[^a-z0-9.]+", "-", self.title.lower()).strip("-.") or "table"

    def html(self, *, tight: bool = False, stack: bool = False, matrix: bool = False) -> "Markup":
        """Return HTML with a CSV and a LaTeX download.

        tight: smaller letters; stack: a card for each row on a phone, or on any screen if there are many columns;
        matrix: narrow shaded cells, not sortable.
        """
        from markupsafe import Markup

        from trustcxr.report.html import load_templates

        names = {"tight": tight, "stack": stack, "broad": stack and len(self.header) >= _BROAD}
        kind = "matrix" if matrix else " ".join(["sorts", *(name for name, chosen in names.items() if chosen)])
        return Markup(load_templates().get_template("table.html.j2").render(t=self, kind=kind, stack=stack))

    def markdown(self) -> str:
        """Return a Markdown table with small print in brackets."""
        lines = [[f"{c.text} ({c.small_print})" if c.small_print else c.text for c in row] for row in self.rows]
        return markdown_rows(self.header, lines)

    def csv(self) -> str:
        """Return CSV with the texts of the page; the small print of a column becomes the next column."""
        import pandas as pd

        small = [any(row[k].small_print for row in self.rows) for k in range(len(self.header))]
        header = [[title, f"{title} (small print)"][: 1 + small[k]] for k, title in enumerate(self.header)]
        rows = [[[c.text, c.small_print][: 1 + small[k]] for k, c in enumerate(row)] for row in self.rows]
        flat = [[guarded(text) for pair in row for text in pair] for row in (header, *rows)]
        return pd.DataFrame(flat[1:], columns=flat[0]).to_csv(index=False)

    def latex(self) -> str:
        """Return a tabular for the package booktabs; small print follows its figure."""
        import pandas as pd

        rows = [[escape_latex(c.text) + _scriptsize(c.small_print) for c in row] for row in self.rows]
        columns = "l" * self.heads + "r" * (len(self.header) - self.heads)
        frame = pd.DataFrame(rows, columns=[escape_latex(title) for title in self.header])
        return "% needs \\usepackage{booktabs}\n" + frame.to_latex(index=False, escape=False, column_format=columns)

    def downloads(self) -> list[tuple[str, str, str]]:
        """Return the table as CSV and LaTeX: format, file name and data: address, which needs no other file."""
        written = (("CSV", "csv", "text/csv", self.csv()), ("LaTeX", "tex", "text/plain", self.latex()))
        return [
            (kind, f"{self.name}.{ending}", f"data:{media};charset=utf-8,{quote(text, safe=_PLAIN)}")
            for kind, ending, media, text in written
        ]

    def is_text(self, column: int) -> bool:
        """Return whether a column holds words, which are aligned left."""
        return bool(self.rows) and any(note in self.rows[0][column].note.split() for note in ("prose", "why", "text"))


def find_tables(part: object) -> Iterator[Table]:
    """Yield every table with rows in nested lists, tuples and mappings."""
    if isinstance(part, Table):
        if part.rows:
            yield part
    elif isinstance(part, Mapping):
        yield from find_tables(list(part.values()))
    elif isinstance(part, list | tuple):
        for one in part:
            yield from find_tables(one)


def write_tables(tables: Iterable[Table], folder: Path, *, page: str = "tables.md", opening: str = "") -> list[Path]:
    """Write all tables as Markdown into one page, and NAME.csv and NAME.tex of each; return the paths."""
    contents, parts = {page: ""}, [opening] if opening else []
    for table in tables:
        name, number = table.name, 2
        while f"{name}.csv" in contents:
            name, number = f"{table.name}-{number}", number + 1
        contents |= {f"{name}.csv": table.csv(), f"{name}.tex": table.latex()}
        parts += [f"## {table.title}", table.markdown(), *([table.caption] if table.caption else [])]
    contents[page] = "\n\n".join(parts) + "\n"
    for name, text in contents.items():
        atomic.write_text(folder / name, text)
    return [folder / name for name in contents]


def markdown_rows(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return rows as a Markdown table, escaped."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_escape_markdown, cells))} |" for cells in lines)


def _escape_markdown(text: str) -> str:
    return _TAG.sub("&lt;", text).replace("|", "\\|").replace("\n", " ")


def guarded(text: str) -> str:
    """Return text that no spreadsheet reads as a formula; figures are unchanged.

    >>> from trustcxr.report.tables.table import guarded
    >>> [guarded(text) for text in ("=1+1", "-0.5", "+3.0")]
    ["'=1+1", '-0.5', '+3.0']
    """
    return f"'{text}" if text.startswith(tuple("=+-@\t\r")) and not _FIGURE.fullmatch(text) else text


def escape_latex(text: str) -> str:
    """Return text as LaTeX prints it."""
    return "".join(_LATEX.get(c, c) for c in text)


def share(figure: Share | float | None, second: str = "", note: str = "") -> Cell:
    """Return a share in percent, its interval in small print."""
    return plain(figure, 1, second, note, scale=100)


def _scriptsize(small: str) -> str:
    return rf" {{\scriptsize {escape_latex(small)}}}" if small else ""


def plain(
    figure: Share | float | None, digits: int = 3, second: str = "", note: str = "", *, scale: float = 1.0
) -> Cell:
    """Return a number, times `scale`, with its interval in small print."""
    value, ends = (figure.value, figure.interval) if isinstance(figure, Share) else (figure, None)
    text = formatting.decimal(None if value is None else scale * value, digits)
    return Cell(text, formatting.range_text(ends, digits, scale=scale), second, formatting.finite(value), note)


def gained(difference: Share, second: str = "", note: str = "") -> Cell:
    """Return a difference with its sign; its interval has enough digits to show the side of zero."""
    ends = formatting.range_text(difference.interval, reveal=True)
    return Cell(formatting.signed(difference.value), ends, second, difference.value, note)


def whole(value: float | None, small: str = "", second: str = "") -> Cell:
    """Return a count."""
    return Cell(formatting.count(value), small, second, value)


def run_cells(run: Run) -> list[Cell]:
    """Return the first cells of a run's rows: network and defence."""
    return [Cell(run.model), Cell(run.defence, run.qualifier)]


def method_cells(run: Run, method: str, small: str = "", second: str = "") -> list[Cell]:
    """Return model, defence and saliency method; the random map belongs to no run."""
    first = [Cell("any", note="quiet"), Cell(formatting.DASH)] if method == RANDOM_MAP else run_cells(run)
    return [*first, Cell(formatting.method(method), small, second)]
