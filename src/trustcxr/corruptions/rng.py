"""Draw random numbers for each image, independent of its batch."""

import hashlib
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


class ImageRandom:
    """A stream of random numbers for each of B images, seeded by (seed, name, key). On the CPU, float32."""

    def __init__(self, name: str, seed: int, keys: Iterable[int | str]) -> None:
        digests = (hashlib.blake2b(f"{seed}/{name}/{key}".encode(), digest_size=8).digest() for key in keys)
        self.seeds = [int.from_bytes(digest, "big") >> 1 for digest in digests]
        self._generators = [torch.Generator().manual_seed(number) for number in self.seeds]

    def __len__(self) -> int:
        return len(self.seeds)

    def uniform(self, low: float, high: float) -> Tensor:
        """Draw one number in [low, high) for each image, (B,)."""
        drawn = [torch.rand((), generator=g) for g in self._generators]
        return low + (high - low) * torch.stack(drawn) if drawn else torch.zeros(0)

    def signs(self) -> Tensor:
        """Draw -1 or 1 for each image with equal probability, (B,)."""
        return torch.where(self.uniform(0, 1) < 0.5, -1.0, 1.0)

    def normal(self, height: int, width: int) -> Tensor:
        """Draw standard normal numbers for each image, (B, 1, height, width), independent within an image.

        Each image takes a random window and sign of one field of noise, which is much faster than new numbers.
        """
        field = _field(height, width)
        windows = torch.empty(len(self), 1, height, width)
        for window, generator in zip(windows, self._generators, strict=True):
            top, left, way = torch.randint(0, 1 << 30, (3,), generator=generator).tolist()
            top, left = top % (height + 1), left % (width + 1)
            torch.mul(field[top : top + height, left : left + width], 1.0 if way % 2 else -1.0, out=window[0])
        return windows

    def numpy(self) -> list[np.random.Generator]:
        """Return a NumPy generator for each image."""
        return [np.random.default_rng(number) for number in self.seeds]


@lru_cache(maxsize=4)
def _field(height: int, width: int) -> Tensor:
    """Return white noise of twice the height and width."""
    return torch.randn(2 * height, 2 * width, generator=torch.Generator().manual_seed(2311_14227))
