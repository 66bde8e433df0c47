"""Compute ROC and precision-recall curves in every resample."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trustcxr.statistics import Floats

FALSE_POSITIVES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
RECALLS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
_CHUNK = 64  # resamples at a time


@dataclass(frozen=True)
class Curves:
    """In each resample: `sensitivity` (R, len(FALSE_POSITIVES)), `precision` (R, len(RECALLS)), `average_precision`."""

    sensitivity: Floats
    precision: Floats
    average_precision: Floats


def curves(scores: ArrayLike, positive: ArrayLike, weights: ArrayLike) -> Curves:
    """Return the curves of `scores` (N,) against `positive` (N,) bool, with row `weights` (R, N).

    Sensitivity is the highest of any threshold with at most that share of false positives. Precision is that of the
    highest threshold that reaches the recall. Nothing is interpolated. Average precision sums precision over steps of
    recall, as in scikit-learn. NaN if a resample has only positive rows, or none.
    """
    score, is_positive, weight = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool), np.asarray(weights)
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True)) if len(score) else np.zeros(0, np.intp)
    parts = [
        _chunk(weight[first : first + _CHUNK][:, order].astype(float), is_positive[order], ends)
        for first in range(0, len(weight), _CHUNK)
    ]
    return Curves(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _chunk(weights: Floats, positive: NDArray[np.bool_], ends: NDArray[np.intp]) -> tuple[Floats, Floats, Floats]:
    none = np.zeros((len(weights), 1))
    hits, alarms = (np.cumsum(weights * counted, axis=1)[:, ends] for counted in (positive, ~positive))
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.hstack([none, hits / hits[:, -1:]]) if len(ends) else none * np.nan
        false = np.hstack([none, alarms / alarms[:, -1:]]) if len(ends) else none * np.nan
        precision = np.hstack([none + 1, hits / (hits + alarms)]) if len(ends) else none * np.nan
    average = np.nansum(np.diff(recall, axis=1) * precision[:, 1:], axis=1)
    average[~np.isfinite(recall[:, -1]) | ~np.isfinite(false[:, -1])] = np.nan
    sensitivity = np.full((len(weights), len(FALSE_POSITIVES)), np.nan)
    precise = np.full((len(weights), len(RECALLS)), np.nan)
    for row in np.flatnonzero(np.isfinite(recall[:, -1]) & np.isfinite(false[:, -1])):
        sensitivity[row] = recall[row][np.searchsorted(false[row], np.array(FALSE_POSITIVES) + 1e-12, "right") - 1]
        precise[row] = precision[row][np.searchsorted(recall[row], np.array(RECALLS) - 1e-12, "left")]
    return sensitivity, precise, average
