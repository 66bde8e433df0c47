"""Every store that there is of a data set: `trustcxr data check` holds each byte of them against its checksum."""

import json
from collections.abc import Iterator
from math import isqrt
from pathlib import Path
from typing import TypedDict

from trustcxr.data import store
from trustcxr.data.manifest import Manifest
from trustcxr.errors import UserError


class Checked(TypedDict):
    """A store by how its images are decoded, and what of it was found damaged.

    folder: its name in the cache; documents are read elsewhere, and this machine's paths mean nothing there.
    fault: the first file that is not what was written; None where every byte is. again: what became of it then.
    """

    size: int
    resize: str
    folder: str
    fault: str | None
    again: str


def check(manifest: Manifest, *, cache: str | Path | None = None, workers: int | None = None) -> list[Checked]:
    """Read the stores of a data set whole; one that is damaged is decoded again.

    `cache` and `workers` as in `store.open_store`. Stores of a part of the data (a class left out by --label) are not
    found here; they are read whole before each training.
    """
    found: list[Checked] = []
    keys: dict[tuple[int, str], str] = {}
    for folder in sorted(path for path in store.stores_folder(cache).glob("*") if path.is_dir()):
        for how in _decoded(folder, len(manifest.table)):
            if how not in keys:
                try:
                    keys[how] = store.key(manifest, *how)
                except UserError:  # a file that was listed is gone: no store is of what is there now
                    return found
            if keys[how] == folder.name:
                _, fault = store.examine(folder, every=True)
                again = "" if fault is None else _again(manifest, *how, cache, workers)
                found.append(Checked(size=how[0], resize=how[1], folder=folder.name, fault=fault, again=again))
                break
    return found


def _decoded(folder: Path, count: int) -> Iterator[tuple[int, str]]:
    """How a store was decoded: as its index says or, where that is damaged, as the size of its files lets it be."""
    largest = max((file.stat().st_size for file in folder.glob("*.u8")), default=0)
    try:
        index = json.loads((folder / "index.json").read_text())
        if index["count"] * index["size"] ** 2 == largest:
            yield index["size"], index["resize"]
            return
    except (OSError, ValueError, TypeError, KeyError):
        pass
    side = isqrt(largest // max(count, 1))
    yield from ((size, resize) for size in (side, side + 1) for resize in store.RESIZES)  # a byte may be missing


def _again(manifest: Manifest, size: int, resize: str, cache: str | Path | None, workers: int | None) -> str:
    try:
        store.open_store(manifest, size, cache=cache, workers=workers, resize=resize, every=True)
    except UserError as problem:
        return f"not decoded again: {problem}"
    return "decoded again"
