"""Do the gradients fail? One judge, from what metrics.json holds: then robust accuracy is too good to be true.

Athalye et al. 2018 (Obfuscated Gradients Give a False Sense of Security) and Carlini et al. 2019 (On Evaluating
Adversarial Robustness) name the signs that are looked for here. It looks at the clean images and at every attack at
every epsilon and number of steps; an L2 radius is another measure, and is left out.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from trustcxr.catalogue import BLACK_BOX, ONE_STEP

LARGE = 0.3  # an epsilon at which any image can be made into any other, as far as a network is concerned
ABOUT_ZERO = 0.05  # accuracy that a sound attack must get below there
OVERSTATES = 0.10  # FGSM accuracy above that of an iterated attack by more than this
RISE = 0.02  # accuracy that a stronger attack adds: fewer points say nothing, whatever their interval
VANISHED = 0.05  # share of the images without a gradient from which on the gradients fail
HELD = 0.8  # share of clean accuracy: attacks that leave more than this changed almost no answer

Row = dict[str, Any]
Gap = Callable[[Row, Row], tuple[float, float] | None]
"""The 95 % interval of accuracy under the first attack minus that under the second; None where it is not known."""

FAILING = (
    "vanishing_gradients",
    "unmoved_attack",
    "weak_attack",
    "rising_with_epsilon",
    "left_at_large_epsilon",
    "black_box_wins",
)
FGSM_OVERSTATES = "fgsm_overstates"  # a sign of its own: the stronger attack's gradients are sound


@dataclass(frozen=True)
class Sign:
    """What was seen, in a sentence. `kind`: one of FAILING, or FGSM_OVERSTATES, which does not make gradients fail."""

    kind: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """Whether the gradients fail (None: it could not be looked for), the signs, what was looked for, and why."""

    masked: bool | None
    signs: tuple[Sign, ...]
    looked_for: tuple[str, ...]
    because: str

    def document(self) -> dict[str, Any]:
        """The part "masking" of metrics.json."""
        found = asdict(self)
        return found | {"signs": [dict(sign) for sign in found["signs"]], "looked_for": list(self.looked_for)}


def from_intervals(first: Row, second: Row) -> tuple[float, float] | None:
    """A `Gap` from the two intervals alone, as if of different images (square and add, Newcombe 1998).

    Wider than one over the same images, where predictions are at hand.
    """
    ends = [row.get("accuracy_ci") for row in (first, second)]
    if any(not isinstance(pair, list | tuple) or len(pair) != 2 or None in pair for pair in ends):
        return None
    (low, high), (other_low, other_high) = ends  # type: ignore[misc]
    one, other = float(first["accuracy"]), float(second["accuracy"])
    between = one - other
    return between - math.hypot(one - low, other_high - other), between + math.hypot(high - one, other - other_low)


def verdict(document: Row, gap: Gap = from_intervals, *, constant: float | None = None) -> Verdict:
    """Whether the gradients of a run fail, from its document: "clean", "attacks", and "input_gradients" if measured.

    Failing: input gradients that vanish or are no numbers; an attack that left images as they were; an iterated attack
    weaker than a single step, or whose accuracy rises with epsilon, or that leaves accuracy at an epsilon of 0.3; a
    black box that wins. Each beyond RISE and beyond the interval of `gap`, where there is one. FGSM accuracy far above
    an iterated attack's says that FGSM overstates, and no more; FGSM accuracy that rises says nothing: one step
    overshoots, on any network. `constant`: accuracy of one and the same answer to everything; where the clean images
    are not shown to be answered better than that, attacks that agree prove nothing. Nor do they, without a measured
    gradient, where they changed almost no answer.
    """
    rows, clean = _rows(document), _clean(document)
    checks = {
        "input gradients": _gradients(document, rows),
        "one step against many": _one_step(rows, gap),
        "the fall with epsilon": _rising(rows, clean, gap),
        f"about zero at {LARGE:g}": _left(rows),
        "black box against white box": _black_box(rows, gap),
    }
    looked = tuple(name for name, found in checks.items() if found is not None)
    signs = tuple(sign for found in checks.values() for sign in found or ())
    failing = [sign.text for sign in signs if sign.kind in FAILING]
    overstates = [f"FGSM overstates: {sign.text}" for sign in signs if sign.kind == FGSM_OVERSTATES]
    if failing:
        return Verdict(True, signs, looked, "; ".join(failing + overstates))
    if why := _no_proof(looked, rows, clean, document, constant):
        return Verdict(None, signs, looked, "; ".join([why, *overstates]))
    missing = [name for name in checks if name not in looked]
    parts = [f"no sign of it in {', '.join(looked)}", *([f"not looked for: {', '.join(missing)}"] if missing else [])]
    return Verdict(False, signs, looked, "; ".join(parts + overstates))


def _no_proof(looked: tuple[str, ...], rows: list[Row], clean: Row, document: Row, constant: float | None) -> str:
    """Why silence is no proof here; empty where it is one."""
    if not looked:
        return "not looked for: it needs FGSM and PGD at one epsilon, or an iterated attack at several"
    if constant is not None and not _above_constant(clean, constant):
        said = f"better than by one constant answer ({constant:.1%})"
        return f"nothing is known: the clean images are not shown to be answered {said}"
    taken = [float(row["accuracy"]) for row in rows if float(row["epsilon"])]
    if not document.get("input_gradients") and taken and min(taken) > HELD * float(clean.get("accuracy") or 0):
        return (
            f"not looked for: the attacks changed almost no answer ({min(taken):.1%} are still right), so that they "
            "agree proves nothing, and input gradients were not measured"
        )
    return ""


def _above_constant(clean: Row, constant: float) -> bool:
    ends = clean.get("accuracy_ci")
    low = ends[0] if isinstance(ends, list | tuple) and ends and ends[0] is not None else clean.get("accuracy")
    return low is None or float(low) > constant


def label(row: Row) -> str:
    """PGD-20: an attack with its steps."""
    return str(row["attack"]).upper() + (f"-{row['steps']:g}" if row.get("steps") else "")


def sentence(verdict: Row) -> str:
    """The verdict of metrics.json as the terminal and the report say it."""
    heading = {True: "Masked gradients", False: "No masked gradients found", None: "Masked gradients"}
    return f"{heading[verdict.get('masked')]}: {verdict.get('because')}"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _rows(document: Row) -> list[Row]:
    listed = document.get("attacks")
    rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    whole = [row for row in rows if row.get("attack") and _number(row.get("epsilon")) and _number(row.get("accuracy"))]
    return [row for row in whole if row["attack"] != "pgd-l2"]


def _clean(document: Row) -> Row:
    clean = document.get("clean")
    return (clean if isinstance(clean, dict) else {}) | {"attack": "clean", "epsilon": 0.0}


def _iterated(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["attack"] not in (*BLACK_BOX, *ONE_STEP)]


def _single_attacks(rows: list[Row]) -> list[Row]:
    """Iterated attacks by gradient alone; worst-case, which holds a black box and starts from FGSM, where no other is.

    It could never be the weaker one, and would hide that PGD is.
    """
    many = _iterated(rows)
    return [row for row in many if row["attack"] != "worst-case"] or many


def _epsilons(rows: list[Row]) -> Iterator[tuple[float, list[Row]]]:
    for epsilon in sorted({float(row["epsilon"]) for row in rows} - {0.0}):
        yield epsilon, [row for row in rows if abs(float(row["epsilon"]) - epsilon) < 1e-9]


def _worst(rows: list[Row]) -> Row:
    return min(rows, key=lambda row: float(row["accuracy"]))


def _beyond(first: Row, second: Row, by: float, gap: Gap) -> bool:
    """Whether accuracy under the first is above that under the second, by more than `by` and than chance gives."""
    if not float(first["accuracy"]) - float(second["accuracy"]) > by:
        return False
    ends = gap(first, second)
    return ends is None or ends[0] > 0


def _gradients(document: Row, rows: list[Row]) -> list[Sign] | None:
    """Input gradients as measured, and attacks that left images as they were; None where neither was measured."""
    measured = document.get("input_gradients")
    moved = [row for row in rows if row["attack"] not in BLACK_BOX and _number(row.get("unmoved")) and row["epsilon"]]
    found = []
    if isinstance(measured, dict) and _number(measured.get("vanishing")) and measured["vanishing"] > VANISHED:
        share = f"{measured['vanishing']:.1%} of {measured.get('n')} images answered right"
        text = f"the input gradient of the cross-entropy is zero, vanishing or no number on {share}"
        found.append(Sign("vanishing_gradients", f"{text}: an attack that follows it stands still"))
    if moved and (row := max(moved, key=lambda row: float(row["unmoved"])))["unmoved"] > VANISHED:
        text = f"{label(row)} left {row['unmoved']:.1%} of the images as they were at epsilon {row['epsilon']:g}"
        found.append(Sign("unmoved_attack", f"{text}: it found no way to go"))
    return found if measured or moved else None


def _one_step(rows: list[Row], gap: Gap) -> list[Sign] | None:
    """The epsilon where one step and many differ the most, each way; None where both were never measured."""
    flatters: list[tuple[float, str]] = []
    weak: list[tuple[float, str]] = []
    compared = False
    for epsilon, here in _epsilons(rows):
        single, many = [row for row in here if row["attack"] == "fgsm"], _iterated(here)
        if not single or not many:
            continue
        compared, one = True, _worst(single)
        for strong, found, by in ((_worst(many), flatters, OVERSTATES), (_worst(_single_attacks(here)), weak, RISE)):
            pair = (one, strong) if found is flatters else (strong, one)
            if _beyond(*pair, by, gap):
                under = f"{one['accuracy']:.1%} under {label(one)} but {strong['accuracy']:.1%} under {label(strong)}"
                size = abs(float(one["accuracy"]) - float(strong["accuracy"]))
                found.append((size, f"at epsilon {epsilon:g} accuracy is {under}"))
    if not compared:
        return None
    signs = [Sign(FGSM_OVERSTATES, max(flatters)[1])] if flatters else []
    if weak:
        signs.append(Sign("weak_attack", f"{max(weak)[1]}: a stronger attack cannot help a model, so it is failing"))
    return signs


def _rising(rows: list[Row], clean: Row, gap: Gap) -> list[Sign] | None:
    """The largest rise of accuracy under an iterated attack, from the lowest before; None without one."""
    sweeps: dict[str, list[Row]] = {}
    for row in _iterated(rows):
        sweeps.setdefault(label(row), []).append(row)
    rises: list[tuple[float, str]] = []
    for name, sweep in sweeps.items():
        lowest = clean if _number(clean.get("accuracy")) else None
        for row in sorted(sweep, key=lambda row: float(row["epsilon"])):
            if lowest is not None and _beyond(row, lowest, RISE, gap):
                ends = [f"{end['accuracy']:.1%} at epsilon {end['epsilon']:g}" for end in (lowest, row)]
                text = f"accuracy under {name} rises from {ends[0]} to {ends[1]}"
                rises.append((float(row["accuracy"]) - float(lowest["accuracy"]), text))
            if lowest is None or float(row["accuracy"]) < float(lowest["accuracy"]):
                lowest = row
    if not sweeps:
        return None
    text = f"{max(rises)[1]}: a larger radius cannot help, so the attack is failing" if rises else ""
    return [Sign("rising_with_epsilon", text)] if rises else []


def _left(rows: list[Row]) -> list[Sign] | None:
    """Accuracy that the strongest iterated attack leaves at 0.3 or more; None where none went so far."""
    large = [row for row in _iterated(rows) if float(row["epsilon"]) >= LARGE - 1e-9]
    if not large:
        return None
    row = _worst(large)
    ends = row.get("accuracy_ci")
    known = isinstance(ends, list | tuple) and len(ends) == 2 and ends[0] is not None
    if float(row["accuracy"]) <= ABOUT_ZERO or (known and float(ends[0]) <= ABOUT_ZERO):  # type: ignore[index]
        return []
    text = f"accuracy is still {row['accuracy']:.1%} under {label(row)} at epsilon {row['epsilon']:g}"
    return [Sign("left_at_large_epsilon", f"{text}, where none can be")]


def _black_box(rows: list[Row], gap: Gap) -> list[Sign] | None:
    """The epsilon where a black box wins the most against gradients; None where both were never measured at one."""
    wins: list[tuple[float, str]] = []
    compared = False
    for epsilon, here in _epsilons(rows):
        black = [row for row in here if row["attack"] in BLACK_BOX]
        white = [row for row in _iterated(here) if row["attack"] != "worst-case"]
        if black and white:
            compared, blind, seeing = True, _worst(black), _worst(white)
            if _beyond(seeing, blind, RISE, gap):
                figures = (
                    f"{blind['accuracy']:.1%} under {label(blind)}, {seeing['accuracy']:.1%} under {label(seeing)}"
                )
                text = f"an attack without gradients is the stronger at epsilon {epsilon:g}: {figures}"
                wins.append((float(seeing["accuracy"]) - float(blind["accuracy"]), text))
        for row in here:
            if (share := _alone(row)) is not None:
                compared = True
                if share > RISE:
                    text = f"within {label(row)} at epsilon {epsilon:g} Square alone broke {share:.1%} of the images"
                    wins.append((share, f"{text}, after every attack by gradient had failed on them"))
    if not compared:
        return None
    return [Sign("black_box_wins", max(wins)[1])] if wins else []


def _alone(row: Row) -> float | None:
    """The share of the images that the black box within worst-case broke, which comes last in it; None if not known."""
    counts = row.get("broken_by")
    if not isinstance(counts, dict) or not row.get("n"):
        return None
    return float(counts.get("square", 0)) / float(row["n"])
