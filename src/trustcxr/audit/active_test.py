"""Would the attack find an adversarial example that is sure to exist?

Zimmermann et al. 2022 ("Increasing confidence in adversarial robustness evaluations"): around an image, points inside
the
ball of radius epsilon are called clean and one of its corners adversarial, and a new last layer is fitted that tells
them apart by the model's own features. All else of the model is as it was, its defences too. An attack that does not
find its way to the adversarial side says nothing about the model.

That holds where an attack can find its way on an honest model. So the last layer is the smoothest of a few that tells
the points clearly apart: one that passes through each of them climbs and falls between them, and strong attacks end on
a hill of it. And half of the clean points are corners too, of a smaller ball: else some corners that nobody planted are
told as adversarial, by how far out they lie.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trustcxr.attacks.adaptive import wrong_share
from trustcxr.attacks.bpda import AttackView, GradientTraits, probe_gradients
from trustcxr.attacks.pgd import pgd
from trustcxr.models.preserve_state import preserve_state
from trustcxr.registry import STOCHASTIC_DRAWS

_READOUTS = {"linear": 0, "addmm": 1, "matmul": 0, "mm": 0}  # where the features stand among the arguments
_INSIDE = 0.9  # of the radius: how far points that are called clean lie out
_RIDGES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # of the points' mean distance, squared: the smoothest comes first
_APART = 0.1  # of the planted score above the highest clean one, to be 1 and 0; of the last ridge 1e-6 will do
_THRESHOLD = 0.7  # of the way from the highest clean score to the adversarial one
ENOUGH = 0.95  # share of planted examples that an attack must find


@dataclass(frozen=True)
class Planted:
    """What became of the planted examples: how many, the share found by the attack, and by as many random tries."""

    count: int
    found: float
    by_chance: float

    @property
    def passed(self) -> bool:
        """Whether the attack can be believed."""
        return self.found >= ENOUGH


def active_test(
    model: nn.Module,
    images: Tensor,
    *,
    epsilon: float,
    traits: GradientTraits | None = None,
    variants: Sequence[nn.Module] | None = None,
    points: int = 200,
    steps: int = 40,
    seed: int = 0,
) -> Planted | None:
    """Plant an adversarial example around each of `images` (B, 1, H, W), and see whether PGD finds them.

    The attack looks at the model as `traits` say (found on these images unless given): through stand-ins, over draws.
    `variants` are other ways to look, in their place. None where the model has no last layer that torch can see, or
    its features cannot tell the points apart.
    """
    traits = traits or probe_gradients(model, images)
    with preserve_state(model), torch.no_grad():
        torch.manual_seed(seed)
        draws = STOCHASTIC_DRAWS if traits.random else 1
        place, width, margin = _readout(model, images)
        if place is None:
            return None
        count = max(16, min(points // draws, width // 2))
        random = torch.Generator().manual_seed(seed)
        corners = _around(images, epsilon, 1, random, corner=True)[:, 0]
        ends = zip(images, corners, strict=True)
        fitted = [_fit(model, place, x, corner, epsilon, (count, draws), random) for x, corner in ends]
        kept = [row for row, part in enumerate(fitted) if part is not None]
        if not kept:
            return None
        weights, biases = zip(*[part for part in fitted if part is not None], strict=True)
        radiographs, corners = images[kept], corners[kept]
    new = _NewReadout(model, place, torch.stack(weights), torch.stack(biases), margin)
    labels = torch.zeros(len(radiographs), dtype=torch.long, device=radiographs.device)
    sure = wrong_share(new, corners, labels, draws=draws) > 0.5  # what the rest of the model makes of them
    if not bool(sure.any()):
        return None
    found = torch.zeros(len(radiographs), dtype=torch.bool, device=radiographs.device)
    for variant in variants or traits.variants(model):
        seen = _as(variant, new)
        tried = pgd(seen, radiographs, labels, epsilon=epsilon, steps=steps, seed=seed)
        found |= wrong_share(new, tried, labels, draws=draws) > 0.5
    chance = torch.zeros_like(found)
    for tried in _around(radiographs, epsilon, steps, random, corner=True).unbind(1):
        chance |= wrong_share(new, tried, labels, draws=draws) > 0.5
    share = lambda hits: float(hits[sure].float().mean())  # noqa: E731
    return Planted(int(sure.sum()), share(found), share(chance))


def _as(variant: nn.Module, new: nn.Module) -> nn.Module:
    """The planted model, looked at as `variant` looks at the model."""
    if isinstance(variant, AttackView):
        return AttackView(new, draws=variant.draws, scale=variant.scale, stand_ins=variant.stand_ins)
    return new


class _Place(NamedTuple):
    """Which call is the last layer; of how many in each part, where a model works a batch off in parts (else 0)."""

    call: int
    every: int

    def is_at(self, call: int) -> bool:
        return (call % self.every if self.every else call) == self.call


class _Readout(TorchFunctionMode):
    """Watches calls that make (B, C) from features (B, F); at `place` it hands the features to `change`."""

    def __init__(self, place: _Place | None = None, change: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.place, self.change = place, change
        self.calls = 0
        self.last: int | None = None
        self.parts: list[Tensor] = []  # the features of each part of a batch
        self.answer = torch.empty(0)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let the call through, or put another answer in its place."""
        result = func(*args, **(kwargs or {}))
        packet = getattr(func, "overloadpacket", None)
        where = _READOUTS.get(str(getattr(packet or func, "__name__", "")))
        if where is None or not isinstance(result, Tensor) or result.ndim != 2 or len(args) <= where:
            return result
        self.last, self.calls = self.calls, self.calls + 1
        if self.place is None or self.place.is_at(self.last):
            self.parts = [*([] if self.place is None else self.parts), args[where]]
            self.answer = result
            if self.change is not None:
                return self.change(args[where], result)
        return result


class _NewReadout(nn.Module):
    """The model with another last layer for each image of the batch: class 0 is clean, class 1 adversarial.

    Of a model of one answer (B, 1), such as the logit of one finding, that is the logit of class 1.
    """

    def __init__(self, model: nn.Module, place: _Place, weights: Tensor, biases: Tensor, margin: float) -> None:
        super().__init__()
        self.model, self.place, self.margin = model, place, margin
        self.weights, self.biases = weights, biases  # (B, F), (B,)
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W), the same number as were planted -> what the model makes of the new logits (B, C)."""
        self.done = 0  # rows of the batch, where the model works it off in parts
        with _Readout(self.place, self._answer):
            answer = self.model(images)
        return torch.cat([-answer / 2, answer / 2], 1) if answer.shape[1] == 1 else answer

    def _answer(self, features: Tensor, before: Tensor) -> Tensor:
        # A last part that is not full is filled up, and what is answered of the rest is left out again.
        rows = torch.arange(self.done, self.done + len(features)).clamp(max=len(self.weights) - 1)
        self.done += len(features)
        score = ((features * self.weights[rows]).sum(1) + self.biases[rows]) * self.margin
        if before.shape[1] == 1:
            return score[:, None].to(before.dtype)
        others = (-score.abs() - self.margin).detach()
        rest = [others] * (before.shape[1] - 2)
        return torch.stack([-score / 2, score / 2, *rest], 1).to(before.dtype)


def _readout(model: nn.Module, images: Tensor) -> tuple[_Place | None, int, float]:
    """Which call is the last layer (None without one), how many features it reads, its margin."""
    size = getattr(model, "batch", None)
    with _Readout() as seen:
        answer = model(images[:size])
    features = seen.parts[-1] if seen.parts else torch.empty(0)
    if seen.last is None or features.ndim != 2 or (answer.shape[1] == 1) != (seen.answer.shape[1] == 1):
        return None, 0, 0.0
    before = seen.answer.float()
    top = torch.cat([before, torch.zeros_like(before)], 1) if before.shape[1] == 1 else before
    top = top.topk(2, dim=1).values
    place = _Place(seen.last, 0 if size is None else seen.calls)
    return place, int(features.shape[1]), max(float((top[:, 0] - top[:, 1]).median()), 1e-6)


def _around(images: Tensor, epsilon: float, count: int, random: torch.Generator, *, corner: bool) -> Tensor:
    """Points around each image (B, count, 1, H, W): corners of the ball, or evenly from inside it; in [0, 1]."""
    noise = torch.rand((len(images), count, *images.shape[1:]), generator=random) * 2 - 1
    noise = noise.sign() if corner else noise * _INSIDE
    return (images[:, None] + epsilon * noise.to(images)).clamp(0, 1)


def _features(model: nn.Module, place: _Place, images: Tensor, draws: int) -> Tensor:
    """What the last layer reads of the images, (B, F), on average over draws."""
    total = torch.zeros(())
    for _ in range(draws):
        rows = []
        for part in images.split(64):
            with _Readout(place) as seen:
                model(part)
            rows.append(torch.cat(seen.parts)[: len(part)].double())
        total = total.to(rows[0]) + torch.cat(rows)
    return total / draws


def _fit(
    model: nn.Module,
    place: _Place,
    image: Tensor,
    corner: Tensor,
    epsilon: float,
    points: tuple[int, int],
    random: torch.Generator,
) -> tuple[Tensor, Tensor] | None:
    """Weights (F,) and bias that call the corner adversarial and the points inside clean; None where they cannot.

    `points`: how many, and over how many draws their features are averaged.
    """
    within = points[0] // 2
    inside = torch.cat(
        [
            _around(image[None], epsilon, points[0] - within, random, corner=False)[0],
            _around(image[None], _INSIDE * epsilon, within, random, corner=True)[0],
        ]
    )
    features = _features(model, place, torch.cat([image[None], inside, corner[None]]), points[1])
    centre = features[:-1].mean(0)
    apart = features - centre
    scale = apart.norm(dim=1).mean().clamp(min=1e-12)
    gram = (apart / scale) @ (apart / scale).T
    wanted = torch.zeros(len(features), dtype=torch.float64, device=features.device)
    wanted[-1] = 1.0
    one = torch.eye(len(features), dtype=torch.float64, device=features.device)
    for ridge in _RIDGES:
        weights = (apart / scale).T @ torch.linalg.solve(gram + ridge * one, wanted) / scale
        scores = apart @ weights
        highest, planted = scores[:-1].max(), scores[-1]
        if planted > highest + (_APART if ridge != _RIDGES[-1] else 1e-6):
            break
    else:
        return None
    half = (planted - highest) / 2
    threshold = highest + _THRESHOLD * (planted - highest)
    weights, bias = weights / half, -(threshold + centre @ weights) / half
    return weights.float(), bias.float()
