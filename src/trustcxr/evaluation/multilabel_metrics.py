"""Compute metrics of models with one sigmoid per finding: of each finding alone, then their mean.

Pooled over findings, an AUROC, F1 or balanced accuracy belongs to none of them: thresholds and prevalence differ. Such
predictions have the columns `finding` and `threshold`. An image without a label for a finding has no row of it.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import special

from trustcxr import statistics
from trustcxr.evaluation import calibration
from trustcxr.evaluation.operating_points import cut
from trustcxr.statistics import Bootstrap, Floats
from trustcxr.storage.prediction_table import logits_of

if TYPE_CHECKING:
    import pandas as pd

Rows = NDArray[np.bool_]
Measure = Callable[[Rows, Bootstrap], Floats]


def has_findings(table: "pd.DataFrame") -> bool:
    """Return whether the table holds decisions on findings."""
    return "finding" in table and len(table) > 0


def _parts(table: "pd.DataFrame") -> Iterator[Rows]:
    """Yield the rows of each finding, (N,)."""
    names = table["finding"].to_numpy(dtype=str)
    yield from (names == name for name in np.unique(names))


def has_both_labels(table: "pd.DataFrame") -> list[Rows]:
    """Return the rows of each finding that is present in some images and absent in others; others allow counts only."""
    labels = table["label"].to_numpy()
    return [rows for rows in _parts(table) if len(np.unique(labels[rows])) > 1]


def mean_over_findings(
    table: "pd.DataFrame", bootstrap: Bootstrap, measure: Measure, shape: tuple[int, ...] = ()
) -> Floats:
    """Average `measure` over the rows of each finding, (R + 1, *shape); NaN without findings.

    All findings share the resamples of patients. A finding with one label only in a resample is left out there: with
    rare findings, hardly any resample has all of them.
    """
    parts = [measure(rows, bootstrap.select(rows)) for rows in has_both_labels(table)]
    values = np.array(parts) if parts else np.full((1, len(bootstrap.weights), *shape), np.nan)
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(finite, values, 0.0).sum(0) / finite.sum(0))


def auroc(table: "pd.DataFrame", bootstrap: Bootstrap) -> Floats:
    """Return the mean over findings of the area under the ROC curve, (R + 1,)."""
    scores, present = _margins(table), table["label"].to_numpy() == 1

    def area(rows: Rows, part: Bootstrap) -> Floats:
        return statistics.auroc(scores[rows], present[rows], part.row_weights())

    return mean_over_findings(table, bootstrap, area)


def constant_answer(table: "pd.DataFrame") -> float:
    """Return the accuracy of always giving the commonest answer to each finding; NaN without rows."""
    labels = table["label"].to_numpy(dtype=np.int64)
    return sum(int(np.bincount(labels[rows]).max()) for rows in _parts(table)) / len(table) if len(table) else np.nan


def calibration_totals(table: "pd.DataFrame", bootstrap: Bootstrap) -> Floats:
    """Return summed bins (R + 1, bins of all findings, 3), with the findings' mean calibration error.

    They are of the probability as the model states it, regardless of thresholds.
    """
    cuts = {value: cut(value) for value in table["threshold"].unique()}
    present = special.expit(_margins(table) + table["threshold"].map(cuts).to_numpy(dtype=float))
    shares = calibration.calibration_bins(np.stack([1 - present, present], axis=1), table["label"])
    parts = []
    for rows in _parts(table):
        sums = bootstrap.select(rows).totals(shares[rows])
        counts = sums[..., 2].sum(-1)[:, None, None]
        # A resample without an image of which this finding is known says of it what the sample does.
        weighed = np.divide(sums, counts, out=np.broadcast_to(sums[0] / counts[0], sums.shape).copy(), where=counts > 0)
        parts.append(weighed[:, sums[0, :, 2] > 0])
    return np.concatenate(parts, axis=1)


def _margins(table: "pd.DataFrame") -> Floats:
    """Return each score minus its finding's threshold, as a logit, (N,)."""
    logits = logits_of(table)
    return np.asarray(logits[:, 1] - logits[:, 0])
