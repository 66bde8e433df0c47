"""Make the table of the six chosen networks, and a figure of all 27 runs."""

import pandas as pd
from matplotlib.figure import Figure
from studies.build import Tables, interval_figure, markdown, measured, percents

HEAD = ("network", "training", "clean", "FGSM", "PGD-20", "worst case", "infection energy", "lesion effect")


def make_row(results: pd.DataFrame, network: str, training: str) -> list[str]:
    """Return the row of one run."""
    rows = results[(results["network"] == network) & (results["training"] == training)]
    run, cells = rows["run"].iloc[0], []
    for condition in ("clean", "fgsm", "pgd", "worst-case"):
        row = measured(rows, run, condition)
        cells.append(f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]")
    for condition, measure in (("gradcam", "infection_energy"), ("clean", "lesion_effect")):
        found = rows[(rows["condition"] == condition) & (rows["measure"] == measure)]
        cells += [f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in found.itertuples()] or ["no map"]
    return [network, training, *cells]


def make_tables(tables: Tables) -> dict[str, str]:
    """Return the table of the networks that were trained adversarially too, with both trainings."""
    results = tables["results"]
    names = results[results["training"] == "fgsm"]["network"].unique()
    rows = [make_row(results, name, training) for name in names for training in ("standard", "fgsm")]
    return {"results": markdown(HEAD, rows)}


def draw_figure(tables: Tables) -> Figure:
    """Draw clean and worst-case accuracy of every run, the most accurate first."""
    results = tables["results"]
    order = results[
        (results["condition"] == "clean") & (results["measure"] == "accuracy") & (results["split"] == "Test")
    ]
    runs = list(order.sort_values("value", ascending=False)["run"])
    series = {}
    for label, condition in (("clean", "clean"), ("worst case at 0.02", "worst-case")):
        rows = [measured(results, run, condition) for run in runs]
        renamed = [row.rename({"low": "value_low", "high": "value_high"}) for row in rows]
        series[label] = percents(renamed, "value")
    labels = [run.removesuffix("-s0") for run in runs]
    return interval_figure(labels, series, "accuracy on 711 Test images, %", (0, 100))
