"""Every sentence of the README and of results/ that claims something, beside the row that bears it.

    python -m benchmarks.findings.claims > results/claims.md

claims.yaml says of each claim the words, where they stand, the rows, what must hold of them, and the verdict of
a reader who did not write them. The figures are read off the rows here: a row that is gone, or that no longer bears
what is claimed, is an error.
"""

import ast
import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from trustcxr.report import markdown

ROOT = Path(__file__).resolve().parents[2]
RESULTS, REGISTER = ROOT / "results", Path(__file__).with_name("claims.yaml")
VERDICTS = ("holds", "corrected", "withdrawn")
PERCENT = ("accuracy", "certified", "worst_case", "clean", "drop")
HEAD = ("claim", "stands in", "borne by", "verdict", "what the reader found")
_INTRO = """# Every claim and the row that bears it

`python -m benchmarks.findings.claims > results/claims.md`. Read by someone who wrote neither the README nor the pages:
each sentence that claims something was held against its row, its count, its epsilon and its interval. *Holds*: as it
stood. *Corrected*: it said more than its row, or left out what it takes to read it; the words are those of now.
*Withdrawn*: no row bears it, or the figure was reckoned wrongly; it stands nowhere any more, or beside the table that
it says is withdrawn. A test reads every row again. Research software, not for diagnosis.
"""


class Figure:
    """One cell: its value, and its interval where it has one."""

    def __init__(self, value: float, low: float | None, high: float | None, text: str) -> None:
        self.value, self.low, self.high, self.text = value, low, high, text

    def ends(self) -> tuple[float, float]:
        """The interval; the value twice where there is none."""
        return (self.value, self.value) if self.low is None or self.high is None else (self.low, self.high)


def main() -> None:
    print("\n".join([_INTRO, *markdown.table(HEAD, [line(claim) for claim in register()])]))


@cache
def register() -> list[dict[str, Any]]:
    """The claims, as they are written down."""
    return list(yaml.safe_load(REGISTER.read_text(encoding="utf-8")))


def line(claim: Mapping[str, Any]) -> list[str]:
    """A claim as a row of the page."""
    borne = "; ".join(f"`{row['file']}`: {_named(row)} = {figure(row).text}" for row in claim.get("rows", ()))
    return [claim["claim"], ", ".join(claim["in"]), borne or "no row", claim["verdict"], claim.get("found", "")]


def figure(row: Mapping[str, Any]) -> Figure:
    """The figure of a row: of a CSV file by its columns, of a page by cells of a row and the name of the column."""
    path = RESULTS / row["file"]
    return _of_table(_read(path), row) if path.suffix == ".csv" else _of_page(path.read_text("utf-8"), row)


@cache
def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def withdrawn(row: Mapping[str, Any]) -> str:
    """Why the row's figure is no longer stated, as a column of its file or its cell says; nothing otherwise."""
    path = RESULTS / row["file"]
    if row.get("count"):
        return ""
    if path.suffix != ".csv":
        return "its cell says so" * (figure(row).text == "withdrawn")
    return _lines(_read(path), row)[0].get("withdrawn", "")


def _lines(table: Sequence[Mapping[str, str]], row: Mapping[str, Any]) -> list[Mapping[str, str]]:
    return [line for line in table if all(_is(line[column], wanted) for column, wanted in row["where"].items())]


def _is(cell: str, wanted: object) -> bool:
    """Whether a cell has this value; after ~ stands a pattern that the whole of it must have."""
    if isinstance(wanted, int | float):
        return bool(cell) and float(cell) == wanted
    text = str(wanted)
    return bool(re.fullmatch(text[1:], cell)) if text.startswith("~") else cell == text


def _rounded(value: float, digits: int) -> str:
    """As it is rounded by hand: 0.0265 to 0.027, and not to what its binary digits are nearest to."""
    return str(Decimal(repr(value)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def _of_table(table: Sequence[Mapping[str, str]], row: Mapping[str, Any]) -> Figure:
    found = _lines(table, row)
    if row.get("count"):
        return Figure(len(found), None, None, str(len(found)))
    if len(found) != 1:
        raise LookupError(f"{len(found)} rows of {row['file']} are {row['where']}")
    line, column = found[0], row.get("column", "value")
    value, (low, high) = float(line[column]), _interval(line, column)
    hundred = column in PERCENT or line.get("measure") in PERCENT
    digits = 0 if value.is_integer() and low is None else 3
    shown = [f"{100 * x:.1f}" if hundred else _rounded(x, digits) for x in (value, low, high) if x is not None]
    ends = f" [{shown[1]}, {shown[2]}]" if len(shown) == 3 else ""
    return Figure(value, low, high, f"{shown[0]}{' %' if hundred else ''}{ends}")


def _interval(line: Mapping[str, str], column: str) -> tuple[float | None, float | None]:
    if column == "difference":
        low, high = ast.literal_eval(line["difference_ci"])
        return float(low), float(high)
    names = ("low", "high") if column == "value" else (f"{column}_low", f"{column}_high")
    ends = [float(line[name]) if line.get(name) else None for name in names]
    return ends[0], ends[1]


def _of_page(text: str, row: Mapping[str, Any]) -> Figure:
    cells = [cell for cell in rows_of(text, row.get("under", "")) if _starts(cell, row["where"])]
    texts = {cell[row["column"]] for cell in cells if row["column"] in cell}
    if len(texts) != 1:
        raise LookupError(f"{len(texts)} cells {row['column']!r} of {row['file']} are in rows of {row['where']}")
    shown = texts.pop()
    numbers = [float(found) for found in re.findall(r"(?<![\w.])[-+]?\d+(?:\.\d+)?", shown)]
    ends = numbers[1:3] if re.search(r"\[.*\]", shown) and len(numbers) >= 3 else [None, None]
    return Figure(numbers[0] if numbers else float("nan"), ends[0], ends[1], shown)


def _starts(cells: Mapping[str, str], where: Mapping[str, str]) -> bool:
    return all(cells.get(column) == str(wanted) for column, wanted in where.items())


def rows_of(text: str, under: str = "") -> Iterator[dict[str, str]]:
    """Every row of every table of a page, by the names of its columns; under one heading alone where it is named."""
    head: list[str] | None = None
    heading = ""
    for line_ in text.splitlines():
        if not line_.startswith("|"):
            heading, head = (line_.lstrip("# ") if line_.startswith("#") else heading), None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line_)[1:-1]]
        if head is None:
            head = cells
        elif set("".join(cells)) - set("-") and (not under or heading == under):
            yield dict(zip(head, cells, strict=False))


def holds(claim: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """What must hold of the rows, in words, and whether it does: `must` of claims.yaml.

    Of rows numbered from 0, v their value and l, h the ends of their intervals: `l[0] > 0.333`, `v[0] > v[1]`.
    """
    rows = [figure(row) for row in claim.get("rows", ())]
    for row in claim.get("rows", ()):
        if why := withdrawn(row):
            yield f"{_named(row)} is withdrawn: {why}", claim["verdict"] == "withdrawn"
    named = {"v": [f.value for f in rows], "l": [f.ends()[0] for f in rows], "h": [f.ends()[1] for f in rows]}
    for condition in claim.get("must", ()):
        yield condition, bool(eval(condition, {"__builtins__": {"all": all, "max": max, "min": min}}, named))


def _named(row: Mapping[str, Any]) -> str:
    where = ", ".join(str(value).lstrip("~") or f"no {key}" for key, value in row["where"].items())
    column = row.get("column", "")
    return f"{'rows of ' if row.get('count') else ''}{where}{f' ({column})' if column not in ('', 'value') else ''}"


if __name__ == "__main__":
    main()
