"""Make the table of the six chosen networks, and a figure of all 27 runs."""

import pandas as pd
from matplotlib.figure import Figure
from studies.build import Tables, interval_figure, markdown, measured, percents

HEAD = ("network", "training", "clean", "FGSM", "PGD-20", "worst case", "infection energy", "lesion effect")


def chosen_networks(results: pd.DataFrame) -> list[str]:
    """Return the networks that were trained adversarially too, in the order of the table."""
    return [run.removesuffix("-fgsm-s0") for run in results["run"].unique() if run.endswith("-fgsm-s0")]


def make_row(tables: Tables, network: str, training: str) -> list[str]:
    """Return the row of one run."""
    results, effects = tables["results"], tables["lesion-effects"]
    run = f"{network}-{training}-s0"
    shown = [measured(results, run, name) for name in ("clean", "fgsm", "pgd", "worst-case")]
    cells = [f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" for row in shown]
    maps = results[(results["run"] == run) & (results["condition"] == "gradcam")]
    energy = maps[maps["measure"] == "infection_energy"]
    effect = effects[(effects["Model"].str.lower() == network) & (effects["Defence"] == training)].iloc[0]
    name = str(effect["Model"])
    for row in energy.to_dict("records"):
        cells.append(f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
    cells += ["no map"] * energy.empty
    low, high = effect["Lesion effect low"], effect["Lesion effect high"]
    return [name, training, *cells, f"{effect['Lesion effect']:.3f} [{low:.3f}, {high:.3f}]"]


def make_tables(tables: Tables) -> dict[str, str]:
    """Return the table of the six networks, each with both trainings."""
    names = chosen_networks(tables["results"])
    rows = [make_row(tables, name, training) for name in names for training in ("standard", "fgsm")]
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
