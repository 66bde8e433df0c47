"""Bootstrap intervals over groups, paired tests, calibration. NumPy and SciPy alone."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
LEVEL = 0.95
_CHUNK = 64  # resamples at a time, which fit the processor's cache


@dataclass(frozen=True)
class Bootstrap:
    """Resamples of whole groups (Field and Welsh 2007): images of one patient are drawn together.

    `weights` (R + 1, G): how often each of the G groups is in a resample. Row 0 is the sample itself, all ones, so that
    a figure and its interval come from one computation.
    """

    weights: Floats
    member: NDArray[np.intp]  # (N,) the group of each row

    @classmethod
    def over(cls, groups: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> "Bootstrap":
        """Resamples for rows with these group names (N,)."""
        _, member = np.unique(np.asarray(groups), return_inverse=True)
        count = int(member.max()) + 1 if len(member) else 0
        random = np.random.default_rng(seed)
        weights = np.ones((resamples + 1, count))
        for row in weights[1:]:
            row[:] = np.bincount(random.integers(count, size=count), minlength=count) if count else ()
        return cls(weights, member)

    def totals(self, values: ArrayLike) -> Floats:
        """Sums of `values` (N, ...) in each resample: (R + 1, ...)."""
        rows = np.asarray(values, dtype=float)
        flat = rows.reshape(len(rows), int(np.prod(rows.shape[1:])))
        by_group = np.zeros((self.weights.shape[1], flat.shape[1]))
        np.add.at(by_group, self.member, flat)
        return (self.weights @ by_group).reshape(len(self.weights), *rows.shape[1:])

    def means(self, values: ArrayLike) -> Floats:
        """Means of `values` (N,) in each resample, over the rows that are not NaN: (R + 1,)."""
        rows = np.asarray(values, dtype=float)
        known = np.isfinite(rows)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.totals(np.where(known, rows, 0.0)) / self.totals(known)

    def row_weights(self) -> NDArray[np.uint16]:
        """How often each row is in each resample: (R + 1, N)."""
        return self.weights.astype(np.uint16)[:, self.member]


class Bootstraps:
    """Resamples by the groups of the rows, so that conditions over the same images share theirs. Keeps the last two."""

    def __init__(self, *, resamples: int = 2000, seed: int = 0) -> None:
        self.resamples, self.seed = resamples, seed
        self._known: dict[tuple[str, ...], Bootstrap] = {}

    def over(self, groups: ArrayLike) -> Bootstrap:
        """The resamples for rows with these group names (N,)."""
        key = tuple(np.asarray(groups).astype(str))
        if key not in self._known:
            if len(self._known) > 1:
                self._known.pop(next(iter(self._known)))
            self._known[key] = Bootstrap.over(key, resamples=self.resamples, seed=self.seed)
        return self._known[key]


def interval(resampled: ArrayLike, level: float = LEVEL) -> list[float]:
    """Percentile interval [low, high] of a figure over the resamples (row 0, the sample itself, left out)."""
    rest = np.asarray(resampled, dtype=float)[1:]
    rest = rest[np.isfinite(rest)]
    if len(rest) == 0:
        return [float("nan"), float("nan")]
    tail = (1 - level) / 2
    return [float(v) for v in np.quantile(rest, [tail, 1 - tail])]


def share_interval(bootstrap: Bootstrap, resampled: ArrayLike, level: float = LEVEL) -> list[float]:
    """Interval [low, high] of a share of rows.

    By bootstrap; where the share is 0 or 1 every resample agrees, so there it is the exact binomial interval (Clopper
    and Pearson 1934) with each group counted once: none of 300 right is not proof that none ever will be.
    """
    share, groups = float(np.asarray(resampled)[0]), bootstrap.weights.shape[1]
    if share not in (0.0, 1.0) or not groups:
        return interval(resampled, level)
    bounds = stats.binomtest(round(share * groups), groups).proportion_ci(level, method="exact")
    return [float(bounds.low), float(bounds.high)]


def mean_interval(
    values: ArrayLike, groups: ArrayLike, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, list[float]]:
    """Mean of the values that are not NaN, and its interval over groups."""
    means = Bootstrap.over(groups, resamples=resamples, seed=seed).means(values)
    return float(means[0]) if len(means) else float("nan"), interval(means)


def softmax(logits: ArrayLike) -> Floats:
    """Probabilities (N, C) from logits (N, C)."""
    shifted = np.asarray(logits, dtype=float)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    raised = np.exp(shifted)
    return raised / raised.sum(axis=1, keepdims=True)


def auroc(scores: ArrayLike, positive: ArrayLike, weights: ArrayLike) -> Floats:
    """Area under the ROC curve in each resample (Mann-Whitney, ties count half).

    `scores` (N,), `positive` (N,) bool, `weights` (R, N) -> (R,); NaN where a resample has one class alone.
    """
    score, is_positive, weight = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool), np.asarray(weights)
    if len(score) == 0:
        return np.full(len(weight), np.nan)
    _, level = np.unique(score, return_inverse=True)
    order = np.argsort(level, kind="stable")
    starts = np.flatnonzero(np.diff(level[order], prepend=-1))
    positives = is_positive[order].astype(float)
    areas = np.empty(len(weight))
    for first in range(0, len(weight), _CHUNK):
        ordered = weight[first : first + _CHUNK, order].astype(float)
        up = np.add.reduceat(ordered * positives, starts, axis=1)
        down = np.add.reduceat(ordered, starts, axis=1) - up
        below = np.cumsum(down, axis=1) - down
        with np.errstate(invalid="ignore", divide="ignore"):
            area = (up * (below + down / 2)).sum(1) / (up.sum(1) * down.sum(1))
        areas[first : first + _CHUNK] = area
    return areas


@dataclass(frozen=True)
class Paired:
    """Difference `second - first` on the same rows."""

    first: float
    second: float
    difference: float
    difference_ci: list[float]
    improved: float
    p_value: float
    n: int


def paired(first: ArrayLike, second: ArrayLike, groups: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Paired:
    """Two figures of the same rows (N,), compared: mean difference with its interval over groups, and a test.

    The test is McNemar's exact one where both are 0 or 1 (right or wrong), else Wilcoxon's signed-rank test. Rows where
    either is NaN are left out. Both tests treat rows as independent: the interval does not.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    known = np.isfinite(a) & np.isfinite(b)
    a, b, names = a[known], b[known], np.asarray(groups)[known]
    if len(a) == 0:
        nan = float("nan")
        return Paired(nan, nan, nan, [nan, nan], nan, nan, 0)
    difference = b - a
    means = Bootstrap.over(names, resamples=resamples, seed=seed).means(difference)
    test: Callable[[Floats], float] = _mcnemar if set(np.unique([a, b])) <= {0.0, 1.0} else _wilcoxon
    return Paired(
        float(a.mean()),
        float(b.mean()),
        float(difference.mean()),
        interval(means),
        float((difference > 0).mean()),
        test(difference),
        len(a),
    )


def _mcnemar(difference: Floats) -> float:
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _wilcoxon(difference: Floats) -> float:
    return float(stats.wilcoxon(difference).pvalue) if np.any(difference != 0) else 1.0


def holm(p_values: ArrayLike) -> Floats:
    """p-values (N,) corrected for N comparisons so that any false one is as rare as with a single test (Holm 1979).

    NaN stays NaN and does not count.
    """
    given = np.asarray(p_values, dtype=float)
    corrected = np.full(given.shape, np.nan)
    known = np.flatnonzero(np.isfinite(given))
    order = known[np.argsort(given[known], kind="stable")]
    steps = given[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected
