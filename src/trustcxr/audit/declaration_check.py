"""Compare a model file's declaration with others: class orders, ranges, mean and std, inverted images, two at once.

If the answer is the highest class, another declaration must surely be right more often. Of a model with one sigmoid a
finding it must win by a clear margin over resampled patients, and other names must improve each finding that moves:
findings occur together, so another finding's output may rank one well without a mistake.
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from torch import Tensor, nn

from trustcxr import statistics
from trustcxr.audit.formats.model_file import IMAGENET, InputSpec
from trustcxr.audit.formats.wrapper import WrappedModel
from trustcxr.statistics import Bootstrap, Floats, interval

ENOUGH = 20  # images needed to notice a wrong order from scores alone: the test needs ten answers that become right
RANGES = ((0.0, 1.0), (0.0, 255.0), (-1.0, 1.0), (-1024.0, 1024.0))
INVERTED = ", as MONOCHROME1 images are inverted"
_INVERTED_IMAGES = "the images themselves inverted, as MONOCHROME1 images are"
# For classes, in accuracy and p-values:
_GAIN, _P_VALUE = 0.10, 1e-3  # of another declaration, by McNemar's exact test
_WEAK_GAIN, _WEAK_P_VALUE = 0.15, 1e-5  # the same, if it is right on less than halfway from chance to all
_EQUAL = 0.01  # difference of two declarations that are equally good
_CHANCE = 0.05  # p-value against chance, above which accuracy is at chance
# For findings, in AUROC or the mean of sensitivity and specificity:
_FINDING_GAIN = 0.10
_HALFWAY = 0.75  # what another declaration must reach: halfway from chance to all
_BLIND = 0.60  # mean of both rates below which a threshold says next to nothing
_EACH = 10  # images with a finding, and without it, that are needed
_LEVEL = 0.998  # of the interval that must lie above 0


@dataclass(frozen=True)
class Declared:
    """The result for a declaration of classes, compared with the declarations that were `tried`."""

    accuracy: float
    chance: float
    at_chance: bool
    better: float | None = None  # accuracy of a better declaration
    remedy: str | None = None  # what to change in the model file
    weak: bool = False  # whether the better one is an order that is right on less than halfway from chance to all
    tried: str = "class order, range, mean and std, channel order or inversion"


class _Alternative(NamedTuple):
    """Another declaration: what to change, its answers (N,), outputs that move and their class, answers before that."""

    remedy: str
    answers: np.ndarray
    moved: Sequence[tuple[int, int]]
    unordered: np.ndarray


def check_declaration(
    model: nn.Module, classes: tuple[str, ...], images: Tensor, labels: Tensor, *, draws: int = 1
) -> Declared:
    """Compare the declaration with others on images (N, 1, H, W) in [0, 1] of known class (N,).

    Another must be right on ten percentage points more, by McNemar's exact test: of about twenty, chance makes one
    better for at most 2 % of models. One that is right on less than halfway from chance to all needs a larger gain, in
    each output that it moves: the model may just be bad. `draws`: passes that the answer of a random model is the mean
    of.
    """
    truth = labels.cpu().numpy()
    answers = predict_parts(model, images, draws).argmax(1).cpu().numpy()
    others = _other_orders(classes, answers, truth)
    for remedy, other, inputs in _other_inputs(model, images):
        unordered = predict_parts(other, inputs, draws).argmax(1).cpu().numpy()
        others.append(_Alternative(remedy, unordered, (), unordered))
        others += _other_orders(classes, unordered, truth, f"{remedy} and ")
    return _compare(answers, truth, len(classes), others)


def check_order(
    classes: tuple[str, ...], answers: np.ndarray, truth: np.ndarray, *, table: str | None = None
) -> Declared:
    """Compare class orders alone, from answers (N,) to images of known class (N,); `table`: the file of scores."""
    others = _other_orders(classes, answers, truth, table=table)
    return replace(_compare(answers, truth, len(classes), others), tried="class order")


def _other_orders(
    classes: Sequence[str], answers: np.ndarray, truth: np.ndarray, before: str = "", table: str | None = None
) -> list[_Alternative]:
    """Return the order of the classes that makes most answers right, if it differs; `before` precedes its remedy."""
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (answers, truth), 1)
    order = linear_sum_assignment(confusion, maximize=True)[1]
    other = _Alternative(before + format_names(classes, order, table), order[answers], _moved(order), answers)
    return [other] if other.moved else []


def format_names(classes: Sequence[str], order: Iterable[int], table: str | None = None) -> str:
    """Return what to write if output k is of class order[k]: in the model file, or as columns of a score table."""
    pairs = [(name, classes[k]) for name, k in zip(classes, order, strict=True)]
    if table is None:
        return f"output.classes: [{', '.join(right for _, right in pairs)}]"
    changed = ", ".join(f"{right} in place of {name}" for name, right in pairs if name != right)
    return f"as names of columns in {table}: {changed}"


def _moved(order: Iterable[int]) -> list[tuple[int, int]]:
    """Return (output, class) of the outputs that an order moves."""
    return [(output, int(k)) for output, k in enumerate(order) if output != k]


def _compare(answers: np.ndarray, truth: np.ndarray, count: int, others: Iterable[_Alternative]) -> Declared:
    right = answers == truth
    chance = max(float(np.bincount(truth, minlength=count).max()) / len(truth), 1 / count)
    better = list[tuple[float, str, bool]]()
    for other in others:
        other_right = other.answers == truth
        accuracy, gain = float(other_right.mean()), float(other_right.mean() - right.mean())
        weak = accuracy <= chance + (1 - chance) / 2
        p_value = _p_value(int((other_right & ~right).sum()), int((right & ~other_right).sum()))
        if weak:
            above = _p_value(int(other_right.sum()), int((~other_right).sum()), chance) < _WEAK_P_VALUE
            # Each output that moves must surely answer images of its new class rather than of its old one.
            labels = [(truth[other.unordered == old], old, new) for old, new in other.moved]
            each = [_p_value(int((part == new).sum()), int((part == old).sum())) for part, old, new in labels]
            sure = above and gain >= _WEAK_GAIN and p_value < _WEAK_P_VALUE and all(p < _P_VALUE for p in each)
        else:
            sure = gain >= _GAIN and p_value < _P_VALUE
        if sure:
            better.append((accuracy, other.remedy, weak and bool(other.moved)))
    # The first of several that are equally good: it is the most frequent mistake.
    highest = max((accuracy for accuracy, *_ in better), default=0.0)
    best = next((one for one in better if one[0] >= highest - _EQUAL), (None, None, False))
    at_chance = _p_value(int(right.sum()), int((~right).sum()), chance) > _CHANCE
    return Declared(float(right.mean()), chance, bool(at_chance), *best)


def _p_value(more: int, less: int, probability: float = 0.5) -> float:
    """Return the binomial p-value of `more` or more successes among `more + less`."""
    return float(binomtest(more, more + less, probability, alternative="greater").pvalue) if more + less else 1.0


def _other_inputs(model: nn.Module, images: Tensor) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Yield other declarations of the input that make another input, the model with each, and its images."""
    if not isinstance(model, WrappedModel):
        yield _INVERTED_IMAGES, model, 1 - images
        return
    spec, inputs = model.input_spec, [_ends(model), _ends(model).flip(0)]
    without = " without mean and std" if spec.mean or spec.std else ""
    black, white = (end.unique().tolist() for end in _ends(model))
    same = len(black) == len(white) == 1  # for each channel
    text = f"input.range: [{white[0]:.4g}, {black[0]:.4g}]{without}{INVERTED}"
    yield text if same else _INVERTED_IMAGES, model, 1 - images
    others = []
    for other_spec in list_inputs(spec):
        low, high = other_spec.range
        text = f"input.range: [{low:g}, {high:g}]{without}{INVERTED if low > high else ''}"
        if other_spec.mean is not None:
            text = f"input.mean: {list(other_spec.mean)}, input.std: {list(other_spec.std or ())}"
        others.append((text, other_spec))
    if spec.mean and len(set(spec.mean)) > 1:
        reverse = spec.model_copy(update={"mean": spec.mean[::-1], "std": spec.std[::-1] if spec.std else None})
        others.append(("the channels in the other order: input.mean and input.std reversed", reverse))
    for remedy, other_spec in others:
        other = with_input(model, other_spec)
        if not any(torch.allclose(_ends(other), one, atol=1e-3) for one in inputs):
            inputs.append(_ends(other))
            yield remedy, other, images


def with_input(model: WrappedModel, spec: InputSpec) -> WrappedModel:
    """Return the same network with another declaration of its input, of the same size and channels."""
    fresh, other = WrappedModel(nn.Identity(), spec, model.output_spec), copy(model)
    other._buffers = {"scale": fresh.scale.to(model.scale.device), "shift": fresh.shift.to(model.scale.device)}
    other.input_spec = spec
    return other


def _ends(model: WrappedModel) -> Tensor:
    """Return the input of black and of white, (2, 1, channels, 1, 1)."""
    return torch.stack((model.shift, model.scale + model.shift))


def list_inputs(spec: InputSpec) -> list[InputSpec]:
    """Return the usual declarations of the input, the likeliest first: mean and std, ranges, inverted ranges."""

    def changed(low: float, high: float, mean: Any = None, std: Any = None) -> InputSpec:
        return spec.model_copy(update={"range": (low, high), "mean": mean, "std": std})

    inputs = [changed(0.0, 1.0, *IMAGENET)] if spec.channels == 3 else []
    inputs += [changed(*ends) for ends in RANGES]  # [-1, 1] is mean 0.5 and std 0.5
    inputs += [changed(0.0, 1.0, *(numbers[::-1] for numbers in IMAGENET))] if spec.channels == 3 else []
    return inputs + [changed(high, low) for low, high in RANGES]


def predict_parts(model: nn.Module, images: Tensor, draws: int = 1) -> Tensor:
    """Return the logits (N, C) of images (N, 1, H, W), summed over draws, in parts of 16."""
    with torch.no_grad():
        return torch.cat([torch.stack([model(part) for _ in range(draws)]).sum(0) for part in images.split(16)])


@dataclass(frozen=True)
class FindingAnswers:
    """Labels and answers of images for each finding."""

    truth: Floats  # (N, F): 1 present, 0 absent, NaN unknown
    margins: Floats  # (N, F): logits above the thresholds
    groups: NDArray[np.str_]  # (N,): patients

    def select(self, rows: NDArray[np.intp]) -> "FindingAnswers":
        """Return some of the images."""
        return FindingAnswers(self.truth[rows], self.margins[rows], self.groups[rows])

    def auroc(self, weights: Floats, finding: int, output: int | None = None) -> Floats:
        """Return the AUROC of an output (by default the finding's own) for a finding, in each resample (R,)."""
        labelled = np.isfinite(self.truth[:, finding])
        scores = self.margins[labelled, finding if output is None else output]
        return statistics.auroc(scores, self.truth[labelled, finding] == 1, weights[:, labelled])

    def rates(self, weights: Floats, finding: int, output: int | None = None) -> Floats:
        """Return the mean of sensitivity and specificity of an output at its threshold, in each resample (R,)."""
        rates, margins = [], self.margins[:, finding if output is None else output]
        for state in (0, 1):
            rows = self.truth[:, finding] == state
            right = (margins[rows] > 0) == bool(state)
            with np.errstate(invalid="ignore", divide="ignore"):
                rates.append(weights[:, rows] @ right / weights[:, rows].sum(1))
        return np.mean(rates, axis=0)


def _testable_findings(truth: Floats) -> list[int]:
    """Return the findings that _EACH images have and as many have not."""
    return [k for k in range(truth.shape[1]) if min((truth[:, k] == state).sum() for state in (0, 1)) >= _EACH]


def select_rows(truth: Floats, count: int) -> NDArray[np.intp]:
    """Return rows of at most `count` images a finding, with and without each in turn, always the same."""
    random, sides = np.random.default_rng(0), [(k, state) for k in _testable_findings(truth) for state in (0, 1)]
    parts = [random.permutation(np.flatnonzero(truth[:, k] == state)) for k, state in sides]
    rows = dict.fromkeys(row for turn in zip_longest(*parts) for row in turn if row is not None)
    return np.array(list(rows)[: count * truth.shape[1]], dtype=np.intp)


def find_other_names(names: Sequence[str], answers: FindingAnswers, *, table: str | None = None) -> str | None:
    """Return the names to write if outputs surely belong to other findings, else None; `table`: the file of scores."""
    findings = _testable_findings(answers.truth)
    if len(findings) < 2:
        return None
    once = np.ones((1, len(answers.truth)))
    worth = np.array([[(answers.auroc(once, f, k) + answers.rates(once, f, k))[0] for f in findings] for k in findings])
    columns = linear_sum_assignment(worth, maximize=True)[1]
    finding_of = dict(zip(findings, np.array(findings)[columns].tolist(), strict=True))  # by output
    weights = Bootstrap.over(answers.groups).row_weights().astype(float)
    order = list(range(len(names)))
    for cycle in _cycles(finding_of):
        if _surely_better(answers, weights, [(finding_of[k], k) for k in cycle]):
            for k in cycle:
                order[k] = finding_of[k]
    return format_names(names, order, table) if _moved(order) else None


def find_other_input(model: nn.Module, images: Tensor, cuts: Floats, answers: FindingAnswers) -> str | None:
    """Return the declaration of the input that surely serves findings better, as in the model file; None without one.

    `images` (N, 1, H, W) are those of `answers`, `cuts` (F,) the logits above which findings are present. Another input
    must rank images better. If the declared thresholds say next to nothing about any finding, it may instead decide
    each one by them and rank no worse.
    """
    weights = Bootstrap.over(answers.groups).row_weights().astype(float)
    findings = _testable_findings(answers.truth)
    if not findings:
        return None

    def figures(one: FindingAnswers) -> tuple[Floats, Floats]:
        """Return AUROC and the mean of both rates of each finding in each resample, both (F, R)."""
        return np.array([one.auroc(weights, k) for k in findings]), np.array([one.rates(weights, k) for k in findings])

    declared, better = figures(answers), []
    for remedy, changed, inputs in _other_inputs(model, images):
        logits = predict_parts(changed, inputs).double().cpu().numpy()
        other = figures(replace(answers, margins=logits - cuts))
        if _serves_better(declared, other):
            better.append((float(np.mean([figure[:, 0] for figure in other])), remedy))
    highest = max((mean for mean, _ in better), default=0.0)
    return next((remedy for mean, remedy in better if mean >= highest - _EQUAL), None)


def _serves_better(declared: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> bool:
    (areas, rates), (other_areas, other_rates) = declared, other
    ranks, decides = (
        new.mean(0)[0] >= _HALFWAY and _surely(new.mean(0) - old.mean(0))
        for old, new in zip(declared, other, strict=True)
    )
    blind = (rates[:, 0] <= _BLIND).all() and (other_rates[:, 0] >= rates[:, 0] + _FINDING_GAIN).all()
    return bool(ranks or (decides and blind and other_areas[:, 0].mean() >= areas[:, 0].mean()))


def _surely_better(answers: FindingAnswers, weights: Floats, moved: list[tuple[int, int]]) -> bool:
    """Return whether another output surely serves each of these findings better, (finding, output) each."""
    # By a clear margin; or it decides each better and ranks it somewhat better: an output with a badly chosen
    # threshold still ranks its own finding best.
    ranked: list[Floats] = []
    decided: list[Floats] = []
    for finding, output in moved:
        for figures, gains in ((answers.auroc, ranked), (answers.rates, decided)):
            other = figures(weights, finding, output)
            gains.append(np.where(other[0] >= _HALFWAY, other - figures(weights, finding), -1.0))
    if all(_surely(gains) for gains in ranked):
        return True
    better = all(gains[0] > 0 for gains in ranked) and interval(np.mean(ranked, axis=0))[0] > 0
    return better and all(_surely(gains) for gains in decided)


def _surely(gains: Floats) -> bool:
    return bool(gains[0] >= _FINDING_GAIN) and interval(gains, _LEVEL)[0] > 0


def _cycles(permutation: dict[int, int]) -> Iterator[list[int]]:
    """Yield the cycles of a permutation that move something."""
    remaining = {k for k, other in permutation.items() if other != k}
    while remaining:
        cycle = [min(remaining)]
        while (following := permutation[cycle[-1]]) != cycle[0]:
            cycle.append(following)
        remaining -= set(cycle)
        yield cycle
