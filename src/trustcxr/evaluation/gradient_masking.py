"""Do the gradients fail? One judge, from what metrics.json holds: then robust accuracy is too good to be true.

Athalye et al. 2018 (Obfuscated Gradients Give a False Sense of Security) and Carlini et al. 2019 (On Evaluating
Adversarial Robustness) name the signs that are looked for here. It looks at the clean images and at every attack at
every epsilon and number of steps; an L2 radius is another measure, and is left out.
"""

import math
from collections.abc import Callable, Iterator

from trustcxr.registry import BLACK_BOX, ONE_STEP, PLAIN_STEP, WORST_CASE, is_linf
from trustcxr.statistics import wilson
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import AttackResult, RunDocument, Sign, Verdict
from trustcxr.storage.schemas.test_figures import FGSM_OVERSTATES

LARGE = 0.3  # an epsilon at which any image can be made into any other, as far as a network is concerned
ABOUT_ZERO = 0.05  # accuracy that a sound attack must get below there
OVERSTATES = 0.10  # FGSM accuracy above that of an iterated attack by more than this
RISE = 0.02  # accuracy that a stronger attack adds: fewer points say nothing, whatever their interval
VANISHED = 0.05  # share of the images without a gradient from which on the gradients fail: of those measured, surely
HELD = 0.8  # share of clean accuracy: attacks that leave more than this changed almost no answer

Gap = Callable[[AttackResult, AttackResult], tuple[float, float] | None]
"""The 95 % interval of accuracy under the first attack minus that under the second; None where it is not known."""

FAILING = (
    "vanishing_gradients",
    "unmoved_attack",
    "weak_attack",
    "rising_with_epsilon",
    "left_at_large_epsilon",
    "black_box_wins",
)


def from_intervals(first: AttackResult, second: AttackResult) -> tuple[float, float] | None:
    """A `Gap` from the two intervals alone, as if of different images (square and add, Newcombe 1998).

    Wider than one over the same images, where predictions are at hand.
    """
    ends, other_ends = first.accuracy.interval, second.accuracy.interval
    if ends is None or other_ends is None:
        return None
    one, other = _accuracy(first), _accuracy(second)
    between = one - other
    lower = math.hypot(one - ends[0], other_ends[1] - other)
    return between - lower, between + math.hypot(ends[1] - one, other - other_ends[0])


def verdict(document: RunDocument, gap: Gap = from_intervals, *, constant: float | None = None) -> Verdict:
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
    looked = [name for name, found in checks.items() if found is not None]
    signs = [sign for found in checks.values() for sign in found or ()]
    failing = [sign.text for sign in signs if sign.kind in FAILING]
    overstates = [f"FGSM overstates: {sign.text}" for sign in signs if sign.kind == FGSM_OVERSTATES]
    if failing:
        return _verdict(True, signs, looked, failing + overstates)
    if why := _no_proof(looked, rows, clean, document, constant):
        return _verdict(None, signs, looked, [why, *overstates])
    missing = [name for name in checks if name not in looked]
    parts = [f"no sign of it in {', '.join(looked)}", *([f"not looked for: {', '.join(missing)}"] if missing else [])]
    return _verdict(False, signs, looked, parts + overstates)


def _verdict(masked: bool | None, signs: list[Sign], looked: list[str], reasons: list[str]) -> Verdict:
    return Verdict(masked=masked, reasons="; ".join(reasons), looked_for=looked, signs=signs)


def _no_proof(
    looked: list[str], rows: list[AttackResult], clean: AttackResult, document: RunDocument, constant: float | None
) -> str:
    """Why silence is no proof here; empty where it is one."""
    if not looked:
        return "not looked for: it needs FGSM and PGD at one epsilon, or an iterated attack at several"
    if constant is not None and not _above_constant(clean, constant):
        said = f"better than by one constant answer ({constant:.1%})"
        return f"nothing is known: the clean images are not shown to be answered {said}"
    taken = [_accuracy(row) for row in rows if row.epsilon]
    if document.input_gradients is None and taken and min(taken) > HELD * _accuracy(clean):
        return (
            f"not looked for: the attacks changed almost no answer ({min(taken):.1%} are still right), so that they "
            "agree proves nothing, and input gradients were not measured"
        )
    return ""


def _above_constant(clean: AttackResult, constant: float) -> bool:
    low = clean.accuracy.ci[0] if clean.accuracy.ci else None
    low = clean.accuracy.value if low is None else low
    return low is None or low > constant


def label(row: AttackResult) -> str:
    """PGD-20: an attack with its steps."""
    return row.attack.upper() + (f"-{row.steps:g}" if row.steps else "")


def _rows(document: RunDocument) -> list[AttackResult]:
    whole = [r for r in document.attacks if r.attack and r.epsilon is not None and r.accuracy.value is not None]
    # A model at random is judged under worst-case by the worst of its draws, else by their mean: these do not compare.
    return [row for row in whole if is_linf(row.attack) and not (row.attack == WORST_CASE and row.draws)]


def _clean(document: RunDocument) -> AttackResult:
    return AttackResult(attack=CLEAN, epsilon=0.0, accuracy=document.clean.accuracy, n=document.clean.n)


def _accuracy(row: AttackResult) -> float:
    return row.accuracy.value or 0.0  # of `_rows` all have one


def _radius(row: AttackResult) -> float:
    return row.epsilon or 0.0


def _unmoved(row: AttackResult) -> float:
    return row.unmoved or 0.0


def _iterated(rows: list[AttackResult]) -> list[AttackResult]:
    return [row for row in rows if row.attack not in (*BLACK_BOX, *ONE_STEP)]


def _single_attacks(rows: list[AttackResult]) -> list[AttackResult]:
    """Iterated attacks by gradient alone; worst-case, which holds a black box and starts from FGSM, where no other is.

    It could never be the weaker one, and would hide that PGD is.
    """
    many = _iterated(rows)
    return [row for row in many if row.attack != WORST_CASE] or many


def _epsilons(rows: list[AttackResult]) -> Iterator[tuple[float, list[AttackResult]]]:
    for epsilon in sorted({_radius(row) for row in rows} - {0.0}):
        yield epsilon, [row for row in rows if row.at(epsilon)]


def _worst(rows: list[AttackResult]) -> AttackResult:
    return min(rows, key=_accuracy)


def _beyond(first: AttackResult, second: AttackResult, by: float, gap: Gap) -> bool:
    """Whether accuracy under the first is above that under the second, by more than `by` and than chance gives."""
    if not _accuracy(first) - _accuracy(second) > by:
        return False
    ends = gap(first, second)
    return ends is None or ends[0] > 0


def _gradients(document: RunDocument, rows: list[AttackResult]) -> list[Sign] | None:
    """Input gradients as measured, and attacks that left images as they were; None where neither was measured."""
    measured = document.input_gradients
    moved = [row for row in rows if row.attack not in BLACK_BOX and row.unmoved is not None and row.epsilon]
    found = []
    if measured is not None and _surely_more(measured.vanishing or 0.0, measured.n or 0):
        share = f"{measured.vanishing:.1%} of {measured.n} images answered right"
        text = f"the input gradient of the cross-entropy is zero, vanishing or no number on {share}"
        found.append(Sign(kind="vanishing_gradients", text=f"{text}: an attack that follows it stands still"))
    if moved and _unmoved(row := max(moved, key=_unmoved)) > VANISHED:
        text = f"{label(row)} left {_unmoved(row):.1%} of the images as they were at epsilon {_radius(row):g}"
        found.append(Sign(kind="unmoved_attack", text=f"{text}: it found no way to go"))
    return found if measured is not None or moved else None


def _surely_more(share: float, count: float) -> bool:
    """Whether more than VANISHED of all images have no gradient, by the score interval of those measured.

    A few of a hundred say nothing: the answers of an honest network may be so sure that float32 has no room for more.
    """
    return share > VANISHED and (not count or wilson(share, count)[0] > VANISHED)


def _one_step(rows: list[AttackResult], gap: Gap) -> list[Sign] | None:
    """The epsilon where one step and many differ the most, each way; None where both were never measured."""
    flatters: list[tuple[float, str]] = []
    weak: list[tuple[float, str]] = []
    compared = False
    for epsilon, here in _epsilons(rows):
        single, many = [row for row in here if row.attack == PLAIN_STEP], _iterated(here)
        if not single or not many:
            continue
        compared, one = True, _worst(single)
        for strong, found, by in ((_worst(many), flatters, OVERSTATES), (_worst(_single_attacks(here)), weak, RISE)):
            pair = (one, strong) if found is flatters else (strong, one)
            if _beyond(*pair, by, gap):
                under = f"{_accuracy(one):.1%} under {label(one)} but {_accuracy(strong):.1%} under {label(strong)}"
                size = abs(_accuracy(one) - _accuracy(strong))
                found.append((size, f"at epsilon {epsilon:g} accuracy is {under}"))
    if not compared:
        return None
    signs = [Sign(kind=FGSM_OVERSTATES, text=max(flatters)[1])] if flatters else []
    if weak:
        text = f"{max(weak)[1]}: a stronger attack cannot help a model, so it is failing"
        signs.append(Sign(kind="weak_attack", text=text))
    return signs


def _rising(rows: list[AttackResult], clean: AttackResult, gap: Gap) -> list[Sign] | None:
    """The largest rise of accuracy under an iterated attack, from the lowest before; None without one."""
    sweeps: dict[str, list[AttackResult]] = {}
    for row in _iterated(rows):
        sweeps.setdefault(label(row), []).append(row)
    rises: list[tuple[float, str]] = []
    for name, sweep in sweeps.items():
        lowest = None if clean.accuracy.value is None else clean
        for row in sorted(sweep, key=_radius):
            if lowest is not None and _beyond(row, lowest, RISE, gap):
                ends = [f"{_accuracy(end):.1%} at epsilon {_radius(end):g}" for end in (lowest, row)]
                text = f"accuracy under {name} rises from {ends[0]} to {ends[1]}"
                rises.append((_accuracy(row) - _accuracy(lowest), text))
            if lowest is None or _accuracy(row) < _accuracy(lowest):
                lowest = row
    if not sweeps:
        return None
    text = f"{max(rises)[1]}: a larger radius cannot help, so the attack is failing" if rises else ""
    return [Sign(kind="rising_with_epsilon", text=text)] if rises else []


def _left(rows: list[AttackResult]) -> list[Sign] | None:
    """Accuracy that the strongest iterated attack leaves at 0.3 or more; None where none went so far."""
    large = [row for row in _iterated(rows) if _radius(row) >= LARGE - 1e-9]
    if not large:
        return None
    row = _worst(large)
    low = row.accuracy.ci[0] if row.accuracy.ci else None
    if _accuracy(row) <= ABOUT_ZERO or (low is not None and low <= ABOUT_ZERO):
        return []
    text = f"accuracy is still {_accuracy(row):.1%} under {label(row)} at epsilon {_radius(row):g}"
    return [Sign(kind="left_at_large_epsilon", text=f"{text}, where none can be")]


def _black_box(rows: list[AttackResult], gap: Gap) -> list[Sign] | None:
    """The epsilon where a black box wins the most against gradients; None where both were never measured at one."""
    wins: list[tuple[float, str]] = []
    compared = False
    for epsilon, here in _epsilons(rows):
        black = [row for row in here if row.attack in BLACK_BOX]
        white = [row for row in _iterated(here) if row.attack != WORST_CASE]
        if black and white:
            compared, blind, seeing = True, _worst(black), _worst(white)
            if _beyond(seeing, blind, RISE, gap):
                figures = f"{_accuracy(blind):.1%} under {label(blind)}, {_accuracy(seeing):.1%} under {label(seeing)}"
                text = f"an attack without gradients is the stronger at epsilon {epsilon:g}: {figures}"
                wins.append((_accuracy(seeing) - _accuracy(blind), text))
        for row in here:
            if (share := _alone(row)) is not None:
                compared = True
                if wilson(share, float(row.n or 1))[0] > RISE:
                    text = f"within {label(row)} at epsilon {epsilon:g} Square alone broke {share:.1%} of the images"
                    wins.append((share, f"{text}, after every attack by gradient had failed on them"))
    if not compared:
        return None
    return [Sign(kind="black_box_wins", text=max(wins)[1])] if wins else []


def _alone(row: AttackResult) -> float | None:
    """The share of the images that the black box within worst-case broke, which comes last in it; None if not known."""
    if "broken_by" not in row.model_fields_set or not row.n:
        return None
    return row.broken_by.get("square", 0) / row.n
