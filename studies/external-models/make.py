"""Make the tables of the external models, and the figure."""

import pandas as pd
from matplotlib.figure import Figure
from studies.build import COLOURS, Tables, markdown, percent

HEAD = ("model", "clean", "balanced", "lungs hidden", "corrupted", "worst case", "measurement", "min")
TITLES = {"covidqu-midi": "711 images of covidqu-midi", "external-cxr": "325 images of external-cxr"}
SERIES = (("clean", "unperturbed"), ("lungs_hidden", "lungs hidden"), ("worst_0.02", "worst case"))


def make_tables(tables: Tables) -> dict[str, str]:
    """Return a table for each data set, the highest clean accuracy first, and the constant answer last."""
    results = tables["results"].merge(tables["times"], on=["model", "data"])
    made = {}
    for data, name in (("covidqu-midi", "midi"), ("external-cxr", "external")):
        rows = results[results["data"] == data].sort_values("clean", ascending=False)
        made[name] = markdown(HEAD, [*(_cells(row) for _, row in rows.iterrows()), _constant(rows.iloc[0])])
    return made


def _cells(row: pd.Series) -> list[str]:
    figures = [percent(row, name) for name in ("clean", "balanced", "lungs_hidden", "corrupted", "worst_0.02")]
    minutes = f"{row['processor_seconds'] / 60:.1f}"
    return [str(row["model"]), *figures, "sound" if row["sound"] else "not sound", minutes]


def _constant(row: pd.Series) -> list[str]:
    """Return the accuracy of the commonest class: on all images, and on those with a lung mask."""
    shares = [f"{100 * row[name]:.1f}" for name in ("constant", "constant_hidden")]
    return ["always the commonest class", shares[0], "", shares[1], *[""] * 4]


def draw_figure(tables: Tables) -> Figure:
    """Draw accuracy unperturbed, with the lungs hidden and in the worst case, a panel for each data set."""
    results = tables["results"]
    names = list(results[results["data"] == "covidqu-midi"].sort_values("clean", ascending=False)["model"])
    figure = Figure(figsize=(8.6, 1.3 + 0.34 * len(names)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (data, title) in zip(panels, TITLES.items(), strict=True):
        part = results[results["data"] == data].set_index("model").reindex(names)
        for index, (column, label) in enumerate(SERIES):
            values, low, high = (100 * part[column + end] for end in ("", "_low", "_high"))
            places = [place + 0.2 * (index - 1) for place in range(len(names))]
            axes.errorbar(
                values,
                places,
                xerr=[values - low, high - values],
                fmt="osD"[index],
                ms=4,
                lw=1.2,
                color=COLOURS[index],
                label=label if data == "covidqu-midi" else None,
            )
        axes.axvline(100 * float(part["constant"].dropna().iloc[0]), color="#9ca3af", lw=1, ls=":")
        axes.set_title(title, fontsize=9)
        axes.set_xlim(0, 100)
        axes.set_xlabel("accuracy, %; dotted: always the commonest class", fontsize=8)
        axes.grid(axis="x", color="#d1d5db", lw=0.5)
    panels[0].set_yticks(range(len(names)), names, fontsize=8)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return figure
