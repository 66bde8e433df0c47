"""Compute the document of metrics.json from predictions: figures, verdict, alarms, the fall on other data."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pandas as pd
import torch

from trustcxr.console import plural
from trustcxr.evaluation import calibration, gradient_masking, metrics
from trustcxr.evaluation.operating_points import conditions
from trustcxr.evaluation.trained_run import About, AnyModel, Run
from trustcxr.models.preserve_state import is_randomised
from trustcxr.statistics import Bootstraps, interval
from trustcxr.storage.prediction_table import IMAGES, right
from trustcxr.storage.schemas import VERSION, Alarm, Drop, RunDocument, Share, TrainingDocument
from trustcxr.storage.schemas.run_document import CONSTANT, OVERFITTING

AT_RANDOM = "its outputs are random, and attack and test see the same draw: its robust accuracy is overestimated"


def describe(
    run: AnyModel, predictions: pd.DataFrame, *, validation: pd.DataFrame | None = None, resamples: int = 2000
) -> RunDocument:
    """Return the document of metrics.json, without saliency, from predictions of one split.

    `validation`: predictions on the run's validation images, to fit the temperature of "calibration".
    """
    about, options = About(run.name, run.name), dict[str, Any]()
    if isinstance(run, Run):
        about, options = run.about, {"validation": validation, "refit": run.recipe.training.refit}
        options |= {"training": run.training, "at_random": lambda: is_randomised(run.model, _noise(run))}
    return figures(about, run.classes, predictions, resamples=resamples, **options)


def figures(
    what: About,
    classes: tuple[str, ...],
    predictions: pd.DataFrame,
    *,
    validation: pd.DataFrame | None = None,
    resamples: int,
    refit: bool = False,
    training: TrainingDocument | None = None,
    at_random: Callable[[], bool] = lambda: False,
) -> RunDocument:
    """Return all of `describe` that comes from tables; only `at_random` needs the network."""
    document = metrics.from_predictions(predictions, classes, resamples=resamples)
    identity = asdict(what)
    identity |= {"run": identity.pop("name"), "classes": list(classes), "version": VERSION, "saliency": {}}
    identity["split"] = "+".join(sorted(predictions["split"].unique()))
    document = document.model_copy(update=identity)
    document.masking = gradient_masking.verdict(document, gradient_masking.paired_gap(predictions, resamples=resamples))
    if document.attacks and at_random():
        document.masking.at_random = True
        document.masking.reasons.append(AT_RANDOM)
    if validation is not None and len(validation):
        document.calibration = calibration.describe(predictions, validation, resamples=resamples, refit=refit)
    document.alarms = find_alarms(document.model_copy(update={"training": training or TrainingDocument()}))
    return document


def _noise(run: Run) -> torch.Tensor:
    """Return one fixed image of noise, of the run's size."""
    drawn = torch.rand((1, 1, run.size, run.size), generator=torch.Generator().manual_seed(0))
    return drawn.to(run.device)


def find_alarms(document: RunDocument) -> list[Alarm]:
    """Return every alarm of a run's document: masking, no better than a constant answer, catastrophic overfitting."""
    count, masking = document.clean.n, document.masking
    suffix = f" ({plural(count, f'{document.split} image'.strip())})" if count else ""
    alarms = [Alarm(kind=sign.kind, text=f"{sign.text}{suffix}") for sign in (masking.signs if masking else ())]
    alarms += _constant(document)
    if document.training.alarm:
        alarms.append(Alarm(kind=OVERFITTING, text=document.training.alarm))
    return alarms


def _constant(document: RunDocument) -> Iterator[Alarm]:
    constant, accuracy = document.clean.constant_answer, document.clean.accuracy
    ends = accuracy.interval
    if constant is None or accuracy.value is None or ends is None or ends[0] > constant:
        return
    figures = f"{accuracy.value:.1%} [{ends[0]:.1%}, {ends[1]:.1%}]"
    same, so = "one constant answer", "no other figure of it is informative"
    if document.clean.findings:  # for a rare finding, even a useful threshold is seldom as often right as "absent"
        same, so = "the commoner answer to each finding", "this is about its thresholds, not how it ranks images"
    yield Alarm(kind=CONSTANT, text=f"accuracy on clean images is {figures}; {same} has {constant:.1%}: {so}")


def compare_with_internal(internal: pd.DataFrame, external: pd.DataFrame, *, resamples: int = 2000) -> list[Drop]:
    """Return the loss of accuracy from the run's own test images to others, clean and under each attack in both tables.

    Both are resampled alone; the interval is that of the difference. Empty if both are the same images.
    """
    if IMAGES in internal and IMAGES in external and set(internal[IMAGES]) == set(external[IMAGES]):
        return []
    ours, theirs = Bootstraps(resamples=resamples, seed=0), Bootstraps(resamples=resamples, seed=1)
    drops, others = [], {_key(rows): rows for _, rows in conditions(external)}
    for about, here in conditions(internal):
        if (there := others.get(_key(here))) is None:
            continue
        within, outside = ours.over(here["group"]).means(right(here)), theirs.over(there["group"]).means(right(there))
        change, counts = within - outside, {"n_internal": len(here), "n_external": len(there)}
        ends = Share(value=change[0], ci=interval(change))
        drops.append(Drop(**about, **counts, internal=within[0], external=outside[0], drop=ends))
    return drops


def _key(rows: pd.DataFrame) -> tuple[Any, ...]:
    return tuple(rows[["attack", "epsilon", "steps"]].iloc[0])
