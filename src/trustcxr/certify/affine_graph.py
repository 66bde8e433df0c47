"""Express a model as affine layers and ReLUs, and build the box of images around an image.

A proof holds for every image in the box {x' : |x' - x| <= epsilon, 0 <= x' <= 1}. It is about the model in evaluation
mode, so BatchNorm is a scale and a shift of each channel. A layer that is neither affine nor a ReLU raises an error
with its name. An ensemble of equal networks is one network whose layers act on each member's own channels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr.errors import UserError
from trustcxr.models.classifier import Ensemble, PixelScale

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

    def terms_between(self, before: torch.Size, after: torch.Size) -> int:
        """Return `terms`, those of a mean from the shapes (B, ...) of its input and output."""
        return self.terms or math.prod(-(-a // b) + 1 for a, b in zip(before[2:], after[2:], strict=True))

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

    def apart(values: Tensor, wanted: Callable[[Affine], Images]) -> Tensor:
        parts = values.chunk(len(affine), 1)
        return torch.cat([wanted(x)(part) for x, part in zip(affine, parts, strict=True)], 1)

    return Affine(
        affine[0].name,
        lambda x: apart(x, lambda layer: layer.apply),
        lambda r: apart(r, lambda layer: layer.spread),
        0 if not all(x.terms for x in affine) else max(x.terms for x in affine),
    )


def _batch_norm(name: str, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> list[Layer]:
    """Return BatchNorm in evaluation: scale and shift of each channel by its statistics, then by its weights."""

    def channels(values: Tensor, like: Tensor) -> Tensor:
        return values.view(1, -1, *(1,) * (like.ndim - 2))

    assert norm.running_mean is not None
    assert norm.running_var is not None
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
