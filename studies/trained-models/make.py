"""Make the tables and the figure of the trained models."""

import pandas as pd
from matplotlib.figure import Figure
from studies.build import Series, Tables, interval_figure, markdown

NAMES = ("covid-robust", "covid-certified", "covid-evidence", "covid-standard")
ACCURACIES = ("clean, exam-1", "worst-case, exam-1", "worst-case-100/5000", "certified, exam-1")


def find_row(results: pd.DataFrame, model: str, measure: str) -> pd.Series | None:
    """Return the row of a figure; of lesion effects the fill with the smallest, of all images."""
    rows = results[(results["model"] == model) & (results["measure"] == measure) & (results["fill"] != "inpaint")]
    return None if rows.empty else rows.loc[rows["value"].idxmin()]


def make_tables(tables: Tables) -> dict[str, str]:
    """Return accuracies in percent, and effects of the lesion as differences of probability."""
    results = tables["results"]
    accuracies, effects = [], []
    for model in NAMES:
        found = [find_row(results, model, measure) for measure in ACCURACIES]
        accuracies.append([f"`{model}`", *("-" if row is None else _cell(row, 100, 1) for row in found)])
        pair = [find_row(results, model, name) for name in ("lesion effect", "fall without a control")]
        if pair[0] is not None:
            effects.append([f"`{model}`", *(f"{_cell(row, 1, 3)} ({row['n']:.0f})" for row in pair if row is not None)])
    head = ("model", "clean", "worst-case-20/50", "worst-case-100/5000", "certified")
    return {
        "accuracy": markdown(head, accuracies),
        "lesion": markdown(("model", "lesion effect (images)", "fall without a control (images)"), effects),
    }


def _cell(row: pd.Series, factor: int, digits: int) -> str:
    value, low, high = (f"{factor * row[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def draw_figure(tables: Tables) -> Figure:
    """Draw clean and worst-case accuracy of each model."""
    results = tables["results"]

    def points(measure: str) -> Series:
        rows = [find_row(results, model, measure) for model in NAMES]
        return [(100 * row["value"], 100 * row["low"], 100 * row["high"]) for row in rows if row is not None]

    series = {"clean": points(ACCURACIES[0]), "worst case at 0.02": points(ACCURACIES[1])}
    return interval_figure(NAMES, series, "accuracy on 711 Test images, %", (0, 100))
