"""Make the tables of three seeds and of nine ways to train, and the figure."""

import pandas as pd
from matplotlib.figure import Figure
from studies.build import Tables, interval_figure, markdown, percent, percents

COLUMNS = ("clean", "fgsm", "pgd", "worst_case")
NAMES = {
    "resnet10t-fgsm, 30 epochs of 3616 images": "`resnet10t`, epsilon 0.02",
    "resnet10t-fgsm, trained at epsilon 0.03, label smoothing 0.1, 30 epochs of 3616 images": (
        "`resnet10t`, epsilon 0.03, smoothed labels"
    ),
    "resnet10t-fgsm, trained at epsilon 0.03, label smoothing 0.1, anew with the images of validation, 30 epochs of "
    "4503 images": "the same, on validation images too",
    "evidence-fullx48-fgsm, 80 epochs of 904 images": "`evidence-fullx48`, 904 images",
    "evidence-fullx48-fgsm, 40 epochs of 1808 images": "`evidence-fullx48`, 1,808 images",
    "evidence-fullx48-fgsm, 20 epochs of 3616 images": "`evidence-fullx48`, 3,616 images",
}


def make_tables(tables: Tables) -> dict[str, str]:
    """Return the means of three seeds, and the nine ways to train."""
    means = tables["results"].query("seed == 'mean' and seeds == 3").set_index("row")
    rows = [[name, *(percent(means.loc[row], column) for column in COLUMNS)] for row, name in NAMES.items()]
    head = ("clean", "FGSM", "PGD-20", "worst case")
    return {
        "results": markdown(("network, trained by FGSM", *head), rows),
        "ways": markdown(("training", *head), _list_ways(tables["nine-ways"])),
    }


def _list_ways(results: pd.DataFrame) -> list[list[str]]:
    """Return a row for each way: the mean of its seeds, and the lowest and the highest of them."""
    at = results[results["epsilon"].isin((0.0, 0.02))]
    seeds = at.groupby(["training", "condition"])["value"].agg(["mean", "min", "max"]) * 100
    rows = []
    for training in seeds["mean"].xs("worst-case-20/50", level=1).sort_values(ascending=False).index:
        shown = [seeds.loc[(training, condition)] for condition in ("clean", "FGSM", "PGD-20", "worst-case-20/50")]
        rows.append([f"`{training}`", *(f"{one['mean']:.1f} ({one['min']:.1f} to {one['max']:.1f})" for one in shown)])
    return rows


def draw_figure(tables: Tables) -> Figure:
    """Draw clean and worst-case accuracy of the means of three seeds."""
    means = tables["results"].query("seed == 'mean' and seeds == 3").set_index("row")
    rows = [means.loc[row] for row in NAMES]
    series = {"clean": percents(rows, "clean"), "worst case at 0.02": percents(rows, "worst_case")}
    labels = [name.replace("`", "") for name in NAMES.values()]
    return interval_figure(labels, series, "accuracy on 711 Test images, mean of three seeds, %", (40, 100))
