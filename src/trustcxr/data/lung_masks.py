"""Soften lung masks, and find empty ones."""

import torch.nn.functional as F
from torch import Tensor

EDGE = 0.03  # of the side: the edge falls from 1 to 0 over four times this, half of it inside


def soften(lungs: Tensor) -> Tensor:
    """Soften the edge of masks (B, 1, H, W): a mean filter of twice EDGE of the side, run twice."""
    width = 2 * round(EDGE * lungs.shape[-1]) + 1
    for _ in range(2):
        lungs = F.avg_pool2d(lungs, width, 1, width // 2, count_include_pad=False)
    return lungs


def has_lungs(lungs: Tensor) -> Tensor:
    """Return bool (B, 1, 1, 1): which masks are not empty."""
    return (lungs > 0.5).flatten(1).any(1).view(-1, 1, 1, 1)
