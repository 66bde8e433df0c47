"""Bootstrap intervals over groups, paired tests, calibration. NumPy and SciPy alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

Floats = NDArray[np.float64]
LEVEL = 0.95
RARE = 10  # where fewer groups than this are expected on one side, a share is too near 0 or 1 for the bootstrap
FEW = 5  # likewise of an area under the ROC curve, and of the groups of whichever side has fewer
FLIPS = 20_000  # random signs where all of them are too many
PERMUTATIONS = 2000  # of who is inside a part, where not all groups are of one row
EXACT_GROUPS = 14  # up to here all signs are tried
_ROUNDING = 1e-12
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

    def groups_of(self, rows: ArrayLike | None = None) -> int:
        """How many groups these rows (N,) bool are of; without them, how many there are."""
        return self.weights.shape[1] if rows is None else len(np.unique(self.member[np.asarray(rows, dtype=bool)]))

    def select(self, rows: ArrayLike) -> "Bootstrap":
        """The same resamples of some of the rows, (N,) bool."""
        return Bootstrap(self.weights, self.member[np.asarray(rows, dtype=bool)])

    def row_weights(self) -> NDArray[np.uint16]:
        """How often each row is in each resample: (R + 1, N)."""
        return self.weights.astype(np.uint16)[:, self.member]


class Bootstraps:
    """Cache of resamples by group column: all conditions on the same images use the same ones. Keeps the last two."""

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


def share_interval(
    bootstrap: Bootstrap, resampled: ArrayLike, level: float = LEVEL, *, of: ArrayLike | None = None
) -> list[float]:
    """Interval [low, high] of a share of rows; `of` (N,) bool: of these alone, whose groups are those that count.

    By bootstrap; where the share is so near 0 or 1 that fewer than RARE groups would stand on one side, resamples say
    too little (of none of 300 nothing at all), so there it is the score interval (Wilson 1927) on the effective count:
    the number of independent rows that would vary as much as the resamples, at most the number of groups.
    """
    figures = np.asarray(resampled, dtype=float)
    share, groups = float(figures[0]), bootstrap.groups_of(of)
    if not is_rare(share, groups):
        return interval(resampled, level)
    return _by_score(figures, groups, level)


def mean_share_interval(bootstrap: Bootstrap, resampled: ArrayLike, of: ArrayLike, level: float = LEVEL) -> list[float]:
    """Interval [low, high] of the mean of shares (R + 1, C), each of its own rows, `of` (N, C) bool; NaN are left out.

    By bootstrap; where one of them is too near 0 or 1 for that, the score interval on the effective count, as in
    `share_interval`: at most that of which a share varies as the mean does of shares that are alike, C^2 / sum(1 / G_c)
    of G_c groups each.
    """
    figures, rows = np.asarray(resampled, dtype=float), np.asarray(of, dtype=bool)
    known = np.flatnonzero(np.isfinite(figures[0]))
    groups = np.array([bootstrap.groups_of(rows[:, k]) for k in known], dtype=float)
    if not any(is_rare(float(figures[0, k]), count) for k, count in zip(known, groups, strict=True)):
        return interval(figures[:, known].mean(1) if len(known) else np.full(len(figures), np.nan), level)
    means = figures[:, known].mean(1)
    return _by_score(means, len(known) ** 2 / float((1 / groups).sum()), level)


def _by_score(resampled: Floats, most: float, level: float) -> list[float]:
    """The score interval on the number of independent rows that would vary as much, at most so many.

    A share of 0 or 1 itself does not vary, even where resamples do that leave out all that it is a share of.
    """
    share, spread = float(resampled[0]), float(np.nanvar(resampled[1:]))
    varies = spread > _ROUNDING and _ROUNDING < share < 1 - _ROUNDING
    return wilson(share, min(share * (1 - share) / spread, most) if varies else most, level)


def is_rare(share: float, groups: float) -> bool:
    """Whether fewer than RARE groups would stand on one side of the share; of none, or of no share, it is not."""
    return groups > 0 and bool(np.isfinite(share)) and min(share, 1 - share) * groups < RARE


def wilson(share: float, count: float, level: float = LEVEL) -> list[float]:
    """Score interval [low, high] of a share of `count` independent rows, which need not be whole (Wilson 1927)."""
    z = float(stats.norm.ppf((1 + level) / 2))
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    # At 0 and 1 the end is the share itself, but for rounding.
    return [0.0 if share == 0 else float(middle - half), 1.0 if share == 1 else float(middle + half)]


def ratio_interval(first: float, first_ends: list[float], second: float, second_ends: list[float]) -> list[float]:
    """Interval [low, high] of first / second, two shares of independent rows, from the interval of each.

    MOVER-R (Donner and Zou 2012); infinite where the second may be 0. Of shares near 0 it says more than resamples of
    the ratio, which is 0 in all of them where no row has it.
    """
    (low_1, high_1), (low_2, high_2), both = first_ends, second_ends, first * second
    least, most = low_1 * (2 * first - low_1), high_1 * (2 * first - high_1)
    below = both + np.sqrt(max(both**2 - least * high_2 * (2 * second - high_2), 0.0))
    above = both + np.sqrt(max(both**2 - most * low_2 * (2 * second - low_2), 0.0))
    low, least_second = float(least / below) if below > 0 else 0.0, low_2 * (2 * second - low_2)
    return [low, float(above / least_second) if least_second > 0 else float("inf")]


def area_interval(bootstrap: Bootstrap, areas: ArrayLike, positive: ArrayLike, level: float = LEVEL) -> list[float]:
    """Interval [low, high] of an area under the ROC curve, resampled (R + 1,), of rows that are `positive` (N,) or not.

    By bootstrap; where the area is so near 0 or 1 that fewer than FEW groups of either side would lie beyond it,
    resamples say too little (of an area of 1 nothing at all), so there it is the score interval with the variance of
    Hanley and McNeil (1982), the same for both sides (Newcombe 2006, method 5), on the groups of each side; where
    groups have several rows, on as many as would vary as much as the resamples, at most those that there are.
    """
    figures, rows = np.asarray(areas, dtype=float), np.asarray(positive, dtype=bool)
    area, counts = float(figures[0]), (bootstrap.groups_of(rows), bootstrap.groups_of(~rows))
    if not np.isfinite(area) or min(area, 1 - area) * min(counts) >= FEW:
        return interval(areas, level)
    spread = float(np.nanvar(figures[1:]))
    varies = bootstrap.groups_of() < len(rows) and spread > _ROUNDING and _ROUNDING < area < 1 - _ROUNDING
    fewer = min(1.0, _area_variance(area, *counts) / spread) if varies else 1.0
    first, second = (max(1.0, count * fewer) for count in counts)
    z = float(stats.norm.ppf((1 + level) / 2))

    def beyond(end: float) -> float:
        return abs(end - area) - z * np.sqrt(_area_variance(end, first, second))

    near = 1e-9  # at the area itself nothing is beyond it
    low = optimize.brentq(beyond, 0.0, area - near) if area > near else 0.0
    high = optimize.brentq(beyond, area + near, 1.0) if area < 1 - near else 1.0
    return [float(low), float(high)]


def _area_variance(area: float, first: float, second: float) -> float:
    """Of an area under the ROC curve of so many positive and negative rows, whichever is which."""
    more = (first + second) / 2 - 1
    around = 1 + more * ((1 - area) / (2 - area) + area / (1 + area))
    return area * (1 - area) * around / (first * second)


def mean_interval(
    values: ArrayLike, groups: ArrayLike, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, list[float]]:
    """Mean of the values that are not NaN, and its interval over groups."""
    means = Bootstrap.over(groups, resamples=resamples, seed=seed).means(values)
    return float(means[0]) if len(means) else float("nan"), interval(means)


def softmax(logits: ArrayLike) -> Floats:
    """Probabilities (N, C) from logits (N, C)."""
    found: Floats = special.softmax(np.asarray(logits, dtype=float), axis=1)
    return found


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

    Rows where either is NaN are left out. The test is `sign_flip`: it too takes groups, not rows, as independent.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    known = np.isfinite(a) & np.isfinite(b)
    a, b, names = a[known], b[known], np.asarray(groups)[known]
    if len(a) == 0:
        nan = float("nan")
        return Paired(nan, nan, nan, [nan, nan], nan, nan, 0)
    difference = b - a
    means = Bootstrap.over(names, resamples=resamples, seed=seed).means(difference)
    return Paired(
        float(a.mean()),
        float(b.mean()),
        float(difference.mean()),
        interval(means),
        float((difference > 0).mean()),
        sign_flip(difference, names),
        len(a),
    )


def sign_flip(differences: ArrayLike, groups: ArrayLike, *, seed: int = 0) -> float:
    """Two-sided p-value that paired differences (N,) come out as far from 0 by chance (Fisher 1935, by groups).

    Were first and second the same, the sum of a group's differences would be as likely with the other sign: rows of one
    patient keep theirs together. Exact where the sums are whole numbers (of groups of one row that are right or wrong
    this is McNemar's exact test) or EXACT_GROUPS or fewer; else over FLIPS random signs, always the same for a seed.
    Rows that are NaN are left out; NaN where all are.
    """
    values = np.asarray(differences, dtype=float)
    known = np.isfinite(values)
    if len(values) and not known.any():
        return float("nan")
    values, (_, member) = values[known], np.unique(np.asarray(groups)[known], return_inverse=True)
    sums = np.bincount(member, values) if len(values) else np.zeros(0)
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0
    if np.all(sums == np.round(sums)):
        return _flipped_counts(np.abs(sums).astype(int), int(abs(sums.sum())))
    least = abs(sums.sum()) * (1 - 1e-9)  # sums that are equal but for rounding are as far
    if len(sums) <= EXACT_GROUPS:
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1)
        return float(np.mean(np.abs(signs @ sums) >= least))
    random, far = np.random.default_rng(seed), 0
    for start in range(0, FLIPS, 1000):
        drawn = random.integers(0, 2, (min(1000, FLIPS - start), len(sums)), dtype=np.int8)
        far += int((np.abs((1.0 - 2.0 * drawn) @ sums) >= least).sum())
    return (1 + far) / (1 + FLIPS)


def _flipped_counts(sizes: NDArray[np.intp], least: int) -> float:
    """The chance that whole numbers (G,), each with a random sign, sum to `least` or more, or to -`least` or less."""
    chances, middle = np.zeros(2 * int(sizes.sum()) + 1), int(sizes.sum())
    chances[middle] = 1.0
    for size in sizes:  # no sum leaves the array: the far ends cannot be reached before the last size
        chances = (np.roll(chances, size) + np.roll(chances, -size)) / 2
    return float(min(chances[: middle - least + 1].sum() + chances[middle + least :].sum(), 1.0)) if least else 1.0


def inside_against_outside(values: ArrayLike, inside: ArrayLike, groups: ArrayLike, *, seed: int = 0) -> float:
    """Two-sided p-value that rows (N,) of 0 and 1 inside and outside a part differ by chance alone.

    Were they alike, any other patients could as well be inside: membership is permuted over groups as wholes (Fisher
    1935), a group that is partly inside going by most of its rows. Of groups of one row this is Fisher's exact test,
    else it is over PERMUTATIONS, always the same for a seed. NaN where all are inside, or none.
    """
    rows, member = np.asarray(values, dtype=float), np.unique(np.asarray(groups), return_inverse=True)[1]
    sizes = np.bincount(member).astype(float) if len(rows) else np.zeros(0)
    among = np.bincount(member, np.asarray(inside, dtype=float)) * 2 > sizes if len(rows) else np.zeros(0, bool)
    if among.all() or not among.any():
        return float("nan")
    sums = np.bincount(member, rows).astype(float)
    if sizes.max() == 1:
        table = [[sums[part].sum(), (1 - sums[part]).sum()] for part in (among, ~among)]
        return float(stats.fisher_exact(table)[1])
    own, random, far = abs(_gaps(among[None], sums, sizes)[0]) * (1 - 1e-9), np.random.default_rng(seed), 0
    for start in range(0, PERMUTATIONS, 100):
        drawn = random.permuted(np.tile(among, (min(100, PERMUTATIONS - start), 1)), axis=1)
        far += int((np.abs(_gaps(drawn, sums, sizes)) >= own).sum())
    return (1 + far) / (1 + PERMUTATIONS)


def _gaps(among: NDArray[np.bool_], sums: Floats, sizes: Floats) -> Floats:
    """Mean of the rows of groups inside less that of all others, for each choice (R, G) of who is inside."""
    hits, counts = among @ sums, among @ sizes
    return hits / counts - (sums.sum() - hits) / (sizes.sum() - counts)


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


def format_probability(value: float) -> str:
    """A probability in three digits, or as many as tell it from 0 and 1 where it is neither."""
    texts = (f"{value:.{digits}g}" for digits in range(3, 18))
    return next((text for text in texts if float(text) not in (0.0, 1.0)), f"{value:g}")
