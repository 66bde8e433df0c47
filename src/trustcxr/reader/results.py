"""What the readers found, as tables for a report: preference, agreement, their regions beside every model's maps."""

import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from trustcxr.about import NOTICE
from trustcxr.errors import UserError
from trustcxr.reader import agreement, preference
from trustcxr.reader.regions import pixels
from trustcxr.reader.store import Reader, Store
from trustcxr.report import study_folder, words
from trustcxr.report.tables import cells
from trustcxr.report.tables.cells import Cell, Table
from trustcxr.results.documents import Share
from trustcxr.results.tables import CLEAN
from trustcxr.statistics import Bootstrap, Floats, interval, paired, share_interval

RESAMPLES = 2000
# Of a map with two levels each of these says the same of a region as of a heatmap.
SCORED = ("infection_energy", "infection_iou", "infection_iou_area", "infection_auroc")
NAME = "readers"


@dataclass(frozen=True)
class Said:
    """`ranks` and `ratings` (F films, R readers, A arms), NaN where not given.

    `marked` (F, R): whether the reader marked the film; `marks` (F, R, H, W) uint8; `masks` (F, H, W) uint8.
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
        """Films that a reader has ranked whole, (R,)."""
        return np.asarray(np.isfinite(self.ranks).all(axis=2).sum(axis=0))


def gather(store: Store) -> Said:
    """Everything in the file. Films without a mask of their own size do not occur: all were written from one set."""
    readers, samples = store.readers(), store.samples()
    masks = np.stack([np.asarray(Image.open(io.BytesIO(mask))) for _, _, mask in samples])
    shape = (len(samples), len(readers))
    ranks, ratings = np.full((*shape, len(store.arms)), np.nan), np.full((*shape, len(store.arms)), np.nan)
    marked, marks = np.zeros(shape, bool), np.zeros((*shape, *masks.shape[1:]), np.uint8)
    for r, reader in enumerate(readers):
        for f in range(len(samples)):
            ranks[f, r], ratings[f, r] = _numbers(store, reader, f)
            mark = store.mark(reader, f)
            if mark is not None:
                marked[f, r], marks[f, r] = True, pixels(mark, *masks.shape[1:])
    names, groups = [name for name, _, _ in samples], [group for _, group, _ in samples]
    told = [reader.name for reader in readers]
    return Said(store.arms, told, names, groups, ranks, ratings, marked, marks, masks)


def _numbers(store: Store, reader: Reader, film: int) -> tuple[list[float], list[float]]:
    said = store.judgements(reader, film)
    ranks = [np.nan if each.rank is None else float(each.rank) for each in said]
    return ranks, [np.nan if each.rating is None else float(each.rating) for each in said]


def tables(said: Said, runs: list[study_folder.Run]) -> list[Table]:
    """Preference, pairs, agreement, and the human benchmark; UserError while nobody has read a film whole."""
    if not said.complete.any():
        raise UserError("no reader has ranked all maps of a film yet: nothing to count")
    return [_preference(said), _pairs(said), _agreement(said), _regions(said, runs)]


def write(said: Said, runs: list[study_folder.Run], folder: Path) -> list[Path]:
    """Write readers.md, and every table as CSV and LaTeX, into `folder`; return their paths."""
    return cells.write_tables(tables(said, runs), folder, page=f"{NAME}.md", opening=_opening(said))


def _opening(said: Said) -> str:
    counts = ", ".join(f"R{k + 1} {n}" for k, n in enumerate(said.complete))
    return (
        "# What the readers found\n\n"
        f"{words.plural(len(said.readers), 'reader')}, {words.plural(len(said.samples), 'film')}, "
        f"{len(said.arms)} maps of each, blinded and in random order; films ranked whole: {counts}. 95 % intervals by "
        f"bootstrap over patients or groups of films: they hold for these readers. "
        f"Where every resample is alike there is none. {NOTICE}"
    )


def _preference(said: Said) -> Table:
    strengths = preference.strengths(said.ranks, said.groups, resamples=RESAMPLES)
    first = _first_places(said)
    rows = []
    for k, (arm, found) in enumerate(zip(said.arms, strengths, strict=True)):
        rating = _mean(said.ratings[:, :, k], said.groups)
        rows.append(
            [
                Cell(arm),
                cells.share(Share(value=found.preferred, ci=tuple(found.preferred_ci))),
                cells.plain(Share(value=found.log_strength, ci=_of_width(found.log_strength_ci)), 2),
                cells.share(_mean(first[:, :, k], said.groups, share=True)),
                cells.plain(rating, 2),
                cells.whole(int(np.isfinite(said.ranks[:, :, k]).sum())),
            ]
        )
    caption = (
        "Preferred: how probably this map is preferred to another one, in percent, by the Bradley-Terry model of the "
        "ranks; 50 is no preference. Strength: its logarithm, summing to 0. Ratings go from 1 (does not show the "
        "finding) to 5 (shows it precisely)."
    )
    header = ["map", "preferred (%)", "strength (log)", "ranked first (%)", "mean rating", "ranks"]
    return Table("Readers: preference", header, rows, caption=caption)


def _first_places(said: Said) -> Floats:
    """(F, R, A): 1 where it was ranked best, shared among those that are level; NaN where not ranked whole."""
    best = said.ranks == said.ranks.min(axis=2, keepdims=True)
    shared = best / np.maximum(best.sum(axis=2, keepdims=True), 1)
    return np.where(np.isfinite(said.ranks).all(axis=2, keepdims=True), shared, np.nan)


def _pairs(said: Said) -> Table:
    rows = [
        [
            Cell(said.arms[pair.first]),
            Cell(said.arms[pair.second]),
            cells.share(Share(value=pair.preferred, ci=tuple(pair.preferred_ci))),
            Cell(words.decimal(pair.p_value, 4), value=pair.p_value),
            cells.whole(pair.films),
        ]
        for pair in preference.pairs(said.ranks, said.groups, resamples=RESAMPLES)
    ]
    caption = "p: of each film's net preference, its sign flipped by groups, corrected for the number of pairs (Holm)."
    return Table("Readers: pairs", ["map", "against", "preferred (%)", "p", "films"], rows, heads=2, caption=caption)


def _agreement(said: Said) -> Table:
    bootstrap = Bootstrap.over(said.groups, resamples=RESAMPLES)
    weights = bootstrap.row_weights()
    first = said.ranks == said.ranks.min(axis=2, keepdims=True)
    best = np.where(np.isfinite(said.ranks).all(axis=2), first @ 2.0 ** np.arange(len(said.arms)), np.nan)
    flat = (np.concatenate([values[:, :, k] for k in range(len(said.arms))]) for values in (said.ranks, said.ratings))
    ranks, ratings = flat
    twice = np.tile(weights, (1, len(said.arms)))
    found = {
        "which map is best: Fleiss’ kappa": agreement.fleiss_kappa(best, weights),
        "which map is best: Krippendorff’s alpha": agreement.krippendorff_alpha(best, "nominal", weights),
        "ranks: Krippendorff’s alpha, ordinal": agreement.krippendorff_alpha(ranks, "ordinal", twice),
        "ratings: Krippendorff’s alpha, ordinal": agreement.krippendorff_alpha(ratings, "ordinal", twice),
        "regions: mean IoU of two readers": bootstrap.means(_overlap(said)),
    }
    rows = [[Cell(name), cells.plain(_share(values))] for name, values in found.items()]
    caption = (
        "1 is full agreement, 0 that of chance (for kappa and alpha). Kappa counts films that all readers ranked; "
        "alpha those that two or more did. Maps that share the first place are an answer of their own."
    )
    return Table("Readers: agreement", ["agreement", "value"], rows, caption=caption)


def _overlap(said: Said) -> Floats:
    """Mean IoU (F,) of the regions of every two readers that marked the film; NaN where fewer did, or all none."""
    flat = said.marks.reshape(*said.marks.shape[:2], -1) != 0
    values = []
    for i in range(len(said.readers)):
        for j in range(i):
            either = (flat[:, i] | flat[:, j]).sum(axis=1)
            both = said.marked[:, i] & said.marked[:, j] & (either > 0)
            values.append(np.where(both, (flat[:, i] & flat[:, j]).sum(axis=1) / np.maximum(either, 1), np.nan))
    return _nanmean(np.array(values)) if values else np.full(len(said.samples), np.nan)


def _regions(said: Said, runs: list[study_folder.Run]) -> Table:
    """Each reader, all of them, and every run of the study: the same measures on the same films."""
    own = reader_scores(said)
    mean = {name: _nanmean(values.T) for name, values in own.items()}
    rows = [[Cell("all readers", "the human benchmark"), *_row(mean, None, said)]]
    for k, _ in enumerate(said.readers):
        rows.append([Cell(f"R{k + 1}"), *_row({name: values[:, k] for name, values in own.items()}, None, said)])
    for label, scores in model_scores(said, runs):
        rows.append([Cell(label), *_row(scores, mean, said)])
    caption = (
        "Regions and maps against the radiologists’ masks of the data set, by the same measures on the same films. In "
        "brackets 95 % intervals; behind a run, how far it is from all readers (paired, film by film)."
    )
    return Table("Readers: regions", ["marked by", *map(words.measure, SCORED), "films"], rows, caption=caption)


def _row(scores: Mapping[str, Floats], human: Mapping[str, Floats] | None, said: Said) -> list[Cell]:
    found = []
    for name in SCORED:
        values = scores.get(name, np.full(len(said.samples), np.nan))
        cell = cells.plain(_mean(values, said.groups))
        if human is not None and np.isfinite(values).any():
            gap = paired(human[name], values, said.groups, resamples=RESAMPLES)
            beside = cells.gained(Share(value=gap.difference, ci=tuple(gap.difference_ci)))
            cell = Cell(cell.text, cell.small, f"{beside.text} {beside.small}", cell.value)
        found.append(cell)
    counted = max((int(np.isfinite(values).sum()) for values in scores.values()), default=0)
    return [*found, cells.whole(counted)]


def reader_scores(said: Said) -> dict[str, Floats]:
    """Of each reader's regions against the masks, (F, R) by measure; NaN where the reader has not marked the film."""
    import torch

    from trustcxr.catalogue import MEASURES
    from trustcxr.explain import measures

    masks, found = torch.from_numpy(said.masks), {}
    for name in SCORED:
        columns = [
            measures.of(MEASURES[name])(torch.from_numpy(said.marks[:, r].astype(np.float32)), masks).numpy()
            for r in range(len(said.readers))
        ]
        found[name] = np.where(said.marked, np.stack(columns, axis=1), np.nan)
    return found


def model_scores(said: Said, runs: list[study_folder.Run]) -> Iterator[tuple[str, dict[str, Floats]]]:
    """Of every run and method that the study measured, (F,) by measure, of the films that were read."""
    for run in runs:
        table = run.saliency
        if table is None or not {"method", "condition", "measure", "value", "sample_id"} <= set(table):
            continue
        clean = table[(table["condition"] == CLEAN) & table["measure"].isin(SCORED)]
        for method, rows in clean.groupby("method", sort=False):
            wide = rows.pivot_table(index="sample_id", columns="measure", values="value").reindex(said.samples)
            if len(wide.columns) and wide.notna().any(axis=None):
                yield f"{run.name}:{method}", {str(name): wide[name].to_numpy(dtype=float) for name in wide}


def _mean(values: Floats, groups: list[str], *, share: bool = False) -> Share:
    """Mean over films (and readers, where there are some: (F, R)), with its interval over groups of films."""
    by_film = _nanmean(values.T) if values.ndim == 2 else values
    bootstrap = Bootstrap.over(groups, resamples=RESAMPLES)
    found = bootstrap.means(by_film)
    if share and np.isfinite(found[0]):
        return Share(value=float(found[0]), ci=_of_width(share_interval(bootstrap, found, of=np.isfinite(by_film))))
    return _share(found)


def _nanmean(values: Floats) -> Floats:
    """Mean over the first axis of what is not NaN; NaN where nothing is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=0))


def _share(resampled: Floats) -> Share:
    value = float(resampled[0]) if len(resampled) and np.isfinite(resampled[0]) else None
    return Share(value=value, ci=None if value is None else _of_width(interval(resampled)))


def _of_width(ends: list[float]) -> tuple[float, float] | None:
    """An interval; None where all resamples are alike, which says nothing of how sure a figure is."""
    low, high = ends
    return (low, high) if low < high else None
