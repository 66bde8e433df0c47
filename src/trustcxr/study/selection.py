"""Rank the networks of a study by a figure on validation, best first."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from trustcxr.errors import UserError
from trustcxr.evaluation import metrics
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.study_recipe import Selection, StudyRecipe, removed_models, run_recipe
from trustcxr.recipes.training_recipe import DefenceRecipe
from trustcxr.storage import atomic
from trustcxr.storage.layout import TRAINING_FILE, VALIDATION_FILE
from trustcxr.storage.prediction_table import logits_of
from trustcxr.storage.schemas import Ranked


def ranked(
    selection: Selection, baselines: Iterable[tuple[RunRecipe, Path]], classes: Sequence[str], *, resamples: int = 100
) -> list[Ranked]:
    """Return each network with its mean over seeds and whether it is chosen, from standard runs and their folders.

    Ties are in the order of names.
    """
    values: dict[str, list[float]] = {}
    for run, folder in baselines:
        table = atomic.read_table(folder / VALIDATION_FILE)
        labels, logits = table["label"].to_numpy(), logits_of(table)
        figures = metrics.classification(logits, labels, table["group"], tuple(classes), resamples=resamples)
        values.setdefault(run.model.called, []).append(float(getattr(figures, selection.by).value or 0.0))
    order = sorted(((float(np.mean(v)), name) for name, v in values.items()), key=lambda pair: (-pair[0], pair[1]))
    return [Ranked(model=name, value=value, chosen=i < selection.count) for i, (value, name) in enumerate(order)]


def left_out(study: Path, before: StudyRecipe, now: StudyRecipe) -> list[str]:
    """Name the standard runs of networks that a recipe leaves out. Raises UserError if one of their runs is trained."""
    ways, dropped = (DefenceRecipe(), *before.defences), removed_models(before, now)
    names = [run_recipe(before, m, way, seed).name for way in ways for m in dropped for seed in before.seeds]
    trained = [name for name in names if (study / "runs" / name / TRAINING_FILE).is_file()]
    if trained:
        raise UserError(f"{study}: {', '.join(trained)}: trained, and so counted in this study; choose another --out")
    return names[: len(dropped) * len(before.seeds)]
