"""What a reader must not miss, made once and stored in metrics.json: terminal and report show it, and judge nothing."""

from collections.abc import Iterator
from typing import Any

from trustcxr.evaluation import gradient_masking
from trustcxr.evaluation.gradient_masking import from_intervals

CONSTANT = "no_better_than_constant"
OVERFITTING = "catastrophic_overfitting"
# What versions before the one judge stored; where it is met, the run is judged anew.
_OF_OTHER_JUDGES = ("gradient_masking", "weak_attack", "rising_with_epsilon")

Row = dict[str, Any]
Alarm = dict[str, str]


def of(document: Row) -> list[Alarm]:
    """Every alarm of a run's document, each a kind and a sentence.

    The signs of its verdict; a network no better than a constant answer; catastrophic overfitting, which training
    noticed ("training": the run's training.json).
    """
    return [*_signs(document), *_constant(document), *_overfitting(document)]


def constant_answer(document: Row) -> float | None:
    """Accuracy of always answering with the commonest class of the clean images, from the confusion matrix or n."""
    clean = document.get("clean")
    rows = clean.get("confusion") if isinstance(clean, dict) else None
    if isinstance(rows, list) and rows and all(isinstance(row, list) for row in rows):
        sizes = [sum(_number(value) or 0.0 for value in row) for row in rows]
    else:
        classes = clean.get("per_class") if isinstance(clean, dict) else None
        listed = classes.values() if isinstance(classes, dict) else []
        sizes = [_number(part.get("n")) or 0.0 if isinstance(part, dict) else 0.0 for part in listed]
    return max(sizes) / sum(sizes) if sizes and sum(sizes) > 0 else None


def judged(document: Row) -> Row:
    """A document with its verdict and alarms: as stored, or judged anew where another judge wrote it (version 0.1).

    Those have no "signs". They lack gradients and pairs too, so less can be said of them, and nothing is made up.
    """
    masking = document.get("masking")
    if not isinstance(document.get("clean"), dict) or (isinstance(masking, dict) and "signs" in masking):
        return document
    found = document | {"masking": verdict(document)}
    before = document.get("alarms")
    kept = [a for a in before if isinstance(a, dict)] if isinstance(before, list) else []
    known = of(found)
    said = {alarm["kind"] for alarm in known}
    return found | {"alarms": known + [a for a in kept if a.get("kind") not in (*_OF_OTHER_JUDGES, *said)]}


def verdict(document: Row, gap: gradient_masking.Gap = from_intervals) -> Row:
    """The part "masking" of a document."""
    return gradient_masking.verdict(document, gap, constant=constant_answer(document)).document()


def _signs(document: Row) -> Iterator[Alarm]:
    clean = document.get("clean") or {}
    where = f" ({clean['n']} {document.get('split', '')} images)".replace("  ", " ") if clean.get("n") else ""
    for sign in (document.get("masking") or {}).get("signs") or ():
        yield {"kind": sign["kind"], "text": f"{sign['text']}{where}"}


def _constant(document: Row) -> Iterator[Alarm]:
    constant, clean = constant_answer(document), document["clean"]
    ends = clean.get("accuracy_ci")
    pair = [_number(end) for end in ends] if isinstance(ends, list | tuple) and len(ends) == 2 else [None, None]
    accuracy = _number(clean.get("accuracy"))
    if constant is None or accuracy is None or pair[0] is None or pair[1] is None or pair[0] > constant:
        return
    figures = f"{accuracy:.1%} [{pair[0]:.1%}, {pair[1]:.1%}]"
    text = f"accuracy on clean images is {figures}, where one and the same answer to all of them has {constant:.1%}"
    yield {"kind": CONSTANT, "text": f"{text}: no other figure of it says anything"}


def _overfitting(document: Row) -> Iterator[Alarm]:
    training = document.get("training")
    if isinstance(training, dict) and training.get("alarm"):
        yield {"kind": OVERFITTING, "text": str(training["alarm"])}


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    return float(value) if known else None
