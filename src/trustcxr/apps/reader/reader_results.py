"""Tabulate a reader study: preference, agreement, and regions of readers compared with maps of models.

Preference is by Bradley-Terry strengths from ranks. Agreement beyond chance (Fleiss' kappa, Krippendorff's alpha) is
computed for all bootstrap resamples at once. ratings: (N images, R readers), NaN for a missing rating. weights: (B, N),
how often each resample has each image (`statistics.Bootstrap.row_weights`); default one row of ones. Results: (B,), NaN
if nothing can vary.
"""

import io
import warnings
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from trustcxr.apps.reader.database import Store, draw_mask
from trustcxr.errors import UserError
from trustcxr.report import formatting, load
from trustcxr.report.tables import table
from trustcxr.report.tables.table import Cell, Table
from trustcxr.statistics import Bootstrap, Floats, holm, interval, paired, share_interval, sign_flip
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import Share
from trustcxr.version import NOTICE

RESAMPLES = 2000
# Measures that are defined for a region (two levels) as for a heatmap.
SCORED = ("infection_energy", "infection_iou", "infection_iou_area", "infection_auroc")
HALF_A_WIN = 0.5  # added each way to each pair: keeps the strength of an arm that always wins finite
Level = Literal["nominal", "ordinal"]
_ROUNDS, _CLOSE = 500, 1e-10
_SCALE = "Ratings go from 1 (does not show the finding) to 5 (shows it precisely)."


class Responses(NamedTuple):
    """All answers: ranks and ratings (F images, R readers, A arms), NaN if missing.

    marked: (F, R), True if the reader marked the image. marks: (F, R, H, W) uint8. masks: (F, H, W) uint8.
    """

    arms: list[str]
    readers: list[str]
    samples: list[str]
    groups: list[str]
    ranks: Floats
    ratings: Floats
    marked: np.ndarray
    marks: np.ndarray
    masks: np.ndarray

    @property
    def complete(self) -> np.ndarray:
        """Number of images that each reader has ranked completely, (R,)."""
        return np.asarray(np.isfinite(self.ranks).all(axis=2).sum(axis=0))


def gather(store: Store) -> Responses:
    """Read all answers from the database."""
    readers, samples = store.readers(), store.samples()
    masks = np.stack([np.asarray(Image.open(io.BytesIO(mask))) for _, _, mask in samples])
    shape = (len(samples), len(readers))
    ranks, ratings = np.full((*shape, len(store.arms)), np.nan), np.full((*shape, len(store.arms)), np.nan)
    marked, marks = np.zeros(shape, bool), np.zeros((*shape, *masks.shape[1:]), np.uint8)
    for r, reader in enumerate(readers):
        for f in range(len(samples)):
            ranks[f, r], ratings[f, r] = np.array(store.judgements(reader, f), dtype=float).T  # None becomes NaN
            mark = store.mark(reader, f)
            if mark is not None:
                marked[f, r], marks[f, r] = True, draw_mask(mark, *masks.shape[1:])
    names, groups = [name for name, _, _ in samples], [group for _, group, _ in samples]
    reader_names = [reader.name for reader in readers]
    return Responses(store.arms, reader_names, names, groups, ranks, ratings, marked, marks, masks)


def make_tables(answers: Responses, runs: list[load.Run]) -> list[Table]:
    """Return the tables: preference, pairs, agreement, regions; of one arm, ratings in place of the first two.

    Raises UserError if no image is ranked completely.
    """
    if not answers.complete.any():
        raise UserError("no reader has ranked all maps of an image yet. Wait for the readers.")
    compared = [_ratings(answers)] if len(answers.arms) == 1 else [_preference(answers), _pairs(answers)]
    return [*compared, _agreement(answers), _regions(answers, runs)]


def write_tables(answers: Responses, runs: list[load.Run], folder: Path) -> list[Path]:
    """Write readers.md and every table as CSV and LaTeX into `folder`, and return their paths."""
    return table.write_tables(make_tables(answers, runs), folder, page="readers.md", opening=_make_heading(answers))


def _make_heading(answers: Responses) -> str:
    counts = ", ".join(f"R{k + 1} {n}" for k, n in enumerate(answers.complete))
    return (
        "# What the readers found\n\n"
        f"{formatting.plural(len(answers.readers), 'reader')}, {formatting.plural(len(answers.samples), 'image')}, "
        f"{formatting.plural(len(answers.arms), 'map')} of each, blinded and in random order; images ranked "
        f"completely: {counts}. 95 % intervals by bootstrap over patients or groups of images; they hold for these "
        f"readers. If all resamples are equal, there is no interval. {NOTICE}"
    )


def _ratings(answers: Responses) -> Table:
    rated = table.whole(int(np.isfinite(answers.ratings).sum()))
    row = [Cell(answers.arms[0]), table.plain(_mean(answers.ratings[:, :, 0], answers.groups), 2), rated]
    return Table("Readers: ratings", ["map", "mean rating", "ratings"], [row], caption=_SCALE)


def _preference(answers: Responses) -> Table:
    strengths = compute_strengths(answers.ranks, answers.groups, resamples=RESAMPLES)
    first = _share_first_ranks(answers)
    rows = []
    for k, (arm, strength) in enumerate(zip(answers.arms, strengths, strict=True)):
        rating = _mean(answers.ratings[:, :, k], answers.groups)
        rows.append(
            [
                Cell(arm),
                table.share(Share(value=strength.preferred, ci=tuple(strength.preferred_ci))),
                table.plain(Share(value=strength.log_strength, ci=_drop_empty(strength.log_strength_ci)), 2),
                table.share(_mean(first[:, :, k], answers.groups, share=True)),
                table.plain(rating, 2),
                table.whole(int(np.isfinite(answers.ranks[:, :, k]).sum())),
            ]
        )
    caption = (
        "Preferred: probability that this map is preferred to another, in percent, by the Bradley-Terry model of the "
        f"ranks; 50 is no preference. Strength: its logarithm, summing to 0. {_SCALE}"
    )
    header = ["map", "preferred (%)", "strength (log)", "ranked first (%)", "mean rating", "ranks"]
    return Table("Readers: preference", header, rows, caption=caption)


def _share_first_ranks(answers: Responses) -> Floats:
    """Return (F, R, A): 1 for the best rank, shared by equal ranks; NaN if not ranked completely."""
    best = answers.ranks == answers.ranks.min(axis=2, keepdims=True)
    shared = best / np.maximum(best.sum(axis=2, keepdims=True), 1)
    return np.where(np.isfinite(answers.ranks).all(axis=2, keepdims=True), shared, np.nan)


def _pairs(answers: Responses) -> Table:
    rows = [
        [
            Cell(answers.arms[pair.first]),
            Cell(answers.arms[pair.second]),
            table.share(Share(value=pair.preferred, ci=tuple(pair.preferred_ci))),
            Cell(formatting.decimal(pair.p_value, 4), value=pair.p_value),
            table.whole(pair.images),
        ]
        for pair in compare_pairs(answers.ranks, answers.groups, resamples=RESAMPLES)
    ]
    caption = "p: of each image's net preference, its sign flipped by groups, corrected for the number of pairs (Holm)."
    return Table("Readers: pairs", ["map", "against", "preferred (%)", "p", "images"], rows, heads=2, caption=caption)


def _agreement(answers: Responses) -> Table:
    bootstrap = Bootstrap.over(answers.groups, resamples=RESAMPLES)
    weights = bootstrap.row_weights()
    first = _share_first_ranks(answers)  # each set of best maps is a category
    best = np.where(np.isfinite(first[:, :, 0]), (first > 0) @ 2.0 ** np.arange(len(answers.arms)), np.nan)
    ranks, ratings = (np.concatenate(np.moveaxis(values, 2, 0)) for values in (answers.ranks, answers.ratings))
    twice = np.tile(weights, (1, len(answers.arms)))
    values_of = {
        "which map is best: Fleiss’ kappa": fleiss_kappa(best, weights),
        "which map is best: Krippendorff’s alpha": krippendorff_alpha(best, "nominal", weights),
        "ranks: Krippendorff’s alpha, ordinal": krippendorff_alpha(ranks, "ordinal", twice),
        "ratings: Krippendorff’s alpha, ordinal": krippendorff_alpha(ratings, "ordinal", twice),
        "regions: mean IoU of two readers": bootstrap.means(_mean_overlap(answers)),
    }
    rows = [
        [Cell(name), table.plain(_to_share(values))]
        for name, values in values_of.items()
        if len(answers.arms) > 1 or name.startswith(("ratings", "regions"))
    ]
    caption = (
        "1 is full agreement, 0 that of chance (for kappa and alpha). Kappa counts images that all readers ranked; "
        "alpha those that two or more did. Maps that share the first rank are a category."
    )
    return Table("Readers: agreement", ["agreement", "value"], rows, caption=caption)


def _mean_overlap(answers: Responses) -> Floats:
    """Return the mean IoU (F,) of every two readers that marked the image; NaN if there is none."""
    flat = answers.marks.reshape(*answers.marks.shape[:2], -1) != 0
    values = [np.full(len(answers.samples), np.nan)]
    for i, j in zip(*np.tril_indices(len(answers.readers), -1), strict=True):
        either = (flat[:, i] | flat[:, j]).sum(axis=1)
        both = answers.marked[:, i] & answers.marked[:, j] & (either > 0)
        values.append(np.where(both, (flat[:, i] & flat[:, j]).sum(axis=1) / np.maximum(either, 1), np.nan))
    return _nanmean(np.array(values))


def _regions(answers: Responses, runs: list[load.Run]) -> Table:
    """Compare readers and runs by the same measures on the same images."""
    by_reader = reader_scores(answers)
    mean = {name: _nanmean(values.T) for name, values in by_reader.items()}
    rows = [[Cell("all readers", "the human benchmark"), *_row(mean, None, answers)]]
    for k in range(len(answers.readers)):
        scores = {name: values[:, k] for name, values in by_reader.items()}
        rows.append([Cell(f"R{k + 1}"), *_row(scores, None, answers)])
    rows += [[Cell(label), *_row(scores, mean, answers)] for label, scores in model_scores(answers, runs)]
    caption = (
        "Regions and maps against the radiologists’ masks of the data set, by the same measures on the same images. In "
        "brackets 95 % intervals; after a run, its difference from all readers (paired, image by image)."
    )
    return Table("Readers: regions", ["marked by", *map(formatting.measure, SCORED), "images"], rows, caption=caption)


def _row(scores: Mapping[str, Floats], human: Mapping[str, Floats] | None, answers: Responses) -> list[Cell]:
    cells = []
    for name in SCORED:
        values = scores.get(name, np.full(len(answers.samples), np.nan))
        cell = table.plain(_mean(values, answers.groups))
        if human is not None and np.isfinite(values).any():
            gap = paired(human[name], values, answers.groups, resamples=RESAMPLES)
            difference = table.gained(Share(value=gap.difference, ci=tuple(gap.difference_ci)))
            cell = Cell(cell.text, cell.small, f"{difference.text} {difference.small}", cell.value)
        cells.append(cell)
    counted = max((int(np.isfinite(values).sum()) for values in scores.values()), default=0)
    return [*cells, table.whole(counted)]


def reader_scores(answers: Responses) -> dict[str, Floats]:
    """Return {measure: (F, R)} of the readers' regions against the masks; NaN if not marked."""
    import torch

    from trustcxr.explain import measures
    from trustcxr.registry import MEASURES

    masks, scores = torch.from_numpy(answers.masks), {}
    for name in SCORED:
        measure = measures.measure_function(MEASURES[name])
        marks = (torch.from_numpy(answers.marks[:, r]).float() for r in range(len(answers.readers)))
        columns = [measure(each, masks).numpy() for each in marks]
        scores[name] = np.where(answers.marked, np.stack(columns, axis=1), np.nan)
    return scores


def model_scores(answers: Responses, runs: list[load.Run]) -> Iterator[tuple[str, dict[str, Floats]]]:
    """Yield ("run:method", {measure: (F,)}) for every run and method that the study measured."""
    for run in runs:
        table = run.saliency
        if table is None or not {"method", "condition", "measure", "value", "sample_id"} <= set(table):
            continue
        clean = table[(table["condition"] == CLEAN) & table["measure"].isin(SCORED)]
        for method, rows in clean.groupby("method", sort=False):
            wide = rows.pivot_table(index="sample_id", columns="measure", values="value").reindex(answers.samples)
            if len(wide.columns) and wide.notna().any(axis=None):
                yield f"{run.name}:{method}", {str(name): wide[name].to_numpy(dtype=float) for name in wide}


def _mean(values: Floats, groups: list[str], *, share: bool = False) -> Share:
    """Return the mean of (F,) or (F, R) values, with its interval over groups of images."""
    by_image = _nanmean(values.T) if values.ndim == 2 else values
    bootstrap = Bootstrap.over(groups, resamples=RESAMPLES)
    resampled = bootstrap.means(by_image)
    return _to_share(resampled, share_interval(bootstrap, resampled, of=np.isfinite(by_image)) if share else None)


def _nanmean(values: Floats) -> Floats:
    """Return the mean over the first axis without NaN values; NaN if all are NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=0))


def _to_share(resampled: Floats, ends: list[float] | None = None) -> Share:
    if not np.isfinite(resampled[0]):
        return Share()
    return Share(value=float(resampled[0]), ci=_drop_empty(ends or interval(resampled)))


def _drop_empty(ends: list[float]) -> tuple[float, float] | None:
    """Return the interval, or None if all resamples are equal: then it says nothing."""
    low, high = ends
    return (low, high) if low < high else None


def fleiss_kappa(ratings: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Return Fleiss' kappa (1971) of categories, for images that all readers rated.

    >>> from trustcxr.apps.reader.reader_results import fleiss_kappa
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

    >>> from trustcxr.apps.reader.reader_results import krippendorff_alpha
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
    >>> from trustcxr.apps.reader.reader_results import bradley_terry
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
