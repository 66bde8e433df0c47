"""Make the tables of three seeds and of nine ways to train, and the figure."""

from matplotlib.figure import Figure
from studies.build import Tables, interval_figure, markdown, measured, percent, percents

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
    """Return the means of three seeds, and the nine ways of one seed."""
    means = tables["results"].query("seed == 'mean' and seeds == 3").set_index("row")
    rows = [[name, *(percent(means.loc[row], column) for column in COLUMNS)] for row, name in NAMES.items()]
    ways = tables["nine-ways"]
    one_seed = []
    for run in ways["run"].unique():
        shown = [measured(ways, run, "clean")]
        shown += [measured(ways, run, attack, epsilon=0.02) for attack in ("fgsm", "pgd", "worst-case")]
        cells = [f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" for row in shown]
        one_seed.append([f"`{run.removeprefix('resnet18-').removesuffix('-s0')}`", *cells])
    head = ("clean", "FGSM", "PGD-20", "worst case")
    return {
        "results": markdown(("network, trained by FGSM", *head), rows),
        "ways": markdown(("training", *head), one_seed),
    }


def draw_figure(tables: Tables) -> Figure:
    """Draw clean and worst-case accuracy of the means of three seeds."""
    means = tables["results"].query("seed == 'mean' and seeds == 3").set_index("row")
    rows = [means.loc[row] for row in NAMES]
    series = {"clean": percents(rows, "clean"), "worst case at 0.02": percents(rows, "worst_case")}
    labels = [name.replace("`", "") for name in NAMES.values()]
    return interval_figure(labels, series, "accuracy on 711 Test images, mean of three seeds, %", (40, 100))
