"""The part of building a store that runs in worker processes, which start faster for not importing pandas."""

import errno
from io import FileIO
from typing import Any

import numpy as np

from trustcxr.data.images import UnreadableImage, read_image_at, read_mask_at


def decode_rows(
    work: str, root: str, rows: list[int], paths: dict[str, list[str | None]], size: int, resize: str
) -> tuple[list[int], list[dict[str, Any]], int | None]:
    """Decode some rows of every column into the store being built. Runs in a worker.

    Returns the rows, the unreadable files among them, and the error number where they could not be written.
    """
    faults: list[dict[str, Any]] = []
    try:
        for name, column in paths.items():
            _decode_column(work, root, rows, name, column, size, resize, faults)
    except OSError as fault:
        return rows, faults, fault.errno or errno.EIO
    return rows, faults, None


def _decode_column(
    work: str,
    root: str,
    rows: list[int],
    name: str,
    column: list[str | None],
    size: int,
    resize: str,
    faults: list[dict[str, Any]],
) -> None:
    read = read_image_at if name == "images" else read_mask_at
    # Written to the file, not through a memory map: a full disk is then an error and not a bus error.
    with open(f"{work}/{name}.u8", "r+b", buffering=0) as file:
        for row, path in zip(rows, column, strict=True):
            if path is None:
                continue
            try:
                pixels = read(f"{root}/{path}", size, resize)
            except UnreadableImage as fault:
                faults.append({"row": row, "file": name, "reason": str(fault)})
                continue
            if name == "images" or pixels.any():  # an empty mask stays a hole
                write_at(file, np.ascontiguousarray(pixels), row * size**2)


def write_at(file: FileIO, pixels: np.ndarray, offset: int) -> None:
    """Write pixels (..., uint8) to a file that is open without a buffer, from byte `offset` on."""
    data = memoryview(pixels.data).cast("B")
    file.seek(offset)
    while data:
        data = data[file.write(data) :]
