"""What every attack keeps to: pixel space in and out, the model left as it was found, errors in one line."""

import math
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr.errors import NotFiniteError, UserError, pixel_range_error

Precision = Literal["bf16"]
Loss = Callable[[Tensor, Tensor], Tensor]  # (logits (B, C), labels (B,)) -> a loss for each image (B,)
ROUNDING = 1e-6  # what a pixel may lie outside the ball by
SATURATED = 16.0  # label's logit above the others from where float32 has no room left for 1 - probability


class Attack(Protocol):
    """What every attack looks like."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float) -> Tensor:
        """Adversarial images within epsilon of `images`."""
        ...


def check_epsilon(epsilon: float) -> float:
    """The epsilon itself; UserError where it is not an L-infinity radius in pixel space."""
    if not 0 <= epsilon <= 1:
        hint = f" (did you mean {epsilon:g}/255 = {epsilon / 255:.4g}?)" if 1 < epsilon <= 255 else ""
        raise UserError(
            f"epsilon {epsilon:g} is outside [0, 1]: images are in [0, 1], so 0.02 is 5.1 grey levels of 255{hint}"
        )
    return epsilon


def check_input(images: Tensor, labels: Tensor, epsilon: float | Tensor) -> None:
    """UserError unless images are (B, 1 or more, H, W) floats in [0, 1], labels (B,) int, and epsilon in [0, 1].

    An epsilon for each image or pixel is a tensor that broadcasts to the images.
    """
    if not isinstance(epsilon, Tensor):
        check_epsilon(epsilon)
    if images.ndim != 4 or not images.is_floating_point():
        raise UserError(f"attack: images must be floats (B, 1, H, W), not {images.dtype} {tuple(images.shape)}")
    if isinstance(epsilon, Tensor):
        _check_radii(epsilon, images)
    if labels.shape != images.shape[:1]:
        raise UserError(f"attack: {len(images)} images but labels of shape {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise UserError(f"attack: labels must be whole numbers, the place of each class, not {labels.dtype}")
    if images.numel():
        low, high = (float(v) for v in images.detach().aminmax())
        if not (low >= 0 and high <= 1):  # a NaN fails this too
            raise pixel_range_error("attack", low, high)


def _check_radii(epsilon: Tensor, images: Tensor) -> None:
    sizes = zip(reversed(epsilon.shape), reversed(images.shape), strict=False)
    if epsilon.ndim > 4 or any(mine not in (1, theirs) for mine, theirs in sizes):
        shapes = f"{tuple(epsilon.shape)} does not broadcast to {tuple(images.shape)}"
        raise UserError(f"epsilon of shape {shapes}; a radius for each image is (B, 1, 1, 1)")
    if epsilon.numel():
        for end in epsilon.aminmax():
            check_epsilon(float(end))


def radii(epsilon: float | Tensor, images: Tensor) -> Tensor:
    """The radius of each image, (B, 1, 1, 1) or a map of it, so that it can be indexed by image; float32 or better."""
    whole = torch.as_tensor(epsilon, dtype=wide(images), device=images.device).detach()
    whole = whole.reshape((1,) * (4 - whole.ndim) + whole.shape)
    return whole.expand(len(images), *whole.shape[1:])


def wide(images: Tensor) -> torch.dtype:
    """What radii, means and norms are in: float32, or better where the images are."""
    return torch.promote_types(images.dtype, torch.float32)


def ball(images: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest pixels within the radius and [0, 1], each (B, 1, H, W), in the precision of the images."""
    return round_toward((images - radius).clamp(0, 1), images), round_toward((images + radius).clamp(0, 1), images)


def round_toward(moved: Tensor, images: Tensor) -> Tensor:
    """Pixels (B, 1, H, W) in [0, 1], in the precision of the images and rounded towards these: none ends further off.

    In half precision the nearest number may lie outside the ball by a tenth of its radius.
    """
    if moved.dtype == images.dtype:
        return moved
    found = moved.to(images.dtype)
    further = (found.to(moved) - images.to(moved)).abs() > (moved - images.to(moved)).abs()
    step = torch.where(found > images, -1, 1).to(torch.int16)  # to the number beside it: none here is below 0
    return torch.where(further, (found.view(torch.int16) + step).view(images.dtype), found)


def between(images: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The images with each pixel moved into [low, high], in the precision of these."""
    return torch.minimum(torch.maximum(images, low), high).to(low)


def uniform_start(images: Tensor, radius: Tensor, generator: torch.Generator | None) -> Tensor:
    """A point drawn evenly from the L-infinity ball, clamped to [0, 1]; without a generator by torch's own state."""
    # Drawn on the CPU so that one seed gives the same start on every device.
    noise = torch.rand(images.shape, generator=generator) * 2 - 1
    return between(images + radius * noise.to(radius), *ball(images, radius))


def lowered(precision: Precision | None, images: Tensor) -> AbstractContextManager[object]:
    """The precision of a search: bfloat16 autocast for "bf16", the caller's own for None, and where nothing is won."""
    if precision not in (None, "bf16"):
        raise UserError(f"attack: precision must be 'bf16' or None (the caller's own), not {precision!r}")
    if precision is None or not computes_in_bfloat16(images.device.type):
        return nullcontext()
    return torch.autocast(images.device.type, torch.bfloat16)


def computes_in_bfloat16(device: str) -> bool:
    """Whether a kind of device computes in bfloat16: a processor that imitates it takes many times as long.

    oneDNN says of a processor that it is supported where it is imitated too (AVX-512 without its bfloat16), so the
    processor is asked what it has.
    """
    if device != "cpu":
        return True
    if (known := getattr(torch.cpu, "get_capabilities", None)) is not None:
        return any(has for name, has in known().items() if "bf16" in name)
    if platform.machine().lower() in ("x86_64", "amd64"):
        older = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    else:
        older = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return older is None or bool(older())


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image (B,), from logits (B, C) and labels (B,), that goes on where the softmax saturates.

    Logits times 1,000 are the same answers, but their cross-entropy and its gradient are 0 in float32, and an attack
    stands still (Carlini and Wagner 2016). Where the label leads by more than SATURATED, the loss goes on along its
    tangent there: it still falls as the lead grows, so the gradient keeps its exact direction. Other rows are
    untouched, to the last bit.
    """
    loss = F.cross_entropy(logits, labels, reduction="none")
    with torch.no_grad():
        saturated = _lead(logits, labels) > SATURATED
    if not bool(saturated.any()):
        return loss
    slope = 1 / (1 + math.exp(SATURATED))
    return torch.where(saturated, math.log1p(math.exp(-SATURATED)) + slope * (SATURATED - _lead(logits, labels)), loss)


def _lead(logits: Tensor, labels: Tensor) -> Tensor:
    """How far the label's logit is above the log of the sum of the others' exponentials, (B,): logit of its softmax."""
    own = labels[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -math.inf).logsumexp(1)


def input_gradient(
    model: nn.Module, images: Tensor, labels: Tensor, *, check: bool = False, loss: Loss | None = None
) -> tuple[Tensor, Tensor]:
    """Gradient of the summed loss in the images alone (B, 1, H, W), and the logits (B, C). No weight gradient is made.

    `loss` takes logits (B, C) in float32 and labels (B,), and gives one value for each image (B,); cross-entropy unless
    said. With `check` a model that does not return logits for these labels raises UserError. The model runs in the
    mode that it is in: call this inside `preserve_state`.
    """
    # A caller may be in no_grad or inference_mode; the gradient is ours alone.
    with torch.inference_mode(False), torch.enable_grad():
        leaf = images.detach().clone().requires_grad_(True)
        logits = model(leaf)
        if check:
            check_logits(logits, labels)
        # Summed, not averaged: in half precision an averaged loss can underflow to a zero gradient.
        total = (loss or cross_entropy)(logits.float(), labels.long().clone()).sum()
        if not total.requires_grad:
            raise UserError(
                "attack: the model has no gradient that torch can follow: take square or transfer, or go through "
                "stand-ins (attacks.stand_ins)"
            )
        (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True)
    if gradient is None:  # the answers do not depend on these images, as where a model rounds or detaches them
        gradient = torch.zeros_like(leaf)
    return _finite(gradient), logits.detach()


def _finite(gradient: Tensor) -> Tensor:
    """The gradient (B, 1, H, W) in numbers: what is infinite is its image's largest (1 where it has none), NaN is 0.

    What is no number would make a pixel of the image none, and shows no way; infinity shows one.
    """
    largest = gradient.abs().where(gradient.isfinite(), 0.0).amax((1, 2, 3), keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    return torch.where(gradient.isinf(), gradient.sign() * largest, gradient.nan_to_num(0.0))


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, C) in float32, without any gradient."""
    with torch.no_grad():
        return model(images).float()


def is_misclassified(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    precision: Precision | None = None,
    logits: Tensor | None = None,
) -> Tensor:
    """Whether the model is wrong on each image, (B,) bool.

    `logits` are known ones, made in `precision`. What a lower precision calls wrong is looked at again in the caller's
    own, so that no verdict rests on rounding.
    """
    if logits is None:
        with lowered(precision, images):
            logits = logits_of(model, images)
    wrong = logits.argmax(1) != labels
    if precision is not None and bool(wrong.any()):
        rows = wrong.nonzero()[:, 0]
        wrong[rows] = logits_of(model, images[rows]).argmax(1) != labels[rows]
    return wrong


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """UserError unless the model gave logits (B, 2 or more classes) that the labels fit."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(labels) or logits.shape[1] < 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"attack: the model must return logits (B, 2 or more classes), not {found}")
    if not len(labels):
        return
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise UserError(f"attack: labels span [{low}, {high}], but the model has {logits.shape[1]} classes")
    values = logits.detach().float()
    check_finite(values)
    own = torch.finfo(logits.dtype).eps if logits.is_floating_point() else 0.0
    rounding = max(1e-5, own)  # of a sum to 1, of numbers in the model's precision
    if bool(((values >= 0) & (values <= 1)).all() & ((values.sum(1) - 1).abs() < rounding).all()):
        # Cross-entropy of probabilities has gradients that vanish where the model is sure: the attack would flatter it.
        raise UserError("attack: the model returns probabilities; it must return logits (leave its softmax out)")


def check_finite(logits: Tensor) -> None:
    """UserError where a logit is NaN or infinite: nothing can be measured of such a model."""
    rows = ~logits.isfinite().all(1)
    if bool(rows.any()):
        raise NotFiniteError(f"the model answers {int(rows.sum())} of {len(rows)} images with NaN or infinity")


def checked_logits(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Logits (B, C) of the images as they are; UserError unless they are logits that the labels fit."""
    with torch.no_grad():
        logits = model(images)
    check_logits(logits, labels)
    return logits.float()


def check_counts(attack: str, **counts: int) -> None:
    """UserError unless every one of these options is a whole number of at least 1."""
    for name, count in counts.items():
        if not isinstance(count, Integral):
            raise UserError(f"{attack}: {name} must be a whole number, not {count}")
        if count < 1:
            raise UserError(f"{attack}: {name} must be at least 1, not {count}")
