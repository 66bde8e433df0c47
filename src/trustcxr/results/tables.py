"""The columns of predictions.parquet: conditions, and the answer in a row."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trustcxr.statistics import Floats

if TYPE_CHECKING:
    import pandas as pd

Condition = tuple[str, float, int, int]  # attack, view or corruption; epsilon, steps, severity
CLEAN = "clean"


def logits_of(table: "pd.DataFrame") -> Floats:
    """The logits column as an array (N, C)."""
    return np.stack([np.asarray(row, dtype=float) for row in table["logits"]]) if len(table) else np.zeros((0, 0))


def severities(predictions: "pd.DataFrame") -> Any:
    """The severity of each row's corruption, 0 where there is none; tables from before corruptions have none."""
    return predictions["severity"].fillna(0) if "severity" in predictions else predictions["epsilon"] * 0


def clean_answers(predictions: "pd.DataFrame") -> "pd.DataFrame":
    """By sample, on the unperturbed images: `answer` (a place among the classes) and `right`."""
    clean = predictions[predictions["attack"] == CLEAN].set_index("sample_id")
    answer = logits_of(clean).argmax(1) if len(clean) else np.zeros(0, int)
    return clean[["label"]].assign(answer=answer, right=answer == clean["label"].to_numpy())


def right(rows: "pd.DataFrame") -> NDArray[np.bool_]:
    """Whether each row's answer is its label, (N,)."""
    return logits_of(rows).argmax(1) == rows["label"].to_numpy(dtype=np.int64)
