"""Two conditions of one table of predictions, compared image by image."""

from typing import TYPE_CHECKING

from trustcxr.evaluation.gradient_masking import Gap, from_intervals
from trustcxr.statistics import Bootstraps, interval
from trustcxr.storage.prediction_table import CLEAN, right
from trustcxr.storage.schemas import AttackResult

if TYPE_CHECKING:
    import pandas as pd


def gap(predictions: "pd.DataFrame", *, resamples: int = 2000) -> Gap:
    """The interval of accuracy under one row of metrics.json minus that under another, over the same images.

    By bootstrap over groups. Where the two were not measured on the same images, from their own intervals.
    """
    samples = Bootstraps(resamples=resamples)

    def between(first: AttackResult, second: AttackResult) -> tuple[float, float] | None:
        one, other = (_rows(predictions, row) for row in (first, second))
        if not len(one) or set(one["sample_id"]) != set(other["sample_id"]) or len(one) != len(other):
            return from_intervals(first, second)
        one, other = one.sort_values("sample_id"), other.sort_values("sample_id")
        difference = right(one).astype(float) - right(other).astype(float)
        low, high = interval(samples.over(one["group"]).means(difference))
        return low, high

    return between


def _rows(predictions: "pd.DataFrame", row: AttackResult) -> "pd.DataFrame":
    found = predictions[predictions["attack"] == row.attack]
    if row.attack == CLEAN:
        return found
    found = found[(found["epsilon"] - (row.epsilon or 0.0)).abs() < 1e-9]
    return found[found["steps"] == row.steps] if row.steps and "steps" in found else found
