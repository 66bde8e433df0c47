"""Change images so that a network sees less of the hospital: the ways that `benchmarks.elsewhere_trials` compares.

- standardised: each image's grey levels are mapped to the mean histogram of the training images, before the network;
- frequency: half of a training batch gets the low-frequency amplitudes of an image of another class;
- grey: half of a training batch gets the histogram of an image of another class.
"""

from typing import Any

import torch
from torch import Tensor, nn

from trustcxr.training.step import TrainingStep

MIXED = ("frequency", "grey")
WIDTH = 0.02  # grey levels to each side, over which the slope of a mapping is measured


class Standardise(nn.Module):
    """Map each image's grey levels to the quantiles (N,) of a histogram, N pixels in ascending order.

    The mapping depends on ranks, so that autograd sees a wrong gradient. `gradient` chooses another: `identity`, or
    `slope`, that of the mapping itself, smoothed.
    """

    def __init__(self, quantiles: Tensor) -> None:
        super().__init__()
        self.quantiles, self.gradient = quantiles, "identity"

    def forward(self, images: Tensor) -> Tensor:
        levels = images.flatten(1).contiguous()
        with torch.no_grad():
            ordered, slope = levels.sort(1).values, torch.ones_like(levels)
            mapped = self._map_levels(ordered, levels)
            if self.gradient == "slope":
                ends = (self._map_levels(ordered, levels + sign * WIDTH) for sign in (1, -1))
                slope = torch.sub(*ends) / (2 * WIDTH)
        return (mapped + slope * (levels - levels.detach())).view_as(images)

    def _map_levels(self, ordered: Tensor, levels: Tensor) -> Tensor:
        """Return the new values of `levels` (B, N) in images of the pixels `ordered` (B, N); ties stay ties."""
        last = ordered.shape[1] - 1
        below, upto = (torch.searchsorted(ordered, levels, right=right) for right in (False, True))
        rank = ((below + upto - 1) / 2).clamp(0, last)
        first = rank.floor().long()
        return torch.lerp(self.quantiles[first], self.quantiles[(first + 1).clamp(max=last)], rank - first)


def mean_histogram(images: Tensor) -> Tensor:
    """Return the mean of the images' ordered pixels (N,)."""
    return images.flatten(1).sort(1).values.mean(0)


def mix_frequencies(images: Tensor, others: Tensor) -> Tensor:
    """Give images (B, 1, H, W) the mean and the slowest waves' amplitudes of others (Fourier domain adaptation)."""
    waves, strange = torch.fft.fft2(images), torch.fft.fft2(others)
    row, column = (torch.fft.fftfreq(side, 1 / side).abs() for side in images.shape[-2:])
    low = (row[:, None] <= 1) & (column[None] <= 1)  # at most one cycle along a side
    return torch.fft.ifft2(torch.polar(torch.where(low, strange.abs(), waves.abs()), waves.angle())).real.clamp(0, 1)


def mix_greys(images: Tensor, others: Tensor) -> Tensor:
    """Give images (B, 1, H, W) the histograms of others."""
    levels = images.flatten(1)
    values = others.flatten(1).sort(1).values
    return torch.empty_like(levels).scatter_(1, levels.argsort(1), values).view_as(images)


def mix(way: str, images: Tensor, labels: Tensor, share: float = 0.5) -> Tensor:
    """Mix a share of a batch (B, 1, H, W), each image with one of another class."""
    others = images[torch.multinomial((labels[:, None] != labels[None]) + 1e-9, 1)[:, 0]]
    mixed = (mix_frequencies if way == "frequency" else mix_greys)(images, others)
    chosen = torch.rand(len(images), 1, 1, 1) < share
    return torch.where(chosen, mixed, images).contiguous(memory_format=torch.channels_last)


def mix_in_training(way: str) -> None:
    """Mix every training batch of this process, before the attack."""
    usual = TrainingStep.__init__

    def begin(self: TrainingStep, *arguments: Any, **keys: Any) -> None:
        usual(self, *arguments, **keys)
        defence = self.defence

        def learn(learner: nn.Module, pixels: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
            return defence(learner, mix(way, pixels, labels), labels, **options)

        self.defence = learn  # type: ignore[assignment]

    TrainingStep.__init__ = begin  # type: ignore[method-assign]
