"""The networks of a study by what they do on validation, best first."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from trustcxr.evaluation import metrics
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.study import Selection
from trustcxr.results import documents, files
from trustcxr.results.documents import Classification, Ranked, RunDocument
from trustcxr.results.folders import VALIDATED_FILE, VALIDATION_FILE
from trustcxr.results.tables import logits_of
from trustcxr.study.finished import is_finished


def ranked(
    selection: Selection, baselines: Iterable[tuple[RunRecipe, Path]], classes: Sequence[str], *, resamples: int = 100
) -> list[Ranked]:
    """Each network with its mean over seeds and whether it is chosen; `baselines` are standard runs and their folders.

    Two of the same value stand in the order of their names.
    """
    values: dict[str, list[float]] = {}
    for run, folder in baselines:
        figures = _figures(folder, tuple(classes), resamples)
        values.setdefault(run.model.called, []).append(float(getattr(figures, selection.by).value or 0.0))
    order = sorted(((float(np.mean(v)), name) for name, v in values.items()), key=lambda pair: (-pair[0], pair[1]))
    return [Ranked(model=name, value=value, chosen=i < selection.count) for i, (value, name) in enumerate(order)]


def _figures(folder: Path, classes: tuple[str, ...], resamples: int) -> Classification:
    """What a run does on validation: by its table, or as it was written of a run that was finished elsewhere."""
    if is_finished(folder):
        return documents.read(RunDocument, folder / VALIDATED_FILE).clean
    table = files.read_table(folder / VALIDATION_FILE)
    labels = table["label"].to_numpy()
    return metrics.classification(logits_of(table), labels, table["group"], classes, resamples=resamples)
