"""The stages of an audit, in their order: what is said before each, and of how many films it is."""

import numpy as np

from trustcxr.evaluation import class_decisions, findings
from trustcxr.evaluation.door import Door
from trustcxr.models.adapters import Given
from trustcxr.study.audited import Audit

GATE = "the gate at the door"
CONDITIONS = "every film: as it is, and under every attack and corruption asked for"
WITHOUT_ATTACKS = "every film: as it is and corrupted"
VALIDATION = "validation films as they are"
FIGURES = "the figures, with their intervals"


def at_threshold(name: str) -> str:
    """The stage in which a class or finding is attacked."""
    return f"attacks on {name} at its threshold, film by film"


def planned(whole: Audit, door: Door) -> dict[str, int]:
    """Each stage with its films where others do the same to theirs, else 0; none where only scores were given."""
    subject, held = whole.subject, whole.films.validation
    if door.model is None:
        return {}
    if isinstance(subject, Given) and subject.kind == "sigmoid":
        first, truth = WITHOUT_ATTACKS, findings.known(whole.dataset.table, subject.classes).T
        judged = [(name, known) for name, known in zip(subject.classes, truth, strict=True) if {0, 1} <= set(known)]
        attacked = {at_threshold(name): int(np.isfinite(known).sum()) for name, known in judged}
    else:
        first, asked = CONDITIONS, whole.exam.attacks if door.gradients else whole.exam.without_gradients
        aimed = class_decisions.attacks(asked, gradients=door.gradients)
        places = class_decisions.places(len(subject.classes)) if aimed else ()
        attacked = {at_threshold(subject.classes[place]): len(whole.dataset) for place in places}
    return {GATE: 0, first: 0, **({} if held is None else {VALIDATION: 0}), **attacked, FIGURES: 0}
