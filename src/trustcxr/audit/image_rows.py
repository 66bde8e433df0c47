"""Restrict a data set to some of its images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset


class ImageRows:
    """Some images of a data set as a data set: the index of each in the whole, and its label."""

    def __init__(self, dataset: "Dataset", rows: np.ndarray, labels: np.ndarray | None = None) -> None:
        self.whole, self.rows = dataset, rows
        self.labels = (dataset.labels[rows] if labels is None else labels).astype(np.int64)
        self.table = dataset.table.iloc[rows].reset_index(drop=True)
        self.classes: tuple[str, ...] = dataset.classes
        self.size, self.root = dataset.size, dataset.root
        self.sample_ids, self.groups, self.splits = (
            getattr(dataset, name)[rows] for name in ("sample_ids", "groups", "splits")
        )
        self.mask_kinds = dataset.mask_kinds

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the images at `indices`: uint8 (B, 1, size, size)."""
        return self.whole.batch(self.rows[np.asarray(indices)])

    @property
    def image_sums(self) -> np.ndarray:
        """Return a checksum of each image's pixels, str (N,)."""
        return np.asarray(self.whole.image_sums[self.rows])

    def masks(self, kind: str) -> "_Rows":
        """Return the masks of a kind, (N, size, size), read on access."""
        return _Rows(self.whole.masks(kind), self.rows)

    def has_mask(self, kind: str) -> np.ndarray:
        """Return which images have a readable mask of that kind (it may be empty), bool (N,)."""
        return np.asarray(self.whole.has_mask(kind)[self.rows])


class _Rows:
    """Rows of an array that is too large to copy."""

    def __init__(self, values: np.ndarray, rows: np.ndarray) -> None:
        self.values, self.rows = values, rows

    def __getitem__(self, index: Any) -> Any:
        return self.values[self.rows[index]]

    def __len__(self) -> int:
        return len(self.rows)
