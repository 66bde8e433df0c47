"""Build the tables of the lesion effect: the answer without the lesion, compared with controls."""

from trustcxr.report import formatting
from trustcxr.report.load import Run
from trustcxr.report.tables.table import Cell, Table, gained, plain, run_cells, whole
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import LesionDocument, Share

FILLS = {
    "grey": "healthy grey",
    "mirror": "mirrored lung",
    "inpaint": "inpainted",
    "drawn": "healthy greys, drawn",
    "transplant": "transplanted into a healthy image",
}


def effects(runs: list[Run]) -> Table:
    """Return a row per run, fill and control: probabilities, the lesion effect, and flipped answers."""
    header = ["Model", "Defence", "Filled with", "Control", "Original image", "Lesion removed", "Control removed"]
    header += ["Whole removed", "Lesion effect", "Answers that flip", "Left out", "n"]
    rows = [[*run_cells(run), *_cells(row)] for run in runs for row in run.metrics.lesions]
    return Table("Lesion effect", header, rows, heads=4)


def sampled(runs: list[Run]) -> bool:
    """Return True if anything was measured on a drawn sample alone."""
    rows = [row for run in runs for row in run.metrics.lesions]
    return any(row.condition != CLEAN or row.fill in ("inpaint", "transplant") for row in rows)


def by_size(runs: list[Run]) -> Table:
    """Return the lesion effect against healthy lung, filled with healthy grey, by the share of the lungs covered."""
    rows = []
    for run in runs:
        for row in run.metrics.lesions:
            if (row.fill, row.control, row.condition) == ("grey", "lung", CLEAN):
                for part in row.by_size:
                    ends = [formatting.percent(end, 0) for end in (part.above, part.up_to)]
                    effect = plain(Share(value=part.effect, ci=(part.low, part.high)))
                    rows.append([*run_cells(run), Cell(f"{ends[0]} to {ends[1]}"), effect, whole(part.images)])
    header = ["Model", "Defence", "Share of the lungs", "Lesion effect", "n"]
    return Table("Lesion effect by the size of the lesion", header, rows, heads=3)


def _cells(row: LesionDocument) -> list[Cell]:
    low, high = row.effect.interval or (0.0, 0.0)
    note = "good" if low > 0 else "bad" if high < 0 else ""
    if row.control == "background":  # a model that reads lung texture has an effect over this control too
        note = ""
    attack = f"under {formatting.attack(row.condition)}, epsilon {formatting.epsilon(row.epsilon)}"
    flips = f"control {formatting.percent(row.flipped_control, 0)}"
    return [
        Cell(FILLS.get(row.fill, formatting.DASH), "" if row.condition == CLEAN else attack),
        Cell({"lung": "healthy lung"}.get(row.control, row.control) or formatting.DASH),
        *[plain(value) for value in (row.before, row.without, row.beside, row.whole)],
        gained(row.effect, note=note),
        Cell(formatting.percent(row.flipped.value, 0), flips, value=row.flipped.value),
        whole(row.left_out),
        whole(row.images),
    ]
