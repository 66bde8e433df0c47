"""Train on images changed without regard to the model: mixup, cutout, gaussian."""

import torch
from torch import Tensor, nn

from trustcxr.defences.base import smoothed_cross_entropy, standard


def mixup(
    model: nn.Module, images: Tensor, labels: Tensor, *, alpha: float = 0.2, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2018) in pixel space: two images and their losses with weights s and 1 - s.

    s is drawn from Beta(alpha, alpha) once a batch. The logits are of the mixed images.
    """
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    other = torch.randperm(len(images)).to(images.device)
    logits = model(share * images + (1 - share) * images[other])
    first, second = (smoothed_cross_entropy(logits, target, label_smoothing) for target in (labels, labels[other]))
    return share * first + (1 - share) * second, logits


def cutout(
    model: nn.Module, images: Tensor, labels: Tensor, *, size: float = 0.25, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cutout (DeVries and Taylor 2017) in pixel space: one black square of side `size` times the image's.

    Its centre is drawn evenly over the image, so the edge may cut it, as in the paper.
    """
    return standard(model, cut(images, size=size), labels, label_smoothing=label_smoothing)


def gaussian(
    model: nn.Module, images: Tensor, labels: Tensor, *, sigma: float = 0.05, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Training with Gaussian noise of standard deviation `sigma` in pixel space, clamped to [0, 1]."""
    noise = torch.randn(images.shape).to(images)
    return standard(model, (images + sigma * noise).clamp(0, 1), labels, label_smoothing=label_smoothing)


def cut(images: Tensor, *, size: float) -> Tensor:
    """Return copies of images (B, 1, H, W) with one black square each, of side `size` as a share of H and W."""
    count, _, *sides = images.shape
    inside = []
    for side in sides:
        length = max(1, round(size * side))
        start = torch.randint(side, (count, 1)) - length // 2
        index = torch.arange(side)
        inside.append((index >= start) & (index < start + length))
    hidden = inside[0][:, :, None] & inside[1][:, None, :]
    return images.masked_fill(hidden[:, None].to(images.device), 0.0)
