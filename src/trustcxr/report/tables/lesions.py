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


def reported(runs: list[Run]) -> Table:
    """Return a row per run: the least lesion effect by any fill, and the fall of images without a control."""
    rows = []
    for run in runs:
        if (row := run.metrics.lesion_effect) is None:
            continue
        alone = next((r.without_control for r in run.metrics.lesions if r.fill == row.fill and r.without_control), None)
        cells = [gained(row.least, note=_note(row.least)), *_fill_cells(row), whole(row.images)]
        cells += [plain(alone.fall), whole(alone.images)] if alone else [Cell(formatting.DASH)] * 2
        rows.append([*run_cells(run), *cells])
    header = ["Model", "Defence", "Least lesion effect", "Filled with", "Control", "n"]
    header += ["Fall without a control", "n without a control"]
    return Table("Least lesion effect", header, rows, heads=2)


def effects(runs: list[Run]) -> Table:
    """Return a row per run, fill and control: probabilities, the lesion effect, and flipped answers."""
    header = ["Model", "Defence", "Filled with", "Control", "Original image", "Lesion removed", "Control removed"]
    header += ["Whole removed", "Lesion effect", "Fall", "Smaller of both", "Answers that flip", "Left out", "n"]
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


def _note(effect: Share) -> str:
    low, high = effect.interval or (0.0, 0.0)
    return "good" if low > 0 else "bad" if high < 0 else ""


def _fill_cells(row: LesionDocument) -> list[Cell]:
    attack = f"under {formatting.attack(row.condition)}, epsilon {formatting.epsilon(row.epsilon)}"
    return [
        Cell(FILLS.get(row.fill, formatting.DASH), "" if row.condition == CLEAN else attack),
        Cell({"lung": "healthy lung"}.get(row.control, row.control) or formatting.DASH),
    ]


def _cells(row: LesionDocument) -> list[Cell]:
    # A model that reads lung texture has an effect over a control in the background too.
    note = "" if row.control == "background" else _note(row.least)
    flips = f"control {formatting.percent(row.flipped_control, 0)}"
    return [
        *_fill_cells(row),
        *[plain(value) for value in (row.before, row.without, row.control_answer, row.whole)],
        gained(row.effect),
        gained(row.fall),
        gained(row.least, note=note),
        Cell(formatting.percent(row.flipped.value, 0), flips, value=row.flipped.value),
        whole(row.left_out),
        whole(row.images),
    ]
