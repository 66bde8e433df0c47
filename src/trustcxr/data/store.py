"""The pixel store: every image of a data set decoded once into one memory-mapped uint8 file.

A store is a folder named by its key, the SHA-256 of what the files are (path, size, times, which file it is on its
disk) and how they are decoded, so a changed file, another data set or another option never meets a stale store. In it:
`images.u8`, raw uint8 of shape (N, size, size); one such file for each kind of mask, sparse where a sample has none;
`index.json`; checksums (`sums.py`). While it is being built it is called `<key>.building`, with one byte a row in
`done.u8`: a build that was cut off goes on there.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from trustcxr.console import Progress, say
from trustcxr.data import in_use, sums
from trustcxr.data.decoding import Fault, decode_rows, write_at
from trustcxr.data.images.reading import DECODER
from trustcxr.data.manifest import MASK_SUFFIX, Manifest
from trustcxr.data.workers import call, pool
from trustcxr.errors import CannotWrite, UserError, unknown
from trustcxr.results.disk import megabytes
from trustcxr.results.locks import sweep

RESIZES = ("squeeze", "pad", "crop")
_CHUNK, _LAST_CHUNK = 512, 8  # rows that a worker decodes before it reports: at most, and at the end
_WAITING, _GOOD, _BAD = 0, 1, 2
_OF_BUILDING = "done.u8", "faults.jsonl", "compacting"  # files that a store needs while it is being built alone
_LOST = errno.ENOSPC, errno.EDQUOT, errno.EFBIG


class Unread(Fault):
    """A file that cannot be read, as the index says it."""

    sample_id: str
    path: str


class Index(TypedDict):
    """What `index.json` holds: how the images were decoded, and which could not be."""

    size: int
    count: int
    resize: str
    kinds: list[str]
    skipped: list[Unread]
    bad_masks: list[Unread]


@dataclass
class Store:
    """An open store. Rows are the manifest's, in its order, without those in `skipped`."""

    folder: Path
    size: int
    count: int
    kinds: tuple[str, ...]
    skipped: list[Unread]
    bad_masks: list[Unread]
    resize: str

    def map(self, name: str = "images") -> np.ndarray:
        """`images` or `<kind>_mask`, memory-mapped read-only: uint8 (count, size, size)."""
        return np.memmap(self.folder / f"{name}.u8", np.uint8, "r", shape=(self.count, self.size, self.size))

    def film_sums(self) -> np.ndarray:
        """The checksum of every film's pixels, (count,) array of str: the same pixels have the same."""
        return sums.films(self.folder, self.count, self.size**2)


def open_store(
    manifest: Manifest,
    size: int,
    *,
    cache: str | Path | None = None,
    workers: int | None = None,
    resize: str = "squeeze",
    every: bool = False,
) -> Store:
    """The store of a manifest's images at `size` x `size` pixels, built first where it is not there yet.

    `cache` is the folder that holds stores (default: TRUSTCXR_CACHE, else the user's cache folder), `workers` the
    number of processes that decode (default: one a core). `resize`: `squeeze` to a square as COVID-QU-Ex does, `pad`
    to one with black, or `crop` to the largest in the middle. `every`: each byte of a store is held against its
    checksum, not only files that were changed since. A store that is damaged is said to be, and built again. Raises
    UserError where a file is gone, the disk is full, or no image is readable.
    """
    if resize not in RESIZES:
        raise unknown("resize", resize, RESIZES)
    if not 8 <= size <= 4096:
        raise UserError(f"image size {size}: expected 8 to 4096 pixels")
    folder = stores_folder(cache) / key(manifest, size, resize)
    store = _opened(folder, every=every)
    if store is None:
        with _out_of_space(folder, len(manifest.table) * size**2 * (1 + len(manifest.mask_kinds))), _alone(folder):
            store = _opened(folder, every=every)  # another process may have built it in the meantime
            if store is None:
                shutil.rmtree(folder, ignore_errors=True)
                _build(folder, manifest, size, resize, workers)
    found = store or _opened(folder) or _unusable(folder)
    in_use.mark(found.folder)
    return found


def stores_folder(cache: str | Path | None = None) -> Path:
    """The folder that holds stores, each under its key."""
    return cache_folder(cache) / "stores"


def cache_folder(cache: str | Path | None = None) -> Path:
    """The folder where stores are kept: the one given, else TRUSTCXR_CACHE, else the user's cache folder."""
    import platformdirs

    given = cache or os.environ.get("TRUSTCXR_CACHE")
    return Path(given).expanduser().absolute() if given else Path(platformdirs.user_cache_dir("trustcxr"))


def _opened(folder: Path, *, every: bool = False) -> Store | None:
    """The store in that folder; None where there is none yet, or what there is is damaged, which is said."""
    if not folder.exists():
        return None
    store, fault = examine(folder, every=every)
    if fault is None:
        _sweep(folder)
        return store
    say(f"{folder}: damaged store ({fault} is not what was written): the images are decoded again")
    return None


def examine(folder: Path, *, every: bool = False) -> tuple[Store | None, str | None]:
    """The store in that folder, and None; or the name of the first of its files that is not what was written.

    `every`: each byte is held against its checksum, not only those of files that were changed since.
    """
    try:
        index = json.loads((folder / "index.json").read_text())
        index["kinds"] = tuple(index["kinds"])
        store = Store(folder, **index)
        names = ["images", *(kind + MASK_SUFFIX for kind in store.kinds)]
        short = [n for n in names if (folder / f"{n}.u8").stat().st_size != store.count * store.size**2]
        fault = f"{short[0]}.u8" if short else sums.damaged(folder, names, every=every)
    except OSError as problem:
        fault = Path(str(problem.filename)).name
    except (ValueError, TypeError, KeyError):
        fault = "index.json"
    return (store, None) if fault is None else (None, fault)


def _sweep(folder: Path) -> None:
    """Remove what a process that was killed when the store had just got its name, or later, left in it."""
    for name in _OF_BUILDING:
        with suppress(OSError):
            (folder / name).unlink(missing_ok=True)
    sweep(folder)


def _unusable(folder: Path) -> Store:
    raise UserError(f"{folder}: the store was changed while it was written; try again")


def key(manifest: Manifest, size: int, resize: str) -> str:
    """SHA-256 over every file, its path and what the system says of it, in order, and how and by what it is decoded."""
    digest = hashlib.sha256(f"{DECODER}|{size}|{resize}|{_decoders()}".encode())
    root = str(manifest.root)
    for column in ["path", *(k + MASK_SUFFIX for k in manifest.mask_kinds)]:
        digest.update(f"|{column}".encode())
        lines = []
        for path in manifest.table[column]:
            if path is None:
                lines.append("-")
                continue
            lines.append(f"{path}\t{_facts(f'{root}/{path}')}")
        digest.update("\n".join(lines).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:40]


def _decoders() -> str:
    """The packages that are there for what is not read without: what could not be decoded may be with one more."""
    from importlib.util import find_spec

    return ",".join(name for name in ("pydicom", "pylibjpeg") if find_spec(name))


def _facts(file: str) -> str:
    """Size, times and which file it is, since files of two data sets may have one size and one date.

    Of a link that leads nowhere, or a file that may not be looked at, only that it is so. UserError where it is gone.
    """
    try:
        facts = os.stat(file)
    except OSError as fault:
        if fault.errno in (errno.ENOENT, errno.ENOTDIR) and not os.path.islink(file):
            raise UserError(f"{file}: {fault.strerror}; the data changed since it was listed") from None
        return f"!{fault.errno}"
    return f"{facts.st_size}\t{facts.st_mtime_ns}\t{facts.st_ctime_ns}\t{facts.st_ino}"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time build a store; a second one says so and waits."""
    from filelock import FileLock, Timeout

    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("another process is decoding these images: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _out_of_space(folder: Path, most: int) -> Iterator[None]:
    """Turn a full disk or a cache that cannot be written into one line."""

    def needed() -> str:
        return f" (up to {megabytes(most)} are needed, {megabytes(shutil.disk_usage(folder.parent).free)} are free)"

    advice = "free some space or set TRUSTCXR_CACHE to another disk; what is decoded so far is kept"
    try:
        yield
    except OSError as fault:
        if fault.errno in _LOST:
            raise CannotWrite(f"{folder.parent}: no space left for decoded images{needed()}: {advice}") from None
        raise CannotWrite(
            f"{folder.parent}: decoded images cannot be written there ({str(fault.strerror or fault).lower()}); set "
            "TRUSTCXR_CACHE to another folder"
        ) from None


# Building ------------------------------------------------------------------------------------------------------------


def _build(folder: Path, manifest: Manifest, size: int, resize: str, workers: int | None) -> None:
    """Decode what is not decoded yet, drop the rows of unreadable images, and give the store its name."""
    work = folder.with_name(folder.name + ".building")
    work.mkdir(parents=True, exist_ok=True)
    sweep(work)
    count, kinds = len(manifest.table), manifest.mask_kinds
    columns = {"images": manifest.table["path"].tolist()}
    columns |= {kind + MASK_SUFFIX: manifest.table[kind + MASK_SUFFIX].tolist() for kind in kinds}
    if not (work / "compacting").exists():
        for name in columns:
            with open(work / f"{name}.u8", "ab") as file:
                file.truncate(count * size**2)  # a hole: blocks are taken as rows are written
        _decode_missing(work, str(manifest.root), columns, size, resize, workers)
        (work / "compacting").touch()
    faults = _read_faults(work)
    bad = {f["row"] for f in faults if f["file"] == "images"}
    if len(bad) == count:
        _forget(work)
        raise UserError(f"{manifest.where}: none of the {count} images is readable ({faults[0]['reason']})")
    for name in columns:
        _compact(work / f"{name}.u8", count, size**2, bad)
    samples = manifest.table["sample_id"]
    unread = [
        Unread(**fault, sample_id=samples.iloc[fault["row"]], path=str(columns[fault["file"]][fault["row"]]))
        for fault in faults
    ]
    index = Index(
        size=size,
        count=count - len(bad),
        resize=resize,
        kinds=list(kinds),
        skipped=[f for f in unread if f["file"] == "images"],
        bad_masks=[f for f in unread if f["file"] != "images" and f["row"] not in bad],
    )
    (work / "index.json").write_text(json.dumps(index, indent=1))
    sums.write(work, columns)
    work.rename(folder)
    _sweep(folder)  # only now: a build that is cut off before it has its name must still know what it had done


def _forget(work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)


def _decode_missing(
    work: Path, root: str, columns: dict[str, list[str | None]], size: int, resize: str, workers: int | None
) -> None:
    """Decode every row that `done.u8` does not mark, in parallel, and mark it."""
    count = len(columns["images"])
    done, missing = _marked(work, count)
    if not len(missing):
        return
    if shutil.disk_usage(work).free < len(missing) * size**2:  # masks need more, but mostly little
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    crew = pool(workers, files=len(missing) * len(columns), ordered=False)
    failed: list[int] = []
    jobs = (
        call(decode_rows, f"{work}", root, rows, {n: [p[r] for r in rows] for n, p in columns.items()}, size, resize)
        for rows in list(_chunks(missing.tolist(), crew.n_jobs))
        if not failed  # nothing more is begun, and what was is waited for: a pool that is cut off complains at length
    )
    with Progress("Decoding images", count) as bar, open(work / "faults.jsonl", "a") as faults_file, _workers_lost():
        bar.advance(count - len(missing))
        for rows, faults, failure in crew(jobs):
            if failure is not None:
                failed.append(failure)
                continue
            for fault in faults:
                faults_file.write(json.dumps(fault) + "\n")
            faults_file.flush()
            bad = {f["row"] for f in faults if f["file"] == "images"}
            done[rows] = [_BAD if r in bad else _GOOD for r in rows]
            bar.advance(len(rows))
    if failed:
        raise OSError(failed[0], os.strerror(failed[0]), str(work))


def _marked(work: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The map of `done.u8`, one byte a row, made where there is none yet; and the rows that it does not mark."""
    file = work / "done.u8"
    if not file.exists():
        file.write_bytes(bytes(count))
    done = np.memmap(file, np.uint8, "r+", shape=(count,))
    return done, np.flatnonzero(done == _WAITING)


def _chunks(rows: list[int], workers: int) -> Iterator[list[int]]:
    """Rows in smaller and smaller lots: few to hand out, and no worker ends long after the others."""
    at = 0
    while at < len(rows):
        step = min(max((len(rows) - at) // (workers * 4), _LAST_CHUNK), _CHUNK)
        yield rows[at : at + step]
        at += step


@contextmanager
def _workers_lost() -> Iterator[None]:
    """One line where a decoding process was killed, which is mostly for want of memory."""
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    try:
        yield
    except TerminatedWorkerError:
        raise UserError(
            "a process that decodes images was killed (out of memory?); started again, it goes on, with fewer workers"
        ) from None


def _read_faults(work: Path) -> list[Fault]:
    """The faults found, once each, in row order (a build that was cut off may have met one twice)."""
    lines = (work / "faults.jsonl").read_text().splitlines() if (work / "faults.jsonl").exists() else []
    found: dict[tuple[int, str], Fault] = {}
    for line in lines:
        try:
            fault: Fault = json.loads(line)
        except ValueError:  # the line that was being written when the build was cut off: its rows are done again
            continue
        found[fault["row"], fault["file"]] = fault
    return [found[k] for k in sorted(found)]


def _compact(file: Path, count: int, row_bytes: int, bad: set[int]) -> None:
    """Rewrite a file without its bad rows, keeping holes. Does nothing to a file that is compact already."""
    if not bad or file.stat().st_size == (count - len(bad)) * row_bytes:
        return
    rows = np.memmap(file, np.uint8, "r", shape=(count, row_bytes))
    new = file.with_suffix(".compact")
    with open(new, "wb", buffering=0) as target:
        target.truncate((count - len(bad)) * row_bytes)
        at = 0
        for row in range(count):
            if row in bad:
                continue
            if rows[row].any():
                write_at(target, rows[row], at)
            at += row_bytes
    new.replace(file)
