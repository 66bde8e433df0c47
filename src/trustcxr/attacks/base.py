"""Check the input of attacks, project onto balls, and compute input gradients and losses."""

import math
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr.errors import NotFiniteError, UserError, check_pixels

Precision = Literal["bf16"]
Loss = Callable[[Tensor, Tensor], Tensor]  # (logits (B, C), labels (B,)) -> a loss for each image (B,)
ROUNDING = 1e-6  # how far a pixel may lie outside the ball
SATURATED = 16.0  # lead of the label's logit at which float32 rounds its probability to 1


def check_epsilon(epsilon: float) -> float:
    """Return the epsilon; UserError unless it is an L-infinity radius in [0, 1]."""
    if not 0 <= epsilon <= 1:
        hint = f" (did you mean {epsilon:g}/255 = {epsilon / 255:.4g}?)" if 1 < epsilon <= 255 else ""
        raise UserError(f"epsilon {epsilon:g} is outside [0, 1], as images are: 0.02 is 5.1 grey levels of 255{hint}")
    return epsilon


def check_input(images: Tensor, labels: Tensor, epsilon: float | Tensor) -> None:
    """Raise UserError unless images are (B, C, H, W) floats in [0, 1], labels (B,) int, and epsilon is in [0, 1].

    Epsilon may be a tensor that broadcasts to the images.
    """
    check_pixels("attack", images)
    if isinstance(epsilon, Tensor):
        sizes = zip(reversed(epsilon.shape), reversed(images.shape), strict=False)
        if epsilon.ndim > 4 or any(side not in (1, images_side) for side, images_side in sizes):
            shapes = f"{tuple(epsilon.shape)} does not broadcast to {tuple(images.shape)}"
            raise UserError(f"epsilon of shape {shapes}. Give a radius for each image as (B, 1, 1, 1)")
        for end in epsilon.aminmax() if epsilon.numel() else ():
            check_epsilon(float(end))
    else:
        check_epsilon(epsilon)
    if labels.shape != images.shape[:1]:
        raise UserError(f"attack: {len(images)} images but labels of shape {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise UserError(f"attack: labels must be whole numbers, the index of each class, not {labels.dtype}")


def checked_input(images: Tensor, labels: Tensor, epsilon: float | Tensor) -> tuple[Tensor, Tensor]:
    """Check the input as `check_input` does; return the images without a gradient, and the `radii`."""
    check_input(images, labels, epsilon)
    return images.detach(), radii(epsilon, images)


def check_result(attack: str, images: Tensor, perturbed: Tensor, epsilon: float, norm: str = "linf") -> None:
    """Raise UserError unless perturbed images (B, 1, H, W) are finite, in [0, 1] and within epsilon of the images."""
    if perturbed.shape != images.shape:
        raise UserError(f"attack {attack}: returns {tuple(perturbed.shape)}, not {tuple(images.shape)}. Return as many")
    if not images.numel():
        return
    low, high = (float(v) for v in perturbed.detach().float().aminmax())
    if not (low >= 0 and high <= 1):  # a NaN fails this too
        raise UserError(f"attack {attack}: its pixels span [{low:.4g}, {high:.4g}], not [0, 1]. Clamp them")
    change = (perturbed.detach().float() - images.float()).flatten(1)
    largest = float(change.norm(dim=1).max() if norm == "l2" else change.abs().max())
    if largest > epsilon * (1 + 1e-4) + ROUNDING:
        more = f"it changes an image by {largest:.4g}, more than epsilon {epsilon:g}"
        raise UserError(f"attack {attack}: {more}. Project it")


def radii(epsilon: float | Tensor, images: Tensor) -> Tensor:
    """Return the radius of each image, (B, 1, 1, 1) or a map of it, in float32 or better."""
    whole = torch.as_tensor(epsilon, dtype=wide(images), device=images.device).detach()
    whole = whole.reshape((1,) * (4 - whole.ndim) + whole.shape)
    return whole.expand(len(images), *whole.shape[1:])


def wide(images: Tensor) -> torch.dtype:
    """Return the data type of radii, means and norms: float32, or better if the images are."""
    return torch.promote_types(images.dtype, torch.float32)


def ball(images: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest pixels (B, 1, H, W) within the radius and [0, 1], in the images' precision."""
    return round_toward((images - radius).clamp(0, 1), images), round_toward((images + radius).clamp(0, 1), images)


def round_toward(moved: Tensor, images: Tensor) -> Tensor:
    """Round pixels (B, 1, H, W) in [0, 1] to the images' precision, toward the images, so that none ends further off.

    In half precision the nearest number may lie outside the ball by a tenth of its radius.
    """
    if moved.dtype == images.dtype:
        return moved
    rounded = moved.to(images.dtype)
    further = (rounded.to(moved) - images.to(moved)).abs() > (moved - images.to(moved)).abs()
    step = torch.where(rounded > images, -1, 1).to(torch.int16)  # to the next number: none is below 0
    return torch.where(further, (rounded.view(torch.int16) + step).view(images.dtype), rounded)


def between(images: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Move each pixel into [low, high], in their precision."""
    return torch.minimum(torch.maximum(images, low), high).to(low)


def uniform_start(images: Tensor, radius: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw a point evenly from the L-infinity ball, clamped to [0, 1]; without a generator, from torch's own state."""
    # Drawn on the CPU so that one seed gives the same start on every device.
    noise = torch.rand(images.shape, generator=generator) * 2 - 1
    return between(images + radius * noise.to(radius), *ball(images, radius))


def lowered(precision: Precision | None, images: Tensor) -> AbstractContextManager[object]:
    """Return the context of a search's precision: bfloat16 autocast for "bf16" if the device has it, else none."""
    if precision not in (None, "bf16"):
        raise UserError(f"attack: precision must be 'bf16' or None (the caller's own), not {precision!r}")
    if precision is None or not computes_in_bfloat16(images.device.type):
        return nullcontext()
    return torch.autocast(images.device.type, torch.bfloat16)


def computes_in_bfloat16(device: str) -> bool:
    """Return whether this kind of device computes in bfloat16 natively: emulation takes many times as long.

    oneDNN reports support on processors that only emulate it, so the processor's own features are read.
    """
    if device != "cpu":
        return True
    if (capabilities := getattr(torch.cpu, "get_capabilities", None)) is not None:
        return any(has for name, has in capabilities().items() if "bf16" in name)
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    names = (torch.cpu, "_is_avx512_bf16_supported") if x86 else (torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
    supported = getattr(*names, None)
    return supported is None or bool(supported())


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each image (B,), from logits (B, C) and labels (B,), with a gradient at saturation.

    If logits are multiplied by 1,000, the cross-entropy and its gradient are 0 in float32 and an attack stands still
    (Carlini and Wagner 2016). If the label's lead exceeds SATURATED, the loss continues along its tangent there, so the
    gradient keeps its direction. Other rows keep their bits.
    """
    loss = F.cross_entropy(logits, labels, reduction="none")
    with torch.no_grad():
        saturated = lead(logits, labels, torch.logsumexp) > SATURATED
    if not bool(saturated.any()):
        return loss
    slope, further = 1 / (1 + math.exp(SATURATED)), SATURATED - lead(logits, labels, torch.logsumexp)
    return torch.where(saturated, math.log1p(math.exp(-SATURATED)) + slope * further, loss)


def lead(logits: Tensor, labels: Tensor, others: Callable[[Tensor, int], Tensor] = torch.amax) -> Tensor:
    """Return the label's logit minus the highest other, (B,); with `logsumexp` of others, the logit of its softmax."""
    column = labels.long()[:, None]
    return logits.gather(1, column)[:, 0] - others(logits.scatter(1, column, -math.inf), 1)


def input_gradient(
    model: nn.Module, images: Tensor, labels: Tensor, *, check: bool = False, loss: Loss | None = None
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the summed loss in the images (B, 1, H, W), and the logits (B, C).

    Weights get no gradient. The model, pixel space -> logits (B, C), runs in its current mode, so call this inside
    `preserve_state`. `labels`: (B,) int. `check`: raise UserError unless the model returns logits that the labels fit.
    `loss`: (logits (B, C) in float32, labels (B,)) -> (B,); cross-entropy by default.

    >>> import torch, trustcxr as tx
    >>> gradient, logits = tx.attacks.input_gradient(torch.nn.Flatten(), torch.rand(2, 1, 2, 2), torch.tensor([0, 3]))
    >>> gradient.shape, logits.shape
    (torch.Size([2, 1, 2, 2]), torch.Size([2, 4]))
    """
    # The caller may be in no_grad or inference_mode.
    with torch.inference_mode(False), torch.enable_grad():
        leaf = images.detach().clone().requires_grad_(True)
        logits = model(leaf)
        if check:
            check_logits(logits, labels)
        # Summed, not averaged: in half precision an averaged loss can underflow to a zero gradient.
        total = (loss or cross_entropy)(logits.float(), labels.long().clone()).sum()
        if not total.requires_grad:
            raise UserError("attack: the model has no gradient that torch can follow. Use square or transfer")
        (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True)
    if gradient is None:  # the logits do not depend on the images: the model rounds or detaches them
        gradient = torch.zeros_like(leaf)
    return _finite(gradient), logits.detach()


def _finite(gradient: Tensor) -> Tensor:
    """Replace infinite entries by the image's largest finite one (or 1), with their sign, and NaN by 0."""
    largest = gradient.abs().where(gradient.isfinite(), 0.0).amax((1, 2, 3), keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    return torch.where(gradient.isinf(), gradient.sign() * largest, gradient.nan_to_num(0.0))


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return logits (B, C) in float32, without a gradient."""
    with torch.no_grad():
        return model(images).float()


def is_misclassified(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return whether the model is wrong on each image, (B,) bool."""
    return logits_of(model, images).argmax(1) != labels


def confirm_wrong(
    model: nn.Module, images: Tensor, labels: Tensor, logits: Tensor, precision: Precision | None
) -> Tensor:
    """Return `is_misclassified` from logits (B, C) in `precision`: what a lower one gets wrong is checked again."""
    wrong = logits.argmax(1) != labels
    if precision is not None and bool(wrong.any()):
        rows = wrong.nonzero()[:, 0]
        wrong[rows] = is_misclassified(model, images[rows], labels[rows])
    return wrong


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Raise UserError unless these are logits (B, 2 or more classes) that the labels fit."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(labels) or logits.shape[1] < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"attack: the model must return logits (B, 2 or more classes), not {shape}")
    if not len(labels):
        return
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise UserError(f"attack: labels span [{low}, {high}], but the model has {logits.shape[1]} classes")
    values = logits.detach().float()
    check_finite(values)
    resolution = torch.finfo(logits.dtype).eps if logits.is_floating_point() else 0.0
    rounding = max(1e-5, resolution)
    if bool(((values >= 0) & (values <= 1)).all() & ((values.sum(1) - 1).abs() < rounding).all()):
        # Their cross-entropy has vanishing gradients if the model is confident, so attacks would fail.
        raise UserError("attack: the model returns probabilities. Remove its softmax, so that it returns logits")


def check_finite(logits: Tensor) -> None:
    """Raise NotFiniteError if a logit is NaN or infinite."""
    rows = ~logits.isfinite().all(1)
    if bool(rows.any()):
        raise NotFiniteError(f"the model returns NaN or infinity for {int(rows.sum())} of {len(rows)} images")


def checked_logits(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return logits (B, C) of the images in float32; UserError unless the labels fit."""
    with torch.no_grad():
        logits = model(images)
    check_logits(logits, labels)
    return logits.float()


def check_counts(attack: str, **counts: int) -> None:
    """Raise UserError unless each of these options is a whole number of at least 1."""
    for name, count in counts.items():
        if not isinstance(count, Integral):
            raise UserError(f"{attack}: {name} must be a whole number, not {count}")
        if count < 1:
            raise UserError(f"{attack}: {name} must be at least 1, not {count}")
