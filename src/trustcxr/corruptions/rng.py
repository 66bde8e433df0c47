"""Random numbers of each image by itself, whatever batch it stands in."""

import hashlib
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


class ImageRandom:
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

    def normal(self, height: int, width: int) -> Tensor:
        """Standard normal numbers for each image, (B, 1, height, width).

        Each image cuts its own window, its signs turned as drawn, from one field of noise: that is many times as fast
        as drawing every number anew. Within an image all are independent.
        """
        field = _field(height, width)
        windows = torch.empty(len(self), 1, height, width)
        for window, generator in zip(windows, self._generators, strict=True):
            top, left, way = torch.randint(0, 1 << 30, (3,), generator=generator).tolist()
            top, left = top % (height + 1), left % (width + 1)
            torch.mul(field[top : top + height, left : left + width], 1.0 if way % 2 else -1.0, out=window[0])
        return windows

    def numpy(self) -> list[np.random.Generator]:
        """A NumPy generator for each image: for what is drawn line by line."""
        return [np.random.default_rng(number) for number in self.seeds]


@lru_cache(maxsize=4)
def _field(height: int, width: int) -> Tensor:
    """White noise of twice the height and width."""
    return torch.randn(2 * height, 2 * width, generator=torch.Generator().manual_seed(2311_14227))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
