"""Measure how far the answer depends on the lesion: images without it, or with another's, and controls.

A saliency map shows where a model might look; the lesion effect shows what it answers without the lesion. It is the
fall of the class's probability when the lesion is removed, less the fall when as much healthy lung of the same shape is
filled alike. The effect of any edit is in both and cancels. A second control fills the same place in the lungs of a
healthy image: it serves lesions that leave no healthy lung of their shape. A weaker control changes as much background
by the same grey levels. The figure to report is the smaller of effect and fall, by the least favourable fill.

Images are (B, 1, H, W), float, in [0, 1]; masks (B, H, W), bool. A model sees the edited pixels only, no mask.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import chain, pairwise, product
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from trustcxr import attacks
from trustcxr.console import track
from trustcxr.data import lesion_edits
from trustcxr.data.dataset import Dataset, has_filled_mask
from trustcxr.data.lesion_edits import EditInputs, Pair
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import AnyModel
from trustcxr.explain.base import target_classes
from trustcxr.models.preserve_state import preserve_state
from trustcxr.recipes.training_recipe import TrainingRecipe
from trustcxr.registry import USUAL_ATTACKS
from trustcxr.statistics import Bootstrap, interval, share_interval
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import LesionDocument, Share
from trustcxr.storage.schemas.run_document import LesionSize, LesionsWithoutControl

CONTROLS = ("lung", "background")
HEALTHY_IMAGE = "healthy image"
FILLS = ("grey", "mirror")  # for every image
SMALLEST = 0.1  # least share of the lesion with a congruent counterpart, for the image to count
SIZES = (0.0, 0.25, 0.5, 0.75, 1.0)  # bounds of the share of the lungs that a lesion covers
PGD_STEPS = 10  # of attacked images
CELLS = 8  # cells along each side of an image that are removed one by one


def remove_lesions(
    model: nn.Module,
    images: EditInputs,
    target: int | Tensor,
    healthy: EditInputs | None = None,
    healthy_target: int | Tensor = 0,
    *,
    fills: Sequence[str] = tuple(lesion_edits.FILLS),
) -> pd.DataFrame:
    """Remove the lesion and each control, and return probabilities of `target`: a row an image, fill and control.

    With `healthy` images, one each, the control is the same place in the lungs of these.

    Columns: image (row of the batch), lesion (share of the lungs), fill, control, share (of the lesion with a congruent
    counterpart), before, without (that part removed), control_answer (the control changed), whole (all of the lesion
    removed), fall (before - without), effect (control_answer - without). `flipped`, `flipped_control` and
    `flipped_whole` are 1 if the predicted class changed. `fall` and `effect` are NaN for images without a lung mask, or
    with a counterpart of less than SMALLEST of the lesion. Of healthy images, control_before and control_answer are the
    probability of their own class, `healthy_target`: the effect is fall - (control_before - control_answer).
    """
    others, other_target = (images, target) if healthy is None else (healthy, healthy_target)
    controls = pairs(images) if healthy is None else {HEALTHY_IMAGE: lesion_edits.match_place(images, healthy)}
    lungs, tables = images.lung.flatten(1).any(1) & others.lung.flatten(1).any(1), []
    with preserve_state(model, autocast_cache=False), torch.no_grad():
        before = _answer(model, images.images, target)
        at_first = None if healthy is None else _answer(model, healthy.images, healthy_target)
        remove_whole = partial(lesion_edits.fill_region, images.images, images.lesion, images.lung, images.lesion)
        wholes = {fill: _answer(model, remove_whole(fill=fill), target) for fill in fills}
        for (control, pair), (fill, whole) in product(controls.items(), wholes.items()):
            edited, other = _changed(images, others, pair, fill, refilled=control != CONTROLS[1])
            without, control_answers = _answer(model, edited, target), _answer(model, other, other_target)
            about = {"lesion": _cover(images), "fill": fill, "control": control}
            about["share"] = pair.share.where(lungs, torch.nan).cpu().numpy()
            tables.append(_compared(before, without, control_answers, about, whole=whole, control_before=at_first))
    return pd.concat(tables, ignore_index=True)


def pairs(images: EditInputs) -> dict[str, Pair]:
    """Return the part of each lesion that is compared, and its control, by the control's name."""
    return {
        "lung": lesion_edits.match_controls(images.lesion, images.lung),
        "background": lesion_edits.match_controls(images.lesion, ~images.lung),
    }


def _changed(images: EditInputs, others: EditInputs, pair: Pair, fill: str, *, refilled: bool) -> tuple[Tensor, Tensor]:
    """Return images without the lesion's part, and `others` with the control changed: `refilled`, or by that change."""
    only = None
    if fill == "mirror" and refilled:  # only if part and control both have it: a control's other side may be the lesion
        usable, there = (lesion_edits.mirror_lungs(x.images, x.lung, x.lesion)[1] for x in (images, others))
        only = usable & pair.move_to_lesion(there)
    without = lesion_edits.fill_region(images.images, pair.lesion, images.lung, images.lesion, fill=fill, only=only)
    if refilled:
        only = None if only is None else pair.move_to_control(only)
        return without, lesion_edits.fill_region(
            others.images, pair.control, others.lung, others.lesion, fill=fill, only=only
        )
    change = pair.move_to_control((without - images.images)[:, 0])
    return without, (images.images + change[:, None]).clamp(0, 1)


def transplant_lesions(
    model: nn.Module, images: EditInputs, diseased: EditInputs, healthy: EditInputs, target: int | Tensor
) -> pd.DataFrame:
    """Put lesions of others into healthy images and return probabilities of `target`: a row an image.

    `images` (healthy) receive; `diseased` and `healthy` (other images without a lesion) give, one each. The lesion, as
    far as it falls into the lungs of all three, and at the same position the healthy donor's lung are put in alike.
    Columns as `remove_lesions`, with `without` for the image with the lesion: the effect is without - control_answer.
    `lesion` is the share of the recipient's lungs that the patch covers.
    """
    with preserve_state(model, autocast_cache=False), torch.no_grad():
        answer = partial(_answer, model, target=target)
        donors = lesion_edits.align_donors(diseased, images.lung)
        others = lesion_edits.align_donors(healthy, images.lung)
        region = donors.lesion & images.lung & others.lung
        ill = answer(lesion_edits.transplant(images, donors, region))
        well = answer(lesion_edits.transplant(images, others, region))
        share = region.flatten(1).sum(1) / diseased.lesion.flatten(1).sum(1)
        for some in (images, diseased, healthy):  # without lungs neither position nor grey level is known
            share = share.where(some.lung.flatten(1).any(1), torch.nan)
        cover = _cover(EditInputs(images.images, images.lung, region))
        about = {"lesion": cover, "fill": "transplant", "control": "healthy patch", "share": share.cpu().numpy()}
        table = _compared(answer(images.images), ill, well, about)
    nothing_removed = dict.fromkeys(("fall", "whole", "flipped_whole"), np.nan)
    return table.assign(effect=-table["effect"], **nothing_removed)


@dataclass
class _Answers:
    """For a batch: the probability of the target class, (B,), and the predicted class, (B,)."""

    probability: np.ndarray
    label: np.ndarray


def _answer(model: nn.Module, images: Tensor, target: int | Tensor) -> _Answers:
    logits = model(images)
    shares = logits.float().softmax(1)
    probability = shares.gather(1, target_classes(target, logits)[:, None])[:, 0]
    return _Answers(probability.double().cpu().numpy(), shares.argmax(1).cpu().numpy())


def _compared(
    before: _Answers,
    without: _Answers,
    control: _Answers,
    about: Mapping[str, object],
    *,
    whole: _Answers | None = None,
    control_before: _Answers | None = None,
) -> pd.DataFrame:
    table = pd.DataFrame({"image": np.arange(len(before.label)), **about})
    whole = whole or without
    table["before"], table["without"] = before.probability, without.probability
    table["control_answer"], table["whole"] = control.probability, whole.probability
    enough = table["share"].to_numpy() >= SMALLEST
    fall, at_first = before.probability - without.probability, control_before or before
    # Of one image the two `before` cancel; they are left out, so that they add no rounding.
    effect = control.probability - without.probability
    if control_before is not None:
        effect = fall - (control_before.probability - control.probability)
    table["control_before"] = at_first.probability
    table["fall"], table["effect"] = (np.where(enough, values, np.nan) for values in (fall, effect))
    for name, first, other in (("flipped", before, without), ("flipped_control", at_first, control)):
        table[name] = np.where(enough, (first.label != other.label).astype(float), np.nan)
    table["flipped_whole"] = (before.label != whole.label).astype(float)
    return table


def _cover(images: EditInputs) -> np.ndarray:
    """Return the share of the lungs that each lesion covers, (B,); NaN without lungs."""
    lung = images.lung.flatten(1).sum(1).double()
    return ((images.lesion & images.lung).flatten(1).sum(1) / lung).cpu().numpy()


# --- a run -----------------------------------------------------------------------------------------------------------


def find_lesion_rows(dataset: Dataset) -> np.ndarray:
    """Return the rows of images with a non-empty lesion mask; empty if the data has no such masks."""
    if not {"lung", "infection"} <= set(dataset.mask_kinds):
        return np.zeros(0, int)
    return np.flatnonzero([bool(mask.any()) for mask in dataset.masks("infection")])


def select_annotated(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Return the rows that can be explained: all, or for the images of one finding those that have it."""
    explained = getattr(dataset, "explained", None)
    return rows if explained is None else rows[explained[rows]]


def lesion_effects(
    run: AnyModel, dataset: Dataset, *, batch_size: int = 32, sample: int = 0, epsilon: float = 0.0
) -> pd.DataFrame:
    """Return the table of lesion_effects.parquet: `remove_lesions` of every image with a lesion, for its own class.

    Each is compared with a drawn healthy image too; the groups of these rows join all patients that share one. A drawn
    `sample` is also inpainted (with scikit-image), edited under PGD at `epsilon`, and transplanted into healthy images,
    clean and under PGD. Empty if no image has a lesion mask.
    """
    rows = select_annotated(dataset, find_lesion_rows(dataset))
    drawn = np.sort(np.random.default_rng(0).permutation(rows)[:sample])
    measure = partial(_measure, run, dataset)
    remove = partial(remove_lesions, fills=FILLS)
    jobs = [partial(measure, remove, some) for some in slices(rows[:, None], batch_size)]
    healthy = np.random.default_rng(0).permutation(_healthy(run, dataset))
    if len(healthy):
        partners = np.stack([rows, np.resize(healthy, len(rows))], 1)
        parts = slices(partners, batch_size), slices(_join_groups(dataset.groups[partners]), batch_size)
        jobs += [partial(measure, remove, some, groups=groups) for some, groups in zip(*parts, strict=True)]
    single = slices(drawn[:, None], batch_size)
    if find_spec("skimage") is not None:
        jobs += [partial(measure, partial(remove_lesions, fills=("inpaint",)), some) for some in single]
    if epsilon > 0:
        jobs += [partial(measure, remove, some, epsilon) for some in single]
    count = min(len(drawn), len(healthy)) if len(healthy) > 1 else 0
    trios = np.stack([healthy[:count], drawn[:count], np.roll(healthy, 1)[:count]], 1)
    for radius in dict.fromkeys((0.0, epsilon)):
        jobs += [partial(measure, _transplant, some, radius) for some in slices(trios, batch_size)]
    tables = [job() for job in track(jobs, f"lesions of {run.name}")]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def slices(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Split the rows into parts of `size`."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _healthy(run: AnyModel, dataset: Dataset) -> np.ndarray:
    """Return the rows of the healthy class with lungs and without a lesion; empty if no class is healthy."""
    recipe = getattr(run, "recipe", None)  # None for an external model
    name = (TrainingRecipe() if recipe is None else recipe.training).counterfactuals.healthy_class
    healthy = getattr(dataset, "healthy", None)  # of the images of one finding
    if healthy is None:
        healthy = np.asarray(dataset.labels) == (run.classes.index(name) if name in run.classes else -1)
    if not healthy.any() or not {"lung", "infection"} <= set(dataset.mask_kinds):
        return np.zeros(0, int)
    well = np.setdiff1d(np.flatnonzero(healthy), find_lesion_rows(dataset))
    return well[has_filled_mask(dataset, "lung", well)]


def _join_groups(pairs: np.ndarray) -> np.ndarray:
    """Return a group (N,) for pairs of groups (N, 2): pairs that share one, directly or through others, have the same.

    It has the name of the first group of its first pair.
    """
    names, edges = np.unique(pairs, return_inverse=True)
    first, second = edges.reshape(pairs.shape).T
    graph = coo_array((np.ones(len(pairs)), (first, second)), shape=(len(names), len(names)))
    _, starts, joined = np.unique(connected_components(graph)[1][first], return_index=True, return_inverse=True)
    return pairs[starts[joined], 0]


def _measure(
    run: AnyModel,
    dataset: Dataset,
    function: Callable[..., pd.DataFrame],
    rows: np.ndarray,
    epsilon: float = 0.0,
    *,
    groups: np.ndarray | None = None,
) -> pd.DataFrame:
    """Call a function on the images and labels of rows (N, K), and describe the first of each in its table.

    These first images are attacked by PGD at `epsilon`, unless it is 0. `groups` (N,), if they are not the images' own.
    """
    images = [lesion_edits.make_edit_inputs(dataset, some, run.device) for some in rows.T]
    labels = [torch.from_numpy(dataset.labels[some]).to(run.device) for some in rows.T]
    if epsilon > 0:
        attacked = attacks.pgd(run.model, images[0].images, labels[0], epsilon=epsilon, steps=PGD_STEPS)
        images[0] = replace(images[0], images=attacked)
    table = function(run.model, *chain(*zip(images, labels, strict=True)))
    numbers = table["image"].to_numpy()
    image = rows[numbers, 0]
    group = dataset.groups[image] if groups is None else groups[numbers]
    about = {"image": image, "sample_id": dataset.sample_ids[image], "group": group}
    return table.assign(**about, condition=USUAL_ATTACKS[1] if epsilon > 0 else CLEAN, epsilon=epsilon)


def _transplant(
    model: nn.Module, images: EditInputs, _: Tensor, ill: EditInputs, labels: Tensor, well: EditInputs, __: Tensor
) -> pd.DataFrame:
    """Run `transplant_lesions` for the labels of the donors of a lesion."""
    return transplant_lesions(model, images, ill, well, labels)


def summarise_effects(table: pd.DataFrame, *, resamples: int = 2000) -> list[LesionDocument]:
    """Return the part "lesions" of metrics.json: effect, probabilities and effect by size for each fill and control."""
    documents = []
    about = ["condition", "epsilon", "fill", "control"]
    for values, rows in table.groupby(about, sort=False) if len(table) else ():
        groups, counted = rows["group"].to_numpy(dtype=str), rows[rows["effect"].notna()]
        content: dict[str, Any] = {name: counted[name].mean() for name in _MEANS}
        content |= zip(about, values, strict=True)
        if values[-1] == CONTROLS[0]:
            content["without_control"] = _summarise_uncontrolled(rows[rows["effect"].isna()], resamples)
        content["by_size"] = summarise_by_size(rows, groups, resamples=resamples)
        documents.append(summarise_effect(rows, groups, resamples=resamples, **content))
    return documents


_MEANS = ["before", "without", "control_before", "control_answer", "whole", "share"]


def _summarise_uncontrolled(rows: pd.DataFrame, resamples: int) -> LesionsWithoutControl:
    """Return the fall without the whole lesion of images that have no control."""
    if rows.empty:
        return LesionsWithoutControl(images=0)
    bootstrap = Bootstrap.over(rows["group"].to_numpy(dtype=str), resamples=resamples)
    fall, flipped = bootstrap.means(rows["before"] - rows["whole"]), bootstrap.means(rows["flipped_whole"])
    return LesionsWithoutControl(
        images=len(rows),
        before=float(rows["before"].mean()),
        whole=float(rows["whole"].mean()),
        fall=Share(value=fall[0], ci=interval(fall)),
        flipped=Share(value=flipped[0], ci=share_interval(bootstrap, flipped)),
    )


def summarise_effect(
    table: pd.DataFrame, groups: Sequence[str] | np.ndarray, *, resamples: int = 2000, **about: Any
) -> LesionDocument:
    """Return effect, fall, the smaller of both, flips and counts of the rows of one fill and control.

    `groups` (N,) are those of the images; `about`: further parts of the document. Raises UserError if an image occurs
    twice.
    """
    if table["image"].duplicated().any():
        raise UserError("a lesion effect is of one fill and one control: choose the rows of one of each")
    bootstrap = Bootstrap.over(groups, resamples=resamples)
    names = ("effect", "fall", "flipped", "flipped_control")
    effect, fall, flipped, control = (bootstrap.means(table[name]) for name in names)
    least = np.fmin(effect, fall)  # in each resample
    counted = int(table["effect"].notna().sum())
    ends = share_interval(bootstrap, flipped, of=table["flipped"].notna())
    return LesionDocument(
        **about,
        effect=Share(value=effect[0], ci=interval(effect)),
        fall=Share(value=fall[0], ci=interval(fall)),
        least=Share(value=least[0], ci=interval(least)),
        flipped=Share(value=flipped[0], ci=ends),
        flipped_control=control[0],
        images=counted,
        left_out=len(table) - counted,
    )


def summarise_by_size(
    table: pd.DataFrame, groups: Sequence[str] | np.ndarray, *, resamples: int = 2000
) -> list[LesionSize]:
    """Return the effect by the share of the lungs that the lesion covers, for each range of SIZES with an image."""
    sizes, names = [], np.asarray(groups)
    for low, high in pairwise(SIZES):
        chosen = ((table["lesion"] > low) & (table["lesion"] <= high)).to_numpy()
        if chosen.any():
            part = summarise_effect(table[chosen], names[chosen], resamples=resamples)
            ends = part.effect.ci or (None, None)
            figures = {"images": part.images, "effect": part.effect.value, "low": ends[0], "high": ends[1]}
            sizes.append(LesionSize(above=low, up_to=high, **figures))
    return sizes


# --- maps ranked by cause --------------------------------------------------------------------------------------------


def measure_causes(model: nn.Module, radiographs: EditInputs, target: int | Tensor, *, cells: int = CELLS) -> Tensor:
    """Return the fall of the log-probability of `target` when each cell of a grid is removed, (B, cells, cells).

    A cell is filled with the image's healthy grey, as a lesion is. Cells without lung are NaN.
    """
    images, size = radiographs.images, radiographs.images.shape[-2:]
    with preserve_state(model, autocast_cache=False), torch.no_grad():
        logits = model(images)
        labels = target_classes(target, logits)[:, None]
        before = logits.float().log_softmax(1).gather(1, labels)[:, 0]
        falls = torch.full((len(images), cells, cells), torch.nan, device=images.device)
        for row, column in product(range(cells), repeat=2):
            cell = torch.zeros(len(images), *size, dtype=torch.bool, device=images.device)
            cell[:, _part(row, cells, size[0]), _part(column, cells, size[1])] = True
            has_lung = (cell & radiographs.lung).flatten(1).any(1)
            if has_lung.any():
                edited = lesion_edits.fill_region(images, cell, radiographs.lung, radiographs.lesion)
                after = model(edited).float().log_softmax(1).gather(1, labels)[:, 0]
                falls[has_lung, row, column] = (before - after)[has_lung]
    return falls


def _part(index: int, cells: int, side: int) -> slice:
    """Return the pixels along a side that belong to one of the cells."""
    return slice(round(index * side / cells), round((index + 1) * side / cells))


def rank_by_cause(saliency: Tensor, falls: Tensor) -> Tensor:
    """Return Spearman's rank correlation of maps (B, H, W), averaged over cells, and falls (B, cells, cells), (B,).

    NaN for fewer than three cells or equal falls; 0 for a map that is the same in all cells.
    """
    cells, (height, width) = falls.shape[-1], saliency.shape[-2:]
    rows, columns = ([_part(index, cells, side) for index in range(cells)] for side in (height, width))
    shares = torch.stack([saliency[:, *cell].double().mean((1, 2)) for cell in product(rows, columns)], 1)
    pairs_of = zip(shares.cpu().numpy(), falls.flatten(1).double().cpu().numpy(), strict=True)
    return torch.tensor([_spearman(a, b) for a, b in pairs_of], dtype=torch.float64)


def _spearman(of_map: np.ndarray, of_cause: np.ndarray) -> float:
    finite = np.isfinite(of_cause)
    if finite.sum() < 3 or np.ptp(of_cause[finite]) == 0:
        return float("nan")
    return float(stats.spearmanr(of_map[finite], of_cause[finite]).statistic) if np.ptp(of_map[finite]) else 0.0
