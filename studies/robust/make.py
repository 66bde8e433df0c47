"""Make the table and the figure of training with more images."""

import pandas as pd
from matplotlib.figure import Figure
from studies.build import Series, Tables, interval_figure, markdown

NAMES = {
    "more85": "two data sets",
    "more85-refit": "the same, and validation images",
    "more85-48": "two data sets, 48 pixels",
}
MEASURES = {"clean": "clean", "worst-case-30/300": "worst case at 0.02"}


def select(results: pd.DataFrame) -> pd.DataFrame:
    """Return the rows to show: means over seeds and ensembles."""
    return results[~results["network"].str.startswith("seed")]


def label(row: pd.Series) -> str:
    """Return what a row is."""
    return f"{NAMES[row['recipe']]}: {row['network']}"


def percents(rows: pd.DataFrame) -> Series:
    """Return values and intervals in percent."""
    return [tuple(100 * row[name] for name in ("value", "low", "high")) for _, row in rows.iterrows()]  # type: ignore[misc]


def make_tables(tables: Tables) -> dict[str, str]:
    """Return all rows, in percent."""
    results, rows = tables["results"], {}
    for _, row in results.iterrows():
        value, low, high = (100 * row[name] for name in ("value", "low", "high"))
        rows.setdefault(label(row), [label(row)]).append(f"{value:.1f} [{low:.1f}, {high:.1f}]")
    return {"results": markdown(("trained on", *MEASURES.values()), rows.values())}


def draw_figure(tables: Tables) -> Figure:
    """Draw the means over seeds and the ensembles."""
    shown = select(tables["results"])
    series = {name: percents(shown[shown["measure"] == measure]) for measure, name in MEASURES.items()}
    labels = [label(row) for _, row in shown[shown["measure"] == "clean"].iterrows()]
    return interval_figure(labels, series, "accuracy on 711 Test images, %", (60, 95))
