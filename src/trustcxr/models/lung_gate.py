"""Define the lung gate: a segmenter in front of the network that removes the background.

Cutting the lungs out before classification is common (Tahir et al. 2021). Here the segmenter is part of the model:
attacks meet it, saliency passes through it, and a trained model needs no mask.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVEL = 0.5  # grey of the background: black would give attacks on the edge of the lungs a large step
WIDTHS = (16, 32, 64, 96)  # channels of the levels, each half the side of the previous


class LungGate(nn.Module):
    """A small U-Net (Ronneberger et al. 2015) that fades an image to mid-grey outside its estimate of the lungs.

    `forward`: images (B, 1, H, W) in [0, 1] -> their difference from `level`. GroupNorm works alike in training.
    """

    level: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.tensor(LEVEL))  # with the weights: they are trained for it
        self.down = nn.ModuleList(_block(a, b, stride=2) for a, b in pairwise((1, *WIDTHS)))
        self.up = nn.ModuleList(_block(a + b, a, stride=1) for a, b in reversed(list(pairwise(WIDTHS))))
        self.out = nn.Conv2d(WIDTHS[0], 1, 3, padding=1)

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (B, 1, H, W) of being inside the lungs, of images (B, 1, H, W) in [0, 1]."""
        x, levels = images - self.level, []
        for block in self.down:
            x = block(x)
            levels.append(x)
        for block, level in zip(self.up, levels[-2::-1], strict=True):
            x = block(torch.cat([_resized(x, level), level], 1))
        return _resized(self.out(x), images)

    def forward(self, images: Tensor) -> Tensor:
        """Return the difference of images (B, 1, H, W) in [0, 1] from `level`, near 0 in the background."""
        return (images - self.level) * self.logits(images).sigmoid()


def _block(inputs: int, outputs: int, *, stride: int) -> nn.Module:
    norms = [nn.GroupNorm(outputs // 8, outputs) for _ in range(2)]
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        norms[0],
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        norms[1],
        nn.SiLU(),
    )


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
