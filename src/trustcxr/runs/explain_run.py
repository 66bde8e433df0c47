"""Measure saliency and removed lesions of a model on images, as tables in a folder: of any model alike."""

from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from trustcxr.evaluation.model_protocol import ModelUnderTest
from trustcxr.evaluation.trained_run import Run
from trustcxr.explain import baselines, evaluate, lesion_effect
from trustcxr.explain.base import ALL_DONE, LeftOut
from trustcxr.recipes.evaluation_recipe import ExplanationRecipe
from trustcxr.runs.provenance import Results
from trustcxr.storage import atomic, layout

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset


def measure(
    results: Results,
    run: Run | ModelUnderTest,
    images: "Dataset",
    options: ExplanationRecipe,
    thresholds: Callable[[], Mapping[str, float]],
    *,
    data: str,
    tuned: str,
    left_out: LeftOut = ALL_DONE,
    train: "Dataset | None" = None,
) -> None:
    """Write saliency.parquet and, if images have lesion masks, lesion_effects.parquet, unless they are current.

    `data`: a hash of the images and their masks. `thresholds` are asked for only if maps are made; `tuned`: a hash of
    what they are tuned on. `train`: training images, whose mean lesion mask a map must be better than.
    """
    mean_mask = _mean_mask(train, images)
    how = options.model_dump(mode="json", exclude={"panels"})
    results.table(
        layout.SALIENCY_FILE,
        lambda: evaluate.batches(run, images, options, thresholds=thresholds(), left_out=left_out, mean_mask=mean_mask),
        data=data,
        options=how,
        tuned=tuned,
        mean_mask="" if mean_mask is None else sha256(mean_mask.numpy().tobytes()).hexdigest()[:16],
    )
    if not len(lesion_effect.with_lesions(images)):
        (results.folder / layout.LESIONS_FILE).unlink(missing_ok=True)
        return
    sample, epsilon = options.sample, 0.0 if left_out.attacks else options.epsilon
    results.table(
        layout.LESIONS_FILE,
        lambda: [lesion_effect.lesion_effects(run, images, sample=sample, epsilon=epsilon)],
        data=data,
        options={"sample": sample, "epsilon": epsilon},
    )


def _mean_mask(train: "Dataset | None", images: "Dataset") -> Tensor | None:
    """Average the lesion masks of training images, but of those explained or of their patients; None without any."""
    if train is None or "infection" not in train.mask_kinds:
        return None
    others = ~np.isin(train.groups, images.groups) & ~np.isin(train.image_sums, images.image_sums)
    mean = baselines.mean_mask(train.masks("infection")[others]) if others.any() else None
    return mean if mean is not None and bool(mean.any()) else None


def thresholds_of(saliency: Path | None) -> dict[str, float]:
    """Return the thresholds that a saliency.parquet was made with, by method; none without it."""
    if saliency is None:
        return {}
    tuned = atomic.read_table(saliency, ["method", "threshold"]).dropna(subset=["threshold"])
    return {str(name): float(value) for name, value in tuned.groupby("method")["threshold"].first().items()}
