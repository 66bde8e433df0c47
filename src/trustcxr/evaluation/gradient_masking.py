"""Are the gradients masked? A verdict from the attacks of metrics.json: then robust accuracy is too good to be true.

Athalye et al. 2018 (Obfuscated Gradients Give a False Sense of Security) and Carlini et al. 2019 (On Evaluating
Adversarial Robustness) name the signs that are looked for here.
"""

from collections.abc import Iterator
from typing import Any

from trustcxr.catalogue import BLACK_BOX, ONE_STEP

LARGE = 0.3  # an epsilon at which any image can be made into any other, as far as a network is concerned
ABOUT_ZERO = 0.05  # accuracy that a sound attack must get below there
Row = dict[str, Any]


def verdict(document: dict[str, Any]) -> dict[str, Any]:
    """The part "masking" of metrics.json: masked (true, false, or null where nothing could be looked at), because.

    Signs: FGSM accuracy more than ten points above that of an iterated attack at the same epsilon; an iterated attack
    weaker than a single step; accuracy under an iterated attack that rises with epsilon; accuracy that is not about
    zero at an epsilon of 0.3 or more; a black-box attack stronger than every white-box one. `document` holds "clean"
    and "attacks". "looked_for" lists the signs that these attacks allowed to look for.
    """
    # An L2 radius is another measure, and its rows do not compare with the others.
    rows = [row for row in document["attacks"] if row["attack"] != "pgd-l2"]
    checks = {
        "one step against many": _one_step(rows),
        "the fall with epsilon": _rising(rows, float(document["clean"]["accuracy"])),
        f"about zero at {LARGE:g}": _not_zero(rows),
        "black box against white box": _black_box(rows),
    }
    looked = {name: found for name, found in checks.items() if found is not None}
    signs = [text for found in looked.values() for text in found]
    if not looked:
        because = "not looked for: it needs FGSM and PGD at one epsilon, or an iterated attack at several"
        return {"masked": None, "because": because, "looked_for": []}
    because = "; ".join(signs) if signs else f"no sign of it in {', '.join(looked)}"
    return {"masked": bool(signs), "because": because, "looked_for": list(looked)}


def label(row: Row) -> str:
    """PGD-20: an attack with its steps."""
    return row["attack"].upper() + (f"-{row['steps']}" if "steps" in row else "")


def sentence(verdict: Row) -> str:
    """The verdict as the terminal and the report say it."""
    heading = {True: "Masked gradients", False: "No masked gradients found", None: "Masked gradients"}
    return f"{heading[verdict.get('masked')]}: {verdict.get('because')}"


def _white(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["attack"] not in (*BLACK_BOX, *ONE_STEP)]


def _epsilons(rows: list[Row]) -> Iterator[tuple[float, list[Row]]]:
    for epsilon in sorted({float(row["epsilon"]) for row in rows} - {0.0}):
        yield epsilon, [row for row in rows if abs(float(row["epsilon"]) - epsilon) < 1e-9]


def _worst(rows: list[Row]) -> Row:
    return min(rows, key=lambda row: float(row["accuracy"]))


def _one_step(rows: list[Row]) -> list[str] | None:
    """The epsilon where one step and many differ the most, each way; None where both were never measured."""
    gaps: list[tuple[float, str]] = []
    for epsilon, here in _epsilons(rows):
        single, many = [row for row in here if row["attack"] == "fgsm"], _white(here)
        if single and many:
            weak, strong = _worst(single), _worst(many)
            gap = float(weak["accuracy"]) - float(strong["accuracy"])
            figures = f"{weak['accuracy']:.1%} under {label(weak)} but {strong['accuracy']:.1%} under {label(strong)}"
            gaps.append((gap, f"accuracy is {figures} at epsilon {epsilon:g}"))
    if not gaps:
        return None
    most, least = max(gaps), min(gaps)
    return ([most[1]] if most[0] > MASKING_GAP else []) + ([least[1]] if least[0] < -RISE else [])


def _rising(rows: list[Row], clean: float) -> list[str] | None:
    """Where accuracy under an iterated white-box attack rises; None without one.

    A single step is left out: beyond a small radius it overshoots, on any network.
    """
    sweeps: dict[str, list[Row]] = {}
    for row in _white(rows):
        sweeps.setdefault(label(row), []).append(row)
    found = []
    for name, sweep in sorted(sweeps.items()):
        lowest = (0.0, clean)
        for row in sorted(sweep, key=lambda row: float(row["epsilon"])):
            epsilon, accuracy = float(row["epsilon"]), float(row["accuracy"])
            if accuracy > lowest[1] + RISE:
                ends = f"{lowest[1]:.1%} at epsilon {lowest[0]:g} to {accuracy:.1%} at {epsilon:g}"
                found.append(f"accuracy under {name} rises from {ends}")
                break
            lowest = min(lowest, (epsilon, accuracy), key=lambda pair: pair[1])
    return found if sweeps else None


def _not_zero(rows: list[Row]) -> list[str] | None:
    large = [(epsilon, _white(here)) for epsilon, here in _epsilons(rows) if epsilon >= LARGE - 1e-9]
    measured = [(epsilon, _worst(here)) for epsilon, here in large if here]
    if not measured:
        return None
    epsilon, row = min(measured, key=lambda pair: float(pair[1]["accuracy"]))
    if float(row["accuracy"]) <= ABOUT_ZERO:
        return []
    return [f"accuracy is still {row['accuracy']:.1%} under {label(row)} at epsilon {epsilon:g}, where none can be"]


def _black_box(rows: list[Row]) -> list[str] | None:
    gaps: list[tuple[float, str]] = []
    for epsilon, here in _epsilons(rows):
        black, white = [row for row in here if row["attack"] in BLACK_BOX], _white(here)
        if black and white:
            blind, seeing = _worst(black), _worst(white)
            figures = f"{blind['accuracy']:.1%} under {label(blind)}, {seeing['accuracy']:.1%} under {label(seeing)}"
            text = f"an attack without gradients is the stronger at epsilon {epsilon:g}: {figures}"
            gaps.append((float(seeing["accuracy"]) - float(blind["accuracy"]), text))
    if not gaps:
        return None
    return [max(gaps)[1]] if max(gaps)[0] > RISE else []


_ITERATED = (*(f"PGD-{digit}" for digit in "123456789"), "WORST-CASE")  # not PGD-L2, which has another radius
MASKING_GAP = 0.10  # FGSM accuracy above PGD accuracy by more than this is an alarm
RISE = 0.02  # accuracy that a stronger attack adds is an alarm from here on


def alarms(document: dict[str, Any]) -> list[dict[str, str]]:
    """What a reader must not miss: masked gradients, and attacks that are too weak to be believed (ANCHORS, trap 7).

    Kinds: "gradient_masking" (FGSM accuracy well above PGD accuracy), "weak_attack" (PGD accuracy above FGSM accuracy),
    "rising_with_epsilon" (accuracy that rises with the radius; the clean images are radius 0).
    """
    sweeps: dict[str, dict[float, float]] = {}
    for row in document["attacks"]:
        name = row["attack"].upper() + (f"-{row['steps']}" if "steps" in row else "")
        sweeps.setdefault(name, {})[row["epsilon"]] = row["accuracy"]
    where = f"{document['clean']['n']} {document.get('split', '')} images".replace("  ", " ")
    found = []
    for name, accuracies in sweeps.items():
        for epsilon, iterated in sorted(accuracies.items()) if name.startswith(_ITERATED) else ():
            single = sweeps.get("FGSM", {}).get(epsilon, float("nan"))
            figures = (
                f"at epsilon {epsilon:g} accuracy is {single:.1%} under FGSM but {iterated:.1%} under {name} ({where})"
            )
            if single - iterated > MASKING_GAP:
                text = f"{figures}: FGSM overstates how robust this model is"
                found.append({"kind": "gradient_masking", "text": text})
            elif iterated - single > RISE:
                text = f"{figures}: a stronger attack cannot help a model, so {name.split('-')[0]} is failing here"
                found.append({"kind": "weak_attack", "text": text})
    for name, accuracies in sorted(sweeps.items()):
        lowest = (0.0, document["clean"]["accuracy"])
        for epsilon, accuracy in sorted(accuracies.items()):
            if accuracy > lowest[1] + RISE:
                text = (
                    f"accuracy under {name} rises from {lowest[1]:.1%} at epsilon {lowest[0]:g} to {accuracy:.1%} at "
                    f"{epsilon:g}: a larger radius cannot help, so the attack is failing"
                )
                found.append({"kind": "rising_with_epsilon", "text": text})
                break
            lowest = min(lowest, (epsilon, accuracy), key=lambda pair: pair[1])
    return found
