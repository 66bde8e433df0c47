"""Compute bootstrap intervals over groups, score intervals and paired tests, with NumPy and SciPy alone."""

import math
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

Floats = NDArray[np.float64]
LEVEL = 0.95
_Z = float(stats.norm.ppf((1 + LEVEL) / 2))
RARE = 10  # with fewer groups than this on one side, a share is too near 0 or 1 for the bootstrap
FEW = 5  # the same for an area under the ROC curve
FLIPS = 20_000  # random signs, if there are too many to try all
PERMUTATIONS = 2000  # FLIPS, if the p-value by this many is at most SMALL
SMALL = 0.1
EXACT_GROUPS = 14  # up to this many groups, all signs are tried
LEAST_FAR = 10  # signs as far as the sample; if fewer of FLIPS are, the p-value is estimated by importance sampling
_ROUNDING = 1e-12
_CHUNK = 64  # resamples at a time: they fit the processor's cache


@dataclass(frozen=True)
class Bootstrap:
    """Resamples of whole groups (Field and Welsh 2007): the images of one patient are drawn together.

    `weights` (R + 1, G): how often each of G groups is in a resample. Row 0 is the sample itself, all ones. So one
    computation gives a figure and its interval.
    """

    weights: Floats
    member: NDArray[np.intp]  # (N,) the group of each row

    @classmethod
    def over(cls, groups: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> "Bootstrap":
        """Draw resamples for rows with these group names (N,)."""
        _, member = np.unique(np.asarray(groups), return_inverse=True)
        count = int(member.max()) + 1 if len(member) else 0
        random = np.random.default_rng(seed)
        weights = np.ones((resamples + 1, count))
        for row in weights[1:]:
            row[:] = np.bincount(random.integers(count, size=count), minlength=count) if count else ()
        return cls(weights, member)

    def totals(self, values: ArrayLike) -> Floats:
        """Sum `values` (N, ...) in each resample: (R + 1, ...)."""
        rows = np.asarray(values, dtype=float)
        flat = rows.reshape(len(rows), int(np.prod(rows.shape[1:])))
        by_group = np.zeros((self.weights.shape[1], flat.shape[1]))
        np.add.at(by_group, self.member, flat)
        return (self.weights @ by_group).reshape(len(self.weights), *rows.shape[1:])

    def means(self, values: ArrayLike) -> Floats:
        """Average `values` (N,) in each resample, over the rows that are not NaN: (R + 1,)."""
        rows = np.asarray(values, dtype=float)
        finite = np.isfinite(rows)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.totals(np.where(finite, rows, 0.0)) / self.totals(finite)

    def count_groups(self, rows: ArrayLike | None = None) -> int:
        """Count the groups of these rows (N,) bool, or of all rows."""
        return self.weights.shape[1] if rows is None else len(np.unique(self.member[np.asarray(rows, dtype=bool)]))

    def select(self, rows: ArrayLike) -> "Bootstrap":
        """Restrict the same resamples to some rows, (N,) bool."""
        return Bootstrap(self.weights, self.member[np.asarray(rows, dtype=bool)])

    def row_weights(self) -> NDArray[np.uint16]:
        """Return how often each row is in each resample: (R + 1, N)."""
        return self.weights.astype(np.uint16)[:, self.member]


class Bootstraps:
    """Cache of the last two resamples by group column: conditions on the same images share theirs."""

    def __init__(self, *, resamples: int = 2000, seed: int = 0) -> None:
        self.resamples = resamples
        self._over = lru_cache(maxsize=2)(partial(Bootstrap.over, resamples=resamples, seed=seed))

    def over(self, groups: ArrayLike) -> Bootstrap:
        """Return the resamples for rows with these group names (N,)."""
        return self._over(tuple(np.asarray(groups).astype(str)))


def interval(resampled: ArrayLike, level: float = LEVEL) -> list[float]:
    """Return the percentile interval [low, high] of a resampled figure (R + 1,), without row 0, the sample."""
    rest = np.asarray(resampled, dtype=float)[1:]
    rest = rest[np.isfinite(rest)]
    if len(rest) == 0:
        return [float("nan"), float("nan")]
    tail = (1 - level) / 2
    return [float(v) for v in np.quantile(rest, [tail, 1 - tail])]


def share_interval(bootstrap: Bootstrap, resampled: ArrayLike, *, of: ArrayLike | None = None) -> list[float]:
    """Return the interval [low, high] of a share of rows; `of` (N,) bool restricts it to these rows and their groups.

    It is the bootstrap's, unless fewer than RARE groups stand on one side of the share: resamples then vary too little.
    In that case it is the score interval (Wilson 1927) on the effective count. That is the number of independent rows
    that would vary as much as the resamples, at most the number of groups.
    """
    figures, groups = np.asarray(resampled, dtype=float), bootstrap.count_groups(of)
    return _by_score(figures, groups) if is_rare(float(figures[0]), groups) else interval(figures)


def mean_share_interval(bootstrap: Bootstrap, resampled: ArrayLike, of: ArrayLike) -> list[float]:
    """Return the interval [low, high] of the mean of shares (R + 1, C), each of its rows `of` (N, C) bool.

    Shares that are NaN are left out. It is the bootstrap's, or the score interval on the effective count if one share
    is rare (see `share_interval`). The count is at most C^2 / sum(1 / G_c) for G_c groups each: the mean of equal
    shares varies as one share of that many.
    """
    figures, rows = np.asarray(resampled, dtype=float), np.asarray(of, dtype=bool)
    finite = np.flatnonzero(np.isfinite(figures[0]))
    groups = np.array([bootstrap.count_groups(rows[:, k]) for k in finite], dtype=float)
    means = figures[:, finite].mean(1) if len(finite) else np.full(len(figures), np.nan)
    if not any(map(is_rare, figures[0, finite], groups)):
        return interval(means)
    return _by_score(means, len(finite) ** 2 / float((1 / groups).sum()))


def _by_score(resampled: Floats, most: float) -> list[float]:
    """Return the score interval on as many independent rows as would vary like the resamples, at most `most`."""
    # A share of 0 or 1 has no variance, even if resamples leave out all its rows.
    share, spread = float(resampled[0]), float(np.nanvar(resampled[1:]))
    varies = spread > _ROUNDING and _ROUNDING < share < 1 - _ROUNDING
    return wilson(share, min(share * (1 - share) / spread, most) if varies else most)


def is_rare(share: float, groups: float) -> bool:
    """Return whether fewer than RARE groups would stand on one side of the share; False for NaN or no groups."""
    return bool(groups > 0 and min(share, 1 - share) * groups < RARE)


def wilson(share: float, count: float) -> list[float]:
    """Return the score interval [low, high] of a share of `count` (also fractional) independent rows (Wilson 1927)."""
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * np.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return [0.0 if share == 0 else float(middle - half), 1.0 if share == 1 else float(middle + half)]


def difference_interval(
    first: float, first_ends: tuple[float, float], second: float, second_ends: tuple[float, float]
) -> tuple[float, float]:
    """Return the interval of first - second, two independent figures, from that of each (MOVER: Newcombe 1998)."""
    below = math.hypot(first - first_ends[0], second_ends[1] - second)
    above = math.hypot(first_ends[1] - first, second - second_ends[0])
    return first - second - below, first - second + above


def ratio_interval(first: float, first_ends: list[float], second: float, second_ends: list[float]) -> list[float]:
    """Return the interval [low, high] of first / second, two independent shares, from the interval of each.

    Method MOVER-R (Donner and Zou 2012); infinite if the second may be 0. Near 0 it is better than resampling, in which
    the ratio is always 0 if no row has it.
    """
    (low_1, high_1), (low_2, high_2), both = first_ends, second_ends, first * second
    least, most = low_1 * (2 * first - low_1), high_1 * (2 * first - high_1)
    below = both + np.sqrt(max(both**2 - least * high_2 * (2 * second - high_2), 0.0))
    above = both + np.sqrt(max(both**2 - most * low_2 * (2 * second - low_2), 0.0))
    low, least_second = float(least / below) if below > 0 else 0.0, low_2 * (2 * second - low_2)
    return [low, float(above / least_second) if least_second > 0 else float("inf")]


def area_interval(bootstrap: Bootstrap, areas: ArrayLike, positive: ArrayLike) -> list[float]:
    """Return the interval [low, high] of an area under the ROC curve, resampled (R + 1,); `positive` (N,) bool.

    It is the bootstrap's, unless fewer than FEW groups of one side would lie beyond the area. In that case it is the
    score interval with the variance of Hanley and McNeil (1982; Newcombe 2006, method 5) on the groups of each side. If
    groups have several rows, it uses as many groups as would vary as much as the resamples.
    """
    figures, rows = np.asarray(areas, dtype=float), np.asarray(positive, dtype=bool)
    area, counts = float(figures[0]), (bootstrap.count_groups(rows), bootstrap.count_groups(~rows))
    if not np.isfinite(area) or min(area, 1 - area) * min(counts) >= FEW:
        return interval(areas)
    spread = float(np.nanvar(figures[1:]))
    varies = bootstrap.count_groups() < len(rows) and spread > _ROUNDING and _ROUNDING < area < 1 - _ROUNDING
    fewer = min(1.0, _area_variance(area, *counts) / spread) if varies else 1.0
    first, second = (max(1.0, count * fewer) for count in counts)

    def beyond(end: float) -> float:
        return abs(end - area) - _Z * np.sqrt(_area_variance(end, first, second))

    near = 1e-9
    low = optimize.brentq(beyond, 0.0, area - near) if area > near else 0.0
    high = optimize.brentq(beyond, area + near, 1.0) if area < 1 - near else 1.0
    return [float(low), float(high)]


def _area_variance(area: float, first: float, second: float) -> float:
    """Return the variance of an area with so many positive and negative rows, in either order."""
    more = (first + second) / 2 - 1
    around = 1 + more * ((1 - area) / (2 - area) + area / (1 + area))
    return area * (1 - area) * around / (first * second)


def softmax(logits: ArrayLike) -> Floats:
    """Turn logits (N, C) into probabilities (N, C)."""
    return np.asarray(special.softmax(np.asarray(logits, dtype=float), axis=1))


def auroc(scores: ArrayLike, positive: ArrayLike, weights: ArrayLike) -> Floats:
    """Return the area under the ROC curve in each resample (Mann-Whitney, ties count half).

    `scores` (N,), `positive` (N,) bool, `weights` (R, N) -> (R,); NaN if a resample has only one class.
    """
    score, is_positive, weight = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool), np.asarray(weights)
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
    p_least: float = float("nan")  # of `least_p_value`


def paired(first: ArrayLike, second: ArrayLike, groups: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Paired:
    """Compare two figures of the same rows (N,): mean difference, its interval over groups, `sign_flip`'s p-value.

    Rows with a NaN in either are left out. The ends are NaN if all rows are of one group.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    finite = np.isfinite(a) & np.isfinite(b)
    a, b, names = a[finite], b[finite], np.asarray(groups)[finite]
    if len(a) == 0:
        nan = float("nan")
        return Paired(nan, nan, nan, [nan, nan], nan, nan, 0)
    difference = b - a
    bootstrap = Bootstrap.over(names, resamples=resamples, seed=seed)
    return Paired(
        float(a.mean()),
        float(b.mean()),
        float(difference.mean()),
        interval(bootstrap.means(difference)) if bootstrap.count_groups() > 1 else [float("nan")] * 2,
        float((difference > 0).mean()),
        sign_flip(difference, names),
        len(a),
        least_p_value(difference, names),
    )


def sign_flip(differences: ArrayLike, groups: ArrayLike, *, seed: int = 0) -> float:
    """Return the two-sided p-value of paired differences (N,) under random signs of whole groups (Fisher 1935).

    It is exact if the group sums are whole numbers (for single right-or-wrong rows it is McNemar's exact test) or if
    there are at most EXACT_GROUPS. Else it uses FLIPS random signs, fixed by the seed. If fewer than LEAST_FAR of them
    are as far, `_tilted_flips` estimates it, so that many comparisons can be corrected for. NaN rows are left out; NaN
    if all are.
    """
    sums = _group_sums(differences, groups)
    if sums is None:
        return float("nan")
    if not len(sums):
        return 1.0
    if np.all(sums == np.round(sums)):
        return _flipped_counts(np.abs(sums).astype(int), int(abs(sums.sum())))
    least = abs(sums.sum()) * (1 - 1e-9)  # sums that differ by rounding count as equal
    if len(sums) <= EXACT_GROUPS:
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1)
        return float(np.mean(np.abs(signs @ sums) >= least))
    random, far = np.random.default_rng(seed), 0
    for start in range(0, FLIPS, 1000):
        drawn = random.integers(0, 2, (min(1000, FLIPS - start), len(sums)), dtype=np.int8)
        far += int((np.abs((1.0 - 2.0 * drawn) @ sums) >= least).sum())
    return (1 + far) / (1 + FLIPS) if far >= LEAST_FAR else _tilted_flips(sums, random)


def least_p_value(differences: ArrayLike, groups: ArrayLike) -> float:
    """Return the p-value of `sign_flip` if all these differences (N,) had one sign; NaN if there are none."""
    sums = _group_sums(differences, groups)
    return float("nan") if sums is None else float(0.5 ** max(len(sums) - 1, 0))


def _group_sums(differences: ArrayLike, groups: ArrayLike) -> Floats | None:
    """Return the sums of differences (N,) by group that are not 0, without NaN rows; None if all are NaN."""
    values = np.asarray(differences, dtype=float)
    finite = np.isfinite(values)
    if len(values) and not finite.any():
        return None
    values, (_, member) = values[finite], np.unique(np.asarray(groups)[finite], return_inverse=True)
    sums = np.bincount(member, values)
    return sums[sums != 0]


def _tilted_flips(sums: Floats, random: np.random.Generator) -> float:
    """Estimate a small p-value of sums (G,) under random signs by importance sampling (tilted: Siegmund 1976)."""
    sizes, least = np.abs(sums) / np.abs(sums).max(), abs(sums.sum()) / np.abs(sums).max()
    if least >= sizes.sum() * (1 - _ROUNDING):
        return float(0.5 ** (len(sizes) - 1))  # all signs are equal
    tilt = float(optimize.brentq(lambda t: np.tanh(t * sizes) @ sizes - least, 0.0, 40 / sizes.min()))
    signs = np.where(random.random((PERMUTATIONS, len(sizes))) < special.expit(2 * tilt * sizes), 1.0, -1.0)
    drawn, scale = signs @ sizes, (np.logaddexp(tilt * sizes, -tilt * sizes) - np.log(2)).sum()
    weights = np.where(drawn >= least * (1 - 1e-9), np.exp(scale - tilt * drawn), 0.0)
    return float(min(2 * weights.mean(), 1.0))


def _flipped_counts(sizes: NDArray[np.intp], least: int) -> float:
    """Return the chance that whole numbers (G,) with random signs sum to at least `least` in absolute value."""
    chances, middle = np.zeros(2 * int(sizes.sum()) + 1), int(sizes.sum())
    chances[middle] = 1.0
    for size in sizes:  # np.roll never wraps: the ends are reached with the last size
        chances = (np.roll(chances, size) + np.roll(chances, -size)) / 2
    return float(min(chances[: middle - least + 1].sum() + chances[middle + least :].sum(), 1.0)) if least else 1.0


def inside_against_outside(values: ArrayLike, inside: ArrayLike, groups: ArrayLike, *, seed: int = 0) -> float:
    """Return the two-sided p-value that rows (N,) of 0 and 1 inside and outside a part differ by chance.

    Membership is permuted over whole groups (Fisher 1935); a group that is partly inside counts by most of its rows.
    Groups of one row give Fisher's exact test; else it uses PERMUTATIONS, fixed by the seed. If at most SMALL of
    them are as far as the sample, it goes on to FLIPS. NaN if all or none are inside.
    """
    rows, member = np.asarray(values, dtype=float), np.unique(np.asarray(groups), return_inverse=True)[1]
    sizes = np.bincount(member).astype(float)
    among = np.bincount(member, np.asarray(inside, dtype=float)) * 2 > sizes
    if among.all() or not among.any():
        return float("nan")
    sums = np.bincount(member, rows).astype(float)
    if sizes.max() == 1:
        table = [[sums[part].sum(), (1 - sums[part]).sum()] for part in (among, ~among)]
        return float(stats.fisher_exact(table)[1])
    observed, random = abs(_gaps(among[None], sums, sizes)[0]) * (1 - 1e-9), np.random.default_rng(seed)
    far = done = 0
    while done < PERMUTATIONS or (far <= SMALL * done and done < FLIPS):
        drawn = random.permuted(np.tile(among, (100, 1)), axis=1)
        far, done = far + int((np.abs(_gaps(drawn, sums, sizes)) >= observed).sum()), done + 100
    return (1 + far) / (1 + done)


def _gaps(among: NDArray[np.bool_], sums: Floats, sizes: Floats) -> Floats:
    """Return the mean of rows inside minus that of all others, for each choice of groups (R, G)."""
    hits, counts = among @ sums, among @ sizes
    return hits / counts - (sums.sum() - hits) / (sizes.sum() - counts)


def holm(p_values: ArrayLike) -> Floats:
    """Correct p-values (N,) for N comparisons, so that any false one is as rare as with a single test (Holm 1979).

    NaN stays NaN and does not count.
    """
    values = np.asarray(p_values, dtype=float)
    corrected = np.full(values.shape, np.nan)
    finite = np.flatnonzero(np.isfinite(values))
    order = finite[np.argsort(values[finite], kind="stable")]
    steps = values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def format_probability(value: float) -> str:
    """Format a probability in three digits, or in as many as distinguish it from 0 and 1."""
    texts = (f"{value:.{digits}g}" for digits in range(3, 18))
    return next((text for text in texts if float(text) not in (0.0, 1.0)), f"{value:g}")
