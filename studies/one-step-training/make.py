"""Make the table and the figure of accuracy under FGSM and under PGD."""

from matplotlib.figure import Figure
from studies.build import Tables, interval_figure, markdown, measured, percents

ATTACKS = {"clean": "clean", "fgsm": "FGSM", "pgd": "PGD-20"}


def make_tables(tables: Tables) -> dict[str, str]:
    """Return a row for each run."""
    results, rows = tables["results"], []
    for run in results["run"].unique():
        shown = [measured(results, run, name) for name in ATTACKS]
        cells = [f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" for row in shown]
        rows.append([f"`{run.removesuffix('-s0')}`", *cells])
    return {"results": markdown(["network and training", *ATTACKS.values()], rows)}


def draw_figure(tables: Tables) -> Figure:
    """Draw the three accuracies of every run."""
    results = tables["results"]
    runs = list(results["run"].unique())
    series = {}
    for attack, label in ATTACKS.items():
        rows = [measured(results, run, attack).rename({"low": "value_low", "high": "value_high"}) for run in runs]
        series[label] = percents(rows, "value")
    return interval_figure(
        [run.removesuffix("-s0") for run in runs], series, "accuracy on 570 Test images, %", (0, 100)
    )
