"""Are the pixels in a store those that were decoded? A checksum of every file, and, once asked for, of every film.

`sums.json` holds the checksum of each file (XXH3 of 128 bits, which takes no time beside decoding), and its size and
time of change when it was last looked at: a file that has neither changed since is believed, any other is read again;
before a training, and by `trustcxr data check`, every file is. `films.b2` holds 16 bytes a film (BLAKE2b of its
pixels), by which a film is known again in other data, and 16 of all these together; it is written when a film is first
to be known. Stores from before these files get them when they are next opened.
"""

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b, sha256
from pathlib import Path
from typing import TypedDict

import numpy as np

from trustcxr.errors import CannotWrite
from trustcxr.results.disk import open_regular
from trustcxr.results.files import replacing, write_json

FILMS_FILE, SUMS_FILE, INDEX_FILE = "films.b2", "sums.json", "index.json"
_BYTES = 16
_BLOCK = 2**24
_KIND = "xxh3:"
_CHEAP = 2**36  # bytes of files that are read a second time only to know them again: a few minutes of a disk


class _Known(TypedDict, total=False):
    """A file's checksum, and its size and time of change when it was taken."""

    sum: str
    stamp: list[int]


def write(folder: Path, names: Iterable[str]) -> None:
    """Checksums of the files `<name>.u8` of a store."""
    found = {name: _Known(sum=_sum(folder / f"{name}.u8"), stamp=_stamp(folder, name)) for name in names}
    write_json(folder / SUMS_FILE, found | {INDEX_FILE: _Known(sum=_sum(folder / INDEX_FILE))})


def damaged(folder: Path, names: Iterable[str], *, every: bool = False) -> str | None:
    """The first file of a store whose content is not what it was when its checksum was taken; None where all are.

    `every`: files whose size and time of change are as they were are read too, since a disk can change a bit by itself.
    """
    names = list(names)
    try:
        known = _read(folder)
    except ValueError:
        return SUMS_FILE
    if known is None:
        with suppress(CannotWrite):  # a cache that only others may write to is read as it is
            write(folder, names)
        return None
    index = known.get(INDEX_FILE)  # not in stores from before it had a checksum
    if index is not None and index.get("sum") != _sum(folder / INDEX_FILE):
        return INDEX_FILE
    looked_at = False
    for name in names:
        before = known.get(name, _Known())
        same = before.get("stamp") == _stamp(folder, name)
        if same and not every:
            continue
        if before.get("sum") != _sum(folder / f"{name}.u8"):
            return f"{name}.u8"
        before["stamp"], looked_at = _stamp(folder, name), looked_at or not same
    if looked_at:
        with suppress(CannotWrite):
            write_json(folder / SUMS_FILE, known)
    return None


def films(folder: Path, count: int, row_bytes: int) -> np.ndarray:
    """The checksum of every film as 32 hexadecimal digits: (count,) array of str."""
    content = b""
    with suppress(OSError):
        content = (folder / FILMS_FILE).read_bytes()
    if len(content) != (count + 1) * _BYTES or _of(content[:-_BYTES]) != content[-_BYTES:]:
        content = _films(folder, row_bytes)
        content += _of(content)
        # A cache that only others may write to is read as it is.
        with suppress(CannotWrite, OSError), replacing(folder / FILMS_FILE) as temporary:
            temporary.write_bytes(content)
    digits = content[:-_BYTES].hex()
    return np.array([digits[at : at + 2 * _BYTES] for at in range(0, len(digits), 2 * _BYTES)], dtype=str)


def of_files(paths: Sequence[str]) -> list[str] | None:
    """SHA-256 of each file's bytes, in hexadecimal; None where one cannot be read, or all are too much to read twice.

    Links are followed.
    """
    from joblib import cpu_count

    try:
        if sum(Path(path).stat().st_size for path in paths) > _CHEAP:
            return None
        with ThreadPoolExecutor(cpu_count()) as threads:
            return list(threads.map(_of_file, paths))
    except OSError:
        return None


def _of_file(path: str) -> str:
    digest = sha256()
    with open_regular(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _read(folder: Path) -> dict[str, _Known] | None:
    """What is known; None of a store from before checksums, or with others. ValueError where it is damaged."""
    try:
        found = json.loads((folder / SUMS_FILE).read_text())
    except OSError:
        return None
    if not isinstance(found, dict) or not all(isinstance(known, dict) for known in found.values()):
        raise ValueError(f"{SUMS_FILE} holds no checksums")
    same_kind = all(str(known.get("sum")).startswith(_KIND) for known in found.values())
    return found if same_kind else None  # those of another kind are taken anew


def _of(content: bytes) -> bytes:
    return blake2b(content, digest_size=_BYTES).digest()


def _stamp(folder: Path, name: str) -> list[int]:
    facts = (folder / f"{name}.u8").stat()
    return [facts.st_size, facts.st_mtime_ns]


def _films(folder: Path, row_bytes: int) -> bytes:
    from joblib import cpu_count

    path = folder / "images.u8"
    step = max(_BLOCK // row_bytes, 1) * row_bytes
    starts = range(0, path.stat().st_size, step)
    # Threads: BLAKE2b lets go of Python's lock, so each core sums a part.
    with ThreadPoolExecutor(cpu_count()) as threads:
        return b"".join(threads.map(lambda start: _rows(path, start, step, row_bytes), starts))


def _rows(path: Path, start: int, count: int, row_bytes: int) -> bytes:
    """The checksums of the rows of a part of a file."""
    with open(path, "rb") as file:
        file.seek(start)
        rows = (file.read(row_bytes) for _ in range(0, count, row_bytes))
        return b"".join(_of(row) for row in rows if row)


def _sum(path: Path) -> str:
    from xxhash import xxh3_128

    digest, block = xxh3_128(), memoryview(bytearray(2**20))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return _KIND + digest.hexdigest()
