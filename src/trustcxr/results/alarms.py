"""What a reader must not miss, made once and stored in metrics.json: terminal and report show it, and judge nothing."""

from collections.abc import Iterator

from trustcxr.results import gradient_masking
from trustcxr.results.documents import Alarm, RunDocument, Verdict
from trustcxr.results.gradient_masking import from_intervals

CONSTANT = "no_better_than_constant"
OVERFITTING = "catastrophic_overfitting"


def of(document: RunDocument) -> list[Alarm]:
    """Every alarm of a run's document, each a kind and a sentence.

    The signs of its verdict; a network no better than a constant answer; catastrophic overfitting, which training
    noticed ("training": the run's training.json).
    """
    return [*_signs(document), *_constant(document), *_overfitting(document)]


def constant_answer(document: RunDocument) -> float | None:
    """Accuracy of always giving the commonest class of the clean images, of findings the commoner answer to each.

    As measured, or in documents from before that from the confusion matrix or n.
    """
    clean = document.clean
    if clean.constant_answer is not None:
        return clean.constant_answer
    sizes = [sum(row) for row in clean.confusion] or [part.n or 0 for part in clean.per_class.values()]
    return max(sizes) / sum(sizes) if sizes and sum(sizes) > 0 else None


def verdict(document: RunDocument, gap: gradient_masking.Gap = from_intervals) -> Verdict:
    """The part "masking" of a document."""
    return gradient_masking.verdict(document, gap, constant=constant_answer(document))


def _signs(document: RunDocument) -> Iterator[Alarm]:
    count = document.clean.n
    where = f" ({count} {document.split} images)".replace("  ", " ") if count else ""
    for sign in document.masking.signs if document.masking else ():
        yield Alarm(kind=sign.kind, text=f"{sign.text}{where}")


def _constant(document: RunDocument) -> Iterator[Alarm]:
    constant, accuracy = constant_answer(document), document.clean.accuracy
    ends = accuracy.interval
    if constant is None or accuracy.value is None or ends is None or ends[0] > constant:
        return
    figures = f"{accuracy.value:.1%} [{ends[0]:.1%}, {ends[1]:.1%}]"
    same, so = "one and the same answer to all of them", "no other figure of it says anything"
    if document.clean.findings:  # of rare ones a useful answer is seldom as often right as "absent"
        same, so = "the commoner answer to each finding", "that is at its thresholds, not how it ranks films"
    text = f"accuracy on clean images is {figures}, where {same} has {constant:.1%}"
    yield Alarm(kind=CONSTANT, text=f"{text}: {so}")


def _overfitting(document: RunDocument) -> Iterator[Alarm]:
    if document.training.alarm:
        yield Alarm(kind=OVERFITTING, text=document.training.alarm)
