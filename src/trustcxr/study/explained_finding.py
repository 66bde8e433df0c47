"""One finding of a model with a sigmoid for each, as it is explained: a model of two classes on the films known of it.

What is absent has no map: maps and removed lesions are of the films that have the finding. `present` is what the model
says from the finding's operating point on, so probabilities are counted from there: at it they are 0.5.
"""

from typing import NamedTuple

import numpy as np

from trustcxr.data.dataset import Dataset
from trustcxr.errors import UserError, unknown
from trustcxr.evaluation import findings, operating_points
from trustcxr.evaluation import predictions as evaluation
from trustcxr.evaluation.given import Examined
from trustcxr.evaluation.operating_points import Threshold
from trustcxr.explain import scores
from trustcxr.explain.lesions import asked_of
from trustcxr.models.adapters import Given
from trustcxr.models.adapters.adapted import Adapted
from trustcxr.results.documents import RunDocument
from trustcxr.statistics import probability_said
from trustcxr.study import audit_measures
from trustcxr.study.audit_data import Films


class OfFinding(NamedTuple):
    """What is explained: the model as it is asked, on these images; of a model of findings one, by its name."""

    name: str
    run: Examined
    films: Dataset
    validation: Dataset | None
    notes: tuple[str, ...] = ()


def check_finding(subject: Given, wanted: str | None) -> None:
    """UserError for a finding that the model has not, or one asked of a model whose answer is one class of several."""
    if wanted is None:
        return
    if subject.kind != "sigmoid":
        raise UserError(
            f"--finding {wanted}: {subject.name} answers with one of its classes, and the class of each film is "
            "explained: leave it out"
        )
    _place(subject, wanted)


def of_finding(subject: Given, model: Adapted, films: Films, wanted: str | None, *, at_once: bool) -> OfFinding:
    """The finding that is explained: the one wanted, else the only one that films with a lesion mask have.

    UserError where that does not settle one, or no film with a mask has it.
    """
    place = _settled(subject, films.examined) if wanted is None else _place(subject, wanted)
    name = subject.classes[place]
    seen = _known_of(films.examined, subject, place)
    if seen is None or not len(asked_of(seen, np.arange(len(seen)))):
        raise UserError(f"{films.examined.where}: of no film it is known that it has {name}; say so with --label")
    scores.annotated(seen)
    threshold = _threshold(subject, model, films, place, at_once=at_once)
    assert threshold.value is not None
    asked = model.of_finding(place, operating_points.cut(threshold.value))
    run = Examined(f"{subject.name}, {name}", asked, findings.STATES, subject.device)
    held = None if films.validation is None else _known_of(films.validation, subject, place)
    said = probability_said(threshold.value)
    note = (
        f"{name} is explained on the films that have it; it counts as there from {said} on, "
        f"{threshold.origin}, and probabilities are counted from there: at it they are 0.5"
    )
    return OfFinding(name, run, seen, held, (note,))


def no_better(name: str, films: Dataset, document: RunDocument) -> list[str]:
    """That films as they are are told no better than by one answer for all, where that is so: maps show little then."""
    right, constant = document.clean.accuracy.value, document.clean.constant_answer
    if right is None or constant is None or right > constant:
        return []
    state = findings.STATES[int(np.mean(films.labels) > 0.5)]
    return [
        f"{name} is told no better than by one answer for all films: {right:.1%} are answered rightly, always {state} "
        f"would be right in {constant:.1%}; so its maps are of an answer that does not tell it"
    ]


def _place(subject: Given, wanted: str) -> int:
    lowered = [name.lower() for name in subject.classes]
    if wanted.lower() not in lowered:
        raise unknown("finding", wanted, subject.classes)
    return lowered.index(wanted.lower())


def _settled(subject: Given, films: Dataset) -> int:
    known = findings.known(films.table, subject.classes)
    there = np.flatnonzero((known[scores.annotated(films)] == 1).any(0))
    if len(there) == 1:
        return int(there[0])
    names = [subject.classes[place] for place in there]
    which = f"films with a mask have {' and '.join(names)}" if names else "no film with a mask is known to have any"
    raise UserError(f"{subject.name}: has a sigmoid for each finding, and {which}: say which with --finding NAME")


def _known_of(films: Dataset, subject: Given, place: int) -> Dataset | None:
    """The films of which it is known whether they have the finding, which stand in for a data set; None: of none."""
    labels = findings.known(films.table, subject.classes)[:, place]
    rows = np.flatnonzero(np.isfinite(labels))
    return findings.OneFinding(films, rows, labels[rows]) if len(rows) else None  # type: ignore[return-value]


def _threshold(subject: Given, model: Adapted, films: Films, place: int, *, at_once: bool) -> Threshold:
    held = None
    if films.validation is not None and subject.output.thresholds is None:
        asked = Examined(subject.name, model, subject.classes, subject.device)
        answers = evaluation.predict(asked, films.validation, views=False, at_once=at_once)
        held = audit_measures.answers_known(films.validation, answers, subject.classes)
    return findings.threshold_of(subject.output, place, held, films.unchosen)
