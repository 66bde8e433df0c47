"""Score the saliency maps of annotated images, a batch at a time: no map is stored."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from trustcxr import attacks, corruptions, registry
from trustcxr.console import Progress, log, track
from trustcxr.data.dataset import Dataset, has_filled_mask
from trustcxr.data.lesion_edits import EditInputs, make_edit_inputs
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import AnyModel
from trustcxr.explain import baseline_scores, baselines, faithfulness, lesion_effect, measures, randomisation
from trustcxr.explain import methods as methods_by_name
from trustcxr.explain.base import ALL_DONE, LeftOut
from trustcxr.explain.cam import check_evidence
from trustcxr.models import feature_maps
from trustcxr.recipes.evaluation_recipe import ExplanationRecipe
from trustcxr.registry import STABILITY_ATTACK, USUAL_ATTACKS, Method
from trustcxr.storage.prediction_table import CLEAN

BY_CAUSE = "ranked_by_cause"  # a measure of the sample's clean images
CASCADE = "randomised:"  # prefix of the part that was made random last
_STEPS = 10  # of insertion and deletion
_EXPENSIVE = USUAL_ATTACKS[1]  # needs many passes: of the sample alone
_REMOVED = (0.2, 0.4, 0.6)  # shares of pixels removed in ROAD: with more gone, little is left to classify
_LEVELS = np.round(np.arange(0.05, 0.951, 0.05), 2)  # thresholds tried when one is tuned

# The map of a rotated image rotates too, so stability does not apply.
UNDER: tuple[str, ...] = tuple(name for name in corruptions.CORRUPTIONS if name != "rotation")


class Change(NamedTuple):
    """One change of an image under which its map should stay, and its name in saliency.parquet."""

    condition: str
    epsilon: float = 0.0
    severity: int = 0

    def apply(
        self, model: nn.Module, images: Tensor, labels: Tensor, about: Mapping[str, np.ndarray]
    ) -> tuple[Tensor, Tensor | None]:
        """Return changed images (B, 1, H, W), and the area of an artefact (B, H, W) bool, if it is one."""
        name, epsilon, severity = self
        if name == STABILITY_ATTACK:
            return attacks.fgsm(model, images, labels, epsilon=epsilon), None
        if name == _EXPENSIVE:
            return attacks.pgd(model, images, labels, epsilon=epsilon, steps=lesion_effect.PGD_STEPS), None
        if corruptions.get(name).artefact:
            return corruptions.artefact(images, name, severity, keys=about["sample_id"].tolist())
        return corruptions.corrupt(images, name, severity, keys=about["sample_id"].tolist()), None


_UNCHANGED = Change(CLEAN)


def _stacked(names: Mapping[str, Tensor], values: Mapping[str, Tensor], count: int) -> np.ndarray:
    columns = [values[n].double().cpu().numpy() if n in values else np.full(count, np.nan) for n in names]
    return np.concatenate(columns) if columns else np.empty(0)


def find_annotated(dataset: Dataset) -> np.ndarray:
    """Return the rows of images with a non-empty infection mask; if no image has one, with a lung mask.

    For the images of one finding, only rows of images that have it. Raises UserError if no image has a mask.
    """
    for kind in ("infection", "lung"):
        rows = lesion_effect.select_annotated(dataset, np.flatnonzero(dataset.has_mask(kind)))
        rows = rows[has_filled_mask(dataset, kind, rows)]
        if len(rows):
            return rows
    raise UserError(f"{dataset.where}: no infection or lung masks here, so saliency has nothing to be measured against")


def score_batches(
    run: AnyModel,
    dataset: Dataset,
    options: ExplanationRecipe | None = None,
    *,
    thresholds: Mapping[str, float] | None = None,
    batch_size: int = 32,
    left_out: LeftOut = ALL_DONE,
    mean_mask: Tensor | None = None,
) -> Iterator[pd.DataFrame]:
    """Yield the table of saliency.parquet a batch at a time: a row an annotated image, method, condition and measure.

    The image's true class is explained. Random weights explain a drawn part of the images first. Then all are scored
    against the masks, clean and under FGSM, and for stability; then a drawn sample for PGD, faithfulness and sanity.
    `thresholds`: of each method's maps (`tune_thresholds`), for `infection_iou_tuned`. `left_out`: parts that the model
    does not allow. `mean_mask` (H, W): the mean lesion mask of training images.
    """
    options = options or ExplanationRecipe()
    methods = add_random_map(options.methods)
    rows, levels = find_annotated(dataset), dict(thresholds or {})
    ways = [] if left_out.attacks else [Change(name, options.epsilon) for name in USUAL_ATTACKS]
    named = UNDER if options.corruptions == "all" else [corruptions.get(name).name for name in options.corruptions]
    ways += [Change(name, severity=options.severity) for name in named]
    randomised = () if left_out.weights else tuple(methods)  # explained with random weights too
    followed = () if left_out.cascade else randomised
    sample = np.sort(np.random.default_rng(0).permutation(rows)[: options.sample])
    log_masks(dataset, len(rows))
    with Progress(f"explaining {run.name} on {len(rows)} images", len(rows) + len(sample)) as bar:

        def drawn(some: np.ndarray) -> Iterator[baseline_scores.Batch]:
            return (load_batch(run, dataset, part) for part in lesion_effect.slices(some, batch_size))

        image = load_batch(run, dataset, rows[:1])[0]
        cells = {name: methods_by_name.cells(run.model, image, name) for name in methods}
        weights = baseline_scores.make_random_baseline(run.model, rows, drawn, randomised, levels)
        scorer = _Scorer(run, dataset, methods, ways, cells, weights, levels, mean_mask)
        for some in lesion_effect.slices(rows, batch_size):
            yield pd.concat(scorer.score_all(some), ignore_index=True)
            bar.advance(len(some))
        for some in lesion_effect.slices(sample, batch_size):
            yield pd.concat(scorer.score_sample(some, followed), ignore_index=True)
            bar.advance(len(some))


def check_options(options: ExplanationRecipe) -> None:
    """Raise UserError for an unknown saliency method or corruption; no model is needed."""
    for name in options.methods:
        methods_by_name.parse(name)
    for name in () if options.corruptions == "all" else options.corruptions:
        corruptions.get(name)


def check_methods(run: AnyModel, methods: Sequence[str]) -> None:
    """Raise UserError for a method, or a layer in its name, that the model does not have."""
    for name in methods:
        base, layer = methods_by_name.parse(name)
        if layer is not None:
            feature_maps.find_layer(run.model, layer)
        if base.startswith("evidence"):
            check_evidence(run.model)


def add_random_map(methods: Sequence[str]) -> tuple[str, ...]:
    """Return these methods, each once, and the random map, which knows nothing of the model."""
    names = (name if "@" in name else name.strip().lower() for name in methods)
    return tuple(dict.fromkeys([*names, registry.RANDOM_MAP]))


def load_batch(run: AnyModel, dataset: Dataset, rows: np.ndarray) -> baseline_scores.Batch:
    """Return images (B, 1, H, W) in [0, 1], labels (B,) and masks of some rows, on the model's device."""
    inputs = make_edit_inputs(dataset, rows, run.device)
    labels = torch.as_tensor(np.asarray(dataset.labels[rows]), device=run.device)
    return inputs.images, labels, baseline_scores.Masks(inputs.lesion, inputs.lung)


def predict_classes(run: AnyModel, images: Tensor) -> np.ndarray:
    """Return the names of the predicted classes, (B,)."""
    # Not inference_mode: TorchScript that was attacked keeps its own graph, and refuses such tensors.
    with torch.no_grad(), attacks.preserve_state(run.model):
        return np.array([run.classes[k] for k in run.model(images).argmax(1).cpu().numpy()])


@dataclass(frozen=True)
class _Scorer:
    """Scores some rows of a data set, by these methods and under these changes of the images."""

    run: AnyModel
    dataset: Dataset
    methods: Sequence[str]
    ways: Sequence[Change]
    cells: baseline_scores.Cells
    weights: baseline_scores.RandomWeightsBaseline
    thresholds: Mapping[str, float]
    mean_mask: Tensor | None

    def load(self, rows: np.ndarray) -> tuple[Tensor, Tensor, baseline_scores.Masks, dict[str, np.ndarray]]:
        """Return images, labels and masks of the rows, and columns that describe each."""
        images, labels, masks = load_batch(self.run, self.dataset, rows)
        true = np.array(self.run.classes)[self.dataset.labels[rows]]
        about = {"sample_id": self.dataset.sample_ids[rows], "group": self.dataset.groups[rows]}
        about |= {"split": self.dataset.splits[rows], "class": true, "target": true}
        return images, labels, masks, about | {"lesion": masks.lesion.cpu().numpy()}

    def table(
        self,
        about: Mapping[str, np.ndarray],
        method: str,
        change: Change,
        scores: Mapping[str, Tensor],
        references: Mapping[str, Mapping[str, Tensor]] | None = None,
        *,
        predicted: np.ndarray | None = None,
    ) -> pd.DataFrame:
        """Return rows of one method and condition: scores (B,) by measure, and those of the references."""
        count = len(about["sample_id"])
        columns: dict[str, Any] = {name: np.tile(column, len(scores)) for name, column in about.items()}
        columns["predicted"] = np.tile(predicted if predicted is not None else np.full(count, None), len(scores))
        columns |= {"method": method, "condition": change.condition}
        columns |= {"cells": " x ".join(map(str, self.cells[method] or ()))}
        columns |= {"epsilon": change.epsilon, "severity": change.severity}
        columns["measure"] = np.repeat(list(scores), count)
        columns["value"] = _stacked(scores, scores, count)
        for name in (*registry.REFERENCES, baseline_scores.SPREAD, *baseline_scores.SHARPENED):
            columns[name] = _stacked(scores, (references or {}).get(name, {}), count)
        threshold = self.thresholds.get(method, np.nan)
        columns["threshold"] = np.where(columns["measure"] == "infection_iou_tuned", threshold, np.nan)
        return pd.DataFrame(columns)

    def score_all(self, rows: np.ndarray) -> Iterator[pd.DataFrame]:
        """Yield scores of maps against the masks, clean and attacked, and their stability under cheap changes."""
        run, methods, weights, thresholds = self.run, self.methods, self.weights, self.thresholds
        images, labels, masks, about = self.load(rows)
        scores_of = partial(baseline_scores.score_maps, masks=masks)
        baseline = baseline_scores.BatchBaselines(images, masks, thresholds, self.cells, self.mean_mask)
        alone = {name: str(other) for name in methods if (other := Method.parse(name).baseline)}
        shown = methods_by_name.maps(run.model, images, labels, list(dict.fromkeys([*methods, *alone.values()])))
        clean, answers = {name: shown[name] for name in methods}, predict_classes(run, images)
        for name, maps in clean.items():
            level, values = thresholds.get(name), baseline_scores.sort_values(maps, masks)
            references = baseline.compare(name, values) | weights.select(name, rows)
            references["chance"] = baseline_scores.score_chance(maps, masks, level)
            random, similarity = references[registry.RANDOMISED], baseline_scores.SIMILARITY
            scores = scores_of(maps, threshold=level)
            if (cells := self.cells[name]) is not None:
                scores[baseline_scores.CEILING] = measures.pointing_ceiling(masks.infection, cells)
            scores |= {similarity: random.pop(similarity)} if random else {}
            if name in alone:
                plain, key = shown[alone[name]], registry.ACTIVATION
                references[key] = scores_of(plain, threshold=thresholds.get(alone[name]))
                references[key + registry.SHARP] = baseline_scores.RankMatched(plain, masks).score(values)
            references["chance"] |= {baseline_scores.CEILING: references["chance"][registry.HIT_RATE]}
            yield self.table(about, name, _UNCHANGED, scores, references, predicted=answers)
        looks = baseline_scores.select_model_methods(methods)
        for way in (way for way in self.ways if way.condition != _EXPENSIVE):
            pixels, drawn = way.apply(run.model, images, labels, about)
            # Maps that ignore the model cannot be unstable: FGSM alone shows what they score.
            chosen = methods if way.condition == STABILITY_ATTACK else looks
            changed = methods_by_name.maps(run.model, pixels, labels, chosen)
            attacked = predict_classes(run, pixels) if way.condition == STABILITY_ATTACK else None
            for name, maps in changed.items():
                add = partial(self.table, about, name, way, predicted=attacked)
                if way.condition == STABILITY_ATTACK:
                    level = thresholds.get(name)
                    references = baseline.compare(name) | {"chance": baseline_scores.score_chance(maps, masks, level)}
                    yield add(scores_of(maps, threshold=level), references)
                yield add(_stability(clean[name], maps))
                if drawn is not None:
                    yield add(*_moved(clean[name], maps, drawn))

    def score_sample(self, rows: np.ndarray, randomised: Sequence[str]) -> Iterator[pd.DataFrame]:
        """Yield stability under expensive changes, faithfulness, and the cascade of the methods `randomised`."""
        run, methods = self.run, self.methods
        images, labels, masks, about = self.load(rows)
        clean = methods_by_name.maps(run.model, images, labels, methods)
        looks = baseline_scores.select_model_methods(methods)
        for way in (way for way in self.ways if way.condition == _EXPENSIVE):
            pixels, _ = way.apply(run.model, images, labels, about)
            for name, maps in methods_by_name.maps(run.model, pixels, labels, looks).items():
                yield self.table(about, name, way, _stability(clean[name], maps))
        ends = faithfulness.ends(run.model, images, labels)
        falls = lesion_effect.measure_causes(run.model, EditInputs(images, masks.lung, masks.infection), labels)
        by_cause = partial(lesion_effect.rank_by_cause, falls=falls)
        bright = {"brightness": {BY_CAUSE: by_cause(images[:, 0] * masks.lung)}}
        for name, maps in clean.items():
            curves = {
                "insertion": faithfulness.insertion(run.model, images, maps, ends, steps=_STEPS).area,
                "deletion": faithfulness.deletion(run.model, images, maps, ends, steps=_STEPS).area,
                "road": faithfulness.road(run.model, images, maps, ends, shares=_REMOVED),
                BY_CAUSE: by_cause(maps),
            }
            yield self.table(about, name, _UNCHANGED, curves, bright)
        names = baseline_scores.select_model_methods(randomised)

        def maps_of(network: nn.Module, classes: Tensor) -> list[Tensor]:
            return list(methods_by_name.maps(network, images, classes, names).values())

        for stages in randomisation.cascade(run.model, images, maps_of, labels) if names else ():
            for name, stage in zip(names, stages, strict=True):
                scores = {f"randomised_{key}": value for key, value in stage._asdict().items() if key != "part"}
                yield self.table(about, name, Change(CASCADE + stage.part), scores)


def _stability(before: Tensor, after: Tensor) -> dict[str, Tensor]:
    return {
        "stability_ssim": measures.ssim(before, after),
        "stability_rank_correlation": measures.rank_correlation(before, after),
        "stability_top_tenth": measures.top_tenth_overlap(before, after),
    }


def _moved(before: Tensor, after: Tensor, drawn: Tensor) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Return the share of the saliency on an artefact and its gain; and by chance the area of the artefact."""
    on_it = measures.energy_inside(after, drawn)
    gain = on_it - measures.energy_inside(before, drawn)
    # Without saliency before or after, none has moved.
    nothing = measures.null_map(before) | measures.null_map(after)
    on_it, gain = (values.masked_fill(nothing, torch.nan) for values in (on_it, gain))
    return (
        {"artefact_energy": on_it, "artefact_gain": gain},
        {"chance": {"artefact_energy": measures.chance("energy_inside", after, drawn)}},
    )


def tune_thresholds(
    run: AnyModel, dataset: Dataset, methods: Sequence[str], *, batch_size: int = 32
) -> dict[str, float]:
    """Return the threshold with the best mean IoU on a (validation) split, for each method and the centre prior.

    After cheXlocalize (Saporta et al. 2022). Empty if no image has an infection mask.
    """
    names = add_random_map(methods)
    rows = lesion_effect.select_annotated(dataset, np.flatnonzero(dataset.has_mask("infection")))
    totals: dict[str, np.ndarray] = {}
    for some in track(lesion_effect.slices(rows, batch_size), f"thresholds for the maps of {run.name}"):
        images, labels, masks = load_batch(run, dataset, some)
        if not masks.infection.any():
            continue
        saliency = methods_by_name.maps(run.model, images, labels, names)
        centre = baselines.centre_prior(*images.shape[-2:]).to(run.device)
        saliency[baseline_scores.CENTRE] = centre.expand(masks.infection.shape)
        for name, maps in saliency.items():
            sums = [float(measures.iou(maps, masks.infection, float(level)).nansum()) for level in _LEVELS]
            totals[name] = totals.get(name, np.zeros(len(_LEVELS))) + sums
    return {name: float(_LEVELS[int(total.argmax())]) for name, total in totals.items()}


def log_masks(dataset: Dataset, measured: int) -> None:
    """Log how many images have no mask."""
    images = len(lesion_effect.select_annotated(dataset, np.arange(len(dataset))))
    if measured < images:
        log(f"{images - measured} of {images} images have no mask to measure against and are left out")
