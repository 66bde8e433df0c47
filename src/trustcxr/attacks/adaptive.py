"""Attack a model according to its defence (Tramer et al. 2020, "On adaptive attacks to adversarial example defenses").

BPDA lets gradients through the places at which a model stops them: the forward pass keeps its values, an approximation
replaces the gradient (Athalye et al. 2018, "Obfuscated gradients give a false sense of security"). Random models are
averaged over draws (EOT, same paper), and logits are scaled so that the loss does not saturate. A surrogate is another
model, or a small network distilled from this one (Papernot et al. 2017). The model itself judges every candidate.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trustcxr.attacks import base
from trustcxr.attacks.apgd import apgd
from trustcxr.attacks.pgd import pgd, round_inwards
from trustcxr.attacks.square import square
from trustcxr.errors import UserError
from trustcxr.models.evidence_networks import convolve
from trustcxr.models.preserve_state import preserve_state
from trustcxr.registry import STOCHASTIC_DRAWS

STEPS = {"round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside", "rint"}
STEPS |= {"fake_quantize_per_tensor_affine"}
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
LONGER, CLIMBS = 10, 6  # with approximate gradients: factor of steps, and most repeats while they help
_SEED = 977  # not that of the final judgement: candidates must not be selected on its draws
_WIDTHS = (16, 32, 64, 96)  # channels of the blocks of a distilled network


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
        ends = [*args[1:3], kwargs.get("min"), kwargs.get("max")]
        if bare in ("clamp", "clip") and sum(end is not None for end in ends) < 2:
            return result  # a rectifier, which keeps its zero slope
        if bare in STEPS:
            self.stopped[bare] += 1
        straight = (1.0 if bare in STEPS else _LEAK) * (before - before.detach())
        # torch gives a step slope 0. An infinite input has no difference.
        return result + torch.where(before.detach().isfinite(), straight, torch.zeros_like(straight))

    def _remember(self, tensor: Tensor) -> None:
        if tensor.numel() > 1:
            self._sources = [*self._sources[1 - _REMEMBERED :], tensor]

    def _back(self, tensor: Tensor) -> Tensor | None:
        """Tie a tensor to the remembered one that it resembles most; None without any."""
        has_gradient = isinstance(tensor, nn.Parameter) or tensor.requires_grad
        if not self._sources or has_gradient or not tensor.is_floating_point() or tensor.numel() < 2:
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
        pictures = (best.detach().reshape(tensor.shape), tensor, moved)
        before, after, back = (each.float().movedim(-1, axis) for each in pictures)
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
        views = [AttackView(model, draws=self.draws, scale=self.scale, bpda=bpda) for bpda in (False, True)]
        return views[:1] if not self.needs_bpda else views[1:] if self.zero_gradients > 0.98 else views


def probe_gradients(
    model: nn.Module, images: Tensor, *, random: bool = True, sigmoids: bool = False, bfloat16: bool | None = None
) -> GradientTraits:
    """Probe the gradients of a model on images (B, 1, H, W) in [0, 1]; its state is preserved.

    `random`: False skips the test for a random model, if it is known not to be one. `sigmoids`: each logit is a finding
    of its own, else what all share changes no answer. `bfloat16`: whether it agrees with itself, if that is known.
    """
    with preserve_state(model, seed=0):
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
        agrees = agrees_in_bfloat16(model, both) if bfloat16 is None else bfloat16
        return replace(traits, bfloat16=traits.plain and agrees)


def centre(logits: Tensor) -> Tensor:
    """Return logits (..., C) less their mean: what all share changes no answer. A single one is left as it is."""
    return logits - logits.mean(-1, keepdim=True) if logits.shape[-1] > 1 else logits


def agrees_in_bfloat16(model: nn.Module, images: Tensor, *, shift: float = 0.05, same_signs: float = 0.8) -> bool:
    """Return whether bfloat16 changes logits and gradients of a model on images (B, 1, H, W), but only a little.

    No logit, less the mean of its image, may move by more than `shift` of a typical largest one, with and without a
    gradient. At least `same_signs` of the gradients must keep their sign. False also if the processor does not compute
    in bfloat16, or the model raises an error in it.
    """
    if not base.computes_in_bfloat16(images.device.type):
        return False
    try:
        logits = base.logits_of(model, images)
        labels = logits.argmax(1)
        gradient, _ = base.input_gradient(model, images, labels)
        with base.lowered("bf16", images):
            lower_gradient, followed = base.input_gradient(model, images, labels)
            plain = base.logits_of(model, images)
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
            (gradient,) = torch.autograd.grad(_margins(logits[None]).sum(), leaf, allow_unused=True)
    if gradient is None:
        return 1.0, 0.0, stopped
    flat = gradient.flatten(1)
    finite = flat.isfinite().all(1)
    return float((flat.abs().amax(1) == 0).float().mean()), float((~finite).float().mean()), stopped


def adaptive(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    traits: GradientTraits | None = None,
    surrogate: nn.Module | None = None,
    gradients: bool = True,
    start: Sequence[Tensor] = (),
    steps: int = 50,
    queries: int = 0,
    seed: int = 0,
    ends: float = 1.0,
) -> Tensor:
    """Return the worst of PGD and APGD through each variant of the model, of a surrogate's images and of `start`.

    Each is tried as floats and as an 8-bit file (`grid.round_inwards`). For a random model, that is the image which is
    misclassified most often over draws. Common arguments: see `fgsm`.

    Args:
        traits: what `probe_gradients` returned; by default it probes these images.
        surrogate: a model distilled from this one (`surrogate.distil`), attacked too.
        gradients: False if the model has none.
        start: adversarial candidates (B, 1, H, W) to try.
        queries: of Square on the images that remain; 0 for none.
        ends: see `square`.

    Raises UserError as the attacks do.
    """
    images, radius = base.checked_input(images, labels, epsilon)
    if not len(images):
        return images.clone()
    traits = traits or probe_gradients(model, images[:32])
    worst = _Worst(model, images, labels, random=traits.random)
    for candidates in start:
        worst.add(torch.arange(len(images), device=images.device), candidates.detach())
    variants = traits.variants(model) if gradients else []
    for variant in variants:
        worst.climb(variant, radius, steps, seed, stop=not traits.random)
    if gradients and traits.needs_bpda:  # the gradient is approximate: climb longer
        for repeat in range(1, CLIMBS + 1):
            before = worst.wrong.clone()
            worst.climb(variants[-1], radius, LONGER * steps, seed + repeat, stop=not traits.random)
            if torch.equal(worst.wrong, before):
                break
    if surrogate is not None:
        worst.climb(AttackView(surrogate), radius, steps, seed, stop=False)
    if queries and len(rows := (worst.wrong < 1).nonzero()[:, 0]):
        search = partial(square, AttackView(model, draws=traits.draws, scale=traits.scale), queries=queries, ends=ends)
        worst.add(rows, search(images[rows], labels[rows], epsilon=radius[rows], seed=seed))
    return worst.images


def wrong_share(model: nn.Module, images: Tensor, labels: Tensor, *, draws: int = 1, seed: int = 0) -> Tensor:
    """Return how often the model is wrong on each image, (B,) in [0, 1], over `draws` from a fixed seed."""
    return _over_draws(model, images, labels, draws, seed)[0]


def _over_draws(model: nn.Module, images: Tensor, labels: Tensor, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return for each image how often the model is wrong, and the mean lead of its label over the next class."""
    with preserve_state(model, seed=seed):
        wrong, leads = (torch.zeros(len(images), device=images.device) for _ in range(2))
        for _ in range(draws):
            logits = base.logits_of(model, images)
            wrong += (logits.argmax(1) != labels).float()
            leads += base.lead(logits, labels)
    return wrong / draws, leads / draws


class _Worst:
    """The worst candidate of each image: most often wrong, then (for a random model) of the smallest lead."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, *, random: bool) -> None:
        self.model, self.clean, self.labels = model, images, labels
        self.draws = STOCHASTIC_DRAWS if random else 1
        self.images = images.clone()
        self.wrong, self.lead = _over_draws(model, images, labels, self.draws, _SEED)

    def add(self, rows: Tensor, candidates: Tensor) -> None:
        """Keep candidates (N, 1, H, W) for these rows, as floats or on whole greys, if they are worse."""
        for tried in (candidates, round_inwards(candidates, self.clean[rows])):
            wrong, lead = _over_draws(self.model, tried, self.labels[rows], self.draws, _SEED)
            worse = wrong > self.wrong[rows]
            if self.draws > 1:
                worse |= (wrong == self.wrong[rows]) & (lead < self.lead[rows])
            replaced = rows[worse]
            self.images[replaced], self.wrong[replaced], self.lead[replaced] = tried[worse], wrong[worse], lead[worse]

    def climb(self, variant: nn.Module, radius: Tensor, steps: int, seed: int, *, stop: bool) -> None:
        """Run PGD through `variant`, then APGD on the margin on what remains."""
        for attack in (partial(pgd, stop_when_wrong=stop), partial(apgd, loss="margin")):
            if len(rows := (self.wrong < 1).nonzero()[:, 0]):
                images, labels = self.clean[rows], self.labels[rows]
                self.add(rows, attack(variant, images, labels, epsilon=radius[rows], steps=steps, seed=seed))


class SurrogateNet(nn.Module):
    """Four convolution blocks of stride 2 with BatchNorm, global mean, linear layer: pixel space -> logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for width in _WIDTHS:
            layers += [*convolve(before, width, 3, 2), *convolve(width, width, 3)]
            before = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(before, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 1, H, W) in [0, 1] to logits (B, C)."""
        return self.head(self.body(images - 0.5).mean((2, 3)))


def distil(
    model: nn.Module,
    images: Tensor,
    *,
    scale: float = 1.0,
    epsilon: float = 0.02,
    steps: int = 300,
    batch_size: int = 32,
    seed: int = 0,
) -> SurrogateNet:
    """Train a surrogate of `model` on `images` (N, 1, H, W) in [0, 1], and return it in evaluation mode.

    Half of the images get noise of +- `epsilon`. `scale` divides the model's logits. bfloat16 is used if there is any.
    """
    random = torch.Generator().manual_seed(seed)
    with preserve_state(model, seed=seed), torch.inference_mode(False), torch.enable_grad():
        noise = (torch.rand(images.shape, generator=random) * 2 - 1).sign() * epsilon
        taught = torch.cat([images, (images + noise.to(images)).clamp(0, 1)]).to(memory_format=torch.channels_last)
        with torch.no_grad():
            targets = torch.cat([(model(part).float() / scale).softmax(1) for part in taught.split(batch_size)])
        net = SurrogateNet(targets.shape[1]).train()
        net = net.to(images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(len(taught), (batch_size,), generator=random)
            with base.lowered("bf16", images):
                logits = net(taught[rows])
            loss = F.kl_div(logits.float().log_softmax(1), targets[rows], reduction="batchmean")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval().requires_grad_(False)


def transfer(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    surrogate: nn.Module,
    attack: str = "momentum",
    **options: Any,
) -> Tensor:
    """Return images that `attack` makes against another model, `surrogate` (Papernot et al. 2016), to try on `model`.

    `options` go to the attack. UserError unless both models have the same number of classes.

    >>> import torch, trustcxr as tx
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    >>> other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> tx.attacks.transfer(model, images, labels, epsilon=0.02, surrogate=other).shape
    torch.Size([2, 1, 8, 8])
    """
    from trustcxr.attacks import get

    base.check_input(images, labels, epsilon if attack != "pgd-l2" else 0.0)
    with preserve_state(model), preserve_state(surrogate):
        counts = [base.checked_logits(m, images[:1], labels[:1]).shape[1] for m in (model, surrogate)]
    if counts[0] != counts[1]:
        raise UserError(f"transfer: the model has {counts[0]} classes and the surrogate {counts[1]}")
    return get(attack)(surrogate, images, labels, epsilon=epsilon, **options)
