"""Does the answer depend on the disease? Images without their lesion, and with another's, each beside its control.

A map shows where a model might look; this asks what it answers when the lesion is not there. The lesion effect is the
fall of the class's probability when the lesion is removed, less the fall when as much healthy lung of the same shape is
filled alike: what a mere edit does to the model is in both, and goes. The background control is weaker: as much of the
image outside the lungs takes on the very same change, grey by grey, which says what that much change does elsewhere; a
model that reads the texture of lungs has an effect beside it and none beside lung.

Images are (B, 1, H, W), float, in [0, 1]; masks (B, H, W), bool. A model only ever sees the edited pixels, no mask.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from itertools import pairwise, product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn

from trustcxr import attacks
from trustcxr.console import track
from trustcxr.data import lesion_edits
from trustcxr.data.dataset import filled
from trustcxr.data.lesion_edits import EditInputs, Pair
from trustcxr.errors import UserError
from trustcxr.explain.base import target_classes
from trustcxr.explain.stability import CLEAN, PGD_STEPS
from trustcxr.models.preserve_state import evaluate_on
from trustcxr.recipes.training_recipe import TrainingRecipe
from trustcxr.registry import USUAL_ATTACKS
from trustcxr.statistics import Bootstrap, interval, share_interval
from trustcxr.storage.schemas import LesionDocument

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset
    from trustcxr.evaluation.model_protocol import ModelUnderTest
    from trustcxr.evaluation.trained_run import Run

CONTROLS = ("lung", "background")
FILLS = ("grey", "mirror")  # of a report, of every image
INPAINTED = ("inpaint",)  # of a sample, where the extra that it needs is there
TRANSPLANT = "transplant"
SMALLEST = 0.1  # of the lesion that its congruent part must have for the image to count
SIZES = (0.0, 0.25, 0.5, 0.75, 1.0)  # bounds of the share of the lungs that a lesion covers, for the table by size
CELLS = 8  # regions of an image, along each side, that are ranked by what removing them does


def removal(
    model: nn.Module, images: EditInputs, target: int | Tensor, *, fills: Sequence[str] = tuple(lesion_edits.FILLS)
) -> pd.DataFrame:
    """What removing the lesion does to the probability of `target`, beside each control: a row an image, fill, control.

    Columns: image (its place), lesion (share of the lungs), fill, control, share (of the lesion that was changed: the
    part that has a congruent counterpart), before, without (the lesion's part), beside (the control changed instead),
    whole (the whole lesion removed), effect (beside - without), and of each of the last three answers whether it is
    another than before: flipped, flipped_control, flipped_whole. Images where less than SMALLEST of the lesion has a
    counterpart, and images without a lung mask, of which no healthy grey is known, have NaN in `effect`, to be left out
    and counted.
    """
    with evaluate_on(model, images.images.device), torch.no_grad():
        answer = _Answer(model, images.images, target)
        tables = []
        for control, pair in pairs(images).items():
            for fill in fills:
                gone, other = _changed(images, pair, fill, alike=control == "lung")
                whole = answer.to(
                    lesion_edits.removed(images.images, images.lesion, images.lung, images.lesion, fill=fill)
                )
                without, beside = answer.to(gone), answer.to(other)
                share = pair.share.where(images.lung.flatten(1).any(1), torch.nan).cpu().numpy()
                about = {"lesion": _cover(images), "fill": fill, "control": control, "share": share}
                tables.append(_compared(answer.before, without, beside, about, whole=whole))
    return pd.concat(tables, ignore_index=True)


def pairs(images: EditInputs) -> dict[str, Pair]:
    """The part of each lesion that is compared, and its control, by the name of the control."""
    return {
        "lung": lesion_edits.congruent(images.lesion, images.lung),
        "background": lesion_edits.congruent(images.lesion, ~images.lung),
    }


def _changed(images: EditInputs, pair: Pair, fill: str, *, alike: bool) -> tuple[Tensor, Tensor]:
    """Images without the lesion's part, and with the control changed instead: filled `alike`, or by the same change.

    Mirrored lung is taken where the part and its control both have it: the other side of a control is often the lesion.
    """
    only = None
    if fill == "mirror" and alike:
        _, usable = lesion_edits.mirrored(images.images, images.lung, images.lesion)
        only = usable & pair.carried_back(usable)
    gone = lesion_edits.removed(images.images, pair.lesion, images.lung, images.lesion, fill=fill, only=only)
    if alike:
        only = None if only is None else pair.carried(only)
        return gone, lesion_edits.removed(images.images, pair.control, images.lung, images.lesion, fill=fill, only=only)
    change = pair.carried((gone - images.images)[:, 0])
    return gone, (images.images + change[:, None]).clamp(0, 1)


def transplantation(
    model: nn.Module, images: EditInputs, diseased: EditInputs, healthy: EditInputs, target: int | Tensor
) -> pd.DataFrame:
    """What another's lesion put into healthy images does to the probability of `target`: a row an image.

    `images`, healthy, are the recipients; `diseased` and `healthy` (other images without a lesion) the donors, one
    each.
    The lesion, as far as it falls into the lungs of all three, and at the same place as much of the healthy donor's
    lung, are put in alike. Columns as `removal`:
    `without` is the image with the lesion, so that the effect, what the lesion adds beyond the healthy patch, is
    `without - beside`; `lesion` is the share of the recipient's lungs that the patch covers.
    """
    with evaluate_on(model, images.images.device), torch.no_grad():
        answer = _Answer(model, images.images, target)
        donors, others = lesion_edits.moved_onto(diseased, images.lung), lesion_edits.moved_onto(healthy, images.lung)
        region = donors.lesion & images.lung & others.lung
        ill = answer.to(lesion_edits.transplanted(images, donors, region))
        well = answer.to(lesion_edits.transplanted(images, others, region))
        share = region.flatten(1).sum(1) / diseased.lesion.flatten(1).sum(1)
        for some in (images, diseased, healthy):  # without lungs nobody knows where to, nor how grey
            share = share.where(some.lung.flatten(1).any(1), torch.nan)
        cover = _cover(EditInputs(images.images, images.lung, region))
        about = {"lesion": cover, "fill": TRANSPLANT, "control": "healthy patch", "share": share.cpu().numpy()}
        table = _compared(answer.before, ill, well, about)
    return table.assign(effect=-table["effect"], whole=np.nan, flipped_whole=np.nan)  # nothing was removed


@dataclass
class _Answers:
    """Of a batch: the probability of the class asked for, (B,), and the class answered, (B,)."""

    probability: np.ndarray
    label: np.ndarray


class _Answer:
    """A model asked about one class of images, before and after a change."""

    def __init__(self, model: nn.Module, images: Tensor, target: int | Tensor) -> None:
        self.model = model
        logits = model(images)
        self.target = target_classes(target, logits)
        self.before = self._of(logits)

    def to(self, images: Tensor) -> _Answers:
        return self._of(self.model(images))

    def _of(self, logits: Tensor) -> _Answers:
        shares = logits.float().softmax(1)
        asked = shares.gather(1, self.target[:, None])[:, 0]
        return _Answers(asked.double().cpu().numpy(), shares.argmax(1).cpu().numpy())


def _compared(
    before: _Answers,
    without: _Answers,
    beside: _Answers,
    about: Mapping[str, object],
    *,
    whole: _Answers | None = None,
) -> pd.DataFrame:
    table = pd.DataFrame({"image": np.arange(len(before.label)), **about})
    whole = whole or without
    table["before"], table["without"] = before.probability, without.probability
    table["beside"], table["whole"] = beside.probability, whole.probability
    enough = table["share"].to_numpy() >= SMALLEST
    table["effect"] = np.where(enough, beside.probability - without.probability, np.nan)
    for name, other in (("flipped", without), ("flipped_control", beside), ("flipped_whole", whole)):
        table[name] = np.where(enough, (before.label != other.label).astype(float), np.nan)
    return table


def _cover(images: EditInputs) -> np.ndarray:
    """The share of the lungs that each lesion covers, (B,); NaN without lungs."""
    lung = images.lung.flatten(1).sum(1).double()
    return ((images.lesion & images.lung).flatten(1).sum(1) / lung).cpu().numpy()


# --- a run -----------------------------------------------------------------------------------------------------------


def with_lesions(dataset: "Dataset") -> np.ndarray:
    """Rows of the images whose lesion mask is not empty; none where the data has no such masks."""
    if not {"lung", "infection"} <= set(dataset.mask_kinds):
        return np.zeros(0, int)
    return np.flatnonzero([bool(mask.any()) for mask in dataset.masks("infection")])


def select_annotated(dataset: "Dataset", rows: np.ndarray) -> np.ndarray:
    """Of these rows those whose class a map can be of: all, or, of the images of one finding, those that have it."""
    explained = getattr(dataset, "explained", None)
    return rows if explained is None else rows[explained[rows]]


def lesion_effects(
    run: "Run | ModelUnderTest",
    dataset: "Dataset",
    *,
    fills: Sequence[str] = FILLS,
    batch_size: int = 32,
    sample: int = 0,
    epsilon: float = 0.0,
) -> pd.DataFrame:
    """The table of lesion_effects.parquet: `removal` of every image with a lesion, for its own class, with its group.

    Of `sample` images, drawn by a fixed seed, also: the lesion inpainted, where scikit-image is there; removed from the
    image under PGD at `epsilon`; and put into a healthy image, each into another, as it is and under PGD. Columns
    condition and epsilon say which are attacked. Empty, with no columns, where no image has a lesion mask.
    """
    rows = select_annotated(dataset, with_lesions(dataset))
    drawn = np.sort(np.random.default_rng(0).permutation(rows)[:sample])
    jobs = [partial(_removed, run, dataset, some, fills) for some in slices(rows, batch_size)]
    if len(drawn) and find_spec("skimage") is not None:
        jobs += [partial(_removed, run, dataset, some, INPAINTED) for some in slices(drawn, batch_size)]
    if epsilon > 0:
        jobs += [partial(_removed, run, dataset, some, FILLS, epsilon) for some in slices(drawn, batch_size)]
    healthy = np.random.default_rng(0).permutation(_healthy(run, dataset))
    count = min(len(drawn), len(healthy)) if len(healthy) > 1 else 0
    trios = np.stack([healthy[:count], drawn[:count], np.roll(healthy, 1)[:count]], 1)
    for radius in dict.fromkeys((0.0, epsilon)):
        jobs += [partial(_put_in, run, dataset, some, radius) for some in slices(trios, batch_size)]
    tables = [job() for job in track(jobs, f"lesions of {run.name}")]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def slices(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """The rows in order, so many at a time."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _healthy(run: "Run | ModelUnderTest", dataset: "Dataset") -> np.ndarray:
    """Rows of the images of the healthy class that have lungs and no lesion;

    None where no class is known as healthy.
    """
    recipe = getattr(run, "trained_by", None)  # of a model that was given nobody knows how it was trained
    name = (TrainingRecipe() if recipe is None else recipe.training).healthy
    healthy = getattr(dataset, "healthy", None)  # of the images of one finding
    if healthy is None:
        healthy = np.asarray(dataset.labels) == (run.classes.index(name) if name in run.classes else -1)
    if not healthy.any() or not {"lung", "infection"} <= set(dataset.mask_kinds):
        return np.zeros(0, int)
    well = np.setdiff1d(np.flatnonzero(healthy), with_lesions(dataset))
    return well[filled(dataset, "lung", well)]


def _removed(
    run: "Run | ModelUnderTest", dataset: "Dataset", rows: np.ndarray, fills: Sequence[str], epsilon: float = 0.0
) -> pd.DataFrame:
    """`removal` of some images, as they are or under PGD."""
    labels = torch.from_numpy(dataset.labels[rows]).to(run.device)
    images = attacked(run.model, lesion_edits.make_edit_inputs(dataset, rows, run.device), labels, epsilon)
    return _told(removal(run.model, images, labels, fills=fills), dataset, rows, epsilon)


def _put_in(run: "Run | ModelUnderTest", dataset: "Dataset", trios: np.ndarray, epsilon: float = 0.0) -> pd.DataFrame:
    """`transplantation`: rows of recipients, of donors of a lesion and of healthy donors, (N, 3).

    Under PGD it is the recipient that was attacked before, away from its own class; lesion and patch are as they are.
    """
    into, ill, well = (lesion_edits.make_edit_inputs(dataset, rows, run.device) for rows in trios.T)
    own, labels = (torch.from_numpy(dataset.labels[rows]).to(run.device) for rows in trios.T[:2])
    into = attacked(run.model, into, own, epsilon)
    return _told(transplantation(run.model, into, ill, well, labels), dataset, trios[:, 0], epsilon)


def attacked(model: nn.Module, images: EditInputs, labels: Tensor, epsilon: float) -> EditInputs:
    """Images under PGD at `epsilon`, away from `labels` (B,); themselves at 0."""
    if epsilon <= 0:
        return images
    return EditInputs(
        attacks.pgd(model, images.images, labels, epsilon=epsilon, steps=PGD_STEPS), images.lung, images.lesion
    )


def _told(table: pd.DataFrame, dataset: "Dataset", rows: np.ndarray, epsilon: float) -> pd.DataFrame:
    """With the images' places in the data set, their names and groups, and what was done to them before."""
    image = rows[table["image"].to_numpy()]
    about = {"image": image, "sample_id": dataset.sample_ids[image], "group": dataset.groups[image]}
    return table.assign(**about, condition=USUAL_ATTACKS[1] if epsilon > 0 else CLEAN, epsilon=epsilon)


def described(table: pd.DataFrame, *, resamples: int = 2000) -> list[LesionDocument]:
    """The part "lesions" of metrics.json: for each fill and control the effect, what led to it, and it by size."""
    found = []
    if len(table) and "condition" not in table:  # of an earlier version: of images as they are alone
        table = table.assign(condition=CLEAN, epsilon=0.0)
    about = ["condition", "epsilon", "fill", "control"]
    for (condition, epsilon, fill, control), rows in table.groupby(about, sort=False) if len(table) else ():
        groups = rows["group"].to_numpy(dtype=str)
        # Of the images that the effect is of, so that it is their difference.
        told = rows[rows["effect"].notna()]
        means = {name: float(told[name].mean()) for name in ("before", "without", "beside", "whole", "share")}
        sizes = by_size(rows, groups, resamples=resamples).to_dict("records")
        effect = asdict(summed_up(rows, groups, resamples=resamples))
        for name in ("effect", "flipped"):
            effect[name] = {"value": effect[name], "ci": effect.pop(f"{name}_ci")}
        content = {"condition": str(condition), "epsilon": epsilon, "fill": str(fill), "control": str(control)}
        content |= means | effect | {"by_size": sizes}
        found.append(LesionDocument.model_validate(content))
    return found


# --- summed up -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LesionEffect:
    """The lesion effect over images: mean with its 95 % interval over groups, and how often the answer flips."""

    effect: float
    effect_ci: list[float]
    flipped: float
    flipped_ci: list[float]
    flipped_control: float
    images: int
    left_out: int


def summed_up(table: pd.DataFrame, groups: Sequence[str] | np.ndarray, *, resamples: int = 2000) -> LesionEffect:
    """One fill and control of a table of `removal` or `transplantation`, over images whose groups are `groups` (N,)."""
    if table["image"].duplicated().any():
        raise UserError("a lesion effect is of one fill and one control: choose the rows of one of each")
    bootstrap = Bootstrap.over(groups, resamples=resamples)
    means = {name: bootstrap.means(table[name]) for name in ("effect", "flipped", "flipped_control")}
    known = table["effect"].notna()
    return LesionEffect(
        effect=float(means["effect"][0]),
        effect_ci=interval(means["effect"]),
        flipped=float(means["flipped"][0]),
        flipped_ci=share_interval(bootstrap, means["flipped"], of=table["flipped"].notna()),
        flipped_control=float(means["flipped_control"][0]),
        images=int(known.sum()),
        left_out=int((~known).sum()),
    )


def by_size(table: pd.DataFrame, groups: Sequence[str] | np.ndarray, *, resamples: int = 2000) -> pd.DataFrame:
    """The effect by how much of the lungs the lesion covers: columns above, up_to, images, effect, low, high."""
    rows, names = [], np.asarray(groups)
    for low, high in pairwise(SIZES):
        chosen = ((table["lesion"] > low) & (table["lesion"] <= high)).to_numpy()
        if not chosen.any():
            continue
        found = summed_up(table[chosen], names[chosen], resamples=resamples)
        rows.append({"above": low, "up_to": high, "images": found.images, "effect": found.effect})
        rows[-1] |= {"low": found.effect_ci[0], "high": found.effect_ci[1]}
    return pd.DataFrame(rows, columns=["above", "up_to", "images", "effect", "low", "high"])


# --- a map judged by cause -------------------------------------------------------------------------------------------


def causes(model: nn.Module, radiographs: EditInputs, target: int | Tensor, *, cells: int = CELLS) -> Tensor:
    """By how much the log-probability of `target` falls when each cell of a grid is removed, (B, cells, cells).

    A cell is filled with the image's healthy grey, as a lesion is. Cells that hold no lung are NaN: a filling that is
    lung would be an edit of another kind there.
    """
    images, size = radiographs.images, radiographs.images.shape[-2:]
    with evaluate_on(model, images.device), torch.no_grad():
        logits = model(images)
        labels = target_classes(target, logits)[:, None]
        before = logits.float().log_softmax(1).gather(1, labels)[:, 0]
        falls = torch.full((len(images), cells, cells), torch.nan, device=images.device)
        for row, column in product(range(cells), repeat=2):
            cell = _cell(row, column, cells, size).to(images.device).expand(len(images), *size)
            has_lung = (cell & radiographs.lung).flatten(1).any(1)
            if has_lung.any():
                edited = lesion_edits.removed(images, cell, radiographs.lung, radiographs.lesion)
                after = model(edited).float().log_softmax(1).gather(1, labels)[:, 0]
                falls[has_lung, row, column] = (before - after)[has_lung]
    return falls


def _cell(row: int, column: int, cells: int, size: Sequence[int]) -> Tensor:
    mask = torch.zeros(*size, dtype=torch.bool)
    mask[_part(row, cells, size[0]), _part(column, cells, size[1])] = True
    return mask


def _part(place: int, cells: int, side: int) -> slice:
    """The pixels along a side that belong to one of so many cells."""
    return slice(round(place * side / cells), round((place + 1) * side / cells))


def ranked_by_cause(saliency: Tensor, falls: Tensor) -> np.ndarray:
    """Spearman's rank correlation of a map and what removing does, over the cells of each image, (B,).

    `saliency` (B, H, W) is averaged over the cells of `falls` (B, cells, cells). NaN where fewer than three cells count
    or all falls are alike; 0 for a map that is the same in all of them: it ranks nothing.
    """
    cells, (height, width) = falls.shape[-1], saliency.shape[-2:]
    rows, columns = ([_part(place, cells, side) for place in range(cells)] for side in (height, width))
    shares = torch.stack([saliency[:, *cell].double().mean((1, 2)) for cell in product(rows, columns)], 1)
    pairs_of = zip(shares.cpu().numpy(), falls.flatten(1).double().cpu().numpy(), strict=True)
    return np.array([_spearman(a, b) for a, b in pairs_of])


def _spearman(of_map: np.ndarray, of_cause: np.ndarray) -> float:
    known = np.isfinite(of_cause)
    if known.sum() < 3 or np.ptp(of_cause[known]) == 0:
        return float("nan")
    return float(stats.spearmanr(of_map[known], of_cause[known]).statistic) if np.ptp(of_map[known]) else 0.0
