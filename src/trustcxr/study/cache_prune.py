"""Old pixel stores and checkpoints: listed with sizes and ages; removed where that is asked, and nobody uses them."""

import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from trustcxr.data.cache import INDEX, cache_folder
from trustcxr.errors import UserError
from trustcxr.storage import layout, locks
from trustcxr.storage.os_errors import writing
from trustcxr.storage.schemas import Prunable, PruneDocument

DAYS = 30.0  # since it was last used, after which a thing is old unless said
CHECKPOINT = "checkpoint"  # within a run, and within what is refit
_BUILDING, _GOING = ".building", ".going"  # a store that is not whole yet; one that is being removed


def prune(
    places: Iterable[Path] = (), *, older_than: float = DAYS, remove: bool = False, cache: Path | None = None
) -> PruneDocument:
    """List the pixel stores of the cache, and checkpoints in `places` (runs and studies); with `remove` drop the old.

    Old is what was not used for `older_than` days. What a running command holds stays, and so does the checkpoint of a
    training that failed or was cut off less long ago. Raises UserError for a place that is no folder, or days that are
    none.
    """
    if not (math.isfinite(older_than) and older_than >= 0):
        raise UserError(f"older than {older_than:g} days: must be a number of days, 0 or more")
    folder = cache_folder(cache) / "stores"
    found = PruneDocument(cache=str(folder), older_than=older_than)
    found.found = [*_stores(folder), *_leftovers(folder), *(one for place in places for one in _checkpoints(place))]
    for one in found.found:
        if one.days < older_than and one.kind != "finished checkpoint":
            one.why = f"used within {older_than:g} days"
    for one in found.found if remove else ():
        if one.old:
            one.removed = _removed(one)
    found.removable = sum(one.bytes for one in found.found if one.old and not one.removed)
    found.freed = sum(one.bytes for one in found.found if one.removed)
    return found


def _stores(folder: Path) -> Iterator[Prunable]:
    for store in sorted(path for path in folder.glob("*") if path.is_dir() and not path.suffix):
        yield _prunable(store, "store", _described(store), "")


def _leftovers(folder: Path) -> Iterator[Prunable]:
    """Stores whose building, or whose removal, was cut off."""
    for work in sorted((*folder.glob(f"*{_BUILDING}"), *folder.glob(f"*{_GOING}"))):
        lock = FileLock(work.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
            lock.release()
            held = ""
        except Timeout:
            held = "a command that decodes into it"
        yield _prunable(work, "unfinished store", "decoding that was cut off", held)


def _described(store: Path) -> str:
    try:
        index = json.loads((store / INDEX).read_text())
        return f"{index['count']:,} images of {index['size']} pixels"
    except (OSError, ValueError, KeyError, TypeError):
        return "damaged"


def _checkpoints(place: Path) -> Iterator[Prunable]:
    """Of a run, or of every run of a study."""
    if not place.is_dir():
        raise UserError(f"{place}: no such folder; give folders of runs or studies")
    for run in [place, *sorted(place.glob("runs/*"))]:
        finished = (run / layout.TRAINING_FILE).is_file()
        for checkpoint in (run / CHECKPOINT, run / layout.BEFORE_REFIT / CHECKPOINT):
            if checkpoint.is_dir():
                what = "left behind by a finished training" if finished else "a training goes on from here"
                kind = "finished checkpoint" if finished else "checkpoint"
                yield _prunable(checkpoint, kind, what, locks.holder(run) or "")


def _prunable(path: Path, kind: str, what: str, held: str) -> Prunable:
    sizes, used = [], path.stat().st_mtime
    for file in path.rglob("*"):
        try:
            facts = file.lstat()
        except FileNotFoundError:  # a training that runs puts its next checkpoint in the place of the last
            continue
        sizes.append(min(facts.st_size, facts.st_blocks * 512) if hasattr(facts, "st_blocks") else facts.st_size)
        used = max(used, facts.st_mtime)
    days = max(time.time() - used, 0.0) / 86400
    said = {"kind": kind, "path": str(path), "what": what, "bytes": sum(sizes), "days": round(days, 2)}
    return Prunable.model_validate(said | {"held": held, "why": "", "removed": False})


def _removed(one: Prunable) -> bool:
    """Remove it under the lock that its users take; False where somebody took that in the meantime."""
    path = Path(one.path)
    with writing(path):
        if "checkpoint" in one.kind:
            run = path.parent.parent if path.parent.name == layout.BEFORE_REFIT else path.parent
            try:
                with locks.folder_lock(run):
                    shutil.rmtree(path)
            except UserError as problem:
                one.held = str(problem)
                return False
            return True
        return _store_removed(path, one)


def _store_removed(path: Path, one: Prunable) -> bool:
    lock = FileLock(path.with_suffix(".lock"))  # as `data.store` takes it while it builds
    try:
        lock.acquire(timeout=0)
    except Timeout:
        one.held = "a command that decodes into it"
        return False
    try:
        if one.kind == "store":
            gone = path.with_name(f"{path.name}{_GOING}")
            os.replace(path, gone)
            path = gone
        shutil.rmtree(path)
    finally:
        lock.release()
    return True
