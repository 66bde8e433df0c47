"""Prove that no image within epsilon changes an answer: by intervals (IBP), then by CROWN if they fail.

A proof holds for every image in the box {x' : |x' - x| <= epsilon, 0 <= x' <= 1}. It is about the model in evaluation
mode, expressed as affine layers and ReLUs, so BatchNorm is a scale and a shift of each channel. An ensemble of equal
networks is one network whose layers act on each member's own channels.

IBP (Gowal et al. 2019) propagates the box of the images through the layers: an affine layer W x + b sends centre c and
radius r to W c + b and |W| r, a ReLU sends both ends to their positive parts. The bounds are loose unless the network
was trained by them, because correlations of inputs are lost.

CROWN (Zhang et al. 2018) bounds the margins by an affine function of the image, from the logits backwards. If a ReLU's
input lies in [l, u] around 0, its output lies above the line a z, a in [0, 1], and below the line through (l, 0) and
(u, u). Going back, each value takes the line that its coefficient's sign needs. At the image the minimum over the box
is exact.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr.errors import UserError, check_pixels, unknown
from trustcxr.models.classifier import Ensemble, PixelScale
from trustcxr.models.preserve_state import preserve_state, without_tf32

_ROWS = 32  # entries that CROWN bounds at once
RATE = 0.2  # of Adam on CROWN's slopes
NEURONS, STEPS = 256, 10  # CROWN's defaults: size of layers that it bounds, and gradients in its slopes
Slopes = dict[int, Tensor]  # index of a ReLU -> a in [0, 1] for each of its inputs (B, R or 1, ...)
Images = Callable[[Tensor], Tensor]
NUDGE = 1e-6  # widens the box, so that it holds images of the ball in float32
UNIT = 2.0**-24  # the unit roundoff of float32
_AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_NO_LAYER = (nn.Identity, nn.Dropout, nn.Dropout2d)


@dataclass(frozen=True)
class Affine:
    """A layer x -> W x + b as functions; W is never built."""

    name: str  # for messages
    apply: Images  # x (B, ...) -> W x + b
    spread: Images  # r (B, ...) >= 0 -> |W| r, entry by entry
    terms: int  # most products that an entry sums, with the bias; 0 for a mean that depends on the map's size

    def transpose(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """Map rows of coefficients (R, *output) to rows W (R, *input), with `shape` of one input."""
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            zeros = rows.new_zeros(len(rows), *shape).requires_grad_(True)
            (out,) = torch.autograd.grad(self.apply(zeros), zeros, rows, create_graph=differentiable)
        return out

    def offset(self, shape: torch.Size, like: Tensor) -> Tensor:
        """Return b (1, *output), with `shape` of one input."""
        return self.apply(like.new_zeros(1, *shape))


@dataclass(frozen=True)
class ReLU:
    """Layer max(x, 0), entry by entry."""

    name: str


Layer = Affine | ReLU


@dataclass(frozen=True)
class Effort:
    """Effort of a proof."""

    crown: bool = True  # try CROWN if intervals prove nothing
    neurons: int = NEURONS  # bound ReLUs with at most this many inputs by CROWN too, in each network of an ensemble
    steps: int = STEPS  # gradients in CROWN's slopes


def effort(method: str, *, neurons: int = NEURONS, steps: int = STEPS) -> Effort:
    """Return the effort of a method, `ibp` or `crown`; UserError for any other, and for negative counts.

    Neurons and steps belong to CROWN: with `ibp` only their defaults are accepted.
    """
    if method not in ("ibp", "crown"):
        raise unknown("method", method, ("ibp", "crown"))
    for name, count in (("neurons", neurons), ("steps", steps)):
        if count < 0:
            raise UserError(f"certify: {name} must be at least 0, not {count}")
    if method == "ibp" and (neurons, steps) != (NEURONS, STEPS):
        raise UserError("certify: neurons and steps need the method crown. Choose it, or remove them")
    return Effort(crown=method == "crown", neurons=neurons, steps=steps)


def prove(model: nn.Module, images: Tensor, *, epsilon: float, method: str = "crown") -> Tensor:
    """Return for which images (B, 1, H, W), float in [0, 1], the answer provably does not change, bool (B,).

    `model` maps pixel space to logits (B, C) by layers that can be bounded, such as `tx.load_model("covid-certified")`.
    `epsilon` is the L-infinity radius of the change, in [0, 1]. `method`: `ibp` (intervals, Gowal et al. 2018), or
    `crown`: also CROWN (Zhang et al. 2018) if intervals fail.

    The proof is of the pixels that the network sees, after decoding and resizing, not of a file. It allows for the
    rounding of float32, in which a GPU computes here too (without TF32): let the model answer in `without_tf32` there.
    Raises UserError for a layer that cannot be bounded, naming it, and for images or an epsilon outside [0, 1].

    >>> import torch, trustcxr as tx
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
    >>> model[1].weight.data = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    >>> image = torch.tensor([[[[0.6, 0.6], [0.4, 0.4]]]])
    >>> tx.certify.prove(model, image, epsilon=0.05), tx.certify.prove(model, image, epsilon=0.2)
    (tensor([True]), tensor([False]))
    """

    if not 0 <= epsilon <= 1:
        raise UserError(f"certify: epsilon must lie in [0, 1], not {epsilon:g}: 0.02 is 5.1 grey levels of 255")
    check_pixels("certify", images)
    layers = exact(model)
    with torch.no_grad(), preserve_state(model), without_tf32():
        answers = model(images).argmax(1)
    return least_margins(layers, images, answers, epsilon, effort(method)) > 0


def least_margins(layers: Sequence[Layer], images: Tensor, answers: Tensor, epsilon: float, effort: Effort) -> Tensor:
    """Return a lower bound (B,) of the margin of each `answers` (B,) over other classes, for all images within epsilon.

    Above 0, the answer provably does not change. `layers` are those of `exact`, in float64. The rounding of float32 is
    subtracted (`rounding`), so the proof holds for the model as it runs. Images (B, 1, H, W) are in [0, 1].
    """
    at = Interval.from_ends(*box(images.double(), epsilon, nudge=NUDGE))
    passed = intervals(layers, at)
    error = rounding(layers, passed)
    allowed = error + error.gather(1, answers[:, None])  # of the margin over each class, (B, C)
    best = _over_others(last_margins(layers, passed, answers) - allowed, answers)
    if effort.crown and len(rows := (best <= 0).nonzero()[:, 0]):
        alone = Interval(at.centre[rows], at.radius[rows])
        bounds = crown_margins(layers, alone, answers[rows], neurons=effort.neurons, steps=effort.steps)
        best[rows] = torch.maximum(best[rows], _over_others(bounds - allowed[rows], answers[rows]))
    return best


def _over_others(margins: Tensor, answers: Tensor) -> Tensor:
    """Return the least margin (B,) over a class other than the answer."""
    return margins.scatter(1, answers[:, None], torch.inf).amin(1)


@dataclass(frozen=True)
class Interval:
    """Interval of values: centre (B, ...) and radius (B, ...) >= 0."""

    centre: Tensor
    radius: Tensor

    @classmethod
    def from_ends(cls, low: Tensor, high: Tensor) -> "Interval":
        """Return the interval between two ends, `low` <= `high`."""
        return cls((low + high) / 2, (high - low) / 2)

    @property
    def low(self) -> Tensor:
        """Lower end."""
        return self.centre - self.radius

    @property
    def high(self) -> Tensor:
        """Upper end."""
        return self.centre + self.radius

    def through(self, layer: Layer) -> "Interval":
        """Return the interval after a layer."""
        if isinstance(layer, Affine):
            return Interval(layer.apply(self.centre), layer.spread(self.radius))
        return Interval.from_ends(self.low.relu(), self.high.relu())

    def least(self, rows: Tensor) -> Tensor:
        """Return the minimum (B, R) of rows of coefficients (B, R, ...) over the interval."""
        rows = rows.flatten(2)
        centre, radius = (t.expand(len(rows), *t.shape[1:]).flatten(1)[:, :, None] for t in (self.centre, self.radius))
        return (rows @ centre - rows.abs() @ radius)[:, :, 0]


def intervals(layers: Sequence[Layer], images: Interval) -> list[Interval]:
    """Return the intervals before each layer and after the last."""
    result = [images]
    for layer in layers:
        result.append(result[-1].through(layer))
    return result


def interval_margins(layers: Sequence[Layer], images: Interval, labels: Tensor) -> Tensor:
    """Return lower bounds (B, C) of the margin of each label over every class, over all images of the interval.

    The affine layers after the last ReLU act on the margins directly (Gowal et al.): the difference of two logits is
    bounded, not each logit. The margin over the label itself is 0.
    """
    return last_margins(layers, intervals(layers, images), labels)


def last_margins(layers: Sequence[Layer], intervals: Sequence[Interval], labels: Tensor) -> Tensor:
    """Return the bounds of `interval_margins` from the `intervals` of the layers."""
    index = len(layers)
    rows = margins(intervals[-1].centre.shape[1], labels, intervals[-1].centre)
    constant = rows.new_zeros(rows.shape[:2])
    while index and isinstance(layer := layers[index - 1], Affine):
        index -= 1
        rows, shift = pulled(layer, rows, intervals[index].centre.shape[1:])
        constant = constant + shift
    return constant + intervals[index].least(rows)


def pulled(layer: Affine, rows: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Move rows (B, R, *output) before an affine layer: rows (B, R, *shape), and what its bias adds (B, R)."""
    before = layer.transpose(rows.flatten(0, 1), shape).unflatten(0, rows.shape[:2])
    return before, (rows * layer.offset(shape, rows)[:, None]).flatten(2).sum(2)


def rounding(layers: Sequence[Layer], intervals: Sequence[Interval]) -> Tensor:
    """Return how far (B, C) logits computed in float32 may differ from the exact ones, anywhere in the box.

    For n products in any order of summation the error is n u / (1 - n u) of the sum of their sizes (Higham 2002,
    section 3.1; u = 2^-24); incoming errors grow by |W|. Winograd or Fourier convolutions and lower precisions are not
    covered.
    """
    error = torch.zeros_like(intervals[0].centre)
    for layer, at, after in zip(layers, intervals[:-1], intervals[1:], strict=True):
        if isinstance(layer, Affine):
            largest = at.centre.abs() + at.radius + error
            bias = layer.offset(at.centre.shape[1:], at.centre).abs()
            window = [-(-a // b) + 1 for a, b in zip(at.centre.shape[2:], after.centre.shape[2:], strict=False)]
            n = ((layer.terms or math.prod(window)) + 1) * UNIT
            error = layer.spread(error) + n / (1 - n) * (layer.spread(largest) + bias)
        else:
            error = error.where(at.high + error > 0, 0.0)  # surely 0, also in float32
    return error


def tightened(layers: Sequence[Layer], images: Interval, *, neurons: int = 0) -> list[Interval]:
    """Return intervals before each layer and after the last, by CROWN too for ReLUs with at most `neurons` inputs.

    Each end is the better of both methods; later layers start from it. 0 uses intervals only.
    """
    intervals = [images]
    for index, layer in enumerate(layers):
        entries = intervals[-1].centre[0].numel()
        if isinstance(layer, ReLU) and entries <= neurons:
            intervals[-1] = _by_crown(layers[:index], intervals)
        intervals.append(intervals[-1].through(layer))
    return intervals


def crown_margins(
    layers: Sequence[Layer], images: Interval, labels: Tensor, *, neurons: int = 0, steps: int = 0
) -> Tensor:
    """Return lower bounds (B, C) of the margin of each label over every class, over all images of the interval.

    Each entry is the better of CROWN and intervals. `neurons` as in `tightened`. With `steps`, Adam improves the slopes
    a for that many gradients (alpha-CROWN; Xu et al. 2021); the bound of each step is valid.
    """
    with torch.no_grad():
        intervals = tightened(layers, images, neurons=neurons)
        best = last_margins(layers, intervals, labels)
        rows = margins(best.shape[1], labels, best)
        slopes = first_slopes(layers, intervals)
    return torch.maximum(best, climbed(layers, intervals, rows, slopes, steps))


def backward(layers: Sequence[Layer], intervals: Sequence[Interval], rows: Tensor, slopes: Slopes) -> Tensor:
    """Return lower bounds (B, R) of rows (B, R, *output) of the last layer's output, from all layers' intervals."""
    constant = rows.new_zeros(rows.shape[:2])
    for index in reversed(range(len(layers))):
        layer, interval = layers[index], intervals[index]
        if isinstance(layer, Affine):
            rows, shift = pulled(layer, rows, interval.centre.shape[1:])
        else:
            rows, shift = _through_relu(rows, interval, slopes[index])
        constant = constant + shift
    return constant + intervals[0].least(rows)


def first_slopes(layers: Sequence[Layer], intervals: Sequence[Interval]) -> Slopes:
    """Return CROWN's default slopes: a is 1 if most of the interval is positive, else 0."""
    inputs = {index: intervals[index].centre for index, layer in enumerate(layers) if isinstance(layer, ReLU)}
    return {index: (centre > 0).to(centre)[:, None] for index, centre in inputs.items()}


def _through_relu(rows: Tensor, at: Interval, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Move rows (B, R, ...) before a ReLU with input in `at`, and return what its upper lines add (B, R)."""
    low, high = at.low, at.high
    unsure = (low < 0) & (high > 0)
    rise = torch.where(unsure, high / (high - low).clamp(min=torch.finfo(low.dtype).tiny), (low >= 0).to(low))
    start = torch.where(unsure, -low * rise, torch.zeros_like(low))
    lower = torch.where(unsure[:, None], slope, rise[:, None])
    above, below = rows.clamp(min=0), rows.clamp(max=0)
    return above * lower + below * rise[:, None], (below * start[:, None]).flatten(2).sum(2)


def _by_crown(layers: Sequence[Layer], intervals: Sequence[Interval]) -> Interval:
    """Return the interval after some layers by CROWN, never wider than the last of `intervals`."""
    last, slopes = intervals[-1], first_slopes(layers, intervals)
    entries = last.centre[0].numel()
    every = torch.eye(entries, dtype=last.centre.dtype, device=last.centre.device)
    low, high = last.low.flatten(1).clone(), last.high.flatten(1).clone()
    for start in range(0, entries, _ROWS):
        rows = every[start : start + _ROWS].reshape(1, -1, *last.centre.shape[1:])
        rows = rows.expand(len(last.centre), *rows.shape[1:])
        part = slice(start, start + _ROWS)
        low[:, part] = torch.maximum(low[:, part], backward(layers, intervals, rows, slopes))
        high[:, part] = torch.minimum(high[:, part], -backward(layers, intervals, -rows, slopes))
    return Interval.from_ends(low.view_as(last.centre), torch.maximum(low, high).view_as(last.centre))


def climbed(layers: Sequence[Layer], intervals: Sequence[Interval], rows: Tensor, slopes: Slopes, steps: int) -> Tensor:
    """Return the best of `backward`'s bounds (B, R) with these slopes and with those of `steps` gradient steps."""
    moving = {p: slope.repeat_interleave(rows.shape[1], 1).requires_grad_(True) for p, slope in slopes.items()}
    with torch.no_grad():
        best = backward(layers, intervals, rows, slopes)
    if not moving or not steps:
        return best
    optimiser = torch.optim.Adam(moving.values(), lr=RATE, maximize=True)
    for _ in range(steps):
        with torch.enable_grad():
            sum_of_bounds = backward(layers, intervals, rows, moving).sum()
        gradients = torch.autograd.grad(sum_of_bounds, list(moving.values()))
        for slope, gradient in zip(moving.values(), gradients, strict=True):
            slope.grad = gradient
        optimiser.step()
        with torch.no_grad():
            for slope in moving.values():
                slope.clamp_(0, 1)
            best = torch.maximum(best, backward(layers, intervals, rows, moving))
    return best


def layers(model: nn.Module) -> list[Layer]:
    """Return the layers of a model from pixel space to logits, in order, in the precision of its weights.

    `model` is a Classifier whose network is a chain of layers (by its `chain()`, or a Sequential), or such a chain.
    Gradients reach its weights. Raises UserError with the name of the first layer that is neither affine nor a ReLU.
    """
    return [layer for name, module in _chain(model) for layer in _layer(name, module)]


def exact(model: nn.Module) -> list[Layer]:
    """Return the layers of a copy of the model in float64 and evaluation mode, for proofs.

    Raises UserError as `layers` does, and for a module with forward hooks or with a `forward` of its own instance: the
    model would answer otherwise than its layers say.
    """
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            where = name or type(module).__name__
            raise UserError(f"certify: module '{where}' has forward hooks or its own forward, which no proof sees")
    return layers(deepcopy(model).double().eval().requires_grad_(False))


def box(images: Tensor, epsilon: float, *, nudge: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest pixels (B, 1, H, W) within epsilon and in [0, 1], `nudge` further out."""
    return (images - epsilon).clamp(0, 1) - nudge, (images + epsilon).clamp(0, 1) + nudge


def margins(logits: int, labels: Tensor, like: Tensor) -> Tensor:
    """Return rows (B, C, C) that turn logits into the margins of each label over every class: 0 over itself."""
    one_hot = F.one_hot(labels.long(), logits).to(like)
    return one_hot[:, None, :] - torch.eye(logits, dtype=like.dtype, device=like.device)


def _chain(model: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that a model runs in sequence, by name."""
    if callable(chain := getattr(model, "chain", None)):
        for part, module in chain():
            yield from _chain(module, f"{name}{part}")
    elif isinstance(model, nn.Sequential) and getattr(model.forward, "__func__", None) is nn.Sequential.forward:
        for part, module in model.named_children():
            yield from _chain(module, f"{name}.{part}" if name else part)
    else:
        yield name or type(model).__name__, model


def _layer(name: str, module: nn.Module) -> list[Layer]:
    """Return the layers of one module, by its exact type: a subclass may do anything. Empty if it does nothing."""
    if type(module) in _NO_LAYER:
        return []
    if type(module) is nn.ReLU:
        return [ReLU(name)]
    if type(module) is nn.Conv2d and module.padding_mode == "zeros":
        where = (module.stride, module.padding, module.dilation, module.groups)
        terms = module.weight[0].numel() + 1
        return [Affine(name, module, lambda r: F.conv2d(r, module.weight.abs(), None, *where), terms)]  # type: ignore[arg-type]
    if type(module) is nn.Linear:
        return [Affine(name, module, lambda r: F.linear(r, module.weight.abs()), module.in_features + 1)]
    if isinstance(module, _NORMS) and type(module) in _NORMS and module.track_running_stats:
        return _batch_norm(name, module)
    if type(module) in (nn.Flatten, *_AVERAGES):
        return [Affine(name, module, module, _terms(module))]
    if type(module) is PixelScale:
        return [Affine(name, module, lambda r: r / module.std, 2)]
    if type(module) is Ensemble:
        return _side_by_side(name, module)
    kind = type(module).__name__ + ("" if type(module) is not nn.Conv2d else f" padded with '{module.padding_mode}'")
    raise UserError(
        f"certify: layer '{name}' ({kind}) cannot be bounded. Use a chain of Conv2d padded with zeros, Linear, "
        "BatchNorm, ReLU, AvgPool2d, AdaptiveAvgPool2d and Flatten, as in the networks `plain...`"
    )


def _side_by_side(name: str, ensemble: Ensemble) -> list[Layer]:
    """Return the layers of an ensemble: a copy of the image for each network, their layers in step, the mean logits."""
    each = [
        [x for part, module in _chain(net, f"{name}.{i}") for x in _layer(part, module)]
        for i, net in enumerate(ensemble.nets)
    ]
    count, kinds = len(each), {tuple(type(x) for x in chain) for chain in each}
    if len(kinds) > 1 or len(set(zip(ensemble.means, ensemble.stds, strict=True))) > 1:
        raise UserError(f"certify: networks of the ensemble '{name}' differ. Use members of one (model.members)")

    def shared(images: Tensor) -> Tensor:
        return torch.cat([images] * count, 1)

    def mean(logits: Tensor) -> Tensor:
        return torch.stack(logits.chunk(count, 1)).mean(0)

    in_step = [_in_step(some) for some in zip(*each, strict=True)]
    return [Affine(f"{name}.images", shared, shared, 1), *in_step, Affine(f"{name}.mean", mean, mean, count + 1)]


def _in_step(some: Sequence[Layer]) -> Layer:
    """Combine one layer of each network, each on its own channels."""
    affine = [x for x in some if isinstance(x, Affine)]
    if not affine:
        return some[0]

    def apart(values: Tensor, functions: Sequence[Images]) -> Tensor:
        parts = values.chunk(len(functions), 1)
        return torch.cat([function(part) for function, part in zip(functions, parts, strict=True)], 1)

    applies, spreads, terms = zip(*((x.apply, x.spread, x.terms) for x in affine), strict=True)
    return Affine(
        affine[0].name, lambda x: apart(x, applies), lambda r: apart(r, spreads), max(terms) if all(terms) else 0
    )


def _batch_norm(name: str, norm: Any) -> list[Layer]:
    """Return BatchNorm in evaluation: scale and shift of each channel by its statistics, then by its weights."""

    def channels(values: Tensor, like: Tensor) -> Tensor:
        return values.view(1, -1, *(1,) * (like.ndim - 2))

    mean, scale = norm.running_mean, torch.rsqrt(norm.running_var + norm.eps)
    standardise = Affine(
        name, lambda x: (x - channels(mean, x)) * channels(scale, x), lambda r: r * channels(scale, r), 4
    )
    if not norm.affine:
        return [standardise]
    weight, bias = norm.weight, norm.bias
    rescale = Affine(
        name, lambda x: x * channels(weight, x) + channels(bias, x), lambda r: r * channels(weight.abs(), r), 2
    )
    return [standardise, rescale]


def _terms(module: nn.Module) -> int:
    """Return how many entries a pooling layer averages at most; 0 if the map's size decides."""
    if isinstance(module, nn.AvgPool2d):
        side = module.kernel_size
        return (side**2 if isinstance(side, int) else side[0] * side[1]) + 1
    return 0 if isinstance(module, nn.AdaptiveAvgPool2d) else 1
