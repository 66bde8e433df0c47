"""Make the table and the figure of certified accuracy."""

from matplotlib.figure import Figure
from studies.build import Tables, interval_figure, markdown, percent, percents

COLUMNS = ("clean", "certified", "worst_case")


def make_tables(tables: Tables) -> dict[str, str]:
    """Return the means over the seeds at each epsilon."""
    means = tables["results"].query("seed == 'mean'")
    rows = [
        [
            f"`{row['network']}`",
            row["epsilon"],
            *(percent(row, column) for column in COLUMNS),
            f"{100 * row['balanced_certified']:.1f}",
        ]
        for _, row in means.iterrows()
    ]
    head = ("network", "epsilon", "clean", "certified", "worst case", "certified, mean over classes")
    return {"results": markdown(head, rows)}


def draw_figure(tables: Tables) -> Figure:
    """Draw what is proved and what attacks leave."""
    means = [row for _, row in tables["results"].query("seed == 'mean'").iterrows()]
    labels = [f"{row['network']}, epsilon {row['epsilon']:g}" for row in means]
    series = {"certified": percents(means, "certified"), "worst case": percents(means, "worst_case")}
    return interval_figure(labels, series, "accuracy on 711 Test images, mean of five seeds, %", (50, 85))
