"""What may be relied on: from the gate's checks and the figures, whether an audit is reliable, and why not."""

from collections.abc import Iterator, Sequence

from trustcxr.audit.entry_checks import Check, EntryReport, black_box_check
from trustcxr.evaluation.alarms import CONSTANT
from trustcxr.registry import BLACK_BOX, ONE_STEP, WORST_CASE, is_linf
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import AttackResult, AuditDocument, RunDocument, Share, Verdict

# What, failed, leaves no figure that can be relied on. The rest is said, and attacks adapt to it.
_GRAVE = (
    "declaration",
    "scores",
    "same answer twice",
    "same answer alone",
    "no gradients used inside",
    "active test",
    "black box against white box",
)


def withdraw(document: AuditDocument, door: EntryReport) -> None:
    """Takes back the figures of attacks that missed what was planted; what needed no gradient stays."""
    if door.believed:
        return
    why = "the attack missed adversarial examples that were planted, so its figures say nothing"
    document.attacks = [row if row.attack in BLACK_BOX else _without_figures(row) for row in document.attacks]
    document.operating_points = [p for p in document.operating_points if p.attack in (*BLACK_BOX, CLEAN)]
    document.masking = Verdict(masked=None, reasons=f"withdrawn: {why}", looked_for=[])
    document.alarms = [alarm for alarm in document.alarms if alarm.kind == CONSTANT]
    document.withdrawn = why


def _without_figures(row: AttackResult) -> AttackResult:
    kept = {name: getattr(row, name) for name in ("attack", "epsilon", "steps", "n") if name in row.model_fields_set}
    return AttackResult(**kept, accuracy=Share(value=None, ci=None))


def compared(document: RunDocument) -> list[Check]:
    """The check of attacks without gradients against those with them, where both were tried at one epsilon."""
    rows = [row for row in document.attacks if row.accuracy.value is not None and is_linf(row.attack)]
    found = []
    for epsilon in sorted({row.epsilon for row in rows if row.epsilon is not None}):
        here = [(row.attack, row.accuracy.value or 0.0) for row in rows if row.epsilon == epsilon]
        black = [accuracy for attack, accuracy in here if attack in BLACK_BOX]
        # The worst case tries what the others found, so it says nothing of gradients.
        white = [accuracy for attack, accuracy in here if attack not in (*BLACK_BOX, *ONE_STEP, WORST_CASE)]
        if black and white:
            found.append(black_box_check(min(white), min(black), epsilon=epsilon))
    return found


def verdict(document: AuditDocument, checks: Sequence[Check], door: EntryReport) -> tuple[bool, str]:
    """`unreliable` and `reasons` of audit.json."""
    reasons = [f"{check.check}: {check.text}" for check in checks if check.passed is False and check.check in _GRAVE]
    reasons += [*_by_chance(document), *(alarm.text for alarm in document.alarms if alarm.kind == "weak_attack")]
    if door.model is not None and not door.gradients:
        told = "".join(f" ({check.text})" for check in checks if check.check == "surrogate")
        reasons.append(f"it has no gradients: attacks without them can only overestimate robust accuracy{told}")
    elif door.traits is not None and door.traits.needs_stand_ins and door.traits.healed > 0.02:
        reasons.append(f"{door.traits.healed:.1%} of images have no gradient, even through stand-ins")
    return bool(reasons), "; ".join(reasons) or "nothing was found that speaks against these figures"


def _by_chance(document: AuditDocument) -> Iterator[str]:
    """Why its answers are not shown to be worth more than one and the same answer to all images, where they are not.

    Of findings that is said of how they rank images: who has a rare finding right is seldom as often right as a
    constant "absent", and may still be of use.
    """
    if not document.findings:
        yield from (alarm.text for alarm in document.alarms if alarm.kind == CONSTANT)
        return
    ends = [point.auroc.interval for point in document.operating_points if point.attack == CLEAN]
    if ends and all(pair is None or pair[0] <= 0.5 for pair in ends):
        yield "no finding is shown to be ranked better than by chance"
