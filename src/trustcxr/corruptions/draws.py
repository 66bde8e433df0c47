"""Random numbers of each image by itself, whatever batch it stands in."""

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


class Draws:
    """A stream of random numbers for each of B images, told by (seed, name, key). Drawn on the CPU, float32."""

    def __init__(self, name: str, seed: int, keys: Iterable[int | str]) -> None:
        self.seeds = [_digest(f"{seed}/{name}/{key}") for key in keys]
        self._generators = [torch.Generator().manual_seed(number) for number in self.seeds]

    def __len__(self) -> int:
        return len(self.seeds)

    def uniform(self, low: float, high: float) -> Tensor:
        """One number in [low, high) for each image, (B,)."""
        drawn = [torch.rand((), generator=g) for g in self._generators]
        return low + (high - low) * torch.stack(drawn) if drawn else torch.zeros(0)

    def signs(self) -> Tensor:
        """-1 or 1 for each image, evenly, (B,)."""
        return torch.where(self.uniform(0, 1) < 0.5, -1.0, 1.0)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers for each image, (B, *shape)."""
        drawn = torch.empty(len(self), *shape)
        for image, generator in zip(drawn, self._generators, strict=True):
            image.normal_(generator=generator)
        return drawn

    def numpy(self) -> list[np.random.Generator]:
        """A NumPy generator for each image: for what is drawn line by line."""
        return [np.random.default_rng(number) for number in self.seeds]


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
