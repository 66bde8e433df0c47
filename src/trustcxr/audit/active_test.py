"""Test whether an attack finds adversarial examples that are sure to exist.

Source: Zimmermann et al. 2022, "Increasing confidence in adversarial robustness evaluations". Points in the ball around
an image are labelled clean and one corner adversarial. A new last layer separates them by the model's own features, the
smoothest of a few: an interpolating one has local maxima, where strong attacks end. Half of the clean points are
corners of a smaller ball: else all corners would be adversarial by their distance alone.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trustcxr.attacks.adaptive import AttackView, GradientTraits, plain_name, probe_gradients, tensors_in, wrong_share
from trustcxr.attacks.pgd import pgd, round_inwards
from trustcxr.models.preserve_state import preserve_state
from trustcxr.registry import STOCHASTIC_DRAWS

_LINEAR = {"linear": 0, "addmm": 1, "matmul": 0, "mm": 0, "__matmul__": 0}  # index of the features among the arguments
_CONVOLUTIONS, _SUMS = {"conv2d", "convolution", "_convolution"}, {"sum", "mean"}
_FEW_STEPS, STEPS = 10, 40  # of the first attack, and of the whole one for examples that it missed
_POINTS = 64  # most points to fit a last layer to
_INSIDE = 0.9  # of the radius: the largest distance of clean points
_RIDGES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # of the points' mean squared distance: the smoothest first
_APART = 0.1  # required lead of the planted score (target 1) over the highest clean one (0); 1e-6 for the last ridge
_THRESHOLD = 0.7  # of the way from the highest clean score to the adversarial one
Features = Callable[[Tensor], Tensor]  # images (B, 1, H, W) -> (B, F)
ENOUGH = 0.95  # share of planted examples that an attack must find


@dataclass(frozen=True)
class Planted:
    """The number of planted examples, and the shares found by the attack and by ten random tries."""

    count: int
    share: float
    random_share: float

    @property
    def passed(self) -> bool:
        """Return whether the attack is reliable."""
        return self.share >= ENOUGH


def active_test(
    model: nn.Module, images: Tensor, *, epsilon: float, traits: GradientTraits | None = None
) -> Planted | None:
    """Plant an adversarial example around each of `images` (B, 1, H, W), and search for them with PGD.

    The attack handles the model by its `traits`, by default measured on these images.
    A last layer is a linear layer, convolution, einsum or sum that ends in a number for each class; None if torch sees
    none, or its features cannot separate the points.
    """
    traits = traits or probe_gradients(model, images)
    with preserve_state(model), torch.no_grad():
        torch.manual_seed(0)
        draws = STOCHASTIC_DRAWS if traits.random else 1
        call, width, margin = _find_readout(model, images)
        if call is None:
            return None
        count = max(16, min(_POINTS // draws, width // 2))
        random = torch.Generator().manual_seed(0)
        corners = _around(images, epsilon, 1, random, corner=True)[:, 0]
        pairs = zip(images, corners, strict=True)
        features = partial(_features, model, call, draws)
        fitted = [_fit(features, x, corner, epsilon, count, random) for x, corner in pairs]
        rows = [row for row, part in enumerate(fitted) if part is not None]
        if not rows:
            return None
        weights, biases = zip(*[part for part in fitted if part is not None], strict=True)
        clean, corners = images[rows], corners[rows]
    new = _NewReadout(model, call, torch.stack(weights), torch.stack(biases), margin)
    labels = torch.zeros(len(clean), dtype=torch.long, device=clean.device)
    sure = wrong_share(new, corners, labels, draws=draws) > 0.5  # adversarial after the rest of the model too
    if not bool(sure.any()):
        return None
    hits = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
    for variant in traits.variants(model):
        for steps in (_FEW_STEPS, STEPS):
            missed = (sure & ~hits).nonzero()[:, 0]
            if len(missed):
                part, x, y = new.select(missed), clean[missed], labels[missed]
                view = AttackView(part, draws=variant.draws, scale=variant.scale, bpda=variant.bpda)
                adversarial = pgd(view, x, y, epsilon=epsilon, steps=steps, seed=0)
                hits[missed] |= wrong_share(part, adversarial, y, draws=draws) > 0.5
    random_hits = torch.zeros_like(hits)
    for tries in _around(clean, epsilon, _FEW_STEPS, random, corner=True).unbind(1):
        random_hits |= wrong_share(new, tries, labels, draws=draws) > 0.5
    share = lambda mask: float(mask[sure].float().mean())  # noqa: E731
    return Planted(int(sure.sum()), share(hits), share(random_hits))


class _Call(NamedTuple):
    """The number of the call that is the last layer, among `every` calls for each part of a batch."""

    number: int
    every: int


class _Readout(TorchFunctionMode):
    """Records calls that may be the last layer, and applies `change` to features (B, F) and result of `call`."""

    def __init__(self, call: _Call | None = None, change: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.call, self.change = call, change
        self.candidates: list[tuple[str, Tensor, Tensor]] = []  # name, features and result of each, without a `call`
        self.count = 0
        self.parts: list[Tensor] = []  # the features of each part of a batch

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call, and replace its result if it is the last layer."""
        result = func(*args, **(kwargs or {}))
        name = plain_name(func)
        source = _source(name, args, result)
        if source is None:
            return result
        number, self.count = self.count, self.count + 1
        if self.call is not None and number % self.call.every != self.call.number:
            return result
        features = source.mean((2, 3)) if result.ndim == 4 and result[0, 0].numel() > 1 else source.flatten(1)
        if self.call is None:
            self.candidates.append((name, features, result))
        else:
            self.parts.append(features)
        return result if self.change is None else self.change(features, result)


def _source(name: str, args: tuple[Any, ...], result: Any) -> Tensor | None:
    """Return what a call computes numbers for each class (B, C) or maps of them from; None for any other call."""
    if not isinstance(result, Tensor) or result.ndim not in (2, 4):
        return None
    if result.ndim == 4:
        source = args[0] if name in _CONVOLUTIONS else None
    elif name in _LINEAR:
        source = args[_LINEAR[name]] if len(args) > _LINEAR[name] else None
    elif name == "einsum":
        operands = [part for part in tensors_in(args) if not isinstance(part, nn.Parameter)]
        source = next((part for part in operands if len(part) == len(result)), None)
    else:
        source = args[0] if name in _SUMS and args else None
        source = source if isinstance(source, Tensor) and source.ndim > 2 else None
    return source if isinstance(source, Tensor) and source.ndim > 1 and len(source) == len(result) else None


class _NewReadout(nn.Module):
    """The model with a new last layer for each image: class 0 is clean, 1 adversarial (that of a single output)."""

    def __init__(self, model: nn.Module, call: _Call, weights: Tensor, biases: Tensor, margin: float) -> None:
        super().__init__()
        self.model, self.call, self.margin = model, call, margin
        self.weights, self.biases = weights, biases  # (B, F), (B,)
        self.training = model.training

    def select(self, rows: Tensor) -> "_NewReadout":
        """Return the same for some of the images."""
        return _NewReadout(self.model, self.call, self.weights[rows], self.biases[rows], self.margin)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of images (B, 1, H, W), as many as were planted."""
        self.done = 0  # rows of the batch, if the model splits it
        with _Readout(self.call, self._replace):
            output = self.model(images)
        return torch.cat([-output / 2, output / 2], 1) if output.shape[1] == 1 else output

    def _replace(self, features: Tensor, original: Tensor) -> Tensor:
        # The last part may be padded, and the model drops the padded rows again.
        rows = torch.arange(self.done, self.done + len(features)).clamp(max=len(self.weights) - 1)
        self.done += len(features)
        score = ((features * self.weights[rows]).sum(1) + self.biases[rows]) * self.margin
        if original.shape[1] == 1:
            logits = score[:, None]
        else:
            others = (-score.abs() - self.margin).detach()
            logits = torch.stack([-score / 2, score / 2, *([others] * (original.shape[1] - 2))], 1)
        return logits.reshape(*logits.shape, *[1] * (original.ndim - 2)).expand(original.shape).to(original.dtype)


def _find_readout(model: nn.Module, images: Tensor) -> tuple[_Call | None, int, float]:
    """Return the call of the last layer (None without one), its number of features, and its margin."""
    size = getattr(model, "batch", None)
    with _Readout() as seen:
        count = model(images[:size]).shape[1]
    fitting = [
        number
        for number, (name, _, result) in enumerate(seen.candidates)
        if result.shape[1] == count or (name in _LINEAR and min(result.shape[1], count) > 1)
    ]
    if not fitting:
        return None, 0, 0.0
    _, features, result = seen.candidates[fitting[-1]]
    logits = result.float().flatten(2).mean(2) if result.ndim == 4 else result.float()
    top = torch.cat([logits, torch.zeros_like(logits)], 1) if logits.shape[1] == 1 else logits
    top = top.topk(2, dim=1).values
    call = _Call(fitting[-1], sys.maxsize if size is None else seen.count)
    return call, int(features.shape[1]), max(float((top[:, 0] - top[:, 1]).median()), 1e-6)


def _around(images: Tensor, epsilon: float, count: int, random: torch.Generator, *, corner: bool) -> Tensor:
    """Return points around each image (B, count, 1, H, W) on whole greys: corners of the ball, or uniform inside it."""
    noise = torch.rand((len(images), count, *images.shape[1:]), generator=random) * 2 - 1
    noise = noise.sign() if corner else noise * _INSIDE
    return round_inwards((images[:, None] + epsilon * noise.to(images)).clamp(0, 1), images[:, None])


def _features(model: nn.Module, call: _Call, draws: int, images: Tensor) -> Tensor:
    """Return the input of the last layer, (B, F), averaged over draws."""
    total = torch.zeros(())
    for _ in range(draws):
        rows = []
        for part in images.split(16):
            with _Readout(call) as seen:
                model(part)
            rows.append(torch.cat(seen.parts)[: len(part)].double())
        total = total.to(rows[0]) + torch.cat(rows)
    return total / draws


def _fit(
    measure: Features, image: Tensor, corner: Tensor, epsilon: float, count: int, random: torch.Generator
) -> tuple[Tensor, Tensor] | None:
    """Fit weights (F,) and a bias that separate the corner from `count` points inside; None if impossible."""
    inside = _around(image[None], epsilon, count - count // 2, random, corner=False)[0]
    corners = _around(image[None], _INSIDE * epsilon, count // 2, random, corner=True)[0]
    features = measure(torch.cat([image[None], inside, corners, corner[None]]))
    centre = features[:-1].mean(0)
    offsets = features - centre
    scale = offsets.norm(dim=1).mean().clamp(min=1e-12)
    gram = (offsets / scale) @ (offsets / scale).T
    targets = torch.zeros(len(features), dtype=torch.float64, device=features.device)
    targets[-1] = 1.0
    identity = torch.eye(len(features), dtype=torch.float64, device=features.device)
    for ridge in _RIDGES:
        weights = (offsets / scale).T @ torch.linalg.solve(gram + ridge * identity, targets) / scale
        scores = offsets @ weights
        highest, planted = scores[:-1].max(), scores[-1]
        if planted > highest + (_APART if ridge != _RIDGES[-1] else 1e-6):
            break
    else:
        return None
    half = (planted - highest) / 2
    threshold = highest + _THRESHOLD * (planted - highest)
    weights, bias = weights / half, -(threshold + centre @ weights) / half
    return weights.float(), bias.float()
