"""Make the tables of trials, one for each study, and a figure of all."""

import pandas as pd
from matplotlib.figure import Figure
from studies.build import Tables, interval_figure, markdown


def show(row: pd.Series, name: str) -> str:
    """Return a figure of a row with its interval."""
    return f"{row[name]:.1f} [{row[f'{name}_low']:.1f}, {row[f'{name}_high']:.1f}]"


def make_tables(tables: Tables) -> dict[str, str]:
    """Return the trials of each study."""
    head = ("trial", "what", "images", "clean", "attacked", "by", "also")
    made = {}
    for study, rows in tables["results"].fillna("").groupby("study"):
        lines = [
            (row["trial"], row["what"], row["n"], show(row, "clean"), show(row, "attacked"), row["attack"], row["also"])
            for _, row in rows.iterrows()
        ]
        made[str(study)] = markdown(head, lines)
    return made


def draw_figure(tables: Tables) -> Figure:
    """Draw clean and attacked accuracy of every trial."""
    rows = tables["results"].sort_values("study", kind="stable")
    labels = [f"{row['study']}: {row['trial']}" for _, row in rows.iterrows()]
    points = {
        name: list(zip(*(rows[f"{name}{end}"] for end in ("", "_low", "_high")), strict=True))
        for name in ("clean", "attacked")
    }
    return interval_figure(labels, points, "accuracy on validation images, %", (0, 100))
