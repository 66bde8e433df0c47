"""Make the table and the figure of nine ways to train."""

import pandas as pd
from matplotlib.figure import Figure
from studies.build import Series, Tables, interval_figure, markdown

CONDITIONS = {"clean": "clean", "FGSM": "FGSM", "PGD-20": "PGD-20", "worst-case-20/50": "worst-case-20/50"}


def select(results: pd.DataFrame, training: str, condition: str) -> pd.Series:
    """Return the accuracies of the seeds of one training, clean or at epsilon 0.02."""
    rows = results[(results["training"] == training) & (results["condition"] == condition)]
    return rows.loc[rows["epsilon"].isin((0.0, 0.02)), "value"]


def make_tables(tables: Tables) -> dict[str, str]:
    """Return the mean of the seeds, with the lowest and the highest of them, in percent."""
    results = tables["results"]
    rows = []
    for training in results["training"].unique():
        values = [100 * select(results, training, condition) for condition in CONDITIONS]
        cells = [f"{seeds.mean():.1f} ({seeds.min():.1f} to {seeds.max():.1f})" for seeds in values]
        rows.append([f"`{training}`", *cells])
    return {"results": markdown(("training", *CONDITIONS.values()), rows)}


def draw_figure(tables: Tables) -> Figure:
    """Draw clean and worst-case accuracy: the mean of the seeds, the lowest and the highest."""
    results = tables["results"]
    trainings = list(results["training"].unique())

    def points(condition: str) -> Series:
        chosen = [100 * select(results, training, condition) for training in trainings]
        return [(seeds.mean(), seeds.min(), seeds.max()) for seeds in chosen]

    series = {"clean": points("clean"), "worst case at 0.02": points("worst-case-20/50")}
    return interval_figure(trainings, series, "accuracy on 711 Test images: mean and range of three seeds, %", (0, 100))
