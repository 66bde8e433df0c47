"""Make the table of five-fold cross-validation."""

from matplotlib.figure import Figure
from studies.build import Tables, interval_figure, markdown, percent, percents

COLUMNS = ("clean", "pgd", "worst_case")


def make_tables(tables: Tables) -> dict[str, str]:
    """Return a row for each network, with the worst and the best fold."""
    rows = [
        [
            f"`{row['run']}`",
            *(percent(row, column) for column in COLUMNS),
            f"{100 * row['worst_case_worst_fold']:.1f} to {100 * row['worst_case_best_fold']:.1f}",
        ]
        for _, row in tables["results"].iterrows()
    ]
    return {"results": markdown(("network", "clean", "PGD-20", "worst case", "worst case, fold by fold"), rows)}


def draw_figure(tables: Tables) -> Figure:
    """Draw the three accuracies of both networks."""
    rows = [row for _, row in tables["results"].iterrows()]
    labels = [str(row["run"]) for row in rows]
    series = {
        label: percents(rows, name) for label, name in zip(("clean", "PGD-20", "worst case"), COLUMNS, strict=True)
    }
    return interval_figure(labels, series, "accuracy on 4,503 images, each in a fold left out, %", (0, 100))
