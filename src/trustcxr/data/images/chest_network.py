"""Tell upright frontal chest images from mirrored, turned, inverted and other images, by thumbnails of 64 x 64 pixels.

A small network names the kind, and a density of chest images (probabilistic principal components, Tipping and Bishop
1999) finds what the network has never seen. `benchmarks/chest_check.py` fits both, and writes how and on what into the
metadata of `chest_network.safetensors`.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

FILE = Path(__file__).with_suffix(".safetensors")
KINDS = ("chest", "mirrored", "turned", "inverted", "other")
CHANNELS = (16, 32, 48)
SEEN, SIDE = 32, 16  # pixels of the image that the network sees, and of that whose density is fitted
_BATCH, _LIKELY = 256, 0.8


class ChestNetwork(nn.Sequential):
    """Map normalised images (B, 1, 32, 32) to one logit for each of KINDS."""

    def __init__(self) -> None:
        blocks: list[nn.Module] = []
        for inside, outside in zip((1, *CHANNELS), CHANNELS, strict=False):
            blocks += [nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.ReLU()]
        super().__init__(*blocks, nn.Flatten(), nn.Dropout(0.3), nn.Linear(16 * CHANNELS[-1], 32), nn.ReLU())
        self.append(nn.Linear(32, len(KINDS)))


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


def measure(thumbs: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return log probabilities (N, KINDS) and log distances (N,) of thumbnails (N, 64, 64) uint8."""
    network, density, _ = load_check()
    scores, distances = [], []
    with torch.inference_mode():
        for start in range(0, len(thumbs), _BATCH):
            images = normalise(shrink(thumbs[start : start + _BATCH]))
            distances.append(density.distance(flatten(images)).clamp(min=1e-9).log())
            scores.append(network(images[:, None]).log_softmax(1))
    return torch.cat(scores), torch.cat(distances)


def name_kinds(thumbs: np.ndarray) -> list[str]:
    """Return one of KINDS for each thumbnail (N, 64, 64) uint8."""
    if not len(thumbs):
        return []
    scores, distances = measure(thumbs)
    least, most = load_check()[2]
    refused = (scores[:, 0] < least) | (distances > most)
    best, kinds = scores[:, 1:].max(1)
    named = torch.where(best.exp() > _LIKELY, kinds + 1, len(KINDS) - 1)  # "other" if no kind is likely
    return [KINDS[int(kind)] for kind in torch.where(refused, named, 0)]


def shrink(thumbs: np.ndarray) -> Tensor:
    """Average thumbnails (N, 64, 64) uint8 to SEEN x SEEN, (N, 32, 32) in grey levels."""
    return functional.adaptive_avg_pool2d(torch.from_numpy(np.array(thumbs))[:, None].float(), SEEN)[:, 0]


def normalise(images: Tensor) -> Tensor:
    """Shift and scale images (N, H, W) to mean 0 and standard deviation 1."""
    centred = images - images.mean((1, 2), keepdim=True)
    return centred / centred.std((1, 2), keepdim=True).clamp(min=4)


def flatten(images: Tensor) -> Tensor:
    """Average normalised images to SIDE x SIDE, (N, SIDE * SIDE)."""
    return functional.adaptive_avg_pool2d(images[:, None], SIDE).flatten(1)


@cache
def load_check() -> tuple[ChestNetwork, Components, Tensor]:
    """Load the network, density and limits: lowest log probability of "chest", highest log distance of a chest."""
    with safe_open(FILE, "pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    limits = tensors.pop("limits")
    density = Components(*(tensors.pop(name).double() for name in ("mean", "axes", "rest")))
    network = ChestNetwork().eval()
    network.load_state_dict(tensors)
    return network, density, limits


def fit_components(rows: Tensor, most: int) -> Components:
    """Return principal components of rows (N, K) and the mean variance beyond them, rounded as stored."""
    mean = rows.mean(0)
    count = max(1, min(most, len(rows) // 4, rows.shape[1] - 1))
    off, freedom = rows - mean, max(len(rows) - 1, 1)
    if len(rows) >= rows.shape[1]:
        values, axes = torch.linalg.eigh(off.T @ off / freedom)
    else:  # only the variances above 0, as ascending
        _, lengths, axes = torch.linalg.svd(off, full_matrices=False)
        values, axes = lengths.square().flip(0) / freedom, axes.T.flip(1)
    rest = (values[:-count].clamp(min=0).sum() / (rows.shape[1] - count)).clamp(min=1e-9)
    axes = axes[:, -count:] / torch.maximum(values[-count:], rest).sqrt()
    return Components(*(part.float().double() for part in (mean, axes, rest)))
