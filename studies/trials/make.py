"""Make the tables of trials, one for each study, and a figure of all."""

import pandas as pd
from matplotlib.figure import Figure
from studies.build import Tables, interval_figure, markdown


def order(results: pd.DataFrame) -> pd.DataFrame:
    """Return the trials with those of one study together."""
    return results.sort_values("study", kind="stable")


def show(row: pd.Series, name: str) -> str:
    """Return a figure of a row with its interval."""
    return f"{row[name]:.1f} [{row[f'{name}_low']:.1f}, {row[f'{name}_high']:.1f}]"


def main_figure(also: str) -> str:
    """Return the first of the other figures that has an interval."""
    return next((text for text in also.split("; ") if "[" in text), "")


def make_tables(tables: Tables) -> dict[str, str]:
    """Return the trials, study by study."""
    head = ("study", "trial", "what", "images", "clean", "attacked", "by", "also")
    lines = []
    for _, row in order(tables["results"].fillna("")).iterrows():
        figures = (show(row, "clean"), show(row, "attacked"), row["attack"], main_figure(row["also"]))
        lines.append((row["study"], row["trial"], row["what"], row["n"], *figures))
    return {"results": markdown(head, lines)}


def draw_figure(tables: Tables) -> Figure:
    """Draw clean and attacked accuracy of every trial."""
    rows = order(tables["results"])
    labels = [f"{row['study']}: {row['trial']}" for _, row in rows.iterrows()]
    points = {
        name: list(zip(*(rows[f"{name}{end}"] for end in ("", "_low", "_high")), strict=True))
        for name in ("clean", "attacked")
    }
    return interval_figure(labels, points, "accuracy (elsewhere: recall), %", (0, 100))
