"""Lung masks as tensors: which images have one, and its edge made soft."""

import torch.nn.functional as F
from torch import Tensor

EDGE = 0.03  # of the side: the lungs' edge falls from 1 to 0 over four times this, half of it inside


def soften(lungs: Tensor) -> Tensor:
    """Masks (B, 1, H, W) with a soft edge: a mean filter of twice EDGE of the side, run twice."""
    width = 2 * round(EDGE * lungs.shape[-1]) + 1
    for _ in range(2):
        lungs = F.avg_pool2d(lungs, width, 1, width // 2, count_include_pad=False)
    return lungs


def has_lungs(lungs: Tensor) -> Tensor:
    """bool (B, 1, 1, 1): which images have a mask that is not empty."""
    return (lungs > 0.5).flatten(1).any(1).view(-1, 1, 1, 1)
