"""Predictions of one split become the document of metrics.json."""

from typing import Any

import pandas as pd

from trustcxr.evaluation import alarms, calibration, metrics, paired
from trustcxr.evaluation.given import Examined
from trustcxr.evaluation.run import About, Run
from trustcxr.results.documents import VERSION, RunDocument


def describe(
    run: Run | Examined, predictions: pd.DataFrame, *, validation: pd.DataFrame | None = None, resamples: int = 2000
) -> RunDocument:
    """The document of metrics.json (results/documents), without saliency, from predictions of one split.

    `validation`: predictions on the run's validation images, on which the temperature of "calibration" is fitted.
    """
    splits = sorted(predictions["split"].unique())
    document: dict[str, Any] = {
        "version": VERSION,
        "run": run.name,
        **_about(run),
        "classes": list(run.classes),
        "split": "+".join(splits),
        **metrics.from_predictions(predictions, run.classes, resamples=resamples),
        "saliency": {},
    }
    document["masking"] = alarms.verdict(document, paired.gap(predictions, resamples=resamples))
    if validation is not None and len(validation) and isinstance(run, Run):
        document["calibration"] = calibration.describe(
            predictions, validation, resamples=resamples, refit=run.recipe is not None and run.recipe.training.refit
        )
    alarm = run.training.get("alarm") if isinstance(run, Run) else None
    document["alarms"] = alarms.of(document | {"training": {"alarm": alarm}})
    return RunDocument.model_validate(document)


def _about(run: Run | Examined) -> dict[str, Any]:
    """How the model was made, as far as that is known of it."""
    what = run.about if isinstance(run, Run) else About(run.name, run.name)
    return {
        "model": what.model,
        "defence": what.defence,
        "background": what.background,
        "seed": what.seed,
        "origin": what.origin,
    }
