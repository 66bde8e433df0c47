"""Make the table of trials and a figure of all."""

import re

import pandas as pd
from matplotlib.figure import Figure
from studies.build import Tables, interval_figure, markdown

USUAL = 887  # images of Val
NOT_SHOWN = ("mean-sparse 0", "mean-sparse 0.2", "mean-sparse 0.3", "short", "24 pixels", "40 pixels", "more85 seed 1")
NOT_SHOWN += ("more85 seed 2", "SABR 0.8", "clean share 0.1", "wide, 200 epochs", "covidqu-more")
NOT_SHOWN += (
    "60 epochs",
    "48 pixels, 60 epochs",
    "SABR 0.4",
    "80 pixels",
    "ensemble of 64 pixels",
    "20 epochs",
    "ensemble of 5",
    "distil",
)
NOT_SHOWN += ("mean-sparse 0.4", "resnet14t", "generated")
NOT_SHOWN += ("wide", "BatchNorm", "MTL-IBP 0.5", "grey, adults, seed 0", "grey, radiography, seed 0")


def order(results: pd.DataFrame) -> pd.DataFrame:
    """Return the trials with those of one study together."""
    return results.sort_values("study", kind="stable")


def show(row: pd.Series, name: str) -> str:
    """Return a figure of a row with its interval."""
    return f"{row[name]:.1f} [{row[f'{name}_low']:.1f}, {row[f'{name}_high']:.1f}]"


def main_figure(also: str) -> str:
    """Return the first of the other figures that has an interval; of a recall its difference alone."""
    text = next((text for text in also.split("; ") if "[" in text), "")
    text = re.sub(r" on [0-9]+ images \(.*", "", text)  # which fill is the least favourable is in the CSV file
    return re.sub(r"(clean|attacked) [0-9.]+ \(([^)]+)\)", r"\1 \2", text.removeprefix("recall "))


def make_tables(tables: Tables) -> dict[str, str]:
    """Return the trials, study by study."""
    head = ("study", "trial", "what", "clean", "attacked", "also")
    lines = []
    rows = order(tables["results"].fillna(""))
    for _, row in rows[~rows["trial"].isin(NOT_SHOWN)].iterrows():
        figures = (show(row, "clean"), show(row, "attacked"), main_figure(row["also"]))
        what, trial = row["what"].split(": recall")[0], row["trial"].removesuffix(", seed 0")
        what += f" ({row['n']} images)" if row["n"] != USUAL else ""
        lines.append((row["study"], trial, what, *figures))
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
