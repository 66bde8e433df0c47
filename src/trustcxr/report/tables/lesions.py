"""The table of what the lesion does to the answer, beside what as much healthy lung or background does."""

from trustcxr.report import formatting
from trustcxr.report.load import Run
from trustcxr.report.tables.table import Cell, Table, gained, plain, run_cells, whole
from trustcxr.storage.schemas import LesionDocument, Share

FILLS = {"grey": "healthy grey", "mirror": "mirrored lung", "inpaint": "inpainted", "drawn": "healthy greys, drawn"}
TRANSPLANT = "transplant"
FILLS |= {TRANSPLANT: "put into a healthy image"}
CONTROLS = {"lung": "healthy lung", "background": "background", "healthy patch": "healthy patch"}


def effects(runs: list[Run]) -> Table:
    """A row for each run, fill and control: probabilities before and after, the lesion effect, and flipped answers."""
    header = [
        "Model",
        "Defence",
        "Filled with",
        "Control",
        "Image as it is",
        "Lesion gone",
        "Control gone",
        "Whole gone",
    ]
    header += ["Lesion effect", "Answers that flip", "Left out", "n"]
    rows = [[*run_cells(run), *_cells(row)] for run in runs for row in run.metrics.lesions]
    return Table("What removing the lesion does to the answer", header, rows, heads=4)


def sampled(runs: list[Run]) -> bool:
    """Whether anything was measured of a drawn sample alone."""
    return any(
        row.condition != "clean" or row.fill in ("inpaint", "transplant") for r in runs for row in r.metrics.lesions
    )


def by_size(runs: list[Run]) -> Table:
    """The lesion effect against healthy lung, filled with the healthy grey, by how much of the lungs it covers."""
    rows = []
    for run in runs:
        for row in run.metrics.lesions:
            if (row.fill, row.control, row.condition) != ("grey", "lung", "clean"):
                continue
            for part in row.by_size:
                ends = [formatting.percent(end, 0) for end in (part.above, part.up_to)]
                effect = plain(Share(value=part.effect, ci=(part.low, part.high)))
                rows.append([*run_cells(run), Cell(f"{ends[0]} to {ends[1]}"), effect, whole(part.images)])
    header = ["Model", "Defence", "Of the lungs", "Lesion effect", "n"]
    return Table("Lesion effect by the size of the lesion", header, rows, heads=3)


def _under(row: LesionDocument) -> str:
    """The attack that the images were under before; empty for images as they are."""
    if row.condition == "clean":
        return ""
    return f"under {formatting.attack(row.condition)}, epsilon {formatting.epsilon(row.epsilon)}"


def _cells(row: LesionDocument) -> list[Cell]:
    low, high = row.effect.interval or (0.0, 0.0)
    note = "good" if low > 0 else "bad" if high < 0 else ""
    if row.control == "background":  # whoever reads the texture of lungs has an effect beside it
        note = ""
    flips = f"control {formatting.percent(row.flipped_control, 0)}"
    return [
        Cell(FILLS.get(row.fill, formatting.DASH), _under(row)),
        Cell(CONTROLS.get(row.control, formatting.DASH)),
        *[plain(value) for value in (row.before, row.without, row.beside, row.whole)],
        gained(row.effect, note=note),
        Cell(formatting.percent(row.flipped.value, 0), flips, value=row.flipped.value),
        whole(row.left_out),
        whole(row.images),
    ]
