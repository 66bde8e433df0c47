"""Follow the sign of the gradient: FGSM, PGD in the L-infinity and the L2 ball and on whole grey levels, momentum."""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from trustcxr.attacks import base
from trustcxr.errors import UserError, unknown
from trustcxr.models.preserve_state import Mode, preserve_state

Norm = Literal["linf", "l2"]
GREYS = 255
_NEAR = 1e-4  # of a grey level: what float32 makes of a whole one


def fgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    mode: Mode = "eval",
    precision: base.Precision | None = None,
) -> Tensor:
    """Fast gradient sign method (Goodfellow et al. 2015): x' = clip(x + epsilon * sign(d cross-entropy / dx)).

    Args:
        model: pixel space -> logits (B, C).
        images: (B, 1, H, W) in [0, 1].
        labels: (B,) int.
        epsilon: radius in [0, 1], or a tensor that broadcasts to the images: a radius for each image or pixel.
        mode: "train" attacks the model with batch statistics; nothing is updated.
        precision: "bf16" computes the gradient in bfloat16; only its sign is used.

    Raises UserError for images outside [0, 1], labels that do not fit, or an epsilon outside [0, 1].

    >>> import torch, trustcxr as tx
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    >>> adversarial = tx.attacks.fgsm(model, images, labels, epsilon=0.02)
    >>> bool((adversarial - images).abs().max() < 0.02 + 1e-6)
    True
    """
    images, radius = base.checked_input(images, labels, epsilon)
    with preserve_state(model, mode), base.lowered(precision, images):
        gradient, _ = base.input_gradient(model, images, labels, check=True)
    return base.between(images + radius * gradient.sign(), *base.ball(images, radius))


def fgsm_rs(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    seed: int = 0,
    mode: Mode = "eval",
    precision: base.Precision | None = None,
) -> Tensor:
    """FGSM from a random start in the ball, with a step of 1.25 epsilon (Wong et al. 2020); all else as `fgsm`.

    >>> import torch, trustcxr as tx
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    >>> tx.attacks.fgsm_rs(model, images, labels, epsilon=0.02, seed=1).shape
    torch.Size([2, 1, 8, 8])
    """
    images, radius = base.checked_input(images, labels, epsilon)
    start = base.uniform_start(images, radius, torch.Generator().manual_seed(seed))
    with preserve_state(model, mode), base.lowered(precision, images):
        gradient, _ = base.input_gradient(model, start, labels, check=True)
    return base.between(start + 1.25 * radius * gradient.sign(), *base.ball(images, radius))


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
    precision: base.Precision | None = None,
) -> Tensor:
    """Projected gradient descent (Madry et al. 2018): x' = P(x + step_size * sign(gradient)), P onto ball and [0, 1].

    With `norm` "l2" the step is along gradient / ||gradient||, and P projects onto the L2 ball. Common arguments: see
    `fgsm`.

    Args:
        step_size: 2.5 * epsilon / steps by default.
        random_start: draw each start evenly from the ball, instead of the image itself.
        restarts: starts; an image keeps the first that is misclassified.
        stop_when_wrong: take an image out of the batch once it is misclassified, to save time. It needs mode "eval".
        precision: "bf16" computes gradients in bfloat16 and confirms each success in the caller's precision.

    Raises UserError as fgsm does, and for steps, restarts or a step size that are not positive.

    >>> import torch, trustcxr as tx
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    >>> adversarial = tx.attacks.pgd(model, images, labels, epsilon=0.02, steps=5)
    >>> bool((adversarial - images).abs().max() < 0.02 + 1e-6)
    True
    """
    if norm not in get_args(Norm):
        raise unknown("norm", norm, get_args(Norm))
    base.check_counts("pgd", steps=steps, restarts=restarts)
    if step_size is not None and not step_size > 0:
        raise UserError(f"pgd: step_size must be above 0, not {step_size:g}")
    if norm == "l2":
        _check_l2_radius(epsilon, images)
    base.check_input(images, labels, epsilon if norm == "linf" else 0.0)
    images = images.detach()
    if stop_when_wrong and mode == "train":
        raise UserError("pgd: stop_when_wrong needs mode 'eval': batch statistics change when images leave the batch")
    radius = base.radii(epsilon, images)
    step = base.radii(2.5 * epsilon / steps if step_size is None else step_size, images)
    draw, generator = base.uniform_start if norm == "linf" else _l2_start, torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {"norm": norm, "stop_when_wrong": stop_when_wrong, "precision": precision}
    result, todo = images.clone(), torch.arange(len(images), device=images.device)
    with preserve_state(model, mode):
        for restart in range(restarts):
            start = draw(images[todo], radius[todo], generator) if random_start else images[todo]
            rows = (images[todo], start, labels[todo], radius[todo], step[todo])
            result[todo] = perturbed = _climb(model, *rows, steps=steps, **options)
            if restart + 1 < restarts:
                todo = todo[~base.is_misclassified(model, perturbed, labels[todo])]
                if len(todo) == 0:
                    break
    return result


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
    """Momentum iterative FGSM (Dong et al. 2018), made to transfer to other models.

    v' = decay * v + gradient / mean|gradient|, x' = P(x + epsilon / steps * sign(v')), P onto the ball and [0, 1].
    Arguments are those of `pgd`. Raises UserError as fgsm does, and for fewer steps than 1 or a negative decay.

    >>> import torch, trustcxr as tx
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    >>> tx.attacks.momentum(model, images, labels, epsilon=0.02, steps=5).shape
    torch.Size([2, 1, 8, 8])
    """
    images, radius = base.checked_input(images, labels, epsilon)
    base.check_counts("momentum", steps=steps)
    if not decay >= 0:
        raise UserError(f"momentum: decay must be at least 0, not {decay:g}")
    if stop_when_wrong and mode == "train":
        raise UserError("momentum: stop_when_wrong needs mode 'eval'")
    with preserve_state(model, mode):
        rows = (images, images, labels, radius, radius / steps)
        return _climb(model, *rows, steps=steps, decay=decay, stop_when_wrong=stop_when_wrong)


def _climb(
    model: nn.Module,
    originals: Tensor,
    start: Tensor,
    labels: Tensor,
    radius: Tensor,
    step: Tensor,
    *,
    steps: int,
    norm: Norm = "linf",
    decay: float | None = None,
    stop_when_wrong: bool = False,
    precision: base.Precision | None = None,
) -> Tensor:
    low, high = base.ball(originals, radius) if norm == "linf" else (None, None)
    result = start.clone()
    velocity = torch.zeros_like(start, dtype=base.wide(start))
    active = torch.arange(len(start), device=start.device)
    for number in range(steps):
        current = result[active]
        with base.lowered(precision, start):
            gradient, logits = base.input_gradient(model, current, labels[active], check=number == 0)
        if stop_when_wrong:
            right = ~base.confirm_wrong(model, current, labels[active], logits, precision)
            active, current, gradient = active[right], current[right], gradient[right]
            if len(active) == 0:
                break
        if decay is not None:
            gradient = _scaled(gradient)
            scale = gradient.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-30)
            velocity[active] = gradient = decay * velocity[active] + gradient / scale
        if low is not None and high is not None:
            moved = current + step[active] * gradient.sign().to(current)
            result[active] = base.between(moved, low[active], high[active])
        else:
            moved = current + step[active] * _unit(gradient)
            result[active] = _into_l2(moved, originals[active], radius[active])
    return result


def _scaled(vectors: Tensor) -> Tensor:
    """Divide each image's vector by a power of two, which changes no digit: its largest entry is in [1, 2)."""
    vectors = vectors.to(base.wide(vectors))
    largest = vectors.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-30)
    return vectors / (largest / (2 * torch.frexp(largest).mantissa))


def _length(vectors: Tensor) -> Tensor:
    """Return the L2 norm of each image, (B, 1, 1, 1)."""
    return vectors.to(base.wide(vectors)).flatten(1).norm(dim=1)[:, None, None, None]


def _unit(vectors: Tensor) -> Tensor:
    scaled = _scaled(vectors)
    return (scaled / _length(scaled).clamp(min=1e-30)).to(vectors)


def _into_l2(moved: Tensor, originals: Tensor, radius: Tensor) -> Tensor:
    change = moved - originals
    shrink = (radius / _length(change).clamp(min=1e-30)).clamp(max=1).to(change)
    # The original lies in [0, 1], so clamping only shortens the change.
    return base.round_toward((originals + shrink * change).clamp(0, 1), originals)


def _l2_start(images: Tensor, radius: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a point evenly from the L2 ball and clamp it to [0, 1]."""
    direction = _unit(torch.randn(images.shape, generator=generator))
    share = torch.rand((len(images), 1, 1, 1), generator=generator) ** (1 / max(1, math.prod(images.shape[1:])))
    return base.round_toward((images + radius * (share * direction).to(radius)).clamp(0, 1), images)


def _check_l2_radius(epsilon: float | Tensor, images: Tensor) -> None:
    """Raise UserError unless epsilon is an L2 radius of these images."""
    lengths = torch.as_tensor(epsilon, dtype=torch.float64)
    if lengths.numel() != 1 and lengths.shape != (len(images), 1, 1, 1):  # (B,) would be a radius for each column
        raise UserError(f"pgd: an L2 radius is one number for each image, (B, 1, 1, 1), not {tuple(lengths.shape)}")
    diagonal = math.sqrt(math.prod(images.shape[1:]))
    for end in map(float, lengths.aminmax() if lengths.numel() else ()):
        if not 0 <= end <= max(diagonal, 1.0):
            raise UserError(f"epsilon {end:g}: an L2 radius lies in [0, {diagonal:g}], the diagonal of these images")


def round_inwards(perturbed: Tensor, images: Tensor) -> Tensor:
    """Round pixels (B, 1, H, W) in [0, 1] to whole grey levels, toward the images, so that none ends further off.

    A pixel becomes that of the image if no grey level lies between both, or it was not changed.

    >>> import torch
    >>> images = torch.full((1, 1, 1, 2), 100 / 255)
    >>> (255 * round_inwards(images + 0.02 * torch.tensor([1.0, -1.0]), images)).round().flatten().tolist()
    [105.0, 95.0]
    """
    levels, original = perturbed.to(base.wide(perturbed)) * GREYS, images.to(base.wide(images)) * GREYS
    whole = levels.round()
    inwards = torch.where(levels > original, levels.floor(), levels.ceil())
    whole = torch.where((levels - whole).abs() < _NEAR, whole, inwards)
    none_between = (whole - original) * (levels - original) <= 0
    return base.round_toward(torch.where(none_between, images.to(levels), whole / GREYS), images)


def keep_worse(model: nn.Module, images: Tensor, perturbed: Tensor, labels: Tensor) -> Tensor:
    """Return perturbed images (B, 1, H, W), rounded to whole greys if only that is misclassified."""
    rounded, result = round_inwards(perturbed, images), perturbed.clone()
    with preserve_state(model):
        rows = (~base.is_misclassified(model, perturbed, labels)).nonzero()[:, 0]
        if len(rows):
            rows = rows[base.is_misclassified(model, rounded[rows], labels[rows])]
    result[rows] = rounded[rows]
    return result


def pgd_on_grid(
    model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float | Tensor, steps: int = 20, seed: int = 0
) -> Tensor:
    """Run PGD on whole grey levels: each step is rounded, and is a grey level at least. It stops once misclassified.

    Common arguments: see `fgsm`.
    """
    base.check_input(images, labels, epsilon)
    base.check_counts("pgd-8bit", steps=steps)
    images = images.detach()
    radius, result = base.radii(epsilon, images), images.clone()
    low, high = (round_inwards(end, images) for end in base.ball(images, radius))
    rows = torch.arange(len(images), device=images.device)
    with preserve_state(model):
        now = round_inwards(base.uniform_start(images, radius, torch.Generator().manual_seed(seed)), images)
        for _ in range(steps):
            gradient, _ = base.input_gradient(model, now, labels[rows])
            step = (2.5 * radius[rows] / steps).clamp(min=1 / GREYS)
            moved = ((now + step * gradient.sign()) * GREYS).round() / GREYS
            now = base.between(moved, low[rows], high[rows])
            result[rows] = now
            left = ~base.is_misclassified(model, now, labels[rows])
            rows, now = rows[left], now[left]
            if len(rows) == 0:
                break
    return result
