"""Layers of B-cos networks (Boehle et al. CVPR 2022, "B-cos networks: alignment is all we need for interpretability").

A unit answers as far as its input lies along its weights: the linear answer times the cosine between the two. With no
bias and no rectifier the whole network is then, at each image, one linear map of it, which is made large by weights
that look like what they read.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TINY = 1e-6


class BcosConv(nn.Conv2d):
    """A convolution of unit weights times the cosine between weights and patch (B = 2), without a bias."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(channels, out, kernel, stride, padding, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, K, h, w) -> (B, K', h', w')."""
        linear = self._conv_forward(features, F.normalize(self.weight.flatten(1)).view_as(self.weight), None)
        squares = features.square().sum(1, keepdim=True)
        ones = torch.ones(1, 1, *self.kernel_size, dtype=squares.dtype, device=squares.device)
        length = (F.conv2d(squares, ones, stride=self.stride, padding=self.padding) + _TINY).sqrt()
        return linear * (linear.abs() / length)


class UncentredNorm(nn.Module):
    """Features over the root of their mean square in each channel, which takes no mean off: BatchNorm without a bias.

    In training of the batch, afterwards of a running mean, as BatchNorm does.
    """

    momentum = 0.1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.running_square: Tensor
        self.register_buffer("running_square", torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, K, h, w) -> the same shape."""
        square = self.running_square
        if self.training:
            exact = torch.promote_types(features.dtype, torch.float32)
            square = features.to(exact).square().mean((0, 2, 3))
            with torch.no_grad():
                self.running_square.lerp_(square.detach().to(self.running_square), self.momentum)
        return features * (self.weight * (square + _TINY).rsqrt())[:, None, None]


def both_signs(pixels: Tensor) -> Tensor:
    """Pixels (B, 1, H, W) around 0 -> what is brighter than that and what is darker, (B, 2, H, W), neither below 0."""
    return torch.cat([pixels.relu(), (-pixels).relu()], dim=1)
