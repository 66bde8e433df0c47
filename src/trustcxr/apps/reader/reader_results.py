"""What the readers found, as tables for a report: preference, agreement, their regions beside every model's maps."""

import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from trustcxr.apps.reader import agreement, preference
from trustcxr.apps.reader.annotations import pixels
from trustcxr.apps.reader.database import Reader, Store
from trustcxr.errors import UserError
from trustcxr.report import formatting, load
from trustcxr.report.tables import table
from trustcxr.report.tables.table import Cell, Table
from trustcxr.statistics import Bootstrap, Floats, interval, paired, share_interval
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import Share
from trustcxr.version import NOTICE

RESAMPLES = 2000
# Of a map with two levels each of these says the same of a region as of a heatmap.
SCORED = ("infection_energy", "infection_iou", "infection_iou_area", "infection_auroc")
NAME = "readers"


@dataclass(frozen=True)
class Responses:
    """`ranks` and `ratings` (F images, R readers, A arms), NaN where not given.

    `marked` (F, R): whether the reader marked the image; `marks` (F, R, H, W) uint8; `masks` (F, H, W) uint8.
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
        """Images that a reader has ranked whole, (R,)."""
        return np.asarray(np.isfinite(self.ranks).all(axis=2).sum(axis=0))


def gather(store: Store) -> Responses:
    """Everything in the file. Images without a mask of their own size do not occur: all were written from one set."""
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
    return Responses(store.arms, told, names, groups, ranks, ratings, marked, marks, masks)


def _numbers(store: Store, reader: Reader, image: int) -> tuple[list[float], list[float]]:
    said = store.judgements(reader, image)
    ranks = [np.nan if each.rank is None else float(each.rank) for each in said]
    return ranks, [np.nan if each.rating is None else float(each.rating) for each in said]


def tables(said: Responses, runs: list[load.Run]) -> list[Table]:
    """Preference, pairs, agreement, and the human benchmark; UserError while nobody has read an image whole."""
    if not said.complete.any():
        raise UserError("no reader has ranked all maps of an image yet: nothing to count")
    return [_preference(said), _pairs(said), _agreement(said), _regions(said, runs)]


def write(said: Responses, runs: list[load.Run], folder: Path) -> list[Path]:
    """Write readers.md, and every table as CSV and LaTeX, into `folder`; return their paths."""
    return table.write_tables(tables(said, runs), folder, page=f"{NAME}.md", opening=_opening(said))


def _opening(said: Responses) -> str:
    counts = ", ".join(f"R{k + 1} {n}" for k, n in enumerate(said.complete))
    return (
        "# What the readers found\n\n"
        f"{formatting.plural(len(said.readers), 'reader')}, {formatting.plural(len(said.samples), 'image')}, "
        f"{len(said.arms)} maps of each, blinded and in random order; images ranked whole: {counts}. 95 % intervals by "
        f"bootstrap over patients or groups of images: they hold for these readers. "
        f"Where every resample is alike there is none. {NOTICE}"
    )


def _preference(said: Responses) -> Table:
    strengths = preference.strengths(said.ranks, said.groups, resamples=RESAMPLES)
    first = _first_places(said)
    rows = []
    for k, (arm, found) in enumerate(zip(said.arms, strengths, strict=True)):
        rating = _mean(said.ratings[:, :, k], said.groups)
        rows.append(
            [
                Cell(arm),
                table.share(Share(value=found.preferred, ci=tuple(found.preferred_ci))),
                table.plain(Share(value=found.log_strength, ci=_of_width(found.log_strength_ci)), 2),
                table.share(_mean(first[:, :, k], said.groups, share=True)),
                table.plain(rating, 2),
                table.whole(int(np.isfinite(said.ranks[:, :, k]).sum())),
            ]
        )
    caption = (
        "Preferred: how probably this map is preferred to another one, in percent, by the Bradley-Terry model of the "
        "ranks; 50 is no preference. Strength: its logarithm, summing to 0. Ratings go from 1 (does not show the "
        "finding) to 5 (shows it precisely)."
    )
    header = ["map", "preferred (%)", "strength (log)", "ranked first (%)", "mean rating", "ranks"]
    return Table("Readers: preference", header, rows, caption=caption)


def _first_places(said: Responses) -> Floats:
    """(F, R, A): 1 where it was ranked best, shared among those that are level; NaN where not ranked whole."""
    best = said.ranks == said.ranks.min(axis=2, keepdims=True)
    shared = best / np.maximum(best.sum(axis=2, keepdims=True), 1)
    return np.where(np.isfinite(said.ranks).all(axis=2, keepdims=True), shared, np.nan)


def _pairs(said: Responses) -> Table:
    rows = [
        [
            Cell(said.arms[pair.first]),
            Cell(said.arms[pair.second]),
            table.share(Share(value=pair.preferred, ci=tuple(pair.preferred_ci))),
            Cell(formatting.decimal(pair.p_value, 4), value=pair.p_value),
            table.whole(pair.images),
        ]
        for pair in preference.pairs(said.ranks, said.groups, resamples=RESAMPLES)
    ]
    caption = "p: of each image's net preference, its sign flipped by groups, corrected for the number of pairs (Holm)."
    return Table("Readers: pairs", ["map", "against", "preferred (%)", "p", "images"], rows, heads=2, caption=caption)


def _agreement(said: Responses) -> Table:
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
    rows = [[Cell(name), table.plain(_share(values))] for name, values in found.items()]
    caption = (
        "1 is full agreement, 0 that of chance (for kappa and alpha). Kappa counts images that all readers ranked; "
        "alpha those that two or more did. Maps that share the first place are an answer of their own."
    )
    return Table("Readers: agreement", ["agreement", "value"], rows, caption=caption)


def _overlap(said: Responses) -> Floats:
    """Mean IoU (F,) of the regions of every two readers that marked the image; NaN where fewer did, or all none."""
    flat = said.marks.reshape(*said.marks.shape[:2], -1) != 0
    values = []
    for i in range(len(said.readers)):
        for j in range(i):
            either = (flat[:, i] | flat[:, j]).sum(axis=1)
            both = said.marked[:, i] & said.marked[:, j] & (either > 0)
            values.append(np.where(both, (flat[:, i] & flat[:, j]).sum(axis=1) / np.maximum(either, 1), np.nan))
    return _nanmean(np.array(values)) if values else np.full(len(said.samples), np.nan)


def _regions(said: Responses, runs: list[load.Run]) -> Table:
    """Each reader, all of them, and every run of the study: the same measures on the same images."""
    own = reader_scores(said)
    mean = {name: _nanmean(values.T) for name, values in own.items()}
    rows = [[Cell("all readers", "the human benchmark"), *_row(mean, None, said)]]
    for k, _ in enumerate(said.readers):
        rows.append([Cell(f"R{k + 1}"), *_row({name: values[:, k] for name, values in own.items()}, None, said)])
    for label, scores in model_scores(said, runs):
        rows.append([Cell(label), *_row(scores, mean, said)])
    caption = (
        "Regions and maps against the radiologists’ masks of the data set, by the same measures on the same images. In "
        "brackets 95 % intervals; behind a run, how far it is from all readers (paired, image by image)."
    )
    return Table("Readers: regions", ["marked by", *map(formatting.measure, SCORED), "images"], rows, caption=caption)


def _row(scores: Mapping[str, Floats], human: Mapping[str, Floats] | None, said: Responses) -> list[Cell]:
    found = []
    for name in SCORED:
        values = scores.get(name, np.full(len(said.samples), np.nan))
        cell = table.plain(_mean(values, said.groups))
        if human is not None and np.isfinite(values).any():
            gap = paired(human[name], values, said.groups, resamples=RESAMPLES)
            beside = table.gained(Share(value=gap.difference, ci=tuple(gap.difference_ci)))
            cell = Cell(cell.text, cell.small, f"{beside.text} {beside.small}", cell.value)
        found.append(cell)
    counted = max((int(np.isfinite(values).sum()) for values in scores.values()), default=0)
    return [*found, table.whole(counted)]


def reader_scores(said: Responses) -> dict[str, Floats]:
    """Of each reader's regions against the masks, (F, R) by measure; NaN where the reader has not marked the image."""
    import torch

    from trustcxr.explain import measures
    from trustcxr.registry import MEASURES

    masks, found = torch.from_numpy(said.masks), {}
    for name in SCORED:
        columns = [
            measures.measure_function(MEASURES[name])(
                torch.from_numpy(said.marks[:, r].astype(np.float32)), masks
            ).numpy()
            for r in range(len(said.readers))
        ]
        found[name] = np.where(said.marked, np.stack(columns, axis=1), np.nan)
    return found


def model_scores(said: Responses, runs: list[load.Run]) -> Iterator[tuple[str, dict[str, Floats]]]:
    """Of every run and method that the study measured, (F,) by measure, of the images that were read."""
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
    """Mean over images (and readers, where there are some: (F, R)), with its interval over groups of images."""
    by_image = _nanmean(values.T) if values.ndim == 2 else values
    bootstrap = Bootstrap.over(groups, resamples=RESAMPLES)
    found = bootstrap.means(by_image)
    if share and np.isfinite(found[0]):
        return Share(value=float(found[0]), ci=_of_width(share_interval(bootstrap, found, of=np.isfinite(by_image))))
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
