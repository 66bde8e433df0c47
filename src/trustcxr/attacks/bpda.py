"""Let gradients through the places at which a model stops them (BPDA), and average random models over draws.

Athalye et al. 2018 ("Obfuscated gradients give a false sense of security"). The forward pass keeps its values; an
approximation replaces the gradient that torch would stop. Random models are averaged over draws (EOT, same paper), and
logits are scaled so that the loss does not saturate.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trustcxr.attacks.base import computes_in_bfloat16, input_gradient, logits_of, lowered
from trustcxr.models.preserve_state import preserve_state

STEPS = {"round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside", "rint"} | {
    "fake_quantize_per_tensor_affine"
}
SATURATING = {"tanh", "sigmoid", "clamp", "clip", "hardtanh", "hardsigmoid"}
_AWAY = {"numpy", "__array__", "tolist"}  # out of torch
_LEAK = 0.01  # slope added to a saturating function's own
_CORRELATED = 0.5  # least correlation of a tensor with a remembered one
_CORRELATED_SMALL, _SMALL = 0.99, 64  # the same below so many numbers, which may correlate by accident
_REMEMBERED = 128  # most tensors remembered
_TINY = 1e-9
_LEAST = 0.05  # share of the slope left at a frequency that a picture loses
_COARSE = slice(1, 4)  # rings of the coarsest frequencies
_MARGINS = (0.02, 30.0)  # median margins that need no scaling
_MARGIN = 5.0  # median margin after scaling
REPEATS = 8  # passes that show whether a model is random
_FEW, _RADIUS = 16, 0.02  # images of that comparison, and their random change


class BPDA(TorchFunctionMode):
    """Context in which gradients pass the steps of a forward pass; `stopped` counts the approximated functions by name.

    A step (rounding, sign) gets slope 1, a saturating function a small slope more than its own. `detach` and `no_grad`
    are ignored. A tensor that leaves torch or becomes integer is remembered. A later tensor that correlates with it
    (above 0.5) gets the slope of the line between the two. For pictures of `sides` (H, W) it gets the slope at each
    frequency: JPEG keeps coarse detail and loses fine, and an attack must not waste itself on that.
    """

    def __init__(self, sides: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.stopped: Counter[str] = Counter()
        self.sides = tuple(sides)
        self._sources: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, and restore the gradient if it stops there."""
        kwargs = kwargs or {}
        name = plain_name(func)
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if func is torch._C._set_grad_enabled and not args[0]:
            self.stopped["no_grad"] += 1
            return func(True)
        if first is not None and _followed(first):
            if name in ("detach", "detach_") or func == torch.Tensor.data.__get__:  # type: ignore[attr-defined]
                self.stopped["detach"] += 1
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
        sources = [a for a in tensors_in(args) if _followed(a)]
        if sources:
            self._remember(max(sources, key=Tensor.numel))
            return result
        back = self._back(result)
        return result if back is None else back

    def _through(self, func: Callable[..., Any], name: str, source: Tensor, args: Any, kwargs: Any) -> Any:
        """Return the function's own result, with a slope that does not vanish."""
        # An in-place function runs on a copy, as sigmoid and tanh need their output for the gradient.
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
            self.stopped[bare] += 1
            slope = 1.0
        else:
            if bare in ("clamp", "clip") and _one_sided(args, kwargs):
                return result
            slope = _LEAK
        straight = slope * (before - before.detach())
        # torch gives a step slope 0. An infinite input has no difference.
        return result + torch.where(before.detach().isfinite(), straight, torch.zeros_like(straight))

    def _remember(self, tensor: Tensor) -> None:
        if tensor.numel() > 1:
            self._sources = [*self._sources[1 - _REMEMBERED :], tensor]

    def _back(self, tensor: Tensor) -> Tensor | None:
        """Tie a tensor to the remembered one that it resembles most; None without any."""
        known = isinstance(tensor, nn.Parameter) or tensor.requires_grad
        if not self._sources or known or not tensor.is_floating_point() or tensor.numel() < 2:
            return None
        best, slope, strength = None, 0.0, _CORRELATED if tensor.numel() >= _SMALL else _CORRELATED_SMALL
        for source in reversed(self._sources):
            if source.device == tensor.device and source.squeeze().shape == tensor.squeeze().shape:
                correlation, tilt = _line(source.detach().flatten().float(), tensor.flatten().float())
                if correlation > strength:
                    best, slope, strength = source, tilt, correlation
        if best is None:
            return None
        self.stopped["detour"] += 1
        moved = (best - best.detach()).reshape(tensor.shape).to(tensor.dtype)  # zero, but with a gradient
        axis = _channels_last(tensor.shape, self.sides)
        if axis is None:
            return tensor + slope * moved
        before, after, back = (
            each.float().movedim(-1, axis) for each in (best.detach().reshape(tensor.shape), tensor, moved)
        )
        spread = torch.fft.irfft2(_gains(before, after, slope) * torch.fft.rfft2(back), s=self.sides)
        return tensor + spread.movedim(axis, -1).to(tensor.dtype)


def plain_name(func: Callable[..., Any]) -> str:
    """Return the name of a torch function without its overload: softmax for aten.softmax.int."""
    packet = getattr(func, "overloadpacket", None) or func
    return str(getattr(packet, "_opname", None) or getattr(packet, "__name__", ""))


def _followed(tensor: Tensor) -> bool:
    return tensor.requires_grad and tensor.is_floating_point() and not isinstance(tensor, nn.Parameter)


def tensors_in(args: tuple[Any, ...]) -> list[Tensor]:
    """Return the tensors among arguments and in their lists."""
    return [part for a in args for part in (a if isinstance(a, list | tuple) else (a,)) if isinstance(part, Tensor)]


def _one_sided(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a clamp has one end: it is a rectifier and keeps its zero slope."""
    ends = [*args[1:3], kwargs.get("min"), kwargs.get("max")]
    return sum(end is not None for end in ends) < 2


def _line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the correlation of two tensors (N,), and the slope of y over x; 0 if one of them is constant."""
    x, y = x - x.mean(), y - y.mean()
    spread, other, shared = float(x.square().sum()), float(y.square().sum()), float((x * y).sum())
    if not (spread > 0 and other > 0 and math.isfinite(shared)):
        return 0.0, 0.0
    return shared / math.sqrt(spread * other), shared / spread


def _channels_last(shape: Sequence[int], sides: Sequence[int]) -> int | None:
    """Return the axis that makes pictures end in their sides: -1, or -3 for (..., H, W, C); None for no picture."""
    if not sides:
        return None
    if tuple(shape[-2:]) == tuple(sides) and (len(shape) < 4 or shape[-3] in (1, 3)):
        return -1
    return -3 if tuple(shape[-3:-1]) == tuple(sides) and shape[-1] in (1, 3) else None


def _gains(x: Tensor, y: Tensor, slope: float) -> Tensor:
    """Return the slope of pictures y over x (..., H, W) at each frequency (..., H, W // 2 + 1), as a mean over rings.

    It is the transfer function of a linear filter from x to y, from their cross spectrum. Values far from that of the
    coarsest rings are chance and clamped. A picture without information (flat, or negated) gets `slope` at every
    frequency.
    """
    height, width = x.shape[-2:]
    before, after = (torch.fft.rfft2(each - each.mean((-2, -1), keepdim=True)) for each in (x, y))
    down, along = torch.fft.fftfreq(height, device=x.device), torch.fft.rfftfreq(width, device=x.device)
    ring = (torch.hypot(down[:, None], along) * min(height, width)).round().long().flatten()
    shared, power = (
        torch.zeros(*x.shape[:-2], int(ring.max()) + 1, device=x.device).index_add(-1, ring, one.flatten(-2))
        for one in ((after * before.conj()).real, before.abs().square())
    )
    coarsest = shared[..., _COARSE].sum(-1, keepdim=True) / power[..., _COARSE].sum(-1, keepdim=True).clamp_min(_TINY)
    slopes = torch.cat([coarsest, shared[..., 1:] / power[..., 1:].clamp_min(_TINY)], dim=-1)
    slopes = slopes.clamp_min(_LEAST * slope).minimum(2 * coarsest.clamp_min(slope))
    slopes = torch.where(coarsest > _LEAST * slope, slopes, slope)
    return slopes[..., ring].unflatten(-1, before.shape[-2:])


class AttackView(nn.Module):
    """A model as an attack sees it: outputs averaged over `draws` passes and divided by `scale`.

    `bpda`: let gradients through where the model stops them. Judge the attack's images on the model itself.
    """

    def __init__(self, model: nn.Module, *, draws: int = 1, scale: float = 1.0, bpda: bool = False) -> None:
        super().__init__()
        self.model, self.draws, self.scale, self.bpda = model, draws, scale, bpda
        self.stopped: Counter[str] = Counter()  # with `bpda`: functions that stopped gradients in the last pass
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 1, H, W) in [0, 1] to logits (B, C), averaged over draws and scaled."""
        first, *others = [self._once(images) for _ in range(self.draws)]
        return sum(others, start=first) / (self.draws * self.scale)

    def _once(self, images: Tensor) -> Tensor:
        if not (self.bpda and torch.is_grad_enabled() and images.requires_grad):
            return self.model(images)
        with BPDA(images.shape[-2:]) as mode:
            logits = self.model(images)
        self.stopped = mode.stopped
        return logits


@dataclass(frozen=True)
class GradientTraits:
    """Properties of a model that an attack must know."""

    random: bool  # outputs change from call to call
    draws: int  # passes to average over
    margin: float  # median difference of the two highest logits
    scale: float  # divisor of the logits
    zero_gradients: float  # share of images with a gradient that is zero everywhere
    broken_gradients: float  # share of images with a gradient that has a NaN or an infinity
    healed: float  # zero_gradients with BPDA
    stopped: dict[str, int]  # functions that stop gradients, with the number of calls in a pass
    bfloat16: bool = False  # attacks may search in bfloat16 (`agrees_in_bfloat16`)

    @property
    def plain(self) -> bool:
        """Return whether an attack needs no adaptation to the model."""
        return not (self.random or self.scale != 1 or self.needs_bpda)

    @property
    def needs_bpda(self) -> bool:
        """Return whether the model's own gradients are incomplete."""
        return bool(self.stopped) or self.zero_gradients > 0.02 or self.broken_gradients > 0

    def variants(self, model: nn.Module) -> list[AttackView]:
        """Return the views of the model to attack, the plain one first."""
        plain = AttackView(model, draws=self.draws, scale=self.scale)
        if not self.needs_bpda:
            return [plain]
        through = AttackView(model, draws=self.draws, scale=self.scale, bpda=True)
        return [through] if self.zero_gradients > 0.98 else [plain, through]


def probe_gradients(model: nn.Module, images: Tensor, *, random: bool = True, sigmoids: bool = False) -> GradientTraits:
    """Probe the gradients of a model on images (B, 1, H, W) in [0, 1]; its state is preserved.

    `random`: False skips the test for a random model, if it is known not to be one. `sigmoids`: each logit is a finding
    of its own, else what all share changes no answer.
    """
    with preserve_state(model):
        torch.manual_seed(0)
        with torch.no_grad():
            answers = torch.stack([model(images).float() for _ in range(REPEATS if random else 1)])
        margins, centred = _margins(answers), answers if sigmoids else centre(answers)
        typical = float(margins.mean(0).abs().median())
        random = bool((centred.amax(0) - centred.amin(0)).max() > 1e-4 * max(1.0, float(centred.abs().max())))
        spread = float(margins.std(0).median()) / max(typical, 1e-12) if random else 0.0  # in typical margins
        draws = min(32, max(8, math.ceil((4 * spread) ** 2))) if random else 1
        scale = 1.0 if typical == 0 or _MARGINS[0] <= typical <= _MARGINS[1] else typical / _MARGIN
        zero, broken, _ = _gradients(AttackView(model, scale=scale), images)
        healed, _, stopped = _gradients(AttackView(model, scale=scale, bpda=True), images)
        traits = GradientTraits(random, draws, typical, scale, zero, broken, healed, stopped)
        few = images[:_FEW]
        noise = torch.rand(few.shape, generator=torch.Generator().manual_seed(0)).to(few) - 0.5
        both = torch.cat([few, (few + _RADIUS * noise.sign()).clamp(0, 1)])
        return replace(traits, bfloat16=traits.plain and agrees_in_bfloat16(model, both))


def centre(logits: Tensor) -> Tensor:
    """Return logits (..., C) less their mean: what all share changes no answer. A single one is left as it is."""
    return logits - logits.mean(-1, keepdim=True) if logits.shape[-1] > 1 else logits


def agrees_in_bfloat16(model: nn.Module, images: Tensor, *, shift: float = 0.05, same_signs: float = 0.8) -> bool:
    """Return whether bfloat16 changes logits and gradients of a model on images (B, 1, H, W), but only a little.

    No logit, less the mean of its image, may move by more than `shift` of a typical largest one, with and without a
    gradient. At least `same_signs` of the gradients must keep their sign. False also if the processor does not compute
    in bfloat16, or the model raises an error in it.
    """
    if not computes_in_bfloat16(images.device.type):
        return False
    try:
        logits = logits_of(model, images)
        labels = logits.argmax(1)
        gradient, _ = input_gradient(model, images, labels)
        with lowered("bf16", images):
            lower_gradient, followed = input_gradient(model, images, labels)
            plain = logits_of(model, images)
    except Exception:  # an external module may raise anything
        return False
    largest = (logits - logits.mean(1, keepdim=True)).abs().amax(1).median()
    shifts = torch.stack([followed.float(), plain]) - logits
    most = (shifts - shifts.mean(2, keepdim=True)).abs().max()
    same = (gradient.sign() == lower_gradient.sign()).float().mean()
    return bool((most > 0) & (most <= shift * largest) & (same >= same_signs))


def _margins(answers: Tensor) -> Tensor:
    """Return the logit that is highest on average minus the next: (R, B, C) -> (R, B); a single output as it is."""
    if answers.shape[-1] == 1:
        return answers[..., 0]
    top_two = answers.mean(0).topk(2, dim=1).indices
    both = answers.gather(2, top_two.expand(len(answers), -1, -1))
    return both[..., 0] - both[..., 1]


def _gradients(model: AttackView, images: Tensor) -> tuple[float, float, dict[str, int]]:
    """Return the share of images whose margin has a zero gradient, the share with a NaN, and the stopped functions."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = images.detach().clone().requires_grad_(True)
        logits, gradient = model(leaf), None
        stopped = dict(model.stopped)
        if logits.requires_grad:
            top = logits.topk(min(2, logits.shape[1]), dim=1).values
            margin = top[:, 0] - top[:, 1] if top.shape[1] == 2 else top[:, 0]
            (gradient,) = torch.autograd.grad(margin.sum(), leaf, allow_unused=True)
    if gradient is None:
        return 1.0, 0.0, stopped
    flat = gradient.flatten(1)
    finite = flat.isfinite().all(1)
    return float((flat.abs().amax(1) == 0).float().mean()), float((~finite).float().mean()), stopped
