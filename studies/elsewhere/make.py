"""Make the table and the figure of the fall of accuracy on images of other hospitals."""

import pandas as pd
from matplotlib.figure import Figure
from studies.build import Tables, interval_figure, markdown, percent, percents

COLUMNS = ("at_home", "elsewhere", "fall", "pgd")
NAMES = {
    "robust, chosen without the hospital": "robust, chosen without the hospital",
    "standard, chosen without the hospital": "standard, chosen without the hospital",
    "evidence-fullx48-standard, 20 epochs of 3616 images": "`evidence-fullx48-standard`",
    "evidence-fullx48-fgsm, 20 epochs of 3616 images": "`evidence-fullx48-fgsm`",
    "evidence-fullx48-gate-fgsm, 20 epochs of 3616 images": "`evidence-fullx48-gate-fgsm`",
    "evidence-fullx48-guided-fgsm, 20 epochs of 3616 images": "`evidence-fullx48-guided-fgsm`",
    "evidence-fullx48-swap-fgsm, 20 epochs of 3616 images": "`evidence-fullx48-swap-fgsm`",
    "resnet10t-fgsm, 30 epochs of 3616 images": "`resnet10t-fgsm`",
}

TITLES = {"at home": "at home: Test of covidqu-midi", "all": "elsewhere: all five collections"}


def make_tables(tables: Tables) -> dict[str, str]:
    """Return accuracy at home and elsewhere; the choice has no figure under attack."""
    results = tables["results"].query("images == 'all'").set_index("run")
    rows = []
    for run, name in NAMES.items():
        row = results.loc[run]
        rows.append([name, *("-" if row.isna()[column] else percent(row, column) for column in COLUMNS)])
    head = ("network", "at home", "elsewhere", "fall in points", "elsewhere under PGD-20")
    return {"results": markdown(head, rows), "classes": table_of_classes(tables["classes"])}


def table_of_classes(shares: pd.DataFrame) -> str:
    """Return the share of each class that is recognised, by collection."""
    collections = [name for name in shares["collection"].unique() if name not in (*TITLES, "fall")]
    chosen = [("at home", "clean"), ("all", "clean"), ("all", "pgd"), *((name, "clean") for name in collections)]
    labels, rows = ("COVID-19", "Non-COVID", "Normal", "mean"), []
    for name, condition in chosen:
        part = shares[(shares["collection"] == name) & (shares["condition"] == condition)]
        cells = {row["class"]: f"{percent(row, 'value')} of {row['n']:.0f}" for _, row in part.iterrows()}
        title = TITLES.get(name, name.split(" (")[0].split("/")[-1]) + (", under PGD-20" if condition == "pgd" else "")
        rows.append([title, *(cells.get(label, "") for label in labels)])
    return markdown(("images", *labels[:3], "mean over classes"), rows)


def draw_figure(tables: Tables) -> Figure:
    """Draw accuracy at home and elsewhere."""
    results = tables["results"].query("images == 'all'").set_index("run")
    rows = [results.loc[run] for run in NAMES]
    series = {"at home": percents(rows, "at_home"), "other hospitals": percents(rows, "elsewhere")}
    labels = [name.replace("`", "") for name in NAMES.values()]
    return interval_figure(labels, series, "accuracy without an attack, mean of three seeds, %", (30, 100))
