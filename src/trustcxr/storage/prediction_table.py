"""Read the columns of predictions.parquet, and check the table."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trustcxr.errors import UserError
from trustcxr.registry import ONE_STEP
from trustcxr.statistics import Floats

if TYPE_CHECKING:
    import pandas as pd

Condition = tuple[str, float, int, int]  # attack, view or corruption; epsilon, steps, severity
CLEAN = "clean"
RIGHT_SHARE = "right_share"  # column: share of draws that are right, of a model that answers at random
IMAGES = "data"  # column: fingerprint of the images
_ALWAYS = ("sample_id", "group", "split", "label", "attack", "epsilon", "steps", "severity", "logits")
_NUMBERS = ("label", "epsilon", "steps", "severity")


def logits_of(table: "pd.DataFrame") -> Floats:
    """Return the logits column as an array (N, C)."""
    return np.stack([np.asarray(row, dtype=float) for row in table["logits"]]) if len(table) else np.zeros((0, 0))


def severities(predictions: "pd.DataFrame") -> Any:
    """Return the severity of each row's corruption, 0 if it has none."""
    return predictions["severity"].fillna(0)


def clean_answers(predictions: "pd.DataFrame") -> "pd.DataFrame":
    """Return, by sample, the unperturbed images' `label`, `answer` (an index of the classes) and `right`."""
    clean = predictions[predictions["attack"] == CLEAN].set_index("sample_id")
    answer = logits_of(clean).argmax(1) if len(clean) else np.zeros(0, int)
    return clean[["label"]].assign(answer=answer, right=answer == clean["label"].to_numpy())


def right(rows: "pd.DataFrame") -> NDArray[np.bool_]:
    """Return whether each row's answer is its label, (N,)."""
    return logits_of(rows).argmax(1) == rows["label"].to_numpy(dtype=np.int64)


def conditions_of(table: "pd.DataFrame") -> list[Condition]:
    """Return the condition of every row."""
    columns = (table["attack"], table["epsilon"], table["steps"].fillna(0), table["severity"].fillna(0))
    return [(str(a), float(e), int(s), int(v)) for a, e, s, v in zip(*columns, strict=True)]


def efforts_of(rows: "pd.DataFrame") -> dict[str, int]:
    """Return `steps` and `queries` of rows of one condition, as far as its attack has them."""
    first = rows.iloc[0]
    if first["attack"] in (CLEAN, *ONE_STEP):
        return {}
    return {name: int(first[name]) for name in ("steps", "queries") if name in rows and first[name] > 0}


def check_table(table: "pd.DataFrame", path: Path, classes: int | None = None) -> None:
    """Raise UserError if predictions are damaged. `classes`: their number; by default that of the logits."""
    if damage := _find_damage(table, classes):
        raise UserError(f"{path}: damaged: {damage}; restore it, or make it anew")


def _find_damage(table: "pd.DataFrame", classes: int | None) -> str | None:
    import pandas as pd

    if missing := [name for name in _ALWAYS if name not in table]:
        return f"no column {', '.join(missing)}"
    if not len(table):
        return "no rows"
    if missing := [name for name in _ALWAYS if table[name].isna().any()]:
        return f"rows without {', '.join(missing)}"
    if strange := [name for name in _NUMBERS if not pd.api.types.is_numeric_dtype(table[name])]:
        return f"no numbers in {', '.join(strange)}"
    if wrong := _wrong_answers(table, classes):
        return wrong
    names, conditions = table["sample_id"].astype(str), pd.Series(conditions_of(table), index=table.index)
    if twice := int(pd.DataFrame({"image": names, "condition": conditions}).duplicated().sum()):
        return f"{twice} of {len(table)} rows there twice, of one image under one condition"
    if lost := set(names) - set(names[table["attack"] == CLEAN]):
        return f"{len(lost)} images without a row of the image as it is, such as {min(lost)}"
    return None


def _wrong_answers(table: "pd.DataFrame", classes: int | None) -> str | None:
    widths = {np.size(row) for row in table["logits"]}
    if len(widths) > 1 or (classes is not None and widths != {classes}):
        wanted = "as many in each row" if classes is None else f"{classes} in each row, as many as there are classes"
        return f"{' and '.join(map(str, sorted(widths)))} logits in a row; expected {wanted}"
    try:
        lost = int(np.isnan(logits_of(table)).any(1).sum())
    except (TypeError, ValueError):
        return "no numbers in logits"
    if lost:
        return f"{lost} of {len(table)} rows hold NaN"
    count, labels = widths.pop(), table["label"].to_numpy(dtype=float)
    strange = labels[(labels != np.floor(labels)) | (labels < 0) | (labels >= count)]
    return f"the label {strange[0]:g}, of {count} classes numbered from 0" if len(strange) else None
