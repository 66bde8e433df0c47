"""Attacks that follow the sign or the direction of the gradient: FGSM, PGD, momentum, and transfer of any of them."""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from trustcxr.attacks.base import (
    ball,
    between,
    check_counts,
    check_input,
    input_gradient,
    is_misclassified,
    radii,
    round_toward,
    uniform_start,
    wide,
)
from trustcxr.errors import UserError, unknown
from trustcxr.models.preserve_state import Mode, preserve_state

Norm = Literal["linf", "l2"]


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    steps: int = 20,
    step_size: float | None = None,
    random_start: bool = True,
    restarts: int = 1,
    norm: Norm = "linf",
    seed: int = 0,
    stop_when_wrong: bool = False,
    mode: Mode = "eval",
) -> Tensor:
    """Projected gradient descent (Madry et al. 2018), in the L-infinity ball or, with `norm` "l2", in the L2 ball.

    `step_size` defaults to 2.5 * epsilon / steps. With several `restarts`, an image keeps the first start that misleads
    the model. With `stop_when_wrong` an image leaves the batch once the model is wrong on it: what the whole climb
    misleads stays misled, and on a model that is not robust most of the time is saved. It needs mode "eval", where an
    image's verdict does not depend on its neighbours. The same `seed` gives the same images. An L2 radius is the length
    of the whole perturbation in pixel space, so it may exceed 1: up to the square root of the number of pixels.
    Raises UserError as fgsm does, and for steps, restarts or a step size that make no climb.

    >>> import torch, trustcxr as tx
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    >>> adversarial = tx.attacks.pgd(model, images, labels, epsilon=0.02, steps=5)
    >>> bool((adversarial - images).abs().max() < 0.02 + 1e-6)
    True
    """
    _check_climb(norm, steps, restarts, step_size)
    check_input(images, labels, epsilon if norm == "linf" else _l2_in_reach(epsilon, images))
    images = images.detach()
    if stop_when_wrong and mode == "train":
        raise UserError("pgd: stop_when_wrong needs mode 'eval': batch statistics change when images leave the batch")
    radius = radii(epsilon, images)
    step = radii(2.5 * epsilon / steps if step_size is None else step_size, images)
    draw, generator = uniform_start if norm == "linf" else _l2_start, torch.Generator().manual_seed(seed)
    result, todo = images.clone(), torch.arange(len(images), device=images.device)
    with preserve_state(model, mode):
        for restart in range(restarts):
            start = draw(images[todo], radius[todo], generator) if random_start else images[todo]
            found = _climb(
                model,
                images[todo],
                start,
                labels[todo],
                radius=radius[todo],
                step=step[todo],
                steps=steps,
                norm=norm,
                stop_when_wrong=stop_when_wrong,
            )
            result[todo] = found
            if restart + 1 < restarts:
                todo = todo[~is_misclassified(model, found, labels[todo])]
                if len(todo) == 0:
                    break
    return result


def _check_climb(norm: str, steps: int, restarts: int, step_size: float | None) -> None:
    if norm not in get_args(Norm):
        raise unknown("norm", norm, get_args(Norm))
    check_counts("pgd", steps=steps, restarts=restarts)
    if step_size is not None and not step_size > 0:
        raise UserError(f"pgd: step_size must be above 0, not {step_size:g}")


def pgd_l2(model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float | Tensor, **options: Any) -> Tensor:
    """PGD in the L2 ball: `pgd` with norm "l2". Its epsilon is an L2 radius in pixel space and may exceed 1.

    >>> import torch, trustcxr as tx
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    >>> adversarial = tx.attacks.pgd_l2(model, images, labels, epsilon=0.5, steps=5)
    >>> bool((adversarial - images).flatten(1).norm(dim=1).max() < 0.5 + 1e-5)
    True
    """
    return pgd(model, images, labels, epsilon=epsilon, norm="l2", **options)


def momentum(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    steps: int = 10,
    decay: float = 1.0,
    stop_when_wrong: bool = False,
    mode: Mode = "eval",
) -> Tensor:
    """Momentum iterative FGSM (Dong et al. 2018): steps of epsilon / steps along a decaying sum of gradients.

    Meant to transfer to other models. Raises UserError as fgsm does, and for fewer steps than 1 or a negative decay.

    >>> import torch, trustcxr as tx
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    >>> adversarial = tx.attacks.momentum(model, images, labels, epsilon=0.02, steps=5)
    >>> bool((adversarial - images).abs().max() < 0.02 + 1e-6)
    True
    """
    check_input(images, labels, epsilon)
    check_counts("momentum", steps=steps)
    if not decay >= 0:
        raise UserError(f"momentum: decay must be at least 0, not {decay:g}")
    if stop_when_wrong and mode == "train":
        raise UserError("momentum: stop_when_wrong needs mode 'eval'")
    images = images.detach()
    radius = radii(epsilon, images)
    with preserve_state(model, mode):
        return _climb(
            model,
            images,
            images,
            labels,
            radius=radius,
            step=radius / steps,
            steps=steps,
            decay=decay,
            stop_when_wrong=stop_when_wrong,
        )


def _climb(
    model: nn.Module,
    originals: Tensor,
    start: Tensor,
    labels: Tensor,
    *,
    radius: Tensor,
    step: Tensor,
    steps: int,
    norm: Norm = "linf",
    decay: float | None = None,
    stop_when_wrong: bool = False,
) -> Tensor:
    low, high = ball(originals, radius) if norm == "linf" else (None, None)
    result = start.clone()
    velocity = torch.zeros_like(start, dtype=wide(start))
    active = torch.arange(len(start), device=start.device)
    for number in range(steps):
        current = result[active]
        gradient, logits = input_gradient(model, current, labels[active], check=number == 0)
        if stop_when_wrong:
            right = logits.argmax(1) == labels[active]
            active, current, gradient = active[right], current[right], gradient[right]
            if len(active) == 0:
                break
        if decay is not None:
            gradient = _scaled(gradient)
            scale = gradient.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-30)
            velocity[active] = gradient = decay * velocity[active] + gradient / scale
        if low is not None and high is not None:
            moved = current + step[active] * gradient.sign().to(current)
            result[active] = between(moved, low[active], high[active])
        else:
            moved = current + step[active] * _unit(gradient)
            result[active] = _into_l2(moved, originals[active], radius[active])
    return result


def _scaled(vectors: Tensor) -> Tensor:
    """Each image's vector over a power of two, its largest entry in [1, 2): a sum or a square then never overflows.

    A power of two changes no digit, so means and norms of usual gradients are what they would be without it.
    """
    vectors = vectors.to(wide(vectors))
    largest = vectors.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-30)
    return vectors / (largest / (2 * torch.frexp(largest).mantissa))


def _length(vectors: Tensor) -> Tensor:
    """L2 norm of each image, (B, 1, 1, 1)."""
    return vectors.to(wide(vectors)).flatten(1).norm(dim=1)[:, None, None, None]


def _unit(vectors: Tensor) -> Tensor:
    scaled = _scaled(vectors)
    return (scaled / _length(scaled).clamp(min=1e-30)).to(vectors)


def _into_l2(moved: Tensor, originals: Tensor, radius: Tensor) -> Tensor:
    change = moved - originals
    shrink = (radius / _length(change).clamp(min=1e-30)).clamp(max=1).to(change)
    # Clamping to [0, 1] only shortens the change, since the original lies inside.
    return round_toward((originals + shrink * change).clamp(0, 1), originals)


def _l2_start(images: Tensor, radius: Tensor, generator: torch.Generator) -> Tensor:
    """A point drawn evenly from the L2 ball, clamped to [0, 1]."""
    direction = _unit(torch.randn(images.shape, generator=generator))
    share = torch.rand((len(images), 1, 1, 1), generator=generator) ** (1 / max(1, math.prod(images.shape[1:])))
    return round_toward((images + radius * (share * direction).to(radius)).clamp(0, 1), images)


def _l2_in_reach(epsilon: float | Tensor, images: Tensor) -> float:
    """0, an epsilon that passes, where the L2 radius is one; UserError otherwise."""
    if isinstance(epsilon, Tensor):
        if epsilon.numel() != 1 and epsilon.shape != (len(images), 1, 1, 1):  # (B,) would be one for each column
            raise UserError(f"pgd: an L2 radius is one number for each image, (B, 1, 1, 1), not {tuple(epsilon.shape)}")
        ends = [float(end) for end in epsilon.aminmax()] if epsilon.numel() else [0.0]
    else:
        ends = [epsilon]
    diagonal = math.sqrt(math.prod(images.shape[1:]))
    for end in ends:
        if not 0 <= end <= max(diagonal, 1.0):
            raise UserError(
                f"epsilon {end:g}: an L2 radius must lie in [0, {diagonal:g}], the diagonal of these images"
            )
    return 0.0
