"""Interval bounds (IBP; Gowal et al. 2019): propagate the box of the images through the layers.

An affine layer W x + b sends centre c and radius r to W c + b and |W| r; a ReLU sends both ends to their positive
parts. The bounds are loose unless the network was trained by them, because correlations of inputs are lost. They cost
two forward passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trustcxr.certify.affine_graph import UNIT, Affine, Layer, margins


@dataclass(frozen=True)
class Interval:
    """Interval of values: centre (B, ...) and radius (B, ...) >= 0."""

    centre: Tensor
    radius: Tensor

    @classmethod
    def from_ends(cls, low: Tensor, high: Tensor) -> "Interval":
        """Return the interval between two ends, `low` <= `high`."""
        return cls((low + high) / 2, (high - low) / 2)

    @property
    def low(self) -> Tensor:
        """Lower end."""
        return self.centre - self.radius

    @property
    def high(self) -> Tensor:
        """Upper end."""
        return self.centre + self.radius

    def through(self, layer: Layer) -> "Interval":
        """Return the interval after a layer."""
        if isinstance(layer, Affine):
            return Interval(layer.apply(self.centre), layer.spread(self.radius))
        return Interval.from_ends(self.low.relu(), self.high.relu())

    def least(self, rows: Tensor) -> Tensor:
        """Return the minimum (B, R) of rows of coefficients (B, R, ...) over the interval."""
        rows = rows.flatten(2)
        centre, radius = (t.expand(len(rows), *t.shape[1:]).flatten(1)[:, :, None] for t in (self.centre, self.radius))
        return (rows @ centre - rows.abs() @ radius)[:, :, 0]


def intervals(layers: Sequence[Layer], images: Interval) -> list[Interval]:
    """Return the intervals before each layer and after the last."""
    result = [images]
    for layer in layers:
        result.append(result[-1].through(layer))
    return result


def least_margins(layers: Sequence[Layer], images: Interval, labels: Tensor) -> Tensor:
    """Return lower bounds (B, C) of the margin of each label over every class, over all images of the interval.

    The affine layers after the last ReLU act on the margins directly (Gowal et al.): the difference of two logits is
    bounded, not each logit. The margin over the label itself is 0.
    """
    return last_margins(layers, intervals(layers, images), labels)


def last_margins(layers: Sequence[Layer], intervals: Sequence[Interval], labels: Tensor) -> Tensor:
    """Return the bounds of `least_margins` from the `intervals` of the layers."""
    index = len(layers)
    rows = margins(intervals[-1].centre.shape[1], labels, intervals[-1].centre)
    constant = rows.new_zeros(rows.shape[:2])
    while index and isinstance(layer := layers[index - 1], Affine):
        index -= 1
        rows, shift = pulled(layer, rows, intervals[index].centre.shape[1:])
        constant = constant + shift
    return constant + intervals[index].least(rows)


def pulled(layer: Affine, rows: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Move rows (B, R, *output) before an affine layer: rows (B, R, *shape), and what its bias adds (B, R)."""
    before = layer.transpose(rows.flatten(0, 1), shape).unflatten(0, rows.shape[:2])
    return before, (rows * layer.offset(shape, rows)[:, None]).flatten(2).sum(2)


def rounding(layers: Sequence[Layer], intervals: Sequence[Interval]) -> Tensor:
    """Return how far (B, C) logits computed in float32 may differ from the exact ones, anywhere in the box.

    For n products in any order of summation the error is n u / (1 - n u) of the sum of their sizes (Higham 2002,
    section 3.1; u = 2^-24); incoming errors grow by |W|. Winograd or Fourier convolutions and lower precisions are not
    covered.
    """
    error = torch.zeros_like(intervals[0].centre)
    for layer, at, after in zip(layers, intervals[:-1], intervals[1:], strict=True):
        if isinstance(layer, Affine):
            largest = at.centre.abs() + at.radius + error
            bias = layer.offset(at.centre.shape[1:], at.centre).abs()
            n = (layer.terms_between(at.centre.shape, after.centre.shape) + 1) * UNIT
            error = layer.spread(error) + n / (1 - n) * (layer.spread(largest) + bias)
        else:
            error = error.where(at.high + error > 0, 0.0)  # surely 0, also in float32
    return error
