"""What a reader must not miss, made once and stored in metrics.json: terminal and report show it, and judge nothing."""

from collections.abc import Iterator

from trustcxr.evaluation import gradient_masking
from trustcxr.evaluation.gradient_masking import from_intervals
from trustcxr.storage.schemas import Alarm, RunDocument, Verdict
from trustcxr.storage.schemas.test_figures import CONSTANT, OVERFITTING


def find_alarms(document: RunDocument) -> list[Alarm]:
    """Every alarm of a run's document, each a kind and a sentence.

    The signs of its verdict; a network no better than a constant answer; catastrophic overfitting, which training
    noticed ("training": the run's training.json).
    """
    return [*_signs(document), *_constant(document), *_overfitting(document)]


def verdict(document: RunDocument, gap: gradient_masking.Gap = from_intervals) -> Verdict:
    """The part "masking" of a document."""
    return gradient_masking.verdict(document, gap, constant=document.clean.constant_answer)


def _signs(document: RunDocument) -> Iterator[Alarm]:
    count = document.clean.n
    where = f" ({count} {document.split} images)".replace("  ", " ") if count else ""
    for sign in document.masking.signs if document.masking else ():
        yield Alarm(kind=sign.kind, text=f"{sign.text}{where}")


def _constant(document: RunDocument) -> Iterator[Alarm]:
    constant, accuracy = document.clean.constant_answer, document.clean.accuracy
    ends = accuracy.interval
    if constant is None or accuracy.value is None or ends is None or ends[0] > constant:
        return
    figures = f"{accuracy.value:.1%} [{ends[0]:.1%}, {ends[1]:.1%}]"
    same, so = "one and the same answer to all of them", "no other figure of it says anything"
    if document.clean.findings:  # of rare ones a useful answer is seldom as often right as "absent"
        same, so = "the commoner answer to each finding", "that is at its thresholds, not how it ranks images"
    text = f"accuracy on clean images is {figures}, where {same} has {constant:.1%}"
    yield Alarm(kind=CONSTANT, text=f"{text}: {so}")


def _overfitting(document: RunDocument) -> Iterator[Alarm]:
    if document.training.alarm:
        yield Alarm(kind=OVERFITTING, text=document.training.alarm)
