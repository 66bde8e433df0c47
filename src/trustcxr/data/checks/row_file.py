"""An array in a temporary file, since the thumbnails of very many images would fill the memory."""

from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from trustcxr.storage.os_errors import writing


class RowFile:
    """An array (N, ...) in a temporary file, 0 where nothing was written. Indexing reads rows into memory.

    >>> squares = RowFile(3, (2,), np.uint8)
    >>> squares.write(1, np.array([[1, 1], [4, 4]]))
    >>> squares[[0, 2]].tolist()
    [[0, 0], [4, 4]]
    """

    def __init__(self, count: int, shape: tuple[int, ...], kind: DTypeLike) -> None:
        self._count, self._shape, self._kind = count, shape, np.dtype(kind)
        self._row_bytes = int(np.prod(shape)) * self._kind.itemsize
        self._file = TemporaryFile()  # noqa: SIM115 - open as long as this object
        self._file.truncate(count * self._row_bytes)

    def __len__(self) -> int:
        return self._count

    def write(self, first: int, rows: np.ndarray) -> None:
        """Write rows (M, ...) from the row `first` on. Raises CannotWrite if the disk is full."""
        with writing(Path(gettempdir()), needed=lambda: self._count * self._row_bytes):
            self._file.seek(first * self._row_bytes)
            self._file.write(np.ascontiguousarray(rows, self._kind).data)
            self._file.flush()  # here, not when rows are read

    def __getitem__(self, rows: Any) -> Any:
        """Read rows, chosen as those of an array: by a slice, booleans or numbers."""
        numbers = np.arange(self._count)[rows]
        read = np.empty((len(numbers), *self._shape), self._kind)
        runs = np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(numbers) != 1) + 1)  # of consecutive rows
        for run in runs if len(numbers) else []:
            self._file.seek(int(numbers[run[0]]) * self._row_bytes)
            self._file.readinto(read[run[0] : run[-1] + 1].data)
        return read
