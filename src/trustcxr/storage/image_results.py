"""Read from an audit's predictions which images it has right, as the strings of a leaderboard's entry."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from trustcxr.errors import UserError
from trustcxr.registry import WORST_CASE
from trustcxr.storage import atomic, layout
from trustcxr.storage.prediction_table import CLEAN, check_table, right
from trustcxr.storage.schemas import AuditDocument, ImageResults

if TYPE_CHECKING:
    import pandas as pd


def read_image_results(folder: Path, document: AuditDocument) -> ImageResults | None:
    """Return which images of an audit's folder are right; None if its table is missing or gives other figures.

    A model that answers at random has no such results: an image is right in a share of the draws.
    """
    path = folder / layout.PREDICTIONS_FILE
    if not path.is_file():
        return None
    try:
        table = atomic.read_table(path)
        check_table(table, path)
    except UserError:
        return None
    worst = document.largest_worst_case
    clean = table[table["attack"] == CLEAN].sort_values(["group", "sample_id"])
    attacked = table[table["attack"] == WORST_CASE]
    if worst is not None:
        attacked = attacked[(attacked["epsilon"] - (worst.epsilon or 0.0)).abs() < 1e-9]
    listed = "\n".join(f"{row.group}\t{row.sample_id}" for row in clean.itertuples())
    results = ImageResults(
        images=hashlib.sha256(listed.encode()).hexdigest(),
        new_group=_write_bits(clean["group"] != clean["group"].shift()),
        clean=_write_results(clean, clean),
        worst_case="" if worst is None else _write_results(attacked, clean),
    )
    return None if results.find_fault(document) else results


def _write_results(rows: "pd.DataFrame", images: "pd.DataFrame") -> str:
    answers = dict(zip(rows["sample_id"], _write_bits(right(rows)), strict=True))
    return "".join(answers.get(name, "-") for name in images["sample_id"])


def _write_bits(values: object) -> str:
    return "".join("1" if value else "0" for value in values)  # type: ignore[attr-defined]
