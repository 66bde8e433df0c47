"""The verdict of an audit: every sign against a sound measurement, and each answer about the model."""

from pathlib import Path
from typing import Any

import pytest

from trustcxr.audit import verdict
from trustcxr.audit.verdict import Answer, judge
from trustcxr.evaluation.gradient_masking import FAILING
from trustcxr.report import audit_html
from trustcxr.report.terminal import describe_audit
from trustcxr.storage.schemas import AuditDocument, Statement

CLEAN = {"n": 400, "accuracy": {"value": 0.9, "ci": [0.87, 0.93]}, "constant_answer": 0.4}
CLEAN |= {"ece": {"value": 0.02, "ci": [0.0, 0.04]}}


def share(value: float, spread: float = 0.03) -> dict[str, object]:
    return {"value": value, "ci": [max(value - spread, 0.0), min(value + spread, 1.0)]}


def attacked(attack: str, epsilon: float, value: float, spread: float = 0.03) -> dict[str, object]:
    return {"attack": attack, "epsilon": epsilon, "n": 400, "accuracy": share(value, spread)}


def view(value: float) -> dict[str, object]:
    return {"accuracy": share(value), "constant_answer": 0.4, "n": 400}


def corrupted(value: float, spread: float = 0.02) -> dict[str, object]:
    return {"accuracy": share(value, spread), "n": 400, "conditions": 17}


def group(name: str, gap: float, *, settled: bool = False) -> dict[str, object]:
    difference = {"value": gap, "ci": [gap - 0.03, gap + 0.03]}
    accuracy = {"value": 0.9 + gap, "ci": [0.87 + gap, 0.93 + gap]}
    return {"name": name, "n": 100, "images": 100, "accuracy": accuracy, "gap": difference, "settled": settled}


def by_sex(*groups: dict[str, object]) -> dict[str, object]:
    return {"subgroups": [{"column": "sex", "groups": list(groups)}]}


CHECKS = [
    {"check": "declaration", "passed": True, "text": "as declared", "grave": True},
    {"check": "active test", "passed": True, "text": "found all", "grave": True},
    {"check": "conversion", "passed": False, "text": "another answer", "grave": False},
]
# All that an honest, robust model has: sound, and every question answered with yes.
GOOD: dict[str, object] = {
    "classes": ["A", "B"],
    "clean": CLEAN,
    "attacks": [attacked("pgd", 0.01, 0.88), attacked("pgd", 0.02, 0.85), attacked("worst-case", 0.02, 0.84)],
    "corruptions_mean": corrupted(0.89),
    "without_lungs": view(0.41) | {"view": "lungs_in_grey"},
    "shortcuts": {"lungs_in_grey": view(0.41), "lungs_only": view(0.7)},
    **by_sex(group("F", -0.01), group("M", 0.01)),
    "masking": {"masked": False, "reasons": ["no sign of it"], "looked_for": ["input gradients"]},
    "entry_checks": CHECKS,
}


def checked(name: str, *, passed: bool | None) -> dict[str, object]:
    return {"entry_checks": [*CHECKS, {"check": name, "passed": passed, "text": "why", "grave": True}]}


def signed(kind: str) -> dict[str, object]:
    masking = {"masked": True, "reasons": [f"sign {kind}"], "signs": [{"kind": kind, "text": f"sign {kind}"}]}
    return {"masking": masking, "alarms": [{"kind": kind, "text": f"sign {kind} (400 Test images)"}]}


GRAVE = ["declaration", "scores", "same answer twice", "same answer alone", "gradients", "no gradients used inside"]
GRAVE += ["active test", "black box against white box", "a check of later"]
SIGNS: dict[str, dict[str, Any]] = {
    **{f"{name} failed": checked(name, passed=False) for name in GRAVE},
    **{f"{name} not made": checked(name, passed=None) for name in GRAVE},
    **{kind: signed(kind) for kind in FAILING},
    **{f"alarm {kind}": {"alarms": [{"kind": kind, "text": f"sign {kind}"}]} for kind in FAILING},
    "masked without signs": {"masking": {"masked": True, "reasons": ["it hides them"]}},
    "masking unknown": {"masking": {"masked": None, "reasons": ["not looked for"]}},
    "masking not judged": {"masking": None},
    "at random": {"masking": {"masked": False, "reasons": [], "at_random": True}},
    "withdrawn": {"withdrawn": "it missed what was planted", "masking": {"masked": None}},
    "constant": {"alarms": [{"kind": "no_better_than_constant", "text": "it gives one answer"}]},
    "nothing measured": {"clean": {}},
}


def document(**change: object) -> AuditDocument:
    audit = AuditDocument.model_validate(GOOD | change)
    audit.verdict = judge(audit)
    return audit


def answer(question: str, audit: AuditDocument) -> Statement:
    (row,) = [row for row in audit.verdict.model if row.question == question]
    return row


def test_a_model_with_everything_checked_is_sound_and_answers_every_question() -> None:
    audit = document()
    assert (audit.verdict.sound, audit.verdict.reasons) == (True, [])
    questions = ("accurate", "robust", "stable", "lungs", "subgroups", "calibrated")
    assert [(row.question, row.met) for row in audit.verdict.model] == [(question, True) for question in questions]
    assert "box good" in audit_html.render(audit)
    said = "Is the measurement sound? Yes: no important check failed. Minor checks: conversion failed."
    assert describe_audit(audit)[0] == said


@pytest.mark.parametrize("sign", SIGNS)
def test_every_sign_and_pair_of_signs_makes_the_measurement_unsound_and_leaves_no_green_line(sign: str) -> None:
    audit = document(**SIGNS[sign])
    assert audit.verdict.sound is False
    assert len(audit.verdict.reasons) == 1, "one sign is one reason"
    assert not [row for row in audit.verdict.model if row.met]
    first, *_ = audit_html.render(audit).split('<section aria-labelledby="summary-title">')
    first = first[first.index('<section class="first"') :]
    assert "good" not in first.replace("good enough", "")
    assert audit.verdict.reasons[0] in first
    told = describe_audit(audit)
    assert told[0].startswith("Is the measurement sound? NO")
    assert not [line for line in told if line.startswith("  yes:")]
    limits = "\n".join(told[told.index("Limits:") :])
    assert f"sign {sign.removeprefix('alarm ')}" not in limits, "said once"
    assert f"- {audit.verdict.reasons[0]}" in audit_html.render_card(audit)
    for other, change in SIGNS.items():
        lists: Any = {key: [*SIGNS[sign].get(key, []), *change.get(key, [])] for key in ("alarms", "entry_checks")}
        both = document(**SIGNS[sign] | change | {key: rows for key, rows in lists.items() if rows})
        assert both.verdict.sound is False, other
        assert not [row for row in both.verdict.model if row.met], other


NO_SIGNS: list[dict[str, object]] = [
    *({"entry_checks": [{"check": "conversion", "passed": passed, "grave": False}]} for passed in (False, None)),
    *({"alarms": [{"kind": f"{kind}", "text": "said"}]} for kind in ("fgsm_overstates", "catastrophic_overfitting")),
    {"alarms": [{"kind": "survives_randomisation", "text": "said"}]},
    {"attacks": [], "masking": {"masked": None, "reasons": ["not looked for"]}},
]


@pytest.mark.parametrize("change", NO_SIGNS)
def test_what_attacks_adapt_to_and_what_is_about_the_model_is_no_reason(change: dict[str, object]) -> None:
    assert document(**change).verdict.sound


def test_a_table_of_scores_says_that_robustness_was_not_measured() -> None:
    checks = [{"check": "model", "passed": None, "text": "only its scores are available", "grave": False}]
    audit = document(attacks=[], masking=None, entry_checks=checks)
    assert audit.verdict.sound
    assert describe_audit(audit)[0] == "Is the measurement sound? Yes, but robustness was not measured."
    row = answer("robust", audit)
    assert row.met is None
    assert row.text.endswith("no attack was run: NOT MEASURED.")


COMMON = {"n": 1000, "accuracy": share(0.8, 0.025), "constant_answer": 0.75}
OFTEN = {"n": 1000, "accuracy": share(0.9, 0.02), "constant_answer": 0.8}
PART = attacked("worst-case", 0.02, 0.77, 0.05) | {"clean": share(0.844, 0.05)}


@pytest.mark.parametrize(
    ("question", "change", "met", "text"),
    [
        ("accurate", {"clean": CLEAN | {"constant_answer": 0.88}}, False, "88%: NOT BETTER THAN A CONSTANT ANSWER."),
        ("accurate", {"model": {"reported": {"clean": 0.95}}}, False, "makers claim 95%: LESS THAN CLAIMED."),
        ("accurate", {"model": {"reported": {"clean": 0.92}}}, True, "AND NOT BELOW THE CLAIM."),
        (
            "robust",
            {"attacks": [attacked("pgd", 0.01, 0.3), attacked("pgd", 0.02, 0.0, 0.01)]},
            False,
            "On 400 images, accuracy falls from 90.0% [87.0%, 93.0%] to 0.0% [0.0%, 1.0%] when each pixel may change "
            "by 5.1 of 255 grey levels (PGD; 30.0% [27.0%, 33.0%] by 2.6); more than 72% is asked, by the whole "
            "interval: NOT ROBUST.",
        ),
        ("robust", {"attacks": [attacked("pgd", 0.02, 0.71)]}, None, "NOT SETTLED."),
        (  # the clean accuracy of the images that were attacked counts
            "robust",
            {"attacks": [attacked("pgd", 0.02, 0.6) | {"clean": share(0.7, 0.05)}]},
            True,
            "On 400 images, accuracy falls from 70.0% [65.0%, 75.0%] to 60.0% [57.0%, 63.0%] when each pixel may "
            "change by 5.1 of 255 grey levels (PGD); more than 56% is asked, by the whole interval: ROBUST.",
        ),
        ("robust", {"attacks": [attacked("pgd", 0.01, 0.88)]}, None, "NOT SETTLED."),
        ("robust", {"attacks": [attacked("pgd", 0.01, 0.1)]}, False, "NOT ROBUST."),
        ("robust", {"attacks": [attacked("pgd-l2", 0.02, 0.1), attacked("pgd", 0.02, 0.85)]}, True, ": ROBUST."),
        ("robust", {"clean": CLEAN | {"constant_answer": 0.88}}, False, "NOT ROBUST."),
        # a part of the images has a constant answer of its own; if it is unknown, that of all images counts
        ("robust", {"clean": OFTEN, "attacks": [PART | {"constant_answer": 1 / 3}]}, True, ": ROBUST."),
        ("robust", {"clean": OFTEN, "attacks": [PART | {"constant_answer": 0.8}]}, None, "NOT SETTLED."),
        ("robust", {"clean": OFTEN, "attacks": [PART]}, None, "NOT SETTLED."),
        ("stable", {"corruptions_mean": corrupted(0.5, 0.1)}, False, "NOT STABLE."),
        ("stable", {"corruptions_mean": corrupted(0.82, 0.04)}, None, "NOT SETTLED."),
        ("stable", {"clean": COMMON, "corruptions_mean": corrupted(0.75, 0.027)}, None, "NOT SETTLED."),
        ("stable", {"clean": COMMON, "corruptions_mean": corrupted(0.74, 0.01)}, False, "NOT STABLE."),
        ("stable", {"corruptions_mean": None}, None, "none was shown to it: NOT MEASURED."),
        ("lungs", {"without_lungs": view(0.6)}, False, "READS MORE THAN THE LUNGS."),
        ("lungs", {"shortcuts": {"lungs_only": view(0.41)}}, None, "NOT SETTLED."),
        ("lungs", {"without_lungs": None}, None, "NOT MEASURED."),
        (
            "subgroups",
            by_sex(group("F", -0.2, settled=True), group("M", 0.2)),
            False,
            "Accuracy is 70.0% [67.0%, 73.0%] on 100 images with sex = F, -20.0 points [-23.0, -17.0] against all "
            "others; 2 groups were compared: WORSE FOR THIS GROUP.",
        ),
        ("subgroups", by_sex(group("F", -0.04)), None, "NOT SETTLED."),
        ("subgroups", by_sex(group("F", 0.2, settled=True)), True, "5%."),
        ("subgroups", {"subgroups": []}, None, "NOT MEASURED."),
        # merged values are no group
        ("subgroups", by_sex(group("others", -0.5, settled=True), group("F", 0.1)), True, "5%."),
        ("calibrated", {"clean": CLEAN | {"ece": share(0.2, 0.1)}}, False, "NOT CALIBRATED."),
        ("calibrated", {"clean": CLEAN | {"ece": share(0.05, 0.025)}}, None, "NOT SETTLED."),
    ],
)
def test_each_answer_follows_its_interval(question: str, change: dict[str, Any], met: bool | None, text: str) -> None:
    row = answer(question, document(**change))
    assert row.met is met, row.text
    assert row.text.endswith(text), row.text


def test_an_unsound_measurement_settles_nothing_but_what_an_attack_broke() -> None:
    worse = {"clean": CLEAN | {"ece": share(0.2, 0.1)}, "without_lungs": view(0.6)}
    broken = {"attacks": [attacked("pgd", 0.02, 0.1)]}
    audit = document(**SIGNS["masked without signs"] | worse | broken)
    assert [(row.question, row.met) for row in audit.verdict.model if row.met is not None] == [("robust", False)]
    assert answer("robust", audit).text.endswith("NOT ROBUST, although the measurement is not sound.")
    assert answer("calibrated", audit).text.endswith("NOT SETTLED, since the measurement is not sound.")
    chance = document(**SIGNS["masked without signs"] | broken | {"clean": CLEAN | {"constant_answer": 0.88}})
    assert answer("robust", chance).met is None, "what is wrongly declared has no right answers to break"


def test_a_model_that_loses_every_rare_finding_is_not_robust_and_not_stable() -> None:
    """Of 1,000 images 50 have the finding; "absent" for all is right in 95 %."""
    good, none = share(0.94, 0.02), {"balanced_accuracy": share(0.5, 0.02)}
    row = attacked("worst-case", 0.02, 0.95, 0.01)
    of_finding: dict[str, Any] = {"findings": [{"name": "Pneumothorax", "judged": True}]}
    of_finding["corruptions_mean"] = corrupted(0.95, 0.01) | none
    of_finding["clean"] = CLEAN | {
        "balanced_accuracy": good,
        "auroc_macro": good,
        "findings": 1,
        "constant_answer": 0.95,
    }
    audit = document(**of_finding, attacks=[row | none])
    for question in ("robust", "stable"):
        assert answer(question, audit).met is False
        assert "balanced accuracy falls from 94.0%" in answer(question, audit).text
    row |= {"balanced_accuracy": good}
    assert answer("robust", document(**of_finding, attacks=[row])).met is True
    part = row | {"clean_balanced_accuracy": share(0.99, 0.01)}
    text = answer("robust", document(**of_finding, attacks=[part])).text
    assert "balanced accuracy falls from 99.0%" in text, "of the images that were attacked"


def test_a_model_of_findings_is_compared_by_auroc() -> None:
    shares = {"auroc_macro": share(0.8, 0.05), "balanced_accuracy": share(0.8, 0.05)}
    clean = CLEAN | {"constant_answer": 0.95, "findings": 3} | shares
    row = attacked("worst-case", 0.02, 0.95) | {"balanced_accuracy": share(0.78, 0.04)}
    audit = document(clean=clean, attacks=[row], findings=[{"name": "A", "judged": True}])
    assert (answer("accurate", audit).met, answer("robust", audit).met) == (True, True)
    assert "On 400 decisions" in answer("robust", audit).text
    audit = document(clean=clean | {"auroc_macro": share(0.5, 0.1)}, findings=[{"name": "A"}])
    assert answer("accurate", audit).met is False


def test_criteria_come_last_and_are_not_met_by_a_measurement_that_is_not_sound() -> None:
    audit = document()
    criterion = Answer("AUROC of at least 80 %", True, "AUROC is 0.85", "MET", "NOT MET")
    assert judge(audit, [criterion]).model[-1].text == "AUROC is 0.85: MET."
    audit.clean.accuracy.value = None
    row = judge(audit, [criterion]).model[-1]
    assert (row.met, row.text) == (None, "AUROC is 0.85: NOT SETTLED, since the measurement is not sound.")


def test_the_limits_stand_in_the_documents() -> None:
    text = (Path(__file__).parents[1] / "docs" / "reference" / "audit.md").read_text(encoding="utf-8")
    for limit in (verdict.KEPT_UNDER_ATTACK, verdict.KEPT_WHEN_CORRUPTED, verdict.WORSE, verdict.CALIBRATION_ERROR):
        assert f"{limit:.0%}".replace("%", " %") in text
    assert f"epsilon {verdict.EPSILON:g}" in text
