"""Make the table and the figure of runs that were trained again."""

import pandas as pd
from matplotlib.figure import Figure
from studies.build import COLOURS, Tables, markdown

MEASURES = {"clean": "clean", "fgsm": "FGSM", "pgd": "PGD-20", "worst-case": "worst case", "certified": "certified"}
STUDY = {"nine-ways": "robust-training, nine ways"}


def show(row: pd.Series) -> str:
    """Return a figure before, with its interval if the study's file has one, and again."""
    low, high = row["before_low"], row["before_high"]
    interval = "" if low != low else f" [{100 * low:.1f}, {100 * high:.1f}]"
    digits = 4 if row["before"] == round(row["before"], 4) else 6  # some studies' files have four digits
    return f"{100 * row['before']:.1f}{interval}; {100 * round(row['again'], digits):.1f}"


def make_tables(tables: Tables) -> dict[str, str]:
    """Return each run that differs, with its figures before and again."""
    rows = []
    for (study, run), figures in tables["results"].groupby(["study", "run"]):
        if (abs(figures["before"] - figures["again"]) < 1e-4).all():
            continue
        cells = {row["measure"]: show(row) for _, row in figures.iterrows()}
        rows.append([STUDY.get(study, study), f"`{run}`", *(cells.get(name, "") for name in MEASURES)])
    return {"results": markdown(("study", "run", *MEASURES.values()), rows)}


def draw_figure(tables: Tables) -> Figure:
    """Draw each repeated figure against the one before."""
    results = tables["results"]
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="#9ca3af", lw=1)
    for measure, marker, colour in zip(MEASURES, "ovsD^", (*COLOURS, "#be123c"), strict=True):
        part = results[results["measure"] == measure]
        axes.plot(100 * part["before"], 100 * part["again"], marker, ms=5, color=colour, label=MEASURES[measure])
    axes.set(xlabel="accuracy before, percent", ylabel="accuracy of the repeated run, percent")
    axes.legend(frameon=False)
    return figure
