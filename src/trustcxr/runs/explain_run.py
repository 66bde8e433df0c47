"""Measure saliency and lesion effects of any model, and add the figures of a folder's tables to metrics.json."""

from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np
from torch import Tensor

from trustcxr.data.dataset import Dataset
from trustcxr.evaluation import certified
from trustcxr.evaluation.trained_run import ModelUnderTest, Run
from trustcxr.explain import baselines, evaluate, lesion_effect, saliency_summary
from trustcxr.explain.base import ALL_DONE, LeftOut
from trustcxr.recipes.evaluation_recipe import ExplanationRecipe
from trustcxr.runs.provenance import Results
from trustcxr.storage import atomic, layout
from trustcxr.storage.schemas import RunDocument

RESAMPLES = 2000  # of a command's evaluation; a study's recipe has its own


def measure(
    results: Results,
    run: Run | ModelUnderTest,
    images: Dataset,
    options: ExplanationRecipe,
    thresholds: Callable[[], Mapping[str, float]],
    *,
    data: str,
    tuned: str,
    left_out: LeftOut = ALL_DONE,
    train: Dataset | None = None,
) -> None:
    """Write saliency.parquet and, if images have lesion masks, lesion_effects.parquet, unless they are current.

    `data`: a hash of the images and masks. `thresholds` is called only if maps are computed; `tuned`: a hash of its
    data. `train`: training images; their mean lesion mask is a baseline.
    """
    mean_mask = _mean_mask(train, images)
    results.table(
        layout.SALIENCY_FILE,
        lambda: evaluate.score_batches(
            run, images, options, thresholds=thresholds(), left_out=left_out, mean_mask=mean_mask
        ),
        data=data,
        options=options.model_dump(mode="json", exclude={"panels"}),
        tuned=tuned,
        mean_mask="" if mean_mask is None else sha256(mean_mask.numpy().tobytes()).hexdigest()[:16],
    )
    if not len(lesion_effect.find_lesion_rows(images)):
        (results.folder / layout.LESIONS_FILE).unlink(missing_ok=True)
        return
    sample, epsilon = options.sample, 0.0 if left_out.attacks else options.epsilon
    results.table(
        layout.LESIONS_FILE,
        lambda: [lesion_effect.lesion_effects(run, images, sample=sample, epsilon=epsilon)],
        data=data,
        options={"sample": sample, "epsilon": epsilon},
    )


def _mean_mask(train: Dataset | None, images: Dataset) -> Tensor | None:
    """Average the lesion masks of training images of other patients; None without any."""
    if train is None or "infection" not in train.mask_kinds:
        return None
    others = ~np.isin(train.groups, images.groups) & ~np.isin(train.image_sums, images.image_sums)
    mean = baselines.mean_mask(train.masks("infection")[others]) if others.any() else None
    return mean if mean is not None and bool(mean.any()) else None


def thresholds_of(saliency: Path | None) -> dict[str, float]:
    """Return the thresholds of a saliency.parquet, by method; empty without it."""
    if saliency is None:
        return {}
    tuned = atomic.read_table(saliency, ["method", "threshold"]).dropna(subset=["threshold"])
    return {str(name): float(value) for name, value in tuned.groupby("method")["threshold"].first().items()}


def add_tables(document: RunDocument, folder: Path, *, images: int, resamples: int) -> None:
    """Add the figures of certified answers, saliency and lesion effects in `folder`; `images`: the number of images."""
    if (path := folder / layout.CERTIFIED_FILE).is_file():
        document.certified = certified.describe(atomic.read_table(path), resamples=resamples)
    if (path := folder / layout.SALIENCY_FILE).is_file():
        document.saliency = saliency_summary.summarise(atomic.read_table(path), images=images, resamples=resamples)
        document.alarms = [alarm for alarm in document.alarms if alarm.kind != saliency_summary.SURVIVES]
        document.alarms += saliency_summary.list_alarms(document.saliency)
    path = folder / layout.LESIONS_FILE
    document.lesions = (
        lesion_effect.summarise_effects(atomic.read_table(path), resamples=resamples) if path.is_file() else []
    )
