"""How far readers agree beyond chance: Fleiss' kappa and Krippendorff's alpha, of every resample of images at once.

Everywhere: `ratings` (N images, R readers) are numbers, NaN where a reader gave none; `weights` (B, N) say how often
each image is in each resample (`statistics.Bootstrap.row_weights`), one row of ones unless given; results are (B,), NaN
where nothing can vary.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from trustcxr.statistics import Floats

Level = Literal["nominal", "ordinal", "interval"]


def fleiss_kappa(ratings: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Agreement on categories beyond what their shares give by chance (Fleiss 1971), of images that all readers rated.

    >>> from trustcxr.apps.reader.agreement import fleiss_kappa
    >>> fleiss_kappa([[1, 1, 1], [2, 2, 2], [1, 1, 2]]).round(3)
    array([0.55])
    """
    table, weight = _given(ratings, weights)
    whole = np.isfinite(table).all(axis=1)
    table, weight = table[whole], weight[:, whole]
    if not len(table):
        return np.full(len(weight), np.nan)
    readers = table.shape[1]
    counts = np.stack([(table == value).sum(axis=1) for value in np.unique(table)], axis=-1).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):  # one reader, or none, agrees with nobody
        agreeing = ((counts**2).sum(axis=1) - readers) / (readers * (readers - 1))
        observed = (weight @ agreeing) / weight.sum(axis=1)
        shares = (weight @ counts) / (weight.sum(axis=1, keepdims=True) * readers)
        expected = (shares**2).sum(axis=1)
        kappa: Floats = np.where(expected < 1 - 1e-12, (observed - expected) / (1 - expected), np.nan)
    return kappa


def krippendorff_alpha(ratings: ArrayLike, level: Level = "nominal", weights: ArrayLike | None = None) -> Floats:
    """1 less the disagreement observed over that expected by chance (Krippendorff 2011, computed by coincidences).

    Images with a single rating do not count; those with some missing do. `level` says what a difference is: all alike
    (nominal), by how many ratings lie between (ordinal), or squared (interval).

    >>> from trustcxr.apps.reader.agreement import krippendorff_alpha
    >>> krippendorff_alpha([[1, 1], [2, 3], [3, 3], [2, float("nan")]], "interval").round(3)
    array([0.75])
    """
    table, weight = _given(ratings, weights)
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


def _given(ratings: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, Floats]:
    table = np.asarray(ratings, dtype=float)
    return table, np.ones((1, len(table))) if weights is None else np.asarray(weights, dtype=float)


def _distances(values: Floats, totals: Floats, level: Level) -> Floats:
    """Squared differences (B, V, V) of the values; ordinal ones hang on how often each value is in the resample."""
    apart = np.ones((1, len(values), len(values))) - np.eye(len(values))
    if level == "nominal":
        return apart
    if level == "interval":
        return np.asarray((values[:, None] - values[None, :]) ** 2)[None]
    middles = np.cumsum(totals, axis=1) - totals / 2  # the middle of each value's ratings among all of them
    return np.asarray((middles[:, :, None] - middles[:, None, :]) ** 2)
