"""Compute which map readers prefer (Bradley-Terry strengths from ranks), and their agreement beyond chance.

Agreement (Fleiss' kappa, Krippendorff's alpha) is computed for all bootstrap resamples at once. ratings: (N images, R
readers), NaN for a missing rating. weights: (B, N), how often each resample has each image
(`statistics.Bootstrap.row_weights`); default one row of ones. Results: (B,), NaN if nothing can vary.
"""

from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from trustcxr.statistics import Bootstrap, Floats, holm, interval, share_interval, sign_flip

Level = Literal["nominal", "ordinal"]


def fleiss_kappa(ratings: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Return Fleiss' kappa (1971) of categories, for images that all readers rated.

    >>> from trustcxr.apps.reader.reader_statistics import fleiss_kappa
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

    Images with a single rating do not count. level: the difference of two ratings is equal for all (nominal), or the
    number of ratings between them, squared (ordinal).

    >>> from trustcxr.apps.reader.reader_statistics import krippendorff_alpha
    >>> krippendorff_alpha([[1, 1], [2, 3], [3, 3], [2, float("nan")]]).round(3)
    array([0.545])
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
    if level == "nominal":
        distance = 1 - np.eye(len(values))
    else:
        middles = np.cumsum(totals, axis=1) - totals / 2  # mid-ranks in each resample
        distance = (middles[:, :, None] - middles[:, None, :]) ** 2
    observed = (coincidences * distance).sum(axis=(1, 2))
    expected = (totals[:, :, None] * totals[:, None, :] * distance).sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        alpha: Floats = np.where(expected > 0, 1 - (totals.sum(axis=1) - 1) * observed / expected, np.nan)
    return alpha


def _to_arrays(ratings: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, Floats]:
    table = np.asarray(ratings, dtype=float)
    return table, np.ones((1, len(table))) if weights is None else np.asarray(weights, dtype=float)


HALF_A_WIN = 0.5  # added each way to each pair: keeps the strength of an arm that always wins finite
_ROUNDS, _CLOSE = 500, 1e-10


class Strength(NamedTuple):
    """One arm: mean probability that it is preferred to another arm; log-strength (the arms' sum is 0)."""

    preferred: float
    preferred_ci: list[float]
    log_strength: float
    log_strength_ci: list[float]


class Pair(NamedTuple):
    """Probability that `first` is preferred to `second`, with a p-value corrected for all pairs (Holm 1979).

    images: number of images on which both were ranked.
    """

    first: int
    second: int
    preferred: float
    preferred_ci: list[float]
    p_value: float
    images: int


def count_wins(ranks: ArrayLike) -> Floats:
    """Count how often arm i was ranked before arm j, (F, A, A), from ranks (F images, R readers, A arms).

    1 is the best rank, NaN a missing one. Equal ranks count half a win each.
    """
    table = np.asarray(ranks, dtype=float)
    before = table[..., :, None] < table[..., None, :]
    level = (table[..., :, None] == table[..., None, :]) & ~np.eye(table.shape[-1], dtype=bool)
    return np.asarray((before + 0.5 * level).sum(axis=1), dtype=float)


def bradley_terry(win_counts: ArrayLike) -> Floats:
    """Return log-strengths (B, A), summing to 0, from win counts (B, A, A), by MM (Hunter 2004).

    HALF_A_WIN each way is added to each pair.

    >>> import numpy as np
    >>> from trustcxr.apps.reader.reader_statistics import bradley_terry
    >>> bradley_terry(np.array([[[0, 29.5], [9.5, 0]]])).round(2)  # log(30 / 10), halved
    array([[ 0.55, -0.55]])
    """
    table = np.asarray(win_counts, dtype=float)
    table = table + HALF_A_WIN * (1 - np.eye(table.shape[-1]))
    total, met = table.sum(axis=2), table + table.transpose(0, 2, 1)
    strength = np.ones(total.shape)
    for _ in range(_ROUNDS):
        before = strength
        strength = total / (met / (before[:, :, None] + before[:, None, :])).sum(axis=2)
        strength /= np.exp(np.log(strength).mean(axis=1, keepdims=True))
        if np.abs(np.log(strength / before)).max(initial=0.0) < _CLOSE:
            break
    return np.asarray(np.log(strength))


def preference_probabilities(log_strengths: Floats) -> Floats:
    """Return the probability (B, A, A) that i is preferred to j, from log-strengths (B, A)."""
    return np.asarray(1 / (1 + np.exp(log_strengths[:, None, :] - log_strengths[:, :, None])))


def compute_strengths(ranks: ArrayLike, groups: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> list[Strength]:
    """Return the strength of each arm, with 95 % intervals over groups of images. They hold for these readers."""
    won = count_wins(ranks)
    bootstrap = Bootstrap.over(groups, resamples=resamples, seed=seed)
    log_strengths, arms = bradley_terry(bootstrap.totals(won)), won.shape[-1]
    mean = (preference_probabilities(log_strengths).sum(axis=2) - 0.5) / (arms - 1)
    ranked = won.sum(axis=(1, 2)) > 0
    return [
        Strength(
            float(mean[0, i]),
            share_interval(bootstrap, mean[:, i], of=ranked),
            float(log_strengths[0, i]),
            interval(log_strengths[:, i]),
        )
        for i in range(arms)
    ]


def compare_pairs(ranks: ArrayLike, groups: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> list[Pair]:
    """Compare every two arms."""
    won = count_wins(ranks)
    bootstrap = Bootstrap.over(groups, resamples=resamples, seed=seed)
    chances = preference_probabilities(bradley_terry(bootstrap.totals(won)))
    both = list(combinations(range(won.shape[-1]), 2))
    corrected = holm([sign_flip(won[:, i, j] - won[:, j, i], groups) for i, j in both])
    pairs = []
    for (i, j), p_value in zip(both, corrected, strict=True):
        ranked, chance = won[:, i, j] + won[:, j, i] > 0, chances[:, i, j]
        ends = share_interval(bootstrap, chance, of=ranked)
        pairs.append(Pair(i, j, float(chance[0]), ends, float(p_value), int(ranked.sum())))
    return pairs
