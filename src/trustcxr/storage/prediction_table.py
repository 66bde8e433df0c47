"""Read the columns of predictions.parquet, check the table, and tell which images are right, for a leaderboard."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trustcxr.errors import UserError
from trustcxr.registry import ONE_STEP, WORST_CASE
from trustcxr.statistics import Floats
from trustcxr.storage import atomic, layout
from trustcxr.storage.schemas import AuditDocument, ImageResults

if TYPE_CHECKING:
    import pandas as pd

Condition = tuple[str, float, int, int]  # attack, view or corruption; epsilon, steps, severity
CLEAN = "clean"
RIGHT_SHARE = "right_share"  # column: share of draws that are right, of a model that answers at random
IMAGES = "data"  # column: fingerprint of the images
_ALWAYS = ("sample_id", "group", "split", "label", "attack", "epsilon", "steps", "severity", "logits")
_CONDITION = ("attack", "epsilon", "steps", "severity")
_NUMBERS = ("label", "epsilon", "steps", "severity")


def logits_of(table: "pd.DataFrame") -> Floats:
    """Return the logits column as an array (N, C)."""
    return np.stack([np.asarray(row, dtype=float) for row in table["logits"]]) if len(table) else np.zeros((0, 0))


def clean_answers(predictions: "pd.DataFrame") -> "pd.DataFrame":
    """Return, by sample, the unperturbed images' `label`, `answer` (an index of the classes) and `right`."""
    clean = predictions[predictions["attack"] == CLEAN].set_index("sample_id")
    answer = logits_of(clean).argmax(1) if len(clean) else np.zeros(0, int)
    return clean[["label"]].assign(answer=answer, right=answer == clean["label"].to_numpy())


def right(rows: "pd.DataFrame") -> NDArray[np.bool_]:
    """Return whether each row's answer is its label, (N,)."""
    return logits_of(rows).argmax(1) == rows["label"].to_numpy(dtype=np.int64)


def efforts_of(rows: "pd.DataFrame") -> dict[str, int]:
    """Return `steps` and `queries` of rows of one condition, as far as its attack has them."""
    first = rows.iloc[0]
    if first["attack"] in (CLEAN, *ONE_STEP):
        return {}
    return {name: int(first[name]) for name in ("steps", "queries") if name in rows and first[name] > 0}


def check_table(table: "pd.DataFrame", path: Path, classes: int | None = None) -> None:
    """Raise UserError if predictions are damaged. `classes`: their number; by default that of the logits."""
    if damage := next(_find_damage(table, classes), None):
        raise UserError(f"{path}: damaged: {damage}; restore it, or make it anew")


def _find_damage(table: "pd.DataFrame", classes: int | None) -> Iterator[str]:
    """Yield what is damaged; each check needs a table that the ones before it found whole."""
    import pandas as pd

    if missing := [name for name in _ALWAYS if name not in table]:
        yield f"no column {', '.join(missing)}"
    if not len(table):
        yield "no rows"
    if missing := [name for name in _ALWAYS if table[name].isna().any()]:
        yield f"rows without {', '.join(missing)}"
    if strange := [name for name in _NUMBERS if not pd.api.types.is_numeric_dtype(table[name])]:
        yield f"no numbers in {', '.join(strange)}"
    widths = {np.size(row) for row in table["logits"]}
    if len(widths) > 1 or (classes is not None and widths != {classes}):
        wanted = "as many in each row" if classes is None else f"{classes} in each row, as many as there are classes"
        yield f"{' and '.join(map(str, sorted(widths)))} logits in a row; expected {wanted}"
    try:
        lost = int(np.isnan(logits_of(table)).any(1).sum())
    except (TypeError, ValueError):
        yield "no numbers in logits"
    if lost:
        yield f"{lost} of {len(table)} rows hold NaN"
    labels = table["label"].to_numpy(dtype=float)
    if len(odd := labels[(labels != np.floor(labels)) | (labels < 0) | (labels >= max(widths))]):
        yield f"the label {odd[0]:g}, of {max(widths)} classes numbered from 0"
    names = table["sample_id"].astype(str)
    if twice := int(table.assign(sample_id=names).duplicated(["sample_id", *_CONDITION]).sum()):
        yield f"{twice} of {len(table)} rows there twice, of one image under one condition"
    if without := set(names) - set(names[table["attack"] == CLEAN]):
        yield f"{len(without)} images without a row of the image as it is, such as {min(without)}"


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


def _write_bits(values: Iterable[object]) -> str:
    return "".join("1" if value else "0" for value in values)
