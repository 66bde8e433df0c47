"""Decide from the entry checks and the figures whether an audit is reliable, and why not."""

from collections.abc import Iterator, Sequence

from trustcxr.audit.entry_checks import Check, EntryReport, black_box_check
from trustcxr.registry import BLACK_BOX, ONE_STEP, WORST_CASE, is_linf
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import AttackResult, AuditDocument, RunDocument, Share, Verdict
from trustcxr.storage.schemas.test_figures import CONSTANT

# Failures that make all figures unreliable. Attacks adapt to the others.
_GRAVE = {"declaration", "scores", "same answer twice", "same answer alone", "no gradients used inside"}
_GRAVE |= {"active test", "black box against white box"}


def withdraw(document: AuditDocument, report: EntryReport) -> None:
    """Remove the figures of gradient attacks if these missed planted adversarial examples."""
    if report.attacks_reliable:
        return
    why = "the attack missed adversarial examples that were planted, so its figures say nothing"
    document.attacks = [row if row.attack in BLACK_BOX else _without_figures(row) for row in document.attacks]
    document.operating_points = [p for p in document.operating_points if p.attack in (*BLACK_BOX, CLEAN)]
    document.masking = Verdict(masked=None, reasons=f"withdrawn: {why}", looked_for=[])
    document.alarms = [alarm for alarm in document.alarms if alarm.kind == CONSTANT]
    document.withdrawn = why


def _without_figures(row: AttackResult) -> AttackResult:
    values = row.model_dump(include={"attack", "epsilon", "steps", "n"} & row.model_fields_set)
    return AttackResult(**values, accuracy=Share(value=None, ci=None))


def compare_black_box(document: RunDocument) -> list[Check]:
    """Compare attacks without gradients with those that have them, at each epsilon that has both."""
    rows = [row for row in document.attacks if row.accuracy.value is not None and is_linf(row.attack)]
    checks = []
    for epsilon in sorted({row.epsilon for row in rows if row.epsilon is not None}):
        accuracies = [(row.attack, row.accuracy.value or 0.0) for row in rows if row.epsilon == epsilon]
        black = [accuracy for attack, accuracy in accuracies if attack in BLACK_BOX]
        # The worst case includes the results of the others, so it says nothing about gradients.
        white = [accuracy for attack, accuracy in accuracies if attack not in (*BLACK_BOX, *ONE_STEP, WORST_CASE)]
        if black and white:
            checks.append(black_box_check(min(white), min(black), epsilon=epsilon))
    return checks


def verdict(document: AuditDocument, checks: Sequence[Check], report: EntryReport) -> tuple[bool, str]:
    """Return `unreliable` and `reasons` of audit.json."""
    reasons = [f"{check.check}: {check.text}" for check in checks if check.passed is False and check.check in _GRAVE]
    reasons += [*_chance_reasons(document), *(alarm.text for alarm in document.alarms if alarm.kind == "weak_attack")]
    if report.model is not None and not report.gradients:
        surrogate = "".join(f" ({check.text})" for check in checks if check.check == "surrogate")
        reasons.append(f"it has no gradients: attacks without them can only overestimate robust accuracy{surrogate}")
    elif report.traits is not None and report.traits.needs_bpda and report.traits.healed > 0.02:
        reasons.append(f"{report.traits.healed:.1%} of images have no gradient, even with BPDA")
    return bool(reasons), "; ".join(reasons) or "nothing was found that speaks against these figures"


def _chance_reasons(document: AuditDocument) -> Iterator[str]:
    """Yield a reason if the answers are not shown to be better than a constant answer.

    Findings are compared by AUROC: a constant "absent" often has the higher accuracy for a rare finding.
    """
    if not document.findings:
        yield from (alarm.text for alarm in document.alarms if alarm.kind == CONSTANT)
        return
    intervals = [point.auroc.interval for point in document.operating_points if point.attack == CLEAN]
    if intervals and all(pair is None or pair[0] <= 0.5 for pair in intervals):
        yield "no finding is shown to be ranked better than by chance"
