"""Build confusion matrices: clean from the metrics, under the strongest attack from the predictions."""

from collections.abc import Sequence

from trustcxr.report import formatting
from trustcxr.report.load import Run
from trustcxr.report.ranking import Headline
from trustcxr.report.tables.table import Cell, Table

SHADE = 0.7  # largest opacity, so that black text is readable
RIGHT, WRONG = "31,78,121", "179,38,30"


def shaded(colour: str, share: float) -> str:
    """Return a CSS background: the colour, as opaque as a share of one."""
    return f"rgba({colour},{SHADE * share:.3f})"


def matrices(run: Run, head: Headline) -> list[Table]:
    """Return the matrices of a run: clean, and under the headline's strongest attack."""
    classes = list(run.metrics.classes or head.classes)
    clean = run.clean.confusion
    tables = []
    if classes and [len(row) for row in clean] == [len(classes)] * len(classes):
        tables.append(_matrix(run, "clean", classes, clean))
    if attacked := under_attack(run, head, len(classes)):
        assert head.strongest is not None  # else there are no counts
        tables.append(_matrix(run, f"{head.strongest.name} at {formatting.epsilon(head.epsilon)}", classes, attacked))
    return tables


def under_attack(run: Run, head: Headline, classes: int) -> list[list[int]] | None:
    """Return (C, C) counts, rows true, under the headline's strongest attack; None without predictions.parquet."""
    import numpy as np

    entry = run.attacked(head.strongest or "", head.epsilon)
    if head.epsilon is None or not entry.attack:
        return None
    table = run.predictions()
    if table is None:
        return None
    rows = table[(table["attack"] == entry.attack) & ((table["epsilon"] - head.epsilon).abs() < 1e-6)]
    rows = rows[rows["steps"] == entry.steps] if entry.steps else rows
    split = run.metrics.split
    rows = rows[rows["split"] == split] if split else rows
    if rows.empty:
        return None
    predicted, labels = np.stack(rows["logits"].to_list()).argmax(axis=1), rows["label"].to_numpy()
    counts = np.zeros((classes, classes), dtype=int)
    inside = (predicted < classes) & (labels < classes)
    np.add.at(counts, (labels[inside], predicted[inside]), 1)
    return counts.tolist()


def _matrix(run: Run, condition: str, classes: list[str], counts: Sequence[Sequence[int]]) -> Table:
    rows = []
    for i, (name, row) in enumerate(zip(classes, counts, strict=True)):
        shares = [value / (sum(row) or 1) for value in row]
        cells = [
            Cell(formatting.count(value), formatting.percent(share, 0), shade=shaded(RIGHT if i == j else WRONG, share))
            for j, (value, share) in enumerate(zip(row, shares, strict=True))
        ]
        rows.append([Cell(name), *cells])
    caption = f"{condition}, n = {formatting.count(sum(map(sum, counts)))}"
    return Table(f"Confusion matrix, {run.label}, {condition}", ["", *classes], rows, caption=caption)
