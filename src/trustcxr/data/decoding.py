"""The part of building a store that runs in worker processes, which start faster for not importing pandas."""

import errno
from io import FileIO
from typing import TypedDict

import numpy as np
from PIL import Image

from trustcxr.data.images.grey import UnreadableImage
from trustcxr.data.images.reading import read_image_at, read_mask_at

_BLOCK_BYTES = 2**20
_KEPT_BLOCKS = 64  # of memory that Pillow keeps for the next image, instead of asking the system for it again


class Fault(TypedDict):
    """A file that cannot be read: its row in the manifest, and whether it is one of `images` or of `<kind>_mask`."""

    row: int
    file: str
    reason: str


def decode_rows(
    work: str, root: str, rows: list[int], paths: dict[str, list[str | None]], size: int, resize: str
) -> tuple[list[int], list[Fault], int | None]:
    """Decode some rows of every column into the store being built. Runs in a worker.

    Returns the rows, the unreadable files among them, and the error number where they could not be written.
    """
    Image.core.set_blocks_max(_KEPT_BLOCKS)
    faults: list[Fault] = []
    try:
        for name in paths:
            _decode_column(work, root, rows, name, paths, size, resize, faults)
    except OSError as fault:
        return rows, faults, fault.errno or errno.EIO
    return rows, faults, None


def _decode_column(
    work: str,
    root: str,
    rows: list[int],
    name: str,
    paths: dict[str, list[str | None]],
    size: int,
    resize: str,
    faults: list[Fault],
) -> None:
    # Written to the file, not through a memory map: a full disk is then an error and not a bus error.
    with open(f"{work}/{name}.u8", "r+b", buffering=0) as file:
        block = _Block(file, size)
        for row, path, film in zip(rows, paths[name], paths["images"], strict=True):
            if path is None:
                continue
            try:
                if name == "images":
                    pixels = read_image_at(f"{root}/{path}", size, resize)
                else:
                    pixels = read_mask_at(f"{root}/{path}", size, resize, film=f"{root}/{film}")
            except UnreadableImage as fault:
                faults.append({"row": row, "file": name, "reason": str(fault)})
                continue
            if name == "images" or pixels.any():  # an empty mask stays a hole
                block.add(row, pixels)
        block.write()


class _Block:
    """Rows that follow one another, written together: the system takes few large writes faster than many small ones."""

    def __init__(self, file: FileIO, size: int) -> None:
        self.file, self.row_bytes = file, size**2
        self.pixels = np.empty((max(1, _BLOCK_BYTES // size**2), size, size), np.uint8)
        self.first = self.count = 0

    def add(self, row: int, pixels: np.ndarray) -> None:
        """Take a row (size, size); what is held is written first where the row does not follow it, or it is full."""
        if self.count == len(self.pixels) or row != self.first + self.count:
            self.write()
            self.first = row
        self.pixels[self.count] = pixels
        self.count += 1

    def write(self) -> None:
        """Write what is held."""
        if self.count:
            write_at(self.file, self.pixels[: self.count], self.first * self.row_bytes)
        self.count = 0


def write_at(file: FileIO, pixels: np.ndarray, offset: int) -> None:
    """Write contiguous pixels (uint8) to a file that is open without a buffer, from byte `offset` on."""
    data = memoryview(pixels.data).cast("B")
    file.seek(offset)
    while data:
        data = data[file.write(data) :]
