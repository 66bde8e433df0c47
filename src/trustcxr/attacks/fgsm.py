"""One step along the sign of the gradient: FGSM, and FGSM from a random start."""

import torch
from torch import Tensor, nn

from trustcxr.attacks.base import Precision, ball, between, check_input, input_gradient, lowered, radii, uniform_start
from trustcxr.models.preserve_state import Mode, preserve_state


def fgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    mode: Mode = "eval",
    precision: Precision | None = None,
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
    check_input(images, labels, epsilon)
    images = images.detach()
    with preserve_state(model, mode), lowered(precision, images):
        gradient, _ = input_gradient(model, images, labels, check=True)
    radius = radii(epsilon, images)
    return between(images + radius * gradient.sign(), *ball(images, radius))


def fgsm_rs(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    seed: int = 0,
    mode: Mode = "eval",
    precision: Precision | None = None,
) -> Tensor:
    """FGSM from a random start in the ball, with a step of 1.25 epsilon (Wong et al. 2020); all else as `fgsm`.

    >>> import torch, trustcxr as tx
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    >>> adversarial = tx.attacks.fgsm_rs(model, images, labels, epsilon=0.02, seed=1)
    >>> bool((adversarial - images).abs().max() < 0.02 + 1e-6)
    True
    """
    check_input(images, labels, epsilon)
    images = images.detach()
    radius = radii(epsilon, images)
    start = uniform_start(images, radius, torch.Generator().manual_seed(seed))
    with preserve_state(model, mode), lowered(precision, images):
        gradient, _ = input_gradient(model, start, labels, check=True)
    return between(start + 1.25 * radius * gradient.sign(), *ball(images, radius))
