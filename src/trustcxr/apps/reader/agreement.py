"""Compute agreement of readers beyond chance, for all bootstrap resamples: Fleiss' kappa, Krippendorff's alpha.

ratings: (N images, R readers), NaN for a missing rating. weights: (B, N), how often each resample has each image
(`statistics.Bootstrap.row_weights`); default one row of ones. Results: (B,), NaN if nothing can vary.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from trustcxr.statistics import Floats

Level = Literal["nominal", "ordinal", "interval"]


def fleiss_kappa(ratings: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Return Fleiss' kappa (1971) of categories, for images that all readers rated.

    >>> from trustcxr.apps.reader.agreement import fleiss_kappa
    >>> fleiss_kappa([[1, 1, 1], [2, 2, 2], [1, 1, 2]]).round(3)
    array([0.55])
    """
    table, weight = _to_arrays(ratings, weights)
    whole = np.isfinite(table).all(axis=1)
    table, weight = table[whole], weight[:, whole]
    if not len(table):
        return np.full(len(weight), np.nan)
    readers = table.shape[1]
    counts = np.stack([(table == value).sum(axis=1) for value in np.unique(table)], axis=-1).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):  # with one reader there are no pairs
        agreeing = ((counts**2).sum(axis=1) - readers) / (readers * (readers - 1))
        observed = (weight @ agreeing) / weight.sum(axis=1)
        shares = (weight @ counts) / (weight.sum(axis=1, keepdims=True) * readers)
        expected = (shares**2).sum(axis=1)
        kappa: Floats = np.where(expected < 1 - 1e-12, (observed - expected) / (1 - expected), np.nan)
    return kappa


def krippendorff_alpha(ratings: ArrayLike, level: Level = "nominal", weights: ArrayLike | None = None) -> Floats:
    """Return Krippendorff's alpha (2011, by coincidences): 1 - observed / expected disagreement.

    Images with a single rating do not count. level: the difference of two ratings is equal for all (nominal), the
    number of ratings between them (ordinal), or their distance squared (interval).

    >>> from trustcxr.apps.reader.agreement import krippendorff_alpha
    >>> krippendorff_alpha([[1, 1], [2, 3], [3, 3], [2, float("nan")]], "interval").round(3)
    array([0.75])
    """
    table, weight = _to_arrays(ratings, weights)
    values = np.unique(table[np.isfinite(table)])
    if not len(values):
        return np.full(len(weight), np.nan)
    counts = np.stack([(table == value).sum(axis=1) for value in values], axis=-1).astype(float)
    rated = counts.sum(axis=1)
    usable = rated >= 2
    counts, rated, weight = counts[usable], rated[usable], weight[:, usable]
    pairs = counts[:, :, None] * counts[:, None, :]
    pairs[:, range(len(values)), range(len(values))] -= counts
    coincidences = np.tensordot(weight, pairs / (rated - 1)[:, None, None], axes=1)
    totals = coincidences.sum(axis=2)
    distance = _distances(values, totals, level)
    observed = (coincidences * distance).sum(axis=(1, 2))
    expected = (totals[:, :, None] * totals[:, None, :] * distance).sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        alpha: Floats = np.where(expected > 0, 1 - (totals.sum(axis=1) - 1) * observed / expected, np.nan)
    return alpha


def _to_arrays(ratings: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, Floats]:
    table = np.asarray(ratings, dtype=float)
    return table, np.ones((1, len(table))) if weights is None else np.asarray(weights, dtype=float)


def _distances(values: Floats, totals: Floats, level: Level) -> Floats:
    """Return squared differences (B, V, V) of the values. Ordinal ones depend on the counts in the resample."""
    apart = np.ones((1, len(values), len(values))) - np.eye(len(values))
    if level == "nominal":
        return apart
    if level == "interval":
        return np.asarray((values[:, None] - values[None, :]) ** 2)[None]
    middles = np.cumsum(totals, axis=1) - totals / 2  # mid-ranks
    return np.asarray((middles[:, :, None] - middles[:, None, :]) ** 2)
