"""Make the tables and the figure of each study's page from its CSV files.

    python -m studies.build [STUDY ...] [--check]

A study is a folder with README.md, CSV files and make.py. `make_tables` of make.py returns the tables by name, and
`draw_figure` the figure; both take the CSV files by name. A table is between `<!-- table NAME -->` and `<!-- end -->`.
`--check` writes nothing, and ends with exit code 1 if a page or a figure is older than its CSV files.
"""

import argparse
import hashlib
import importlib.util
import io
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

STUDIES = Path(__file__).parent
MARKED = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
COLOURS = ("#4b5563", "#0f766e", "#b45309", "#7c3aed")
Tables = Mapping[str, pd.DataFrame]


def study_names() -> list[str]:
    """Return the studies that have a page to make."""
    return sorted(path.parent.name for path in STUDIES.glob("*/make.py"))


def load_make(study: str) -> ModuleType:
    """Import make.py of a study, whose folder's name may have hyphens."""
    spec = importlib.util.spec_from_file_location(f"make_{study}", STUDIES / study / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_tables(study: str) -> dict[str, pd.DataFrame]:
    """Return the CSV files of a study by name."""
    return {path.stem: pd.read_csv(path) for path in sorted((STUDIES / study).glob("*.csv"))}


def make_page(study: str) -> str:
    """Return README.md of a study with its tables made anew."""
    tables = load_make(study).make_tables(read_tables(study))
    text = (STUDIES / study / "README.md").read_text(encoding="utf-8")
    if missing := set(tables) - {match[2] for match in MARKED.finditer(text)}:
        sys.exit(f"studies/{study}/README.md: no place for {', '.join(sorted(missing))}. Write <!-- table NAME -->.")
    return MARKED.sub(lambda match: f"{match[1]}{tables[match[2]]}{match[3]}", text)


def hash_sources(study: str) -> str:
    """Return a checksum of the files that a study's figure is made from."""
    digest = hashlib.sha256()
    for path in sorted((STUDIES / study).glob("*.csv")):
        digest.update(path.read_bytes())
    digest.update((STUDIES / study / "make.py").read_bytes())
    return digest.hexdigest()


def is_current(study: str) -> bool:
    """Return True if page and figure are those of today's CSV files."""
    page, figure = STUDIES / study / "README.md", STUDIES / study / "figure.png"
    if page.read_text(encoding="utf-8") != make_page(study):
        return False
    if not hasattr(load_make(study), "draw_figure"):
        return True
    return figure.is_file() and Image.open(figure).info.get("Source") == hash_sources(study)


def build_study(study: str) -> None:
    """Write page and figure of a study."""
    page, make = make_page(study), load_make(study)
    (STUDIES / study / "README.md").write_text(page, encoding="utf-8")
    if hasattr(make, "draw_figure"):
        save_figure(make.draw_figure(read_tables(study)), STUDIES / study / "figure.png", hash_sources(study))


def save_figure(figure: Figure, path: Path, source: str) -> None:
    """Write a figure as a PNG file of few colours, with the checksum of what it was made from."""
    drawn, note = io.BytesIO(), PngInfo()
    figure.savefig(drawn, dpi=110)
    note.add_text("Source", source)
    Image.open(drawn).convert("RGB").quantize(48, dither=Image.Dither.NONE).save(path, pnginfo=note, optimize=True)


# --- what the make.py files use --------------------------------------------------------------------------------------


def percent(row: Mapping[str, float] | pd.Series, name: str) -> str:
    """Format a share and its interval, from the columns NAME, NAME_low and NAME_high, in percent."""
    return f"{100 * row[name]:.1f} [{100 * row[f'{name}_low']:.1f}, {100 * row[f'{name}_high']:.1f}]"


def number(row: Mapping[str, float] | pd.Series, name: str) -> str:
    """Format a number and its interval, from the columns NAME, NAME low and NAME high."""
    return f"{row[name]:.3f} [{row[f'{name} low']:.3f}, {row[f'{name} high']:.3f}]"


def measured(
    table: pd.DataFrame, run: str, condition: str, measure: str = "accuracy", epsilon: float | None = None
) -> pd.Series:
    """Return the row of one figure of a run on Test, from a table with a row for each figure."""
    rows = table[(table["run"] == run) & (table["split"] == "Test")]
    rows = rows[(rows["condition"] == condition) & (rows["measure"] == measure)]
    rows = rows if epsilon is None else rows[(rows["epsilon"] - epsilon).abs() < 1e-9]
    return rows.iloc[0]


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def join_intervals(table: pd.DataFrame) -> str:
    """Return a Markdown table in which the columns X, X low and X high are one."""
    table = table.astype(str).where(table.notna(), "-")
    head = [str(column) for column in table if not str(column).endswith((" low", " high"))]

    def show(row: pd.Series, column: str) -> str:
        low, high = (row.get(f"{column} {end}", "-") for end in ("low", "high"))
        return row[column] if "-" in (low, high) else f"{row[column]} [{low}, {high}]"

    return markdown(head, [[show(row, column) for column in head] for _, row in table.iterrows()])


def join_all_intervals(tables: Tables) -> dict[str, str]:
    """Return each file as a table of `join_intervals`."""
    return {name: join_intervals(table) for name, table in tables.items()}


Series = Sequence[tuple[float, float, float]]


def interval_figure(
    labels: Sequence[str], series: Mapping[str, Series], axis: str, limits: tuple[float, float]
) -> Figure:
    """Draw values with their intervals, a line of the figure for each label and a colour for each series."""
    figure = Figure(figsize=(7.2, 1.1 + 0.3 * len(labels)), layout="constrained")
    axes = figure.subplots()
    for index, (name, points) in enumerate(series.items()):
        shift = 0.16 * (index - (len(series) - 1) / 2)
        places = [place + shift for place in range(len(labels))]
        errors = [[v - low for v, low, _ in points], [high - v for v, _, high in points]]
        axes.errorbar(
            [v for v, _, _ in points],
            places,
            xerr=errors,
            fmt="osD^"[index],
            ms=4,
            lw=1.2,
            color=COLOURS[index],
            label=name,
        )
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(*limits)
    axes.set_xlabel(axis, fontsize=9)
    axes.grid(axis="x", color="#d1d5db", lw=0.5)
    if len(series) > 1:
        figure.legend(loc="outside upper center", ncols=len(series), fontsize=8, frameon=False)
    return figure


def percents(rows: Iterable[pd.Series], name: str) -> Series:
    """Return value and interval of a column of shares, in percent."""
    return [(100 * row[name], 100 * row[f"{name}_low"], 100 * row[f"{name}_high"]) for row in rows]


def main() -> None:
    """Build or check the studies that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="*")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    names = options.study or study_names()
    if options.check:
        stale = [name for name in names if not is_current(name)]
        sys.exit(f"older than their CSV files: {', '.join(stale)}. Run: python -m studies.build" if stale else 0)
    for name in names:
        build_study(name)


if __name__ == "__main__":
    main()
