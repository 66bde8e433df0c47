"""Fit a density of vectors: probabilistic principal components (Tipping and Bishop 1999)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Components:
    """A density of rows (K,): mean, axes (K, R) divided by the spread along each, variance off the axes."""

    mean: Tensor
    axes: Tensor
    rest: Tensor

    def distance(self, rows: Tensor) -> Tensor:
        """Return the squared distance (N,) of rows (N, K) from the mean, in units of the spread in each direction."""
        off = rows.double() - self.mean
        left = off.square().sum(1) - (off @ functional.normalize(self.axes, dim=0)).square().sum(1)
        return (off @ self.axes).square().sum(1) + left.clamp(min=0) / self.rest


def fit_components(rows: Tensor, most: int) -> Components:
    """Return principal components of rows (N, K) and the mean variance beyond them, rounded as stored."""
    mean = rows.mean(0)
    count = max(1, min(most, len(rows) // 4, rows.shape[1] - 1))
    values, axes = _spectrum(rows - mean)
    rest = (values[:-count].clamp(min=0).sum() / (rows.shape[1] - count)).clamp(min=1e-9)
    axes = axes[:, -count:] / torch.maximum(values[-count:], rest).sqrt()
    return Components(*(part.float().double() for part in (mean, axes, rest)))


def _spectrum(off: Tensor) -> tuple[Tensor, Tensor]:
    """Return ascending variances and their axes (K, V) of rows (N, K) of mean 0; for N < K only those above 0."""
    freedom = max(len(off) - 1, 1)
    if len(off) >= off.shape[1]:
        return torch.linalg.eigh(off.T @ off / freedom)
    _, lengths, axes = torch.linalg.svd(off, full_matrices=False)
    return lengths.square().flip(0) / freedom, axes.T.flip(1)
