"""Gradients where a model stops them: stand-ins for steps, saturation and detours, found by tracing.

Backward pass differentiable approximation (Athalye et al. 2018, "Obfuscated gradients give a false sense of security"):
the forward pass is left exactly as it is, and where torch would stop the gradient an approximation lets it through.
Random models are averaged over draws (expectation over transformation, there too), and logits are brought to a scale at
which a loss can be taken of them.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trustcxr.models.preserve_state import preserve_state

STEPS = {
    "round",
    "floor",
    "ceil",
    "trunc",
    "fix",
    "sign",
    "sgn",
    "heaviside",
    "rint",
    "fake_quantize_per_tensor_affine",
}
SATURATING = {"tanh", "sigmoid", "clamp", "clip", "hardtanh", "hardsigmoid"}
_AWAY = {"numpy", "__array__", "tolist"}  # out of torch
_LEAK = 0.01  # slope that a saturating function has beside its own
_ALIKE = 0.5  # correlation from which a tensor is taken for one that went away
_SAME, _SMALL = 0.99, 64  # the correlation asked of tensors with fewer numbers than this, which are alike by accident
_KEPT = 128  # tensors that are remembered
_TINY = 1e-9
_LEAST = 0.05  # share of the slope of a picture that is left at a frequency which does not come through
_COARSE = slice(1, 4)  # rings of frequencies that say what comes through of the coarsest
_MARGINS = (0.02, 30.0)  # median margins between which a loss needs no help
_MARGIN = 5.0  # what the median margin becomes otherwise


class BPDA(TorchFunctionMode):
    """Lets gradients through a forward pass that runs inside. `found` counts, by name, what had to be stood in for.

    A step (rounding, sign) has the slope 1; a saturating function a little beside its own; a `detach` or `no_grad` is
    passed over. A tensor that leaves torch or becomes whole numbers is remembered, and one that comes back and is like
    it (correlation above 0.5) has the slope of the line between the two; of pictures, whose `sides` (H, W) are those of
    the images, the slope at each frequency, since JPEG by another library keeps the coarse and loses the fine, and an
    attack must not spend itself on that.
    """

    def __init__(self, sides: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.sides = tuple(sides)
        self._gone: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, and mend the way back where it stops."""
        kwargs = kwargs or {}
        name = _name(func)
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if func is torch._C._set_grad_enabled and not args[0]:
            self.found["no_grad"] += 1
            return func(True)
        if first is not None and _followed(first):
            if name in ("detach", "detach_") or func == torch.Tensor.data.__get__:  # type: ignore[attr-defined]
                self.found["detach"] += 1
                return first
            if name in _AWAY:
                self._remember(first)
                return func(first.detach(), *args[1:], **kwargs)
            if name.rstrip("_") in STEPS | SATURATING:
                return self._through(func, name, first, args, kwargs)
        elif first is not None and (back := self._back(first)) is not None:
            args = (back, *args[1:])
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor) or result.requires_grad:
            return result
        sources = [a for a in _tensors(args) if _followed(a)]
        if sources:
            self._remember(max(sources, key=Tensor.numel))
            return result
        back = self._back(result)
        return result if back is None else back

    def _through(self, func: Callable[..., Any], name: str, source: Tensor, args: Any, kwargs: Any) -> Any:
        """The function's own result, with a slope that does not vanish.

        In place it is done on a copy, which is written back: sigmoid and tanh need what they made on the way back, and
        the slope beside theirs needs what went in.
        """
        if name.endswith("_") or kwargs.get("inplace"):
            kwargs = {key: value for key, value in kwargs.items() if key != "inplace"}
            result = self._sloped(func, name.rstrip("_"), (source.clone(), *args[1:]), kwargs, source.clone())
            return source.copy_(result)
        return self._sloped(func, name, args, kwargs, source)

    def _sloped(self, func: Callable[..., Any], bare: str, args: Any, kwargs: Any, before: Tensor) -> Any:
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        if bare in STEPS:
            self.found[bare] += 1
            slope = 1.0
        else:
            if bare in ("clamp", "clip") and _one_sided(args, kwargs):
                return result
            slope = _LEAK
        straight = slope * (before - before.detach())
        # Of a step the own slope is 0 in torch; of an infinite input the difference is none.
        return result + torch.where(before.detach().isfinite(), straight, torch.zeros_like(straight))

    def _remember(self, tensor: Tensor) -> None:
        if tensor.numel() > 1:
            self._gone = [*self._gone[1 - _KEPT :], tensor]

    def _back(self, tensor: Tensor) -> Tensor | None:
        """The tensor tied to the one that went away and is most like it; None where there is none."""
        if not self._gone or isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
            return None
        if tensor.requires_grad or tensor.numel() < 2:
            return None
        best, slope, strength = None, 0.0, _ALIKE if tensor.numel() >= _SMALL else _SAME
        for gone in (gone for gone in reversed(self._gone) if gone.device == tensor.device):
            if gone.shape == tensor.shape or (
                gone.numel() == tensor.numel() and gone.squeeze().shape == tensor.squeeze().shape
            ):
                alike, tilt = _line(gone.detach().flatten().float(), tensor.flatten().float())
                if alike > strength:
                    best, slope, strength = gone, tilt, alike
        if best is None:
            return None
        self.found["detour"] += 1
        moved = (best - best.detach()).reshape(tensor.shape).to(tensor.dtype)  # nothing, but with a way back
        axis = _channels_last(tensor.shape, self.sides)
        if axis is None:
            return tensor + slope * moved
        before, after, back = (
            each.float().movedim(-1, axis) for each in (best.detach().reshape(tensor.shape), tensor, moved)
        )
        spread = torch.fft.irfft2(_gains(before, after, slope) * torch.fft.rfft2(back), s=self.sides)
        return tensor + spread.movedim(axis, -1).to(tensor.dtype)


def _name(func: Callable[..., Any]) -> str:
    packet = getattr(func, "overloadpacket", None)
    return str(getattr(packet or func, "__name__", ""))


def _followed(tensor: Tensor) -> bool:
    return tensor.requires_grad and tensor.is_floating_point() and not isinstance(tensor, nn.Parameter)


def _tensors(args: tuple[Any, ...]) -> list[Tensor]:
    flat = [t for a in args for t in (a if isinstance(a, list | tuple) else (a,))]
    return [t for t in flat if isinstance(t, Tensor)]


def _one_sided(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """A clamp from one side alone is a rectifier, whose zero slope is its own."""
    ends = [*args[1:3], kwargs.get("min"), kwargs.get("max")]
    return sum(end is not None for end in ends) < 2


def _line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Correlation of two tensors (N,), and the slope of y over x; 0 where one of them is the same everywhere."""
    x, y = x - x.mean(), y - y.mean()
    spread, other, shared = float(x.square().sum()), float(y.square().sum()), float((x * y).sum())
    if not (spread > 0 and other > 0 and math.isfinite(shared)):
        return 0.0, 0.0
    return shared / math.sqrt(spread * other), shared / spread


def _channels_last(shape: Sequence[int], sides: Sequence[int]) -> int | None:
    """Where the last axis of pictures belongs for their sides to be last: -1 where they are, -3 of (..., H, W, C).

    None for what is no picture: other sides, or more channels than a picture has.
    """
    if not sides:
        return None
    if tuple(shape[-2:]) == tuple(sides) and (len(shape) < 4 or shape[-3] in (1, 3)):
        return -1
    return -3 if tuple(shape[-3:-1]) == tuple(sides) and shape[-1] in (1, 3) else None


def _gains(x: Tensor, y: Tensor, slope: float) -> Tensor:
    """The slope of pictures y over pictures x (..., H, W) at each frequency (..., H, W // 2 + 1), alike in every way.

    The transfer function of a linear filter between the two, from their cross spectrum, averaged over rings. What is
    far from that of the coarsest is chance. A picture that says nothing of it (it is flat, or came back as its own
    contrary) has `slope`, that of all together, at every frequency: no frequency is left without any.
    """
    height, width = x.shape[-2:]
    before, after = (torch.fft.rfft2(each - each.mean((-2, -1), keepdim=True)) for each in (x, y))
    down, along = torch.fft.fftfreq(height, device=x.device), torch.fft.rfftfreq(width, device=x.device)
    ring = (torch.hypot(down[:, None], along) * min(height, width)).round().long().flatten()
    shared, own = (
        torch.zeros(*x.shape[:-2], int(ring.max()) + 1, device=x.device).index_add(-1, ring, one.flatten(-2))
        for one in ((after * before.conj()).real, before.abs().square())
    )
    coarsest = shared[..., _COARSE].sum(-1, keepdim=True) / own[..., _COARSE].sum(-1, keepdim=True).clamp_min(_TINY)
    slopes = torch.cat([coarsest, shared[..., 1:] / own[..., 1:].clamp_min(_TINY)], dim=-1)
    slopes = slopes.clamp_min(_LEAST * slope).minimum(2 * coarsest.clamp_min(slope))
    slopes = torch.where(coarsest > _LEAST * slope, slopes, slope)
    return slopes[..., ring].unflatten(-1, before.shape[-2:])


class AttackView(nn.Module):
    """A model as an attack should see it: its answers averaged over draws and scaled, with gradients that lead on.

    `draws`: forward passes that are averaged. `scale`: what logits are divided by. `stand_ins`: whether gradients are
    let through where the model stops them. Judge what an attack finds on the model itself.
    """

    def __init__(self, model: nn.Module, *, draws: int = 1, scale: float = 1.0, stand_ins: bool = False) -> None:
        super().__init__()
        self.model, self.draws, self.scale, self.stand_ins = model, draws, scale, stand_ins
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W) in [0, 1] -> logits (B, C), averaged over draws and scaled."""
        total = self._once(images)
        for _ in range(self.draws - 1):
            total = total + self._once(images)
        return total / (self.draws * self.scale)

    def _once(self, images: Tensor) -> Tensor:
        if not (self.stand_ins and torch.is_grad_enabled() and images.requires_grad):
            return self.model(images)
        with BPDA(images.shape[-2:]):
            return self.model(images)


@dataclass(frozen=True)
class GradientTraits:
    """What a model does that an attack must know of.

    random: its answers change from run to run. draws: passes to average over. margin: median difference of its two
    highest logits. scale: what to divide logits by. zero_gradients, broken_gradients: share of images whose gradient is
    zero everywhere, or has a NaN or an infinity. healed: the same with stand-ins. stopped: what stops gradients in it,
    and how often a pass meets it.
    """

    random: bool
    draws: int
    margin: float
    scale: float
    zero_gradients: float
    broken_gradients: float
    healed: float
    stopped: dict[str, int]

    @property
    def needs_stand_ins(self) -> bool:
        """Whether its own gradients are not the whole truth."""
        return bool(self.stopped) or self.zero_gradients > 0.02 or self.broken_gradients > 0

    def variants(self, model: nn.Module) -> list[AttackView]:
        """The ways in which an attack should see the model, the plain one first."""
        plain = AttackView(model, draws=self.draws, scale=self.scale)
        if not self.needs_stand_ins:
            return [plain]
        through = AttackView(model, draws=self.draws, scale=self.scale, stand_ins=True)
        return [through] if self.zero_gradients > 0.98 else [plain, through]


REPEATS = 8  # passes that show whether a model is random


def probe_gradients(model: nn.Module, images: Tensor, *, random: bool = True) -> GradientTraits:
    """What an attack must know of the model, from some images (B, 1, H, W) in [0, 1]; the model is left as it was.

    `random`: False where it is known already that it answers the same each time, which saves looking.
    """
    with preserve_state(model):
        torch.manual_seed(0)
        with torch.no_grad():
            answers = torch.stack([model(images).float() for _ in range(REPEATS if random else 1)])
        margins = _margins(answers)
        typical = float(margins.mean(0).abs().median())
        random = bool((answers.amax(0) - answers.amin(0)).max() > 1e-4 * max(1.0, float(answers.abs().max())))
        draws = _draws(float(margins.std(0).median()) / max(typical, 1e-12)) if random else 1
        scale = 1.0 if typical == 0 or _MARGINS[0] <= typical <= _MARGINS[1] else typical / _MARGIN
        zero, broken, _ = _gradients(AttackView(model, scale=scale), images)
        healed, _, stopped = _gradients(AttackView(model, scale=scale, stand_ins=True), images)
    return GradientTraits(random, draws, typical, scale, zero, broken, healed, stopped)


def _draws(spread: float) -> int:
    """How many draws to average over, by how widely margins spread over draws, in typical margins."""
    return min(32, max(8, math.ceil((4 * spread) ** 2)))


def _margins(answers: Tensor) -> Tensor:
    """The highest logit on average less the next, in each pass: (R, B) of (R, B, C). Of one output, its own value."""
    if answers.shape[-1] == 1:
        return answers[..., 0]
    places = answers.mean(0).topk(2, dim=1).indices
    both = answers.gather(2, places.expand(len(answers), -1, -1))
    return both[..., 0] - both[..., 1]


def _gradients(model: AttackView, images: Tensor) -> tuple[float, float, dict[str, int]]:
    """Share of images with a zero gradient of the margin, share with a NaN or infinity, and what was stood in for."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = images.detach().clone().requires_grad_(True)
        if model.stand_ins:
            with BPDA(leaf.shape[-2:]) as mode:
                logits = model.model(leaf) / model.scale
            found = dict(mode.found)
        else:
            logits, found = model(leaf), {}
        if not logits.requires_grad:
            return 1.0, 0.0, found
        top = logits.topk(min(2, logits.shape[1]), dim=1).values
        margin = top[:, 0] - top[:, 1] if top.shape[1] == 2 else top[:, 0]
        (gradient,) = torch.autograd.grad(margin.sum(), leaf, allow_unused=True)
    if gradient is None:
        return 1.0, 0.0, found
    flat = gradient.flatten(1)
    finite = flat.isfinite().all(1)
    return float((flat.abs().amax(1) == 0).float().mean()), float((~finite).float().mean()), found
