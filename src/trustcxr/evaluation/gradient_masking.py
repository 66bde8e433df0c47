"""Detect masked gradients, which make robust accuracy too good to be true: from a run's figures, and from gradients.

The signs are those of Athalye et al. 2018 (Obfuscated Gradients Give a False Sense of Security) and Carlini et al. 2019
(On Evaluating Adversarial Robustness). L2 attacks are left out: their radius is another measure.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from trustcxr.models.preserve_state import preserve_state
from trustcxr.registry import BLACK_BOX, ONE_STEP, PLAIN_STEP, WORST_CASE, is_linf
from trustcxr.statistics import Bootstraps, difference_interval, interval, wilson
from trustcxr.storage.prediction_table import CLEAN, right
from trustcxr.storage.schemas import AttackResult, MaskingVerdict, RunDocument, Sign
from trustcxr.storage.schemas.run_document import FGSM_OVERSTATES

LARGE = 0.3  # an epsilon at which any image can become any other, to a network
ABOUT_ZERO = 0.05  # accuracy that a sound attack must leave at most at LARGE
OVERSTATES = 0.10  # FGSM accuracy exceeds that of an iterated attack by more than this
RISE = 0.02  # smallest gain of accuracy under a stronger attack that counts
VANISHED = 0.05  # largest share of images without a gradient
HELD = 0.8  # share of clean accuracy: attacks that leave more changed almost no answer

Gap = Callable[[AttackResult, AttackResult], tuple[float, float] | None]
"""Returns the 95 % interval of accuracy under the first attack minus that under the second; None if unknown."""

FAILING = (
    "vanishing_gradients",
    "unmoved_attack",
    "weak_attack",
    "rising_with_epsilon",
    "left_at_large_epsilon",
    "black_box_wins",
)


def from_intervals(first: AttackResult, second: AttackResult) -> tuple[float, float] | None:
    """Return a `Gap` from the two intervals alone, as for different images: wider than `paired_gap`."""
    ends, other_ends = first.accuracy.interval, second.accuracy.interval
    if ends is None or other_ends is None:
        return None
    return difference_interval(_accuracy(first), ends, _accuracy(second), other_ends)


def paired_gap(predictions: pd.DataFrame, *, resamples: int = 2000) -> Gap:
    """Return a `Gap` over the same images, by bootstrap over groups; `from_intervals` if the images differ."""
    samples = Bootstraps(resamples=resamples)

    def gap(first: AttackResult, second: AttackResult) -> tuple[float, float] | None:
        one, other = (_predictions_of(predictions, row).sort_values("sample_id") for row in (first, second))
        if not len(one) or one["sample_id"].tolist() != other["sample_id"].tolist():
            return from_intervals(first, second)
        difference = right(one).astype(float) - right(other).astype(float)
        low, high = interval(samples.over(one["group"]).means(difference))
        return low, high

    return gap


def _predictions_of(predictions: pd.DataFrame, row: AttackResult) -> pd.DataFrame:
    rows = predictions[predictions["attack"] == row.attack]
    rows = rows[(rows["epsilon"] - _radius(row)).abs() < 1e-9]
    return rows[rows["steps"] == row.steps] if row.steps else rows


def measure_input_gradients(model: nn.Module, images: Tensor, labels: Tensor, chosen: Tensor) -> NDArray[np.float64]:
    """Return the largest absolute gradient of the cross-entropy over an image's pixels, in float32, (B,).

    `images`: (B, 1, H, W) in [0, 1]; `labels`: (B,) int; `chosen`: (B,) bool, the others are NaN. The value is 0 if the
    logits do not depend on the image, infinite if the gradient is not a number.
    """
    sizes = np.full(len(images), np.nan)
    if not bool(chosen.any()):
        return sizes
    rows = chosen.to(images.device)
    with preserve_state(model), torch.inference_mode(False), torch.enable_grad():
        leaf = images[rows].detach().clone().requires_grad_(True)
        losses = F.cross_entropy(model(leaf).float(), labels.to(images.device)[rows].long(), reduction="sum")
        gradient = torch.autograd.grad(losses, leaf, allow_unused=True)[0] if losses.requires_grad else None
    largest = torch.zeros(len(leaf)) if gradient is None else gradient.flatten(1).abs().amax(1).double().cpu()
    sizes[chosen.numpy()] = largest.nan_to_num(nan=np.inf, posinf=np.inf).numpy()
    return sizes


def verdict(document: RunDocument, gap: Gap = from_intervals) -> MaskingVerdict:
    """Return whether the gradients of a run fail, from its document.

    Failing: input gradients that vanish or are not numbers; an attack that leaves images unchanged; an iterated attack
    that is weaker than a single step, gains accuracy with epsilon, or leaves accuracy at epsilon 0.3; a black box that
    wins. Each must exceed RISE and the interval of `gap`, if there is one.

    FGSM accuracy far above an iterated attack's only shows that FGSM overstates. FGSM accuracy that rises shows
    nothing: one step overshoots on any network. Attacks that agree prove nothing if clean accuracy is not above that of
    one constant answer, or if they changed almost no answer and no gradient was measured.
    """
    rows = _rows(document)
    clean = AttackResult(attack=CLEAN, epsilon=0.0, accuracy=document.clean.accuracy, n=document.clean.n)
    checks = {
        "input gradients": _gradients(document, rows),
        "one step against many": _one_step(rows, gap),
        "the fall with epsilon": _rising(rows, clean, gap),
        f"about zero at {LARGE:g}": _left(rows),
        "black box against white box": _black_box(rows, gap),
    }
    looked = [name for name, signs_found in checks.items() if signs_found is not None]
    signs = [sign for signs_found in checks.values() for sign in signs_found or ()]
    masked: bool | None = True
    reasons = [sign.text for sign in signs if sign.kind in FAILING]
    if not reasons and (why := _no_proof(looked, rows, clean, document)):
        masked, reasons = None, [why]
    elif not reasons:
        masked, reasons = False, [f"no sign of it in {', '.join(looked)}"]
        if missing := [name for name in checks if name not in looked]:
            reasons.append(f"not looked for: {', '.join(missing)}")
    reasons += [f"FGSM overstates: {sign.text}" for sign in signs if sign.kind == FGSM_OVERSTATES]
    return MaskingVerdict(masked=masked, reasons=reasons, looked_for=looked, signs=signs)


def _no_proof(looked: list[str], rows: list[AttackResult], clean: AttackResult, document: RunDocument) -> str:
    """Return why the absence of signs proves nothing; empty if it does."""
    if not looked:
        return "not looked for: it needs FGSM and PGD at one epsilon, or an iterated attack at several"
    what, constant, figure = "accuracy", document.clean.constant_answer, clean.accuracy
    if document.clean.findings:  # for a rare finding, "absent" is right more often than a useful threshold
        what, constant, figure = "AUROC", 0.5, document.clean.auroc_macro
    low = figure.value if figure.interval is None else figure.interval[0]
    if constant is not None and low is not None and low <= constant:
        return f"unknown: {what} on clean images is not shown to be better than one constant answer ({constant:.1%})"
    taken = [_accuracy(row) for row in rows if row.epsilon]
    if document.input_gradients is None and taken and min(taken) > HELD * _accuracy(clean):
        return (
            f"not looked for: the attacks changed almost no answer ({min(taken):.1%} are still right), so their "
            "agreement proves nothing, and input gradients were not measured"
        )
    return ""


def _rows(document: RunDocument) -> list[AttackResult]:
    whole = [r for r in document.attacks if r.attack and r.epsilon is not None and r.accuracy.value is not None]
    # A random model has the worst of its draws under worst-case, else their mean: these do not compare.
    return [row for row in whole if is_linf(row.attack) and not (row.attack == WORST_CASE and row.draws)]


def _accuracy(row: AttackResult) -> float:
    return row.accuracy.value or 0.0  # of `_rows` all have one


def _under(row: AttackResult) -> str:
    return f"{_accuracy(row):.1%} under {row.effort.name}"


def _radius(row: AttackResult) -> float:
    return row.epsilon or 0.0


def _iterated(rows: list[AttackResult]) -> list[AttackResult]:
    return [row for row in rows if row.attack not in (*BLACK_BOX, *ONE_STEP)]


def _epsilons(rows: list[AttackResult]) -> Iterator[tuple[float, list[AttackResult]]]:
    for epsilon in sorted({_radius(row) for row in rows} - {0.0}):
        yield epsilon, [row for row in rows if row.is_at(epsilon)]


def _worst(rows: list[AttackResult]) -> AttackResult:
    return min(rows, key=_accuracy)


def _beyond(first: AttackResult, second: AttackResult, by: float, gap: Gap) -> bool:
    """Return whether accuracy under the first exceeds that under the second by more than `by` and than chance."""
    if not _accuracy(first) - _accuracy(second) > by:
        return False
    ends = gap(first, second)
    return ends is None or ends[0] > 0


def _gradients(document: RunDocument, rows: list[AttackResult]) -> list[Sign] | None:
    """Check measured input gradients, and attacks that left images unchanged; None if neither was measured."""
    measured = document.input_gradients
    moved = [row for row in rows if row.attack not in BLACK_BOX and row.unmoved is not None and row.epsilon]
    signs = []
    part, count = (measured.vanishing or 0.0, measured.n or 0) if measured is not None else (0.0, 0)
    # Surely more: a few of a hundred are only too confident.
    if part > VANISHED and (not count or wilson(part, count)[0] > VANISHED):
        share = f"{part:.1%} of {count} correctly classified images"
        text = f"the gradient of the loss at the image is zero, vanishing or not a number for {share}"
        signs.append(Sign(kind="vanishing_gradients", text=f"{text}: an attack that follows it has no direction"))
    row = max(moved, key=lambda row: row.unmoved or 0.0, default=None)
    if row is not None and row.unmoved and row.unmoved > VANISHED:
        text = f"{row.effort.name} left {row.unmoved:.1%} of the images unchanged at epsilon {_radius(row):g}"
        signs.append(Sign(kind="unmoved_attack", text=f"{text}: it found no direction"))
    return signs if measured is not None or moved else None


def _largest(kind: str, sizes: list[tuple[float, str]], suffix: str = "") -> list[Sign]:
    """Return the sign of the largest of these sizes, by its text; none without any."""
    return [Sign(kind=kind, text=max(sizes)[1] + suffix)] if sizes else []


def _one_step(rows: list[AttackResult], gap: Gap) -> list[Sign] | None:
    """Find the epsilon at which one step and many differ most, each way; None if both were never measured."""
    flatters: list[tuple[float, str]] = []
    weak: list[tuple[float, str]] = []
    compared = False
    for epsilon, here in _epsilons(rows):
        single, many = [row for row in here if row.attack == PLAIN_STEP], _iterated(here)
        if not single or not many:
            continue
        compared, one = True, _worst(single)
        # Worst-case only without any other: it includes FGSM's and Square's images.
        pure = [row for row in many if row.attack != WORST_CASE] or many
        for strong, sizes, by in ((_worst(many), flatters, OVERSTATES), (_worst(pure), weak, RISE)):
            if _beyond(*((one, strong) if sizes is flatters else (strong, one)), by, gap):
                text = f"at epsilon {epsilon:g} accuracy is {_under(one)} but {_under(strong)}"
                sizes.append((abs(_accuracy(one) - _accuracy(strong)), text))
    signs = _largest(FGSM_OVERSTATES, flatters)
    signs += _largest("weak_attack", weak, ": a stronger attack cannot help a model, so it is failing")
    return signs if compared else None


def _rising(rows: list[AttackResult], clean: AttackResult, gap: Gap) -> list[Sign] | None:
    """Find the largest rise of accuracy under an iterated attack above that at smaller epsilons; None without one."""
    sweeps: dict[str, list[AttackResult]] = {}
    for row in _iterated(rows):
        sweeps.setdefault(row.effort.name, []).append(row)
    rises: list[tuple[float, str]] = []
    for name, sweep in sweeps.items():
        lowest = None if clean.accuracy.value is None else clean
        for row in sorted(sweep, key=_radius):
            if lowest is clean and row.clean.value is not None:  # unperturbed, the same part of the images
                lowest = clean.model_copy(update={"accuracy": row.clean, "n": row.n})
            if lowest is not None and _beyond(row, lowest, RISE, gap):
                ends = [f"{_accuracy(end):.1%} at epsilon {_radius(end):g}" for end in (lowest, row)]
                text = f"accuracy under {name} rises from {ends[0]} to {ends[1]}"
                rises.append((_accuracy(row) - _accuracy(lowest), text))
            if lowest is None or _accuracy(row) < _accuracy(lowest):
                lowest = row
    suffix = ": a larger radius cannot help, so the attack is failing"
    return _largest("rising_with_epsilon", rises, suffix) if sweeps else None


def _left(rows: list[AttackResult]) -> list[Sign] | None:
    """Check the accuracy that the strongest iterated attack leaves at 0.3 or more; None if none went so far."""
    large = [row for row in _iterated(rows) if _radius(row) >= LARGE - 1e-9]
    if not large:
        return None
    row = _worst(large)
    low = row.accuracy.ci[0] if row.accuracy.ci else None
    if min(_accuracy(row), 1.0 if low is None else low) <= ABOUT_ZERO:
        return []
    text = f"accuracy is still {_under(row)} at epsilon {_radius(row):g}, but must be about 0"
    return [Sign(kind="left_at_large_epsilon", text=text)]


def _black_box(rows: list[AttackResult], gap: Gap) -> list[Sign] | None:
    """Find the epsilon at which a black box wins most over gradients; None if both were never measured at one."""
    wins: list[tuple[float, str]] = []
    compared = False
    for epsilon, here in _epsilons(rows):
        black = [row for row in here if row.attack in BLACK_BOX]
        white = [row for row in _iterated(here) if row.attack != WORST_CASE]
        if black and white:
            compared, blind, seeing = True, _worst(black), _worst(white)
            if _beyond(seeing, blind, RISE, gap):
                text = f"an attack without gradients is the stronger at epsilon {epsilon:g}: {_under(blind)}"
                wins.append((_accuracy(seeing) - _accuracy(blind), f"{text}, {_under(seeing)}"))
        for row in here:
            if not row.n or "broken_by" not in row.model_fields_set:
                continue
            # Square is the last part of worst-case: what it broke, no other attack did.
            share = sum(count for name, count in row.broken_by.items() if name.split(",")[0] == "square") / row.n
            compared = True
            if wilson(share, row.n)[0] > RISE:
                text = f"within {row.effort.name} at epsilon {epsilon:g} Square alone broke {share:.1%} of"
                wins.append((share, f"{text} the images, after every attack by gradient had failed on them"))
    return _largest("black_box_wins", wins) if compared else None
