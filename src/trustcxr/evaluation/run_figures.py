"""Predictions of one split become the document of metrics.json."""

from collections.abc import Callable

import pandas as pd
import torch

from trustcxr.evaluation import alarms, calibration, gradient_masking, metrics
from trustcxr.evaluation.trained_run import About, ModelUnderTest, Run
from trustcxr.models.preserve_state import is_randomised
from trustcxr.storage.schemas import VERSION, RunDocument, TrainingDocument

AT_RANDOM = "it answers at random, and attack and judge see the same draw: its robust accuracy is flattered"


def describe(
    run: Run | ModelUnderTest,
    predictions: pd.DataFrame,
    *,
    validation: pd.DataFrame | None = None,
    resamples: int = 2000,
) -> RunDocument:
    """The document of metrics.json (results/documents), without saliency, from predictions of one split.

    `validation`: predictions on the run's validation images, on which the temperature of "calibration" is fitted.
    """
    trained = run if isinstance(run, Run) else None
    what = trained.about if trained is not None else About(run.name, run.name)
    return figures(
        what,
        run.classes,
        predictions,
        validation=validation if trained is not None else None,
        resamples=resamples,
        refit=trained is not None and trained.recipe is not None and trained.recipe.training.refit,
        training=trained.training if trained is not None else TrainingDocument(),
        at_random=lambda: trained is not None and is_randomised(trained.model, _noise(trained)),
    )


def figures(
    what: About,
    classes: tuple[str, ...],
    predictions: pd.DataFrame,
    *,
    validation: pd.DataFrame | None,
    resamples: int,
    refit: bool,
    training: TrainingDocument,
    at_random: Callable[[], bool],
) -> RunDocument:
    """All of `describe` that comes from tables: the network itself is asked for nothing but whether it is random."""
    document = metrics.from_predictions(predictions, classes, resamples=resamples)
    document = document.model_copy(
        update={
            "version": VERSION,
            "run": what.name,
            "model": what.model,
            "defence": what.defence,
            "label": what.label,
            "background": what.background,
            "seed": what.seed,
            "origin": what.origin,
            "classes": list(classes),
            "split": "+".join(sorted(predictions["split"].unique())),
            "saliency": {},
        }
    )
    document.masking = alarms.verdict(document, gradient_masking.paired_gap(predictions, resamples=resamples))
    if document.attacks and at_random():
        document.masking.at_random = True
        document.masking.because += f"; {AT_RANDOM}"
    if validation is not None and len(validation):
        document.calibration = calibration.describe(predictions, validation, resamples=resamples, refit=refit)
    document.alarms = alarms.find_alarms(document.model_copy(update={"training": training}))
    return document


def _noise(run: Run) -> torch.Tensor:
    """One image of noise, always the same, of the run's size."""
    drawn = torch.rand((1, 1, run.size, run.size), generator=torch.Generator().manual_seed(0))
    return drawn.to(run.device)
