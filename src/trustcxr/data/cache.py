"""Cache every image of a data set, decoded once, in one memory-mapped uint8 file.

A store is a folder named by its key, a hash of the files' facts and of the options of decoding, so that a changed file
or option never reads a stale store. It holds `images.u8`, raw uint8 of shape (N, size, size); one such file for each
kind of mask, sparse if samples have none; `hashes.bin`, 16 bytes of BLAKE2b for each image; and `index.json`, with the
CRC-32 of each pixel file. One process builds it in `<key>.<pid>.building` while others wait, and renames it at the end.

Worker processes import this module, so it imports no pandas: they start faster.
"""

import errno
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from trustcxr.console import Progress, log
from trustcxr.data.images.greyscale import UnreadableImage
from trustcxr.data.images.read import DECODER, read_image_at, read_mask_at
from trustcxr.data.worker_pool import pool
from trustcxr.errors import CannotWrite, UserError, unknown
from trustcxr.storage.os_errors import megabytes, writing

if TYPE_CHECKING:
    from trustcxr.data.manifest import Manifest

RESIZES = ("squeeze", "pad", "crop")
IMAGES, INDEX, HASHES = "images", "index.json", "hashes.bin"
_CHUNK, _LAST_CHUNK = 512, 8  # rows that a worker decodes before it reports: at most, and at the end
_HASH_BYTES = 16
_WRITE_BYTES = 2**20
_PILLOW_BLOCKS = 64  # of memory that Pillow reuses for the next image


@dataclass
class Store:
    """An open store. Rows are the manifest's, in its order, without those in `skipped`.

    `sums`: CRC-32 of the file of `images` and of `<kind>_mask` for each kind of mask; `hashes` (count, 16) uint8.
    `skipped` and `bad_masks`: row of the manifest, file (`images` or `<kind>_mask`) and reason of unreadable files.
    """

    folder: Path
    size: int
    count: int
    resize: str
    sums: dict[str, str]
    skipped: list[dict[str, Any]]
    bad_masks: list[dict[str, Any]]
    hashes: np.ndarray

    def map(self, name: str = IMAGES) -> np.ndarray:
        """Map one file of `sums` read-only: uint8 (count, size, size)."""
        return np.memmap(self.folder / f"{name}.u8", np.uint8, "r", shape=(self.count, self.size, self.size))

    def image_sums(self) -> np.ndarray:
        """Return the hash of every image's pixels, (count,) array of str: equal pixels have equal hashes."""
        return np.array([row.tobytes().hex() for row in self.hashes], dtype=str)


def open_store(
    manifest: "Manifest",
    size: int,
    *,
    cache: str | Path | None = None,
    workers: int | None = None,
    resize: str = "squeeze",
    every: bool = False,
) -> Store:
    """Open the store of a manifest's images at `size` x `size` pixels; build it first if it does not exist.

    `cache`: folder of stores (default: TRUSTCXR_CACHE, else the user's cache folder). `workers`: decoding processes
    (default: one for each core). `resize`: `squeeze` to a square as in COVID-QU-Ex, `pad` with black, or `crop` to the
    central square. `every`: compare the hashes of files, not only their sizes. A damaged store is reported
    and built again. Raises UserError if a file is missing, the disk is full, or no image is readable.

    >>> import tempfile, trustcxr as tx
    >>> folder = tempfile.mkdtemp()
    >>> images = tx.data.phantom.write(folder + "/images", {"Test": 2}, size=32)
    >>> store = tx.data.open_store(tx.data.read_manifest(images), 32, cache=folder + "/cache")
    >>> store.map().shape
    (6, 32, 32)
    """
    from filelock import FileLock, Timeout

    if resize not in RESIZES:
        raise unknown("resize", resize, RESIZES)
    if not 8 <= size <= 4096:
        raise UserError(f"image size {size}: expected 8 to 4096 pixels. Change --size")
    folder = cache_folder(cache) / "stores" / key(manifest, size, resize)
    if store := _read(folder, every=every):
        return store
    most = len(manifest.table) * size**2 * len(manifest.files)
    try:
        with writing(folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{folder}.lock")
            try:
                locked = lock.acquire(timeout=0)
            except Timeout:
                log("another process is decoding these images: waiting")
                locked = lock.acquire()
            with locked:  # another process may have built it in the meantime
                return _read(folder, every=every) or _build(folder, manifest, size, resize, workers)
    except CannotWrite as problem:
        advice = f"decoded images need up to {megabytes(most)}; set TRUSTCXR_CACHE to another folder for them"
        raise CannotWrite(f"{problem}; {advice}", problem.number) from None


def cache_folder(cache: str | Path | None = None) -> Path:
    """Return the cache folder: `cache`, else TRUSTCXR_CACHE, else the user's cache folder."""
    import platformdirs

    chosen = cache or os.environ.get("TRUSTCXR_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else Path(platformdirs.user_cache_dir("trustcxr"))


def _read(folder: Path, *, every: bool = False) -> Store | None:
    """Read the store in `folder` and update its time of use; None if it is missing or, with a message, damaged."""
    if not folder.exists():
        return None
    file = INDEX
    try:
        index = json.loads((folder / INDEX).read_text())
        file = HASHES
        content = (folder / HASHES).read_bytes()
        if index.pop("checksum") != _checksum(index, content):
            raise ValueError
        store = Store(folder, **index, hashes=np.frombuffer(content, np.uint8).reshape(index["count"], _HASH_BYTES))
        for name, before in store.sums.items():
            file = f"{name}.u8"
            same = (folder / file).stat().st_size == store.count * store.size**2
            if not same or (every and _sum_file(folder / file) != before):
                raise ValueError
    except (OSError, ValueError, TypeError, KeyError):
        log(f"{folder}: damaged store ({file} has changed): decoding the images again")
        return None
    with suppress(OSError):
        os.utime(folder / INDEX)
    return store


def key(manifest: "Manifest", size: int, resize: str) -> str:
    """Return the SHA-256 of every file's path and `_facts`, in order, and of the options of decoding."""
    from importlib.util import find_spec

    optional = ",".join(name for name in ("pydicom", "pylibjpeg") if find_spec(name))  # they decide what is readable
    digest = hashlib.sha256(f"{DECODER}|{size}|{resize}|{optional}".encode())
    root = str(manifest.root)
    for name, paths in manifest.files.items():
        digest.update(f"|{name}".encode())
        for path in paths:
            line = "-" if path is None else f"{path}\t{_facts(f'{root}/{path}', manifest.file)}"
            digest.update(f"\n{line}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:40]


def _facts(file: str, listed: Path | None) -> str:
    """Return facts of a file, or the error number if it is unreadable; raise UserError if it is not in its list."""
    try:
        facts = os.stat(file)
    except OSError as fault:
        if fault.errno not in (errno.ENOENT, errno.ENOTDIR) or os.path.islink(file):
            return f"!{fault.errno}"
        why = "it was removed after its folder was listed. Start again"
        if listed is not None:
            why = (
                f"{listed} lists it. Correct or remove the path there. trustcxr data check finds all such files, and "
                "with --clean writes a list without such images"
            )
        raise UserError(f"{file}: no such file: {why}") from None
    return f"{facts.st_size}\t{facts.st_mtime_ns}\t{facts.st_ctime_ns}\t{facts.st_ino}"


# Building ------------------------------------------------------------------------------------------------------------


Fault = tuple[int, str, str]  # an unreadable file: row, `images` or `<kind>_mask`, reason


def _build(folder: Path, manifest: "Manifest", size: int, resize: str, workers: int | None) -> Store:
    """Decode every image, drop the rows of unreadable ones, and give the store its name."""
    for left in (folder, *folder.parent.glob(f"{folder.name}.*.building")):
        shutil.rmtree(left, ignore_errors=True)
    # Workers of a killed process may still write: never into this folder.
    work = folder.with_name(f"{folder.name}.{os.getpid()}.building")
    work.mkdir()
    try:
        columns = manifest.files
        hashes, faults = _decode(work, str(manifest.root), columns, size, resize, workers)
        good = np.ones(len(hashes), dtype=bool)
        good[[row for row, name, _ in faults if name == IMAGES]] = False
        if not good.any():
            raise UserError(
                f"{manifest.where}: none of the {len(good)} images is readable: {faults[0][2]}. Check the files"
            )
        if not good.all():
            _keep_rows(work, list(columns), size, np.flatnonzero(good))
            hashes = hashes[good]
        unread: list[dict[str, Any]] = [{"row": row, "file": name, "reason": reason} for row, name, reason in faults]
        index: dict[str, Any] = {
            "size": size,
            "count": int(good.sum()),
            "resize": resize,
            "sums": {name: _sum_file(work / f"{name}.u8") for name in columns},
            "skipped": [u for u in unread if u["file"] == IMAGES],
            "bad_masks": [u for u in unread if u["file"] != IMAGES and good[u["row"]]],
        }
        (work / HASHES).write_bytes(hashes.tobytes())
        (work / INDEX).write_text(json.dumps(index | {"checksum": _checksum(index, hashes.tobytes())}, indent=1))
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Store(folder, **index, hashes=hashes)


def _decode(
    work: Path, root: str, columns: dict[str, list[str | None]], size: int, resize: str, workers: int | None
) -> tuple[np.ndarray, list[Fault]]:
    """Decode every row in parallel; return hashes of images (rows, 16) and unreadable files, sorted."""
    from joblib import delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    count = len(columns[IMAGES])
    if shutil.disk_usage(work).free < count * size**2:  # masks need more, but mostly little
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for name in columns:
        with open(work / f"{name}.u8", "wb") as file:
            file.truncate(count * size**2)  # a hole, which written rows fill
    crew = pool(workers, files=count * len(columns), ordered=False)
    hashes = np.zeros((count, _HASH_BYTES), np.uint8)
    faults: list[Fault] = []
    failures: list[int] = []
    jobs = (
        delayed(decode_rows)(f"{work}", root, first, {n: p[first:stop] for n, p in columns.items()}, size, resize)
        for first, stop in _chunks(count, crew.n_jobs)
        if not failures  # the pool finishes its current tasks; stopping it would print long errors
    )
    try:
        with Progress("Decoding images", count) as bar:
            for first, sums, bad, failure in crew(jobs):
                failures += [failure] if failure else []
                faults += bad
                hashes[first : first + len(sums)] = sums
                bar.advance(len(sums))
    except TerminatedWorkerError:
        raise UserError("a decoding process was killed (out of memory?). Use fewer workers") from None
    if failures:
        raise OSError(failures[0], os.strerror(failures[0]), str(work))
    return hashes, sorted(faults)


def _chunks(count: int, workers: int) -> Iterator[tuple[int, int]]:
    """Yield spans of rows of decreasing length, so that all workers end at about the same time."""
    first = 0
    while first < count:
        stop = min(first + min(max((count - first) // (workers * 4), _LAST_CHUNK), _CHUNK), count)
        yield first, stop
        first = stop


def decode_rows(
    work: str, root: str, first: int, paths: dict[str, list[str | None]], size: int, resize: str
) -> tuple[int, np.ndarray, list[Fault], int]:
    """Decode rows in a worker; return the first, hashes (rows, 16), faults, and the error of a failed write or 0."""
    Image.core.set_blocks_max(_PILLOW_BLOCKS)
    hashes = np.zeros((len(paths[IMAGES]), _HASH_BYTES), np.uint8)
    faults: list[Fault] = []
    step = max(1, _WRITE_BYTES // size**2)
    buffer = np.empty((min(step, len(hashes)), size, size), np.uint8)  # new memory for each part costs time
    try:
        for name in paths:
            # No memory map: there a full disk is a bus error.
            with open(f"{work}/{name}.u8", "r+b", buffering=0) as file:
                for start in range(0, len(hashes), step):
                    part = {n: p[start : start + step] for n, p in paths.items()}
                    pixels = buffer[: len(part[name])]
                    bad = _decode_column(pixels, root, name, part, resize)
                    faults += [(first + start + row, name, reason) for row, reason in bad]
                    if name == IMAGES:
                        sums = b"".join(_hash(image.data) for image in pixels)
                        hashes[start : start + step] = np.frombuffer(sums, np.uint8).reshape(-1, _HASH_BYTES)
                    _write_rows(file, pixels, first + start)
    except OSError as fault:
        return first, hashes, faults, fault.errno or errno.EIO
    return first, hashes, faults, 0


def _decode_column(
    pixels: np.ndarray, root: str, name: str, paths: dict[str, list[str | None]], resize: str
) -> list[tuple[int, str]]:
    """Decode rows of a column into `pixels` (n, size, size); return unreadable rows with reasons."""
    bad, size = [], pixels.shape[-1]
    pixels.fill(0)
    for row, (path, image) in enumerate(zip(paths[name], paths[IMAGES], strict=True)):
        if path is None:
            continue
        try:
            if name == IMAGES:
                pixels[row] = read_image_at(f"{root}/{path}", size, resize)
            else:
                pixels[row] = read_mask_at(f"{root}/{path}", size, resize, image=f"{root}/{image}")
        except UnreadableImage as fault:
            bad.append((row, str(fault)))
    return bad


def _write_rows(file: FileIO, pixels: np.ndarray, first: int) -> None:
    """Write rows (n, size, size) from row `first` on; black rows stay holes in the file."""
    filled = np.asarray(pixels.reshape(len(pixels), -1).any(axis=1))
    borders = [0, *(np.flatnonzero(np.diff(filled)) + 1), len(pixels)]
    for start, stop in pairwise(borders):
        if filled[start]:
            file.seek((first + start) * pixels[0].nbytes)
            data = memoryview(np.ascontiguousarray(pixels[start:stop]).data).cast("B")
            while data:
                data = data[file.write(data) :]


def _keep_rows(work: Path, names: list[str], size: int, rows: np.ndarray) -> None:
    step = max(1, _WRITE_BYTES // size**2)
    for name in names:
        pixels = np.memmap(work / f"{name}.u8", np.uint8, "r").reshape(-1, size, size)
        with open(work / "readable", "wb", buffering=0) as file:
            file.truncate(len(rows) * size**2)
            for start in range(0, len(rows), step):
                _write_rows(file, pixels[rows[start : start + step]], start)
        (work / "readable").replace(work / f"{name}.u8")


def _hash(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_HASH_BYTES).digest()


def _checksum(index: Mapping[str, object], hashes: bytes) -> str:
    return _hash(json.dumps(index, sort_keys=True).encode() + hashes).hex()


def _sum_file(path: Path) -> str:
    """Return the CRC-32 of a file, which finds damage five times as fast as a hash."""
    value, block = 0, memoryview(bytearray(_WRITE_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            value = zlib.crc32(block[:count], value)
    return f"{value:08x}"
