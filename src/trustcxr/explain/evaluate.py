"""A run or a given model, and a data set -> saliency of annotated images -> measures, by batch: no map is kept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from trustcxr import attacks, corruptions
from trustcxr.console import Progress, log, track
from trustcxr.data.dataset import has_filled_mask
from trustcxr.data.lesion_edits import EditInputs
from trustcxr.data.loader import to_pixels
from trustcxr.errors import UserError
from trustcxr.explain import baselines, faithfulness, lesion_effect, measures, randomisation
from trustcxr.explain import methods as methods_by_name
from trustcxr.explain.base import ALL_DONE, LeftOut
from trustcxr.explain.baseline_scores import (
    CEILING,
    CENTRE,
    SHARPENED,
    SIMILARITY,
    SPREAD,
    AsSharp,
    CellBaseline,
    ImageBaselines,
    Masks,
    RandomWeightsBaseline,
    Values,
    against_masks,
    by_chance,
    looking,
    make_random_baseline,
)
from trustcxr.explain.evidence import check_evidence
from trustcxr.explain.stability import CLEAN, STABILITY_ATTACK, Change, changes
from trustcxr.models import feature_maps
from trustcxr.recipes.evaluation_recipe import ExplanationRecipe
from trustcxr.registry import ACTIVATION, CONTROL, HIT_RATE, RANDOMISED, REFERENCES, SHARP, Method

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset
    from trustcxr.evaluation.model_protocol import ModelUnderTest
    from trustcxr.evaluation.trained_run import Run

BY_CAUSE = "ranked_by_cause"  # a measure of the sample's clean images
RANDOM = CONTROL  # scored always: what a method that knows nothing of the model has
CASCADE = "randomised:"  # before the name of the part that was made random last
_STEPS, _REMOVED = (
    10,
    (0.2, 0.4, 0.6),
)  # of insertion and deletion; of ROAD: with more gone there is little to answer on
_LEVELS = np.round(np.arange(0.05, 0.951, 0.05), 2)  # thresholds tried when one is tuned


@dataclass
class Rows:
    """The table of one batch as it grows: one condition of one method after the other; `cells` of each method's map."""

    about: dict[str, np.ndarray]
    cells: Mapping[str, tuple[int, int] | None]
    tables: list[pd.DataFrame] = field(default_factory=list)

    def add(
        self,
        method: str,
        condition: str,
        found: Mapping[str, Tensor],
        references: Mapping[str, Mapping[str, Tensor]] | None = None,
        *,
        change: Change | None = None,
        predicted: np.ndarray | None = None,
        threshold: float = np.nan,
    ) -> None:
        """Values (B,) by measure, and those of the references where there are any."""
        count = len(self.about["sample_id"])
        columns: dict[str, Any] = {name: np.tile(column, len(found)) for name, column in self.about.items()}
        columns["predicted"] = np.tile(predicted if predicted is not None else np.full(count, None), len(found))
        columns |= {"method": method, "condition": condition, "cells": " x ".join(map(str, self.cells[method] or ()))}
        columns |= {"epsilon": change.epsilon if change else 0.0, "severity": change.severity if change else 0}
        columns["measure"] = np.repeat(list(found), count)
        columns["value"] = _stacked(found, found, count)
        for name in (*REFERENCES, SPREAD, *SHARPENED):
            columns[name] = _stacked(found, (references or {}).get(name, {}), count)
        columns["threshold"] = np.where(columns["measure"] == "infection_iou_tuned", threshold, np.nan)
        self.tables.append(pd.DataFrame(columns))


class MapsWithBaselines(NamedTuple):
    """What stands beside a method's figures and is not of the image: that of its cells, of random weights, of training.

    mean_mask: the lesion masks of training images, averaged, (H, W); None where they are not known.
    """

    cells: CellBaseline
    weights: RandomWeightsBaseline
    mean_mask: Tensor | None = None


def _stacked(names: Mapping[str, Tensor], values: Mapping[str, Tensor], count: int) -> np.ndarray:
    columns = [values[n].double().cpu().numpy() if n in values else np.full(count, np.nan) for n in names]
    return np.concatenate(columns) if columns else np.empty(0)


def annotated(dataset: "Dataset") -> np.ndarray:
    """Rows of the images with a non-empty infection mask; where the data has none, of those with a lung mask.

    Of the images of one finding only those that have it.
    """
    for kind in ("infection", "lung"):
        rows = lesion_effect.select_annotated(dataset, np.flatnonzero(dataset.has_mask(kind)))
        rows = rows[has_filled_mask(dataset, kind, rows)]
        if len(rows):
            return rows
    raise UserError(f"{dataset.where}: no infection or lung masks here, so saliency has nothing to be measured against")


def score(
    run: "Run | ModelUnderTest",
    dataset: "Dataset",
    options: ExplanationRecipe | None = None,
    *,
    thresholds: Mapping[str, float] | None = None,
    batch_size: int = 32,
) -> pd.DataFrame:
    """The table of saliency.parquet: a row for each annotated image, method, condition and measure.

    The class explained is the image's true class, whatever the model answers. `thresholds`: of each method's map, tuned
    on validation by `tune`; without them there is no `infection_iou_tuned`. For many images see `batches`.
    """
    return pd.concat(batches(run, dataset, options, thresholds=thresholds, batch_size=batch_size), ignore_index=True)


def batches(
    run: "Run | ModelUnderTest",
    dataset: "Dataset",
    options: ExplanationRecipe | None = None,
    *,
    thresholds: Mapping[str, float] | None = None,
    batch_size: int = 32,
    left_out: LeftOut = ALL_DONE,
    mean_mask: Tensor | None = None,
) -> Iterator[pd.DataFrame]:
    """The table of `score` a batch of images at a time, so that memory does not grow with their number.

    First a drawn part of the annotated images, explained with random weights. Then all of them: measures against the
    masks on the clean and the FGSM image, and stability under FGSM and every corruption. Then a sample drawn by seed
    (the same for every run): stability under PGD, faithfulness, sanity. `left_out`: what the model does not allow.
    `mean_mask`: the lesion masks of training images, averaged, (H, W), a map that looks at no image.
    """
    options = options or ExplanationRecipe()
    methods = with_random(options.methods)
    check_methods(run, methods)
    rows, levels = annotated(dataset), dict(thresholds or {})
    ways = changes(run, epsilon=options.epsilon, names=options.corruptions, severity=options.severity)
    ways = [way for way in ways if not (left_out.attacks and way.attack)]
    known = () if left_out.weights else tuple(methods)  # explained with random weights too
    followed = () if left_out.cascade else known
    sample = np.sort(np.random.default_rng(0).permutation(rows)[: options.sample])
    log_masks(dataset, len(rows))
    with Progress(f"explaining {run.name} on {len(rows)} images", len(rows) + len(sample)) as bar:

        def drawn(some: np.ndarray) -> Iterator[tuple[Tensor, Tensor, Masks]]:
            for part in lesion_effect.slices(some, batch_size):
                yield (*_images(run, dataset, part), _masks(dataset, part, run.device))

        beside = MapsWithBaselines(
            CellBaseline(run.model, _images(run, dataset, rows[:1])[0], methods),
            make_random_baseline(run.model, rows, drawn, known, levels),
            mean_mask,
        )
        for some in lesion_effect.slices(rows, batch_size):
            cheap = [way for way in ways if not way.dear]
            yield _against_masks_and_stability(run, dataset, some, methods, levels, cheap, beside)
            bar.advance(len(some))
        for some in lesion_effect.slices(sample, batch_size):
            yield _on_the_sample(run, dataset, some, methods, [w for w in ways if w.dear], beside, followed)
            bar.advance(len(some))


def check_options(options: ExplanationRecipe) -> None:
    """Raises UserError for a saliency method or a corruption that nobody knows; no model is needed."""
    for name in options.methods:
        methods_by_name.parse(name)
    for name in () if options.corruptions == "all" else options.corruptions:
        corruptions.get(name)


def check_methods(run: "Run | ModelUnderTest", methods: Sequence[str]) -> None:
    """Raises UserError where a method, or the layer that it names, is not there: before any work, not after."""
    for name in methods:
        base, layer = methods_by_name.parse(name)
        if layer is not None:
            feature_maps.find_layer(run.model, layer)
        if base.startswith("evidence"):
            check_evidence(run.model)


def with_random(methods: Sequence[str]) -> tuple[str, ...]:
    """These methods, each once, and the random map, which is scored always."""
    return tuple(dict.fromkeys([*(name.strip().lower() if "@" not in name else name for name in methods), RANDOM]))


def _images(run: "Run | ModelUnderTest", dataset: "Dataset", rows: np.ndarray) -> tuple[Tensor, Tensor]:
    images = to_pixels(torch.from_numpy(dataset.batch(rows)).to(run.device))
    return images, torch.as_tensor(np.asarray(dataset.labels[rows]), device=run.device)


def _masks(dataset: "Dataset", rows: np.ndarray, device: torch.device) -> Masks:
    kinds = (torch.from_numpy(np.array(dataset.masks(kind)[rows])).to(device) != 0 for kind in ("infection", "lung"))
    return Masks(*kinds)


def about(run: "Run | ModelUnderTest", dataset: "Dataset", rows: np.ndarray, masks: Masks) -> dict[str, np.ndarray]:
    """Columns (B,) that say which image it is, and how much of the lungs its lesion covers."""
    true = np.array([run.classes[k] for k in dataset.labels[rows]])
    return {
        "sample_id": dataset.sample_ids[rows],
        "group": dataset.groups[rows],
        "split": dataset.splits[rows],
        "class": true,
        "target": true,
        "lesion": masks.lesion.cpu().numpy(),
    }


def predicted(run: "Run | ModelUnderTest", images: Tensor) -> np.ndarray:
    """Names of the classes that the model answers, (B,)."""
    # Not inference_mode: TorchScript that was attacked before keeps its own graph, and refuses such tensors.
    with torch.no_grad(), attacks.preserve_state(run.model):
        return np.array([run.classes[k] for k in run.model(images).argmax(1).cpu().numpy()])


def _against_masks_and_stability(
    run: "Run | ModelUnderTest",
    dataset: "Dataset",
    rows: np.ndarray,
    methods: Sequence[str],
    thresholds: Mapping[str, float],
    ways: Sequence[Change],
    controlled: MapsWithBaselines,
) -> pd.DataFrame:
    images, labels = _images(run, dataset, rows)
    masks = _masks(dataset, rows, run.device)
    table = Rows(about(run, dataset, rows, masks), controlled.cells.cells)
    of_image = ImageBaselines(images, masks, thresholds, controlled.mean_mask)
    of_cells = controlled.cells.drawn(images, masks)
    alone = {name: str(control) for name in methods if (control := Method.parse(name).control)}
    shown = methods_by_name.maps(run.model, images, labels, list(dict.fromkeys([*methods, *alone.values()])))
    clean, said = {name: shown[name] for name in methods}, predicted(run, images)
    for name, maps in clean.items():
        level, random = thresholds.get(name), controlled.weights.measured(name, rows)
        alike = {SIMILARITY: random.pop(SIMILARITY)} if random else {}
        values = Values(maps, masks)
        beside = of_image.as_sharp(values) | of_cells.as_sharp(name, values)
        beside |= {"chance": by_chance(maps, masks, level), RANDOMISED: random}
        beside[SPREAD] = controlled.weights.spread_of(name, random)
        if name in alone:
            plain = shown[alone[name]]
            beside[ACTIVATION] = against_masks(plain, masks, thresholds.get(alone[name]))
            beside[ACTIVATION + SHARP] = AsSharp(plain, masks).energies(values)
        beside["chance"] |= {CEILING: beside["chance"][HIT_RATE]}
        found = against_masks(maps, masks, level) | controlled.cells.ceiling(name, masks) | alike
        table.add(name, CLEAN, found, beside, predicted=said, threshold=level or np.nan)
    looks = looking(methods)
    for way in ways:
        pixels, drawn = way.make(images, labels, table.about["sample_id"].tolist())
        # A map that does not look at the model has nothing to be stable: once, under FGSM, shows what that scores.
        changed = methods_by_name.maps(
            run.model, pixels, labels, methods if way.condition == STABILITY_ATTACK else looks
        )
        attacked = predicted(run, pixels) if way.condition == STABILITY_ATTACK else None
        for name, maps in changed.items():
            add = partial(table.add, name, way.condition, change=way, predicted=attacked)
            if way.condition == STABILITY_ATTACK:
                level = thresholds.get(name)
                beside = of_image.figures | of_cells.plain(name) | {"chance": by_chance(maps, masks, level)}
                add(against_masks(maps, masks, level), beside, threshold=level or np.nan)
            add(_stability(clean[name], maps))
            if drawn is not None:
                add(*_moved(clean[name], maps, drawn))
    return pd.concat(table.tables, ignore_index=True)


def _on_the_sample(
    run: "Run | ModelUnderTest",
    dataset: "Dataset",
    rows: np.ndarray,
    methods: Sequence[str],
    ways: Sequence[Change],
    controlled: MapsWithBaselines,
    randomised: Sequence[str],
) -> pd.DataFrame:
    images, labels = _images(run, dataset, rows)
    masks = _masks(dataset, rows, run.device)
    table = Rows(about(run, dataset, rows, masks), controlled.cells.cells)
    clean, looks = methods_by_name.maps(run.model, images, labels, methods), looking(methods)
    for way in ways:
        pixels, _ = way.make(images, labels, table.about["sample_id"].tolist())
        for name, maps in methods_by_name.maps(run.model, pixels, labels, looks).items():
            table.add(name, way.condition, _stability(clean[name], maps), change=way)
    known = faithfulness.ends(run.model, images, labels)
    falls = lesion_effect.causes(run.model, EditInputs(images, masks.lung, masks.infection), labels)
    bright = {"brightness": {BY_CAUSE: _by_cause(images[:, 0] * masks.lung, falls)}}
    for name, maps in clean.items():
        curves = {
            "insertion": faithfulness.insertion(run.model, images, maps, steps=_STEPS, known=known).area,
            "deletion": faithfulness.deletion(run.model, images, maps, steps=_STEPS, known=known).area,
            "road": faithfulness.road(run.model, images, maps, shares=_REMOVED, known=known),
            BY_CAUSE: _by_cause(maps, falls),
        }
        table.add(name, CLEAN, curves, bright)
    for stage, values in randomisation.cascade(run.model, images, looking(randomised), labels):
        for name, found in values.items():
            table.add(name, CASCADE + stage, found)
    return pd.concat(table.tables, ignore_index=True)


def _by_cause(maps: Tensor, falls: Tensor) -> Tensor:
    return torch.from_numpy(lesion_effect.ranked_by_cause(maps, falls))


def _stability(before: Tensor, after: Tensor) -> dict[str, Tensor]:
    return {
        "stability_ssim": measures.ssim(before, after),
        "stability_rank_correlation": measures.rank_correlation(before, after),
        "stability_top_tenth": measures.top_tenth_overlap(before, after),
    }


def _moved(before: Tensor, after: Tensor, drawn: Tensor) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The share of the saliency that lies on an artefact, and how much of it moved there; beside the area of it."""
    on_it = measures.energy_inside(after, drawn)
    gain = on_it - measures.energy_inside(before, drawn)
    # Where there is no saliency before, or none after, none has moved.
    nothing = measures.null_map(before) | measures.null_map(after)
    on_it, gain = (values.masked_fill(nothing, torch.nan) for values in (on_it, gain))
    return (
        {"artefact_energy": on_it, "artefact_gain": gain},
        {"chance": {"artefact_energy": measures.chance("energy_inside", after, drawn)}},
    )


def tune(
    run: "Run | ModelUnderTest", dataset: "Dataset", methods: Sequence[str], *, batch_size: int = 32
) -> dict[str, float]:
    """The threshold of each method's maps, and of the centre prior, with the best mean IoU on this (validation) split.

    As cheXlocalize does (Saporta et al. 2022). Empty where no image has an infection mask.
    """
    names = with_random(methods)
    check_methods(run, names)
    rows = lesion_effect.select_annotated(dataset, np.flatnonzero(dataset.has_mask("infection")))
    totals: dict[str, np.ndarray] = {}
    for some in track(lesion_effect.slices(rows, batch_size), f"thresholds for the maps of {run.name}"):
        images, labels = _images(run, dataset, some)
        infection = _masks(dataset, some, run.device).infection
        if not infection.any():
            continue
        found = methods_by_name.maps(run.model, images, labels, names)
        found[CENTRE] = baselines.centre_prior(*images.shape[-2:]).to(run.device).expand(infection.shape)
        for name, maps in found.items():
            sums = [float(measures.iou(maps, infection, float(level)).nansum()) for level in _LEVELS]
            totals[name] = totals.get(name, np.zeros(len(_LEVELS))) + sums
    return {name: float(_LEVELS[int(total.argmax())]) for name, total in totals.items()}


def log_masks(dataset: "Dataset", measured: int) -> None:
    """Say how many images have no mask, and how many masks are not as large as their image."""
    images = len(lesion_effect.select_annotated(dataset, np.arange(len(dataset))))
    if measured < images:
        log(f"{images - measured} of {images} images have no mask to measure against and are left out")
    if other := masks_of_other_size(dataset):
        log(f"{other} masks are not of their image's size: resized by nearest neighbour")


def masks_of_other_size(dataset: "Dataset") -> int:
    """How many masks have another size than their image's file; what cannot be opened here is not counted."""
    from PIL import Image

    def size(path: str) -> tuple[int, int] | None:
        try:
            with Image.open(dataset.root / path) as image:
                return image.size
        except OSError:
            return None

    count = 0
    for kind in dataset.mask_kinds:
        pairs = dataset.table[["path", f"{kind}_mask"]].dropna()
        sizes = ((size(path), size(mask)) for path, mask in pairs.itertuples(index=False))
        count += sum(one is not None and other is not None and one != other for one, other in sizes)
    return count
