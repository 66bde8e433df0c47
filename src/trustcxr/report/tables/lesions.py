"""The table of what the lesion does to the answer, beside what as much healthy lung or background does."""

from typing import Any

from trustcxr.report import words
from trustcxr.report.study_folder import Run
from trustcxr.report.tables.cells import Cell, Table, plain, whole

_FILLS = {"grey": "healthy grey", "mirror": "mirrored lung", "inpaint": "inpainted"}
_CONTROLS = {"lung": "healthy lung", "background": "background"}


def effects(runs: list[Run]) -> Table:
    """A row for each run, fill and control: probabilities before and after, the lesion effect, and flipped answers."""
    header = [
        "Model",
        "Defence",
        "Filled with",
        "Control",
        "Film as it is",
        "Lesion gone",
        "Control gone",
        "Whole gone",
    ]
    header += ["Lesion effect", "Answers that flip", "Left out", "n"]
    rows = [[*_names(run), *_cells(row)] for run in runs for row in words.records(run.metrics.get("lesions"))]
    return Table(header, rows, heads=4)


def by_size(runs: list[Run]) -> Table:
    """The lesion effect against healthy lung, filled with the healthy grey, by how much of the lungs it covers."""
    rows = []
    for run in runs:
        for row in words.records(run.metrics.get("lesions")):
            if (row.get("fill"), row.get("control")) != ("grey", "lung"):
                continue
            for part in words.records(row.get("by_size")):
                ends = [words.percent(part.get(end), 0) for end in ("above", "up_to")]
                effect = plain(part.get("effect"), 3, [part.get("low"), part.get("high")])
                rows.append([*_names(run), Cell(f"{ends[0]} to {ends[1]}"), effect, whole(part.get("films"))])
    return Table(["Model", "Defence", "Of the lungs", "Lesion effect", "n"], rows, heads=3)


def _names(run: Run) -> list[Cell]:
    return [Cell(run.model), Cell(run.defence, run.qualifier)]


def _cells(row: dict[str, Any]) -> list[Cell]:
    effect, ends = words.finite(row.get("effect")), row.get("effect_ci")
    known = [e for e in ends if words.finite(e) is not None] if isinstance(ends, list) else []
    note = "good" if len(known) == 2 and known[0] > 0 else "bad" if len(known) == 2 and known[1] < 0 else ""
    flips = f"control {words.percent(row.get('flipped_control'), 0)}"
    return [
        Cell(_FILLS.get(str(row.get("fill")), words.DASH)),
        Cell(_CONTROLS.get(str(row.get("control")), words.DASH)),
        *[plain(row.get(name)) for name in ("before", "without", "beside", "whole")],
        Cell(words.signed(effect), words.between(ends, reveal=True), "", effect, note),
        Cell(words.percent(row.get("flipped"), 0), flips, value=words.finite(row.get("flipped"))),
        whole(row.get("left_out")),
        whole(row.get("films")),
    ]
