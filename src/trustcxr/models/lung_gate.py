"""A lung segmenter inside the model: what it takes for background, the network behind it never sees.

Cutting the lungs out before classification is common (COVID-QU-Ex itself was made for it: Tahir et al. 2021). Here the
segmenter is a part of the model, so that an attack meets it, saliency passes through it, and no mask is needed once it
is trained.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What background becomes: mid-grey. An attack that moves the edge of the lungs by a fraction of a pixel changes what is
# seen there by the step from image to background, which to black would be many times its epsilon.
LEVEL = 0.5
WIDTHS = (16, 32, 64, 96)  # of the levels, each half the side of the one before; the first is half the image's


class LungGate(nn.Module):
    """A small U-Net (Ronneberger et al. 2015) that fades an image to mid-grey outside its own estimate of the lungs.

    `forward`: images (B, 1, H, W) in [0, 1] -> their difference from `level`, near 0 outside the lungs. GroupNorm has
    no batch statistics, so that it does the same whether the model behind it is in training or not.
    """

    level: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.tensor(LEVEL))  # with the weights: they are trained for it
        self.down = nn.ModuleList(_block(a, b, stride=2) for a, b in pairwise((1, *WIDTHS)))
        self.up = nn.ModuleList(_block(a + b, a, stride=1) for a, b in reversed(list(pairwise(WIDTHS))))
        self.out = nn.Conv2d(WIDTHS[0], 1, 3, padding=1)

    def logits(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W) in [0, 1] -> logits (B, 1, H, W) of being inside the lungs."""
        x, levels = images - self.level, []
        for block in self.down:
            x = block(x)
            levels.append(x)
        for block, level in zip(self.up, levels[-2::-1], strict=True):
            x = block(torch.cat([_resized(x, level), level], 1))
        return _resized(self.out(x), images)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W) in [0, 1] -> difference from `level`, near 0 in what is taken for background."""
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
