"""What may be relied on: from the gate's checks and the figures, whether an audit is reliable, and why not."""

from collections.abc import Sequence
from typing import Any

from trustcxr.catalogue import BLACK_BOX, ONE_STEP
from trustcxr.evaluation.door import Check, Door, black_box_check

# What, failed, leaves no figure that can be relied on. The rest is said, and attacks adapt to it.
_GRAVE = ("declaration", "same answer twice", "no gradients used inside", "active test", "black box against white box")


def withdraw(document: dict[str, Any], door: Door) -> None:
    """Takes back the figures of attacks that missed what was planted; what needed no gradient stays."""
    if door.believed:
        return
    why = "the attack missed adversarial examples that were planted, so its figures say nothing"
    kept = ("attack", "epsilon", "steps", "n")
    document["attacks"] = [
        row
        if row["attack"] in BLACK_BOX
        else {key: row[key] for key in kept if key in row} | {"accuracy": None, "accuracy_ci": None}
        for row in document["attacks"]
    ]
    document["masking"] = {"masked": None, "because": f"withdrawn: {why}", "looked_for": []}
    document["alarms"] = []
    document["withdrawn"] = why


def compared(document: dict[str, Any]) -> list[Check]:
    """The check of attacks without gradients against those with them, where both were tried at one epsilon."""
    rows = [row for row in document["attacks"] if row["accuracy"] is not None and row["attack"] != "pgd-l2"]
    found = []
    for epsilon in sorted({float(row["epsilon"]) for row in rows}):
        here = [row for row in rows if float(row["epsilon"]) == epsilon]
        black = [row["accuracy"] for row in here if row["attack"] in BLACK_BOX]
        # The worst case tries what the others found, so it says nothing of gradients.
        white = [row["accuracy"] for row in here if row["attack"] not in (*BLACK_BOX, *ONE_STEP, "worst-case")]
        if black and white:
            found.append(black_box_check(min(white), min(black), epsilon=epsilon))
    return found


def verdict(document: dict[str, Any], checks: Sequence[Check], door: Door) -> tuple[bool, str]:
    """`unreliable` and `because` of audit.json."""
    reasons = [f"{check.check}: {check.text}" for check in checks if check.passed is False and check.check in _GRAVE]
    reasons += [alarm["text"] for alarm in document["alarms"] if alarm["kind"] == "weak_attack"]
    if door.model is not None and not door.gradients:
        reasons.append("it has no gradients: attacks without them can only overestimate robust accuracy")
    elif door.traits is not None and door.traits.needs_stand_ins and door.traits.healed > 0.02:
        reasons.append(f"{door.traits.healed:.1%} of films have no gradient, even through stand-ins")
    return bool(reasons), "; ".join(reasons) or "nothing was found that speaks against these figures"
