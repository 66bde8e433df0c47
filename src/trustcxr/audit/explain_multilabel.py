"""Choose the finding to explain of a model with one sigmoid a finding, as a model of two classes.

Maps and removed lesions are of the images that have the finding. `present` means above the finding's operating point,
and probabilities are shifted so that they are 0.5 there.
"""

from typing import NamedTuple

import numpy as np

from trustcxr.audit import measure, multilabel
from trustcxr.audit.audit_data import AuditImages
from trustcxr.audit.formats import ExternalModel
from trustcxr.audit.formats.wrapper import WrappedModel
from trustcxr.data.dataset import Dataset
from trustcxr.errors import UserError, unknown
from trustcxr.evaluation import operating_points
from trustcxr.evaluation import predictions as evaluation
from trustcxr.evaluation.trained_run import ModelUnderTest
from trustcxr.explain import evaluate
from trustcxr.explain.lesion_effect import select_annotated
from trustcxr.statistics import format_probability
from trustcxr.storage.schemas import RunDocument


class ExplainedFinding(NamedTuple):
    """The model and images to explain; `name` is the finding, empty for a model of classes."""

    name: str
    run: ModelUnderTest
    images: Dataset
    validation: Dataset | None
    notes: tuple[str, ...] = ()


def check_finding(subject: ExternalModel, finding: str | None) -> None:
    """Raise UserError if the model does not have the finding, or answers one class of several."""
    if finding is None:
        return
    if subject.kind != "sigmoid":
        raise UserError(
            f"--finding {finding}: {subject.name} answers with one of its classes, and the class of each image is "
            "explained: leave it out"
        )
    _index(subject, finding)


def select_finding(
    subject: ExternalModel, model: WrappedModel, images: AuditImages, finding: str | None, *, parallel: bool
) -> ExplainedFinding:
    """Select a finding, by default the only one that images with a lesion mask have.

    Raises UserError if there is not exactly one, or no image with a mask has it.
    """
    index = _only_masked(subject, images.examined) if finding is None else _index(subject, finding)
    name = subject.classes[index]
    examined = _labelled(images.examined, subject, index)
    if examined is None or not len(select_annotated(examined, np.arange(len(examined)))):
        raise UserError(f"{images.examined.where}: of no image it is known that it has {name}; say so with --label")
    evaluate.find_annotated(examined)
    answers = None
    if images.validation is not None and subject.output.thresholds is None:
        full = ModelUnderTest(subject.name, model, subject.classes, subject.device)
        table = evaluation.predict(full, images.validation, views=False, at_once=parallel)
        answers = measure.label_answers(images.validation, table, subject.classes)
    threshold = multilabel.threshold_of(subject.output, index, answers, images.why_no_threshold())
    assert threshold.value is not None
    decision = model.of_finding(index, operating_points.cut(threshold.value))
    run = ModelUnderTest(f"{subject.name}, {name}", decision, multilabel.STATES, subject.device)
    validation = None if images.validation is None else _labelled(images.validation, subject, index)
    note = (
        f"{name} is explained on the images that have it; it counts as there from {format_probability(threshold.value)}"
        f" on, {threshold.origin}, and probabilities are counted from there: at it they are 0.5"
    )
    return ExplainedFinding(name, run, examined, validation, (note,))


def constant_note(name: str, images: Dataset, document: RunDocument) -> list[str]:
    """Return a note if the accuracy on clean images is no better than that of a constant answer."""
    right, constant = document.clean.accuracy.value, document.clean.constant_answer
    if right is None or constant is None or right > constant:
        return []
    state = multilabel.STATES[int(np.mean(images.labels) > 0.5)]
    return [
        f"{name}: accuracy ({right:.1%}) is no better than that of a constant answer (always {state}: {constant:.1%}), "
        "so its maps are not informative"
    ]


def _index(subject: ExternalModel, finding: str) -> int:
    lowered = [name.lower() for name in subject.classes]
    if finding.lower() not in lowered:
        raise unknown("finding", finding, subject.classes)
    return lowered.index(finding.lower())


def _only_masked(subject: ExternalModel, images: Dataset) -> int:
    """Return the index of the only finding that images with a lesion mask have."""
    labels = multilabel.labelled_findings(images.table, subject.classes)
    present = np.flatnonzero((labels[evaluate.find_annotated(images)] == 1).any(0))
    if len(present) == 1:
        return int(present[0])
    names = [subject.classes[index] for index in present]
    which = f"images with a mask have {' and '.join(names)}" if names else "no image with a mask is known to have any"
    raise UserError(f"{subject.name}: has a sigmoid for each finding, and {which}: say which with --finding NAME")


def _labelled(images: Dataset, subject: ExternalModel, index: int) -> Dataset | None:
    """Return the images with a label of the finding as a data set; None without any."""
    labels = multilabel.labelled_findings(images.table, subject.classes)[:, index]
    rows = np.flatnonzero(np.isfinite(labels))
    return multilabel.OneFinding(images, rows, labels[rows]) if len(rows) else None  # type: ignore[return-value]
