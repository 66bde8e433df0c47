"""Compare a model file's declaration with others: class orders, ranges, channel orders, inverted images.

Of a model whose answer is the highest class another is believed if it is surely right more often. Of a model with one
sigmoid a finding: findings go together, and one that another finding's output ranks well is no mistake. So another is
believed by a clear margin that resamples of patients leave standing, and names only if each of them gains.
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trustcxr import statistics
from trustcxr.audit.formats.model_file import IMAGENET, InputSpec
from trustcxr.audit.formats.wrapper import WrappedModel
from trustcxr.statistics import Bootstrap, Floats, interval

ENOUGH = 20  # images from which on scores alone tell a wrong order: the test needs ten answers that turn right
RANGES = ((0.0, 1.0), (0.0, 255.0), (-1.0, 1.0), (-1024.0, 1024.0))
_BETTER = 0.10  # accuracy that another declaration must have more
_SURE = 1e-3  # McNemar's exact p-value below which it is believed
_FAR_BETTER, _SURER = 0.15, 1e-5  # the same of one that is right on less than halfway from chance to all
_ALIKE = 0.01  # accuracy by which two declarations may differ and be as good as each other
_CHANCE = 0.05  # the same, of a binomial test against chance
# Of findings:
BETTER = 0.10  # AUROC, or mean of sensitivity and specificity, that another declaration must have more
HALFWAY = 0.75  # what it must have itself, of the same: halfway from chance to all
BLIND = 0.60  # mean of sensitivity and specificity below which a threshold tells next to nothing
EACH = 10  # images that have a finding, and images that have it not, for it to speak for another declaration
_LEVEL = 0.998  # of the interval that must lie above 0


@dataclass(frozen=True)
class Declared:
    """How right the declaration looks: its accuracy, chance, and the better declaration that was found, if any.

    remedy: what to change, in the words of the model file; None where nothing is better. weak: it does better, but is
    right on less than halfway from chance to all. tried: the other declarations.
    """

    accuracy: float
    chance: float
    at_chance: bool
    better: float | None = None
    remedy: str | None = None
    weak: bool = False
    tried: str = "class order, range, channel order or inversion"

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the declaration."""
        return self.remedy is None and not self.at_chance


def check_declaration(
    model: nn.Module, classes: tuple[str, ...], images: Tensor, labels: Tensor, *, draws: int = 1
) -> Declared:
    """Compare the declaration with others on images (N, 1, H, W) in [0, 1] of known class, (N,).

    Another is believed only where it is right on ten points more, surely so (McNemar's exact test). A model that is
    merely bad on these images is not to be accused: where the other is right on less than halfway from chance to all,
    it
    must be surely above chance and do better by more and more surely, an order for each output that moves. The model's
    own order is compared with every other by matching answers to labels. `draws`: of a model that answers at random,
    how many passes an answer is the mean of.
    """
    truth = labels.cpu().numpy()
    own = _answers(model, images, draws)
    return Declared(*_judged(own, truth, len(classes), _others(model, classes, images, own, truth, draws)))


def check_order(
    classes: tuple[str, ...], answers: np.ndarray, truth: np.ndarray, *, table: str | None = None
) -> Declared:
    """The same from the answers (N,) to images of known class (N,) alone: only another order can be tried.

    `table`: of given scores the file that they stand in, where the remedy is to be written.
    """
    order = _best_order(answers, truth, len(classes))
    other = [_Other(format_names(classes, order, table), order[answers], order)] if _moves(order) else []
    return Declared(*_judged(answers, truth, len(classes), other), tried="class order")


def format_names(classes: Sequence[str], order: Iterable[int], table: str | None = None) -> str:
    """What to write where output k is of class order[k]: of a network in its model file, of scores in their table.

    The columns of a table are found by their names, so that another order in the model file would change nothing.
    """
    pairs = [(name, classes[k]) for name, k in zip(classes, order, strict=True)]
    if table is None:
        return f"output.classes: [{', '.join(right for _, right in pairs)}]"
    changed = ", ".join(f"{right} in place of {name}" for name, right in pairs if name != right)
    return f"as names of columns in {table}: {changed}"


def _moves(order: Iterable[int]) -> bool:
    return any(place != k for place, k in enumerate(order))


class _Other(NamedTuple):
    """Another declaration: what to change and the answers (N,) with it; where the order is another, that.

    before: the answers in the order that is declared, where they are others than the model's as it is declared.
    """

    remedy: str
    answers: np.ndarray
    order: np.ndarray | None = None
    before: np.ndarray | None = None


def _judged(
    own: np.ndarray, truth: np.ndarray, count: int, others: Iterable[_Other]
) -> tuple[float, float, bool, float | None, str | None, bool]:
    """Accuracy, chance, whether the one is no more than the other; accuracy and remedy of what is better, if any.

    Last, whether that is an order that is right on less than halfway from chance to all.
    """
    right = own == truth
    chance = max(float(np.bincount(truth, minlength=count).max()) / len(truth), 1 / count)
    at_chance = _p_value(int(right.sum()), int((~right).sum()), chance) > _CHANCE
    found = [
        (float((other.answers == truth).mean()), other.remedy, weak and other.order is not None)
        for other, weak in _believed(own, truth, chance, others)
    ]
    # Of several that do about as well the one that comes first, which people mix up the most.
    highest = max((accuracy for accuracy, *_ in found), default=0.0)
    best = next((one for one in found if one[0] >= highest - _ALIKE), (None, None, False))
    return float(right.mean()), chance, bool(at_chance), *best


def _believed(
    own: np.ndarray, truth: np.ndarray, chance: float, others: Iterable[_Other]
) -> Iterator[tuple[_Other, bool]]:
    """Those that surely do better, each with whether it is right on less than halfway from chance to all."""
    right = own == truth
    for other in others:
        turned = other.answers == truth
        gain, weak = float(turned.mean() - right.mean()), bool(turned.mean() <= chance + (1 - chance) / 2)
        p_value = _p_value(int((turned & ~right).sum()), int((right & ~turned).sum()))
        if not weak and gain >= _BETTER and p_value < _SURE:
            yield other, weak
        above = weak and _p_value(int(turned.sum()), int((~turned).sum()), chance) < _SURER
        if above and gain >= _FAR_BETTER and p_value < _SURER and _each_moves(other, own, truth):
            yield other, weak


def _p_value(more: int, less: int, likely: float = 0.5) -> float:
    """Of so many of one kind, or more, beside so many of the other, were the one so `likely`."""
    from scipy.stats import binomtest

    return float(binomtest(more, more + less, likely, alternative="greater").pvalue) if more + less else 1.0


def _each_moves(other: _Other, own: np.ndarray, truth: np.ndarray) -> bool:
    """Whether each output that gets another class has surely answered images of that class, and not of its own.

    One that answers hardly anything, or all images alike, says nothing of the order.
    """
    before = own if other.before is None else other.before
    order = np.arange(0) if other.order is None else other.order
    moved = [(k, int(c)) for k, c in enumerate(order) if k != c]
    counts = [[int(((before == k) & (truth == whose)).sum()) for whose in (c, k)] for k, c in moved]
    return all(_p_value(*pair) < _SURE for pair in counts)


def _others(
    model: nn.Module, classes: tuple[str, ...], images: Tensor, own: np.ndarray, truth: np.ndarray, draws: int
) -> Iterator[_Other]:
    """Each other declaration."""
    order = _best_order(own, truth, len(classes))
    if _moves(order):
        yield _Other(format_names(classes, order), order[own], order)
    inverted, *others = _other_inputs(model, images)
    yield _Other(inverted[0], _answers(inverted[1], inverted[2], draws))
    for remedy, other, given in others:
        answers = _answers(other, given, draws)
        yield _Other(remedy, answers)
        order = _best_order(answers, truth, len(classes))
        if _moves(order):
            yield _Other(f"{remedy} and {format_names(classes, order)}", order[answers], order, answers)


def _other_inputs(model: nn.Module, images: Tensor) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Yield each other declaration of the input, the model with it, and what to give it; inverted images first."""
    yield _inverted(model), model, 1 - images
    if isinstance(model, WrappedModel):
        for remedy, taken in inputs(model.input_spec):
            yield remedy, with_input(model, taken), images


def _inverted(model: nn.Module) -> str:
    """What to write of a model that wants white where it is given black: what it is given of each at present, changed.

    Where that differs from channel to channel no range says it.
    """
    if isinstance(model, WrappedModel):
        black, white = model.shift.unique().tolist(), (model.scale + model.shift).unique().tolist()
        if len(black) == len(white) == 1:
            without = " without mean and std" if model.input_spec.mean or model.input_spec.std else ""
            return f"input.range: [{white[0]:.4g}, {black[0]:.4g}]{without}, as MONOCHROME1 images are inverted"
    return "the images themselves inverted, as MONOCHROME1 images are"


def inputs(taken: InputSpec) -> Iterator[tuple[str, InputSpec]]:
    """The input declarations that people mix up with this one."""
    if taken.channels == 3 and (taken.mean, taken.std) != IMAGENET:
        other = taken.model_copy(update={"range": (0.0, 1.0), "mean": IMAGENET[0], "std": IMAGENET[1]})
        yield f"input.mean: {list(IMAGENET[0])}, input.std: {list(IMAGENET[1])}", other
    for low, high in RANGES:
        if taken.mean or taken.std or taken.range != (low, high):
            other = taken.model_copy(update={"range": (low, high), "mean": None, "std": None})
            yield (
                f"input.range: [{low:g}, {high:g}]" + (" without mean and std" if taken.mean or taken.std else ""),
                other,
            )
    if taken.mean and len(set(taken.mean)) > 1:
        turned = {"mean": taken.mean[::-1], "std": taken.std[::-1] if taken.std else None}
        yield "the channels in the other order: input.mean and input.std reversed", taken.model_copy(update=turned)


def with_input(model: WrappedModel, taken: InputSpec) -> WrappedModel:
    """The same network behind another declaration of its input."""
    fresh = WrappedModel(nn.Identity(), taken, model.output_spec)
    other = copy(model)
    other._buffers = {"scale": fresh.scale.to(model.scale.device), "shift": fresh.shift.to(model.scale.device)}
    other.input_spec = taken
    return other


def _best_order(answers: np.ndarray, truth: np.ndarray, count: int) -> np.ndarray:
    """Which class each output would have to be for most answers to be right, (C,)."""
    from scipy.optimize import linear_sum_assignment

    table = np.zeros((count, count), int)
    np.add.at(table, (answers, truth), 1)
    return linear_sum_assignment(table, maximize=True)[1]


def _answers(model: nn.Module, images: Tensor, draws: int) -> np.ndarray:
    return _logits(model, images, draws).argmax(1).cpu().numpy()


def _logits(model: nn.Module, images: Tensor, draws: int = 1) -> Tensor:
    with torch.no_grad():
        return torch.cat([torch.stack([model(part) for _ in range(draws)]).sum(0) for part in images.split(64)])


@dataclass(frozen=True)
class DeclarationResult:
    """What is known of images and answered about them: `truth` and `margins` (N, F), `groups` (N,) of patients.

    truth: 1 present, 0 absent, NaN not known. margins: logits above the thresholds of the findings.
    """

    truth: Floats
    margins: Floats
    groups: NDArray[np.str_]

    def other(self, margins: Floats) -> "DeclarationResult":
        """The same images with other answers."""
        return DeclarationResult(self.truth, margins, self.groups)

    def at(self, rows: NDArray[np.intp]) -> "DeclarationResult":
        """Some of the images."""
        return DeclarationResult(self.truth[rows], self.margins[rows], self.groups[rows])

    def auroc(self, weights: Floats, finding: int, output: int | None = None) -> Floats:
        """How well an output (the finding's own unless said) ranks images by a finding, in each resample (R,)."""
        known = np.isfinite(self.truth[:, finding])
        scores = self.margins[known, finding if output is None else output]
        return statistics.auroc(scores, self.truth[known, finding] == 1, weights[:, known])

    def rates(self, weights: Floats, finding: int, output: int | None = None) -> Floats:
        """The mean of sensitivity and specificity of an output at its threshold, in each resample (R,)."""
        found, margins = [], self.margins[:, finding if output is None else output]
        for state in (0, 1):
            rows = self.truth[:, finding] == state
            right = (margins[rows] > 0) == bool(state)
            with np.errstate(invalid="ignore", divide="ignore"):
                found.append(weights[:, rows] @ right / weights[:, rows].sum(1))
        return np.mean(found, axis=0)


def places(truth: Floats) -> list[int]:
    """The findings that EACH images have, and as many have not."""
    return [k for k in range(truth.shape[1]) if min((truth[:, k] == state).sum() for state in (0, 1)) >= EACH]


def chosen(truth: Floats, count: int) -> NDArray[np.intp]:
    """Images (at most `count` for each finding) with and without each in turn, the same each time."""
    random = np.random.default_rng(0)
    turns = [
        (turn, k, state, int(row))
        for k in places(truth)
        for state in (0, 1)
        for turn, row in enumerate(random.permutation(np.flatnonzero(truth[:, k] == state)))
    ]
    return np.array(list(dict.fromkeys(row for *_, row in sorted(turns)))[: count * truth.shape[1]], dtype=np.intp)


def other_names(names: Sequence[str], images: DeclarationResult, *, table: str | None = None) -> str | None:
    """The names as they would have to be for each finding whose output is another's; None where none surely is.

    `table`: the file of given scores, whose columns have these names.
    """
    from scipy.optimize import linear_sum_assignment

    judged = places(images.truth)
    if len(judged) < 2:
        return None
    itself = np.ones((1, len(images.truth)))
    worth = np.array([[(images.auroc(itself, f, k) + images.rates(itself, f, k))[0] for f in judged] for k in judged])
    taken = dict(zip(judged, np.array(judged)[linear_sum_assignment(worth, maximize=True)[1]].tolist(), strict=True))
    weights = Bootstrap.over(images.groups).row_weights().astype(float)
    order = list(range(len(names)))
    for cycle in _cycles(taken):
        if _gain(images, weights, [(taken[k], k) for k in cycle]):
            for k in cycle:
                order[k] = taken[k]
    if order == list(range(len(names))):
        return None
    return format_names(names, order, table)


def other_input(model: nn.Module, images: Tensor, cuts: Floats, radiographs: DeclarationResult) -> str | None:
    """The declaration of the input, in the words of the model file, with which findings are surely told better.

    `images` (N, 1, H, W) are those of `images`, `cuts` (F,) the logits above which findings are there. Better is to
    rank
    images better; or, where thresholds as declared tell next to nothing of any finding, to tell every one by them and
    to rank no worse. None where no other declaration does.
    """
    weights = Bootstrap.over(radiographs.groups).row_weights().astype(float)
    judged = places(radiographs.truth)
    if not judged:
        return None
    own = _figures(radiographs, weights, judged)
    found = []
    for remedy, changed, given in _other_inputs(model, images):
        logits = _logits(changed, given).double().cpu().numpy()
        other = _figures(radiographs.other(logits - cuts), weights, judged)
        if _ranks_better(own, other) or _tells_better(own, other):
            found.append((float(np.mean([figure[:, 0] for figure in other])), remedy))
    highest = max((mean for mean, _ in found), default=0.0)
    return next((remedy for mean, remedy in found if mean >= highest - _ALIKE), None)


def _figures(images: DeclarationResult, weights: Floats, judged: list[int]) -> tuple[Floats, Floats]:
    """AUROC, and the mean of both rates, of each finding in each resample: both (F, R)."""
    return (
        np.array([images.auroc(weights, k) for k in judged]),
        np.array([images.rates(weights, k) for k in judged]),
    )


def _ranks_better(own: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> bool:
    areas = other[0].mean(0)
    return bool(areas[0] >= HALFWAY) and _surely(areas - own[0].mean(0))


def _tells_better(own: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> bool:
    blind = bool((own[1][:, 0] <= BLIND).all() and (other[1][:, 0] >= own[1][:, 0] + BETTER).all())
    no_worse = bool(other[0][:, 0].mean() >= own[0][:, 0].mean())
    rates = other[1].mean(0)
    return blind and no_worse and bool(rates[0] >= HALFWAY) and _surely(rates - own[1].mean(0))


def _gain(images: DeclarationResult, weights: Floats, moved: list[tuple[int, int]]) -> bool:
    """Whether each of these findings is surely told better by another output than by its own, (finding, output) each.

    Of all it is ranked by a clear margin better; or told better at the thresholds by one, and ranked somewhat better:
    where thresholds alone are badly chosen an output still ranks its own finding best.
    """
    ranked: list[Floats] = []
    told: list[Floats] = []
    for finding, output in moved:
        for figures, gains in ((images.auroc, ranked), (images.rates, told)):
            other = figures(weights, finding, output)
            gains.append(np.where(other[0] >= HALFWAY, other - figures(weights, finding), -1.0))
    if all(_surely(gains) for gains in ranked):
        return True
    better = all(gains[0] > 0 for gains in ranked) and interval(np.mean(ranked, axis=0))[0] > 0
    return better and all(_surely(gains) for gains in told)


def _surely(gains: Floats) -> bool:
    return bool(gains[0] >= BETTER) and interval(gains, _LEVEL)[0] > 0


def _cycles(taken: dict[int, int]) -> Iterator[list[int]]:
    """The cycles of a permutation, but for what stays in its place."""
    left = {k for k, other in taken.items() if other != k}
    while left:
        cycle = [min(left)]
        while (after := taken[cycle[-1]]) != cycle[0]:
            cycle.append(after)
        left -= set(cycle)
        yield cycle
