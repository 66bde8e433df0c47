"""Define plain networks: convolutions and ReLUs in a row, small enough to certify.

Without skip connections, max pooling and norms, interval bounds stay tight.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Plain:
    """Layers of a plain network.

    Attributes:
        convolutions: channels, side of the kernel and stride of each.
        grid: side of the last feature map; larger maps are averaged down to it.
        hidden: units between the last map and the logits.
    """

    convolutions: tuple[tuple[int, int, int], ...]
    grid: int = 8
    hidden: int = 128


PLAIN_MODELS: dict[str, Plain] = {
    "plain3": Plain(((16, 6, 2), (32, 3, 2), (64, 3, 2)), grid=4),  # made for 32 pixels
    "plain5": Plain(((16, 5, 2), (32, 3, 2), (32, 3, 1), (64, 3, 2), (64, 3, 1))),  # made for 64 pixels
}


class PlainNet(nn.Module):
    """Convolutions and ReLUs from normalised images (B, 1, H, W) to logits (B, C)."""

    def __init__(self, plain: Plain, classes: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        channels = 1
        for width, side, stride in plain.convolutions:
            parts += [nn.Conv2d(channels, width, side, stride, (side - 1) // 2), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*parts)
        self.num_features = channels
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(plain.grid),
            nn.Flatten(),
            nn.Linear(channels * plain.grid**2, plain.hidden),
            nn.ReLU(),
            nn.Linear(plain.hidden, classes),
        )
        draw_even(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last feature map (B, channels, h, w)."""
        return self.features(images)

    def forward_head(self, features: Tensor) -> Tensor:
        """Return logits (B, C) of the last feature map."""
        return self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of normalised images (B, 1, H, W)."""
        return self.forward_head(self.forward_features(images))

    def chain(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules in the order they run, by name."""
        yield from self.named_children()


class PixelScale(nn.Module):
    """Normalise pixels: (x - mean) / std."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        """Return normalised images (B, 1, H, W)."""
        return (images - self.mean) / self.std


def draw_even(model: nn.Module) -> None:
    """Draw the weights anew so that interval bounds keep their width from layer to layer; biases are 0.

    With weights of standard deviation s the radius grows by n s sqrt(2 / pi), and by a half at the ReLU: s is
    sqrt(2 pi) / n for n inputs (Shi et al. 2021, section 3.1).
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, 0.0, math.sqrt(2 * math.pi) / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
