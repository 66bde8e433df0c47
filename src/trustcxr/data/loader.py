"""Load batches in an order that depends on seed and epoch alone, and augment whole batches."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset, JoinedDataset

Batch = tuple[Tensor, Tensor, Tensor]  # images uint8 (B, 1, H, W), labels int64 (B,), rows of the data set int64 (B,)


class _Rows(TorchDataset):
    """A data set that reads a batch at a time and so needs no worker process."""

    def __init__(self, dataset: "Dataset | JoinedDataset") -> None:
        self.dataset, self.labels = dataset, torch.as_tensor(np.asarray(dataset.labels), dtype=torch.long)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: list[int]) -> Batch:
        chosen = torch.as_tensor(rows, dtype=torch.long)
        return torch.from_numpy(self.dataset.batch(rows)), self.labels[chosen], chosen


class BatchRows(Sampler[list[int]]):
    """Rows of each batch, shuffled by (seed, epoch) alone.

    `balanced` shuffles and draws every class equally often; with `sources` (N,), such as hospitals, also every source
    within a class. With `numbers` (N,) of data sets, each has its share of `shares` (K,) of the draws of a class. Each
    batch comes `repeats` times in a row. `part` (k, n): the k-th of n equal parts of each batch.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        balanced: bool = False,
        sources: np.ndarray | None = None,
        numbers: np.ndarray | None = None,
        shares: Sequence[float] = (),
        drop_last: bool = False,
        repeats: int = 1,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.labels, self.batch_size, self.seed, self.epoch = np.asarray(labels), batch_size, seed, 0
        self.sources = np.zeros(len(labels), dtype=int) if sources is None else np.asarray(sources)
        self.numbers = np.zeros(len(labels), dtype=int) if numbers is None else np.asarray(numbers)
        self.shares = np.asarray(shares or (1.0,))
        self.shuffle, self.balanced, self.drop_last = shuffle, balanced, drop_last and len(labels) > batch_size
        self.repeats, self.part = repeats, part

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffle of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.labels), self.batch_size)
        return (whole + (rest > 0 and not self.drop_last)) * self.repeats

    def __iter__(self) -> Iterator[list[int]]:
        rows = self._order().tolist()
        for i in range(len(self)):
            first = i // self.repeats * self.batch_size
            batch = rows[first : first + self.batch_size]
            number, parts = self.part
            if rows_of_part := batch[len(batch) * number // parts : len(batch) * (number + 1) // parts]:
                yield rows_of_part

    def _order(self) -> np.ndarray:
        count = len(self.labels)
        if not (self.shuffle or self.balanced):
            return np.arange(count)
        random = np.random.default_rng([self.seed, self.epoch])
        if not self.balanced:
            return random.permutation(count)
        classes = np.unique(self.labels)
        share = -(-count // len(classes))
        drawn = [self._draw_sets(random, np.flatnonzero(self.labels == c), share) for c in classes]
        return random.permutation(np.stack(drawn, axis=1).ravel()[:count])

    def _draw_sets(self, random: np.random.Generator, rows: np.ndarray, count: int) -> np.ndarray:
        """Draw `count` rows, of each data set by its share."""
        numbers = np.unique(self.numbers[rows])
        borders = np.cumsum(self.shares[numbers]) / self.shares[numbers].sum() * count
        counts = np.diff(np.round(borders).astype(int), prepend=0)
        parts = zip(numbers, counts, strict=True)
        return np.concatenate([self._draw(random, rows[self.numbers[rows] == k], n) for k, n in parts if n])

    def _draw(self, random: np.random.Generator, rows: np.ndarray, count: int) -> np.ndarray:
        """Draw `count` rows, equally many of every source, each row once before any is repeated."""
        sources = np.unique(self.sources[rows])
        if len(sources) > 1:
            sources = random.permutation(sources)
        each = -(-count // len(sources))
        drawn = [_rounds(random, rows[self.sources[rows] == source], each) for source in sources]
        return np.stack(drawn, axis=1).ravel()[:count]


def _rounds(random: np.random.Generator, rows: np.ndarray, count: int) -> np.ndarray:
    """Draw `count` rows, each once before any is repeated."""
    rounds = -(-count // len(rows))
    return np.concatenate([random.permutation(rows) for _ in range(rounds)])[:count]


def loader(dataset: "Dataset | JoinedDataset", batch_size: int, **order: Any) -> DataLoader:
    """Return a loader of batches: images uint8 (B, 1, H, W), labels (B,), rows of the data set (B,).

    `order`: options of BatchRows; data sets and shares are those of `dataset`. There are no
    worker processes, since a batch is one read of a file. `sampler.set_epoch(n)` (Lightning calls it) chooses the
    shuffle of epoch n.
    """
    sets = {name: getattr(dataset, name) for name in ("numbers", "shares") if getattr(dataset, "shares", ())}
    rows = BatchRows(dataset.labels, batch_size, **sets, **order)
    return DataLoader(_Rows(dataset), sampler=rows, batch_size=None, pin_memory=torch.cuda.is_available())


def to_pixels(images: Tensor) -> Tensor:
    """Convert uint8 (B, 1, H, W) to pixel space: float32 in [0, 1]."""
    return images.float().div_(255)


def augment(
    images: Tensor,
    generator: torch.Generator,
    *,
    rotation: float = 10.0,
    shift: float = 0.05,
    scale: float = 0.1,
    brightness: float = 0.1,
    contrast: float = 0.1,
    flip: float = 0.0,
    part: tuple[int, int] | None = None,
) -> Tensor:
    """Rotate (degrees), shift and scale (shares), and change brightness and contrast, at random for each image.

    `images` (B, C, H, W) float in [0, 1], as is the result; the outside is black. Channels after the first are masks,
    which only move. `flip`: share of images mirrored left to right (default none: the heart has a side). `part`
    (first, count): draw as for these rows of a batch of `count`.
    """
    first, count = part or (0, len(images))
    rows = slice(first, first + len(images))

    def draw(spread: float) -> Tensor:
        return ((torch.rand(count, generator=generator)[rows] * 2 - 1) * spread).to(images.device)

    angle, zoom = torch.deg2rad(draw(rotation)), 1 + draw(scale)
    mirror = torch.where(torch.rand(count, generator=generator)[rows] < flip, -1.0, 1.0).to(images.device)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    across, down = 2 * draw(shift), 2 * draw(shift)
    transform = torch.stack([cos * mirror, -sin, across, sin * mirror, cos, down], 1).view(-1, 2, 3)
    grid = F.affine_grid(transform, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)
    moved, masks = moved[:, :1], moved[:, 1:]
    gain, offset = (1 + draw(contrast)).to(images.dtype), draw(brightness).to(images.dtype)
    mean = moved.mean((1, 2, 3), keepdim=True)
    lit = ((moved - mean) * gain.view(-1, 1, 1, 1) + mean + offset.view(-1, 1, 1, 1)).clamp_(0, 1)
    return torch.cat([lit, masks], 1) if masks.shape[1] else lit
