"""Keep adversarial images on the whole grey levels of an 8-bit file.

An image from a file lies on the grid of k / 255, and epsilon is seldom a whole number of grey levels. So a float at the
end of the ball tells a model what was changed, which no file does.
"""

import torch
from torch import Tensor, nn

from trustcxr.attacks import base
from trustcxr.models.preserve_state import preserve_state

GREYS = 255
_NEAR = 1e-4  # of a grey level: what float32 makes of a whole one


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
