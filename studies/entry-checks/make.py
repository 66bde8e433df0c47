"""Make the tables of masked models, and a figure of what their audits leave."""

import pandas as pd
from matplotlib.figure import Figure
from studies.build import Tables, markdown, percent


def make_tables(tables: Tables) -> dict[str, str]:
    """Return how many models each check found, and the audits of seven models of a larger network."""
    masked = tables["results"].query("model != 'none'")
    unsound = masked[~masked["sound"]]
    checks = unsound["failed checks"].dropna().str.split("; ").explode().value_counts()
    summary = [
        ("masked models", len(masked)),
        ("of these with a measurement that is not sound", len(unsound)),
        ("of these broken to their truth", int((masked["sound"] & ~masked["believed"]).sum())),
        ("of these believed", int(masked["believed"].sum())),
        *((f"failed the check *{name}*", count) for name, count in checks[checks >= 5].items()),
    ]
    larger = [
        [
            row["network"],
            percent(row, "clean"),
            f"{100 * row['plain_pgd']:.1f}",
            percent(row, "worst_case"),
            row["flagged"],
        ]
        for _, row in tables["covidqu-mini"].fillna({"flagged": "-"}).iterrows()
    ]
    head = ("network", "clean", "plain PGD", "worst case of the audit", "failed checks")
    return {"results": markdown(("what", "models"), summary), "larger": markdown(head, larger)}


def draw_figure(tables: Tables) -> Figure:
    """Draw what the audit reports against the truth, sound measurements apart."""
    results = tables["results"]
    shown = results[results["worst case"].notna() & results["worst case, truth"].notna()]
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="#9ca3af", lw=1)
    for sound, colour, marker in ((False, "#b45309", "o"), (True, "#0f766e", "D")):
        points: pd.DataFrame = shown[shown["sound"] == sound]
        label = "measurement sound" if sound else "measurement not sound"
        axes.scatter(
            100 * points["worst case, truth"], 100 * points["worst case"], c=colour, marker=marker, s=22, label=label
        )
    axes.set_xlabel("accuracy under an attack that knows the model, %")
    axes.set_ylabel("worst case of the audit, %")
    axes.legend(fontsize=8, frameon=False)
    return figure
