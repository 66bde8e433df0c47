"""Figures of models with one sigmoid a finding: of each finding by itself, then their mean.

How far a score is above one finding's threshold ranks no image of another finding, and findings are not equally common:
pooled over findings an AUROC, an F1 or a balanced accuracy is of none of them. Predictions of such models have the
columns `finding` and `threshold`; images whose label of a finding is not known have no row of it.
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
    """Whether these are decisions on findings."""
    return "finding" in table and len(table) > 0


def _parts(table: "pd.DataFrame") -> Iterator[Rows]:
    """The rows of each finding, (N,)."""
    names = table["finding"].to_numpy(dtype=str)
    yield from (names == name for name in np.unique(names))


def has_both_labels(table: "pd.DataFrame") -> list[Rows]:
    """The rows of each finding that some of the images have and some have not: of no other can more be said than
    counts.

    A finding that none of a group's images has is "told" by saying so of every image.
    """
    labels = table["label"].to_numpy()
    return [rows for rows in _parts(table) if len(np.unique(labels[rows])) > 1]


def mean_over_findings(
    table: "pd.DataFrame", bootstrap: Bootstrap, measure: Measure, shape: tuple[int, ...] = ()
) -> Floats:
    """The mean over findings of what `measure` says of the rows of each, (R + 1, *shape); NaN where there are none.

    All findings are of the same resamples of patients. In a resample that has not both kinds of images of a finding the
    mean is over the others: of rare findings hardly any resample has them all.
    """
    parts = [measure(rows, bootstrap.select(rows)) for rows in has_both_labels(table)]
    values = np.array(parts) if parts else np.full((1, len(bootstrap.weights), *shape), np.nan)
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(finite, values, 0.0).sum(0) / finite.sum(0))


def auroc(table: "pd.DataFrame", bootstrap: Bootstrap) -> Floats:
    """The mean over findings of the area under the ROC curve of each, (R + 1,)."""
    scores, present = _margins(table), table["label"].to_numpy() == 1

    def area(rows: Rows, part: Bootstrap) -> Floats:
        return statistics.auroc(scores[rows], present[rows], part.row_weights())

    return mean_over_findings(table, bootstrap, area)


def constant_answer(table: "pd.DataFrame") -> float:
    """The accuracy of always giving the commonest answer to each finding; NaN without rows."""
    labels = table["label"].to_numpy(dtype=np.int64)
    return sum(int(np.bincount(labels[rows]).max()) for rows in _parts(table)) / len(table) if len(table) else np.nan


def calibration_totals(table: "pd.DataFrame", bootstrap: Bootstrap) -> Floats:
    """Summed bins (R + 1, bins of all findings, 3) whose calibration error is the mean of those of the findings.

    Of the probability that a finding is there as the model states it, wherever its threshold lies.
    """
    present = special.expit(_margins(table) + _cuts(table))
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
    """How far each score is above its finding's threshold, as a logit, (N,)."""
    logits = logits_of(table)
    return np.asarray(logits[:, 1] - logits[:, 0])


def _cuts(table: "pd.DataFrame") -> Floats:
    """The logits of the thresholds, (N,)."""
    values = table["threshold"].to_numpy(dtype=float)
    logits = {value: cut(value) for value in np.unique(values)}
    return np.array([logits[value] for value in values])
