"""Make the table and the figure of runs that were trained again."""

from matplotlib.figure import Figure
from studies.build import COLOURS, Tables, markdown

MEASURES = ("clean", "fgsm", "pgd", "worst-case", "certified")
STUDY = {"nine-ways": "robust-training, nine ways"}


def make_tables(tables: Tables) -> dict[str, str]:
    """Return each figure before and again."""
    rows = []
    for _, row in tables["results"].iterrows():
        low, high = row["before_low"], row["before_high"]
        interval = "" if low != low else f" [{100 * low:.1f}, {100 * high:.1f}]"
        study = STUDY.get(row["study"], row["study"])
        # The CSV file of a study may have four digits alone.
        before, again = f"{100 * row['before']:.1f}{interval}", f"{100 * round(row['again'], 4):.1f}"
        rows.append([study, f"`{row['run']}`", row["measure"], before, again])
    return {"results": markdown(("study", "run", "measure", "before", "again"), rows)}


def draw_figure(tables: Tables) -> Figure:
    """Draw each repeated figure against the one before."""
    results = tables["results"]
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="#9ca3af", lw=1)
    for measure, marker, colour in zip(MEASURES, "ovsD^", (*COLOURS, "#be123c"), strict=True):
        part = results[results["measure"] == measure]
        axes.plot(100 * part["before"], 100 * part["again"], marker, ms=5, color=colour, label=measure)
    axes.set(xlabel="accuracy in the study, percent", ylabel="accuracy of the repeated run, percent")
    axes.legend(frameon=False)
    return figure
