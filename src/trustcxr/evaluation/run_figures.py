"""Predictions of one split become the document of metrics.json."""

from collections.abc import Callable

import pandas as pd
import torch

from trustcxr.evaluation import alarms, calibration, metrics, paired
from trustcxr.evaluation.model_protocol import ModelUnderTest
from trustcxr.evaluation.trained_run import About, Run
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
    own = run if isinstance(run, Run) else None
    what = own.about if own is not None else About(run.name, run.name)
    return figures(
        what,
        run.classes,
        predictions,
        validation=validation if own is not None else None,
        resamples=resamples,
        refit=own is not None and own.recipe is not None and own.recipe.training.refit,
        training=own.training if own is not None else TrainingDocument(),
        at_random=lambda: own is not None and is_randomised(own.model, _noise(own)),
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
    document.masking = alarms.verdict(document, paired.gap(predictions, resamples=resamples))
    if document.attacks and at_random():
        document.masking.at_random = True
        document.masking.reasons += f"; {AT_RANDOM}"
    if validation is not None and len(validation):
        document.calibration = calibration.describe(predictions, validation, resamples=resamples, refit=refit)
    document.alarms = alarms.find_alarms(document.model_copy(update={"training": training}))
    return document


def _noise(run: Run) -> torch.Tensor:
    """One image of noise, always the same, of the run's size."""
    drawn = torch.rand((1, 1, run.size, run.size), generator=torch.Generator().manual_seed(0))
    return drawn.to(run.device)
