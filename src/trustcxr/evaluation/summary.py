"""Predictions of one split become the document of metrics.json."""

from typing import Any

import pandas as pd

from trustcxr.evaluation import calibration, gradient_masking, metrics
from trustcxr.evaluation.run import Run
from trustcxr.results.documents import VERSION, RunDocument


def describe(
    run: Run, predictions: pd.DataFrame, *, validation: pd.DataFrame | None = None, resamples: int = 2000
) -> RunDocument:
    """The document of metrics.json (results/documents.py), without saliency, from predictions of one split.

    `validation`: predictions on the run's validation images, on which the temperature of "calibration" is fitted.
    """
    splits = sorted(predictions["split"].unique())
    document: dict[str, Any] = {
        "version": VERSION,
        "run": run.name,
        "model": run.recipe.model.name,
        "defence": run.recipe.defence.name,
        "background": run.recipe.training.background,
        "seed": run.recipe.seed,
        "classes": list(run.classes),
        "split": "+".join(splits),
        **metrics.from_predictions(predictions, run.classes, resamples=resamples),
        "saliency": {},
    }
    document["masking"] = gradient_masking.verdict(document)
    if validation is not None and len(validation):
        document["calibration"] = calibration.describe(
            predictions, validation, resamples=resamples, refit=run.recipe.training.refit
        )
    document["alarms"] = gradient_masking.alarms(document)
    if "alarm" in run.training:
        document["alarms"].append({"kind": "catastrophic_overfitting", "text": run.training["alarm"]})
    return RunDocument.model_validate(document)
