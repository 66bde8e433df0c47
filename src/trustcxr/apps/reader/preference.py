"""Compute which map readers prefer: Bradley-Terry strengths from ranks, with intervals over images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from trustcxr.statistics import Bootstrap, Floats, holm, interval, share_interval, sign_flip

HALF_A_WIN = 0.5  # added each way to each pair: keeps the strength of an arm that always wins finite
_ROUNDS, _CLOSE = 500, 1e-10


@dataclass(frozen=True)
class Strength:
    """One arm: mean probability that it is preferred to another arm; log-strength (the arms' sum is 0)."""

    preferred: float
    preferred_ci: list[float]
    log_strength: float
    log_strength_ci: list[float]


@dataclass(frozen=True)
class Pair:
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
    >>> from trustcxr.apps.reader.preference import bradley_terry
    >>> bradley_terry(np.array([[[0, 29.5], [9.5, 0]]])).round(2)  # log(30 / 10), halved
    array([[ 0.55, -0.55]])
    """
    table = np.asarray(win_counts, dtype=float)
    table = table + HALF_A_WIN * (1 - np.eye(table.shape[-1]))
    total, met = table.sum(axis=2), table + table.transpose(0, 2, 1)
    strength = np.ones(total.shape)
    for _ in range(_ROUNDS):
        after = total / (met / (strength[:, :, None] + strength[:, None, :])).sum(axis=2)
        after /= np.exp(np.log(after).mean(axis=1, keepdims=True))
        done = np.abs(np.log(after / strength)).max(initial=0.0) < _CLOSE
        strength = after
        if done:
            break
    log_strengths: Floats = np.log(strength)
    return log_strengths


def preference_probabilities(log_strengths: Floats) -> Floats:
    """Return the probability (B, A, A) that i is preferred to j, from log-strengths (B, A)."""
    result: Floats = 1 / (1 + np.exp(log_strengths[:, None, :] - log_strengths[:, :, None]))
    return result


def compute_strengths(ranks: ArrayLike, groups: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> list[Strength]:
    """Return the strength of each arm, with 95 % intervals over groups of images. They hold for these readers."""
    won = count_wins(ranks)
    bootstrap = Bootstrap.over(groups, resamples=resamples, seed=seed)
    log_strengths = bradley_terry(bootstrap.totals(won))
    preferred, arms = preference_probabilities(log_strengths), won.shape[-1]
    mean = (preferred.sum(axis=2) - 0.5) / (arms - 1)
    return [
        Strength(
            float(mean[0, i]),
            share_interval(bootstrap, mean[:, i]),
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
    both = [(i, j) for i in range(won.shape[-1]) for j in range(i + 1, won.shape[-1])]
    corrected = holm([sign_flip(won[:, i, j] - won[:, j, i], groups) for i, j in both])
    judged = [won[:, i, j] + won[:, j, i] > 0 for i, j in both]
    return [
        Pair(
            i,
            j,
            float(chances[0, i, j]),
            share_interval(bootstrap, chances[:, i, j], of=ranked),
            float(p),
            int(ranked.sum()),
        )
        for (i, j), p, ranked in zip(both, corrected, judged, strict=True)
    ]
