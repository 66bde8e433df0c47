"""One finding of a model with a sigmoid for each, as it is explained: a model of two classes on the images known of it.

What is absent has no map: maps and removed lesions are of the images that have the finding. `present` is what the model
says from the finding's operating point on, so probabilities are counted from there: at it they are 0.5.
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
from trustcxr.evaluation.model_protocol import ModelUnderTest
from trustcxr.evaluation.operating_points import Threshold
from trustcxr.explain import evaluate
from trustcxr.explain.lesion_effect import select_annotated
from trustcxr.statistics import format_probability
from trustcxr.storage.schemas import RunDocument


class ExplainedFinding(NamedTuple):
    """What is explained: the model as it is asked, on these images; of a model of findings one, by its name."""

    name: str
    run: ModelUnderTest
    images: Dataset
    validation: Dataset | None
    notes: tuple[str, ...] = ()


def check_finding(subject: ExternalModel, wanted: str | None) -> None:
    """UserError for a finding that the model has not, or one asked of a model whose answer is one class of several."""
    if wanted is None:
        return
    if subject.kind != "sigmoid":
        raise UserError(
            f"--finding {wanted}: {subject.name} answers with one of its classes, and the class of each image is "
            "explained: leave it out"
        )
    _place(subject, wanted)


def select_finding(
    subject: ExternalModel, model: WrappedModel, images: AuditImages, wanted: str | None, *, at_once: bool
) -> ExplainedFinding:
    """The finding that is explained: the one wanted, else the only one that images with a lesion mask have.

    UserError where that does not settle one, or no image with a mask has it.
    """
    place = _settled(subject, images.examined) if wanted is None else _place(subject, wanted)
    name = subject.classes[place]
    seen = _known_of(images.examined, subject, place)
    if seen is None or not len(select_annotated(seen, np.arange(len(seen)))):
        raise UserError(f"{images.examined.where}: of no image it is known that it has {name}; say so with --label")
    evaluate.find_annotated(seen)
    threshold = _threshold(subject, model, images, place, at_once=at_once)
    assert threshold.value is not None
    asked = model.of_finding(place, operating_points.cut(threshold.value))
    run = ModelUnderTest(f"{subject.name}, {name}", asked, multilabel.STATES, subject.device)
    held = None if images.validation is None else _known_of(images.validation, subject, place)
    said = format_probability(threshold.value)
    note = (
        f"{name} is explained on the images that have it; it counts as there from {said} on, "
        f"{threshold.origin}, and probabilities are counted from there: at it they are 0.5"
    )
    return ExplainedFinding(name, run, seen, held, (note,))


def no_better(name: str, images: Dataset, document: RunDocument) -> list[str]:
    """That images as they are are told no better than by one answer for all, where that is so:

    Maps show little then.
    """
    right, constant = document.clean.accuracy.value, document.clean.constant_answer
    if right is None or constant is None or right > constant:
        return []
    state = multilabel.STATES[int(np.mean(images.labels) > 0.5)]
    return [
        f"{name} is told no better than by one answer for all images: {right:.1%} are answered rightly, always {state} "
        f"would be right in {constant:.1%}; so its maps are of an answer that does not tell it"
    ]


def _place(subject: ExternalModel, wanted: str) -> int:
    lowered = [name.lower() for name in subject.classes]
    if wanted.lower() not in lowered:
        raise unknown("finding", wanted, subject.classes)
    return lowered.index(wanted.lower())


def _settled(subject: ExternalModel, images: Dataset) -> int:
    known = multilabel.labelled_findings(images.table, subject.classes)
    there = np.flatnonzero((known[evaluate.find_annotated(images)] == 1).any(0))
    if len(there) == 1:
        return int(there[0])
    names = [subject.classes[place] for place in there]
    which = f"images with a mask have {' and '.join(names)}" if names else "no image with a mask is known to have any"
    raise UserError(f"{subject.name}: has a sigmoid for each finding, and {which}: say which with --finding NAME")


def _known_of(images: Dataset, subject: ExternalModel, place: int) -> Dataset | None:
    """The images of which it is known whether they have the finding, which stand in for a data set; None: of none."""
    labels = multilabel.labelled_findings(images.table, subject.classes)[:, place]
    rows = np.flatnonzero(np.isfinite(labels))
    return multilabel.OneFinding(images, rows, labels[rows]) if len(rows) else None  # type: ignore[return-value]


def _threshold(
    subject: ExternalModel, model: WrappedModel, images: AuditImages, place: int, *, at_once: bool
) -> Threshold:
    held = None
    if images.validation is not None and subject.output.thresholds is None:
        asked = ModelUnderTest(subject.name, model, subject.classes, subject.device)
        answers = evaluation.predict(asked, images.validation, views=False, at_once=at_once)
        held = measure.answers_known(images.validation, answers, subject.classes)
    return multilabel.threshold_of(subject.output, place, held, images.unchosen)
