"""List old pixel stores and checkpoints with sizes and ages, and remove those that nobody uses."""

import json
import math
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from trustcxr.console import plural
from trustcxr.data.cache import INDEX, cache_folder
from trustcxr.errors import UserError
from trustcxr.storage import layout, locks
from trustcxr.storage.os_errors import writing
from trustcxr.storage.schemas import Prunable, PruneDocument

DAYS = 30.0  # without use, after which a store or checkpoint is old
CHECKPOINT = "checkpoint"  # folder in a run and in its before_refit/
_BUILDING, _REMOVING = ".building", ".going"  # suffixes of unfinished stores
_DECODING = "a command that decodes into it"


def prune(folders: Iterable[Path] = (), *, older_than: float = DAYS, remove: bool = False) -> PruneDocument:
    """List the pixel stores of the cache, and checkpoints in `folders` (runs and studies); with `remove` drop old ones.

    Old: not used for `older_than` days. Folders in use stay, and so do newer checkpoints of unfinished trainings.
    Raises UserError if a path is no folder, or the days are negative or not finite.
    """
    if not (math.isfinite(older_than) and older_than >= 0):
        raise UserError(f"older than {older_than:g} days: must be a number of days, 0 or more")
    stores = cache_folder() / "stores"
    entries = [*_stores(stores), *(one for folder in folders for one in _checkpoints(folder))]
    for one in entries:
        if one.days < older_than and one.kind != "finished checkpoint":
            one.why = f"used within {older_than:g} days"
        elif remove and one.old:
            one.removed = _remove(one)
    return PruneDocument(
        cache=str(stores),
        older_than=older_than,
        entries=entries,
        removable=sum(one.bytes for one in entries if one.old and not one.removed),
        freed=sum(one.bytes for one in entries if one.removed),
    )


def _stores(folder: Path) -> Iterator[Prunable]:
    """Yield stores, then those whose building or removal was cut off."""
    for store in sorted(filter(Path.is_dir, folder.glob("*")), key=lambda path: (path.suffix != "", path)):
        if not store.suffix:
            yield _prunable(store, "store", _describe_store(store))
        elif store.suffix in (_BUILDING, _REMOVING):
            user = ""
            try:
                with _lock(store):
                    pass
            except Timeout:
                user = _DECODING
            yield _prunable(store, "unfinished store", "decoding that was cut off", user)


def _lock(store: Path) -> FileLock:
    """Return the lock that `data.cache` takes to build a store, without waiting for it."""
    return FileLock(store.with_name(store.name.partition(".")[0] + ".lock"), timeout=0)


def _describe_store(store: Path) -> str:
    try:
        index = json.loads((store / INDEX).read_text())
        return f"{plural(index['count'], 'image')} of {index['size']} pixels"
    except (OSError, ValueError, KeyError, TypeError):
        return "damaged"


def _checkpoints(folder: Path) -> Iterator[Prunable]:
    """Yield the checkpoints of a run, or of every run of a study."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give folders of runs or studies")
    for run in [folder, *sorted(folder.glob("runs/*"))]:
        finished = (run / layout.TRAINING_FILE).is_file()
        for checkpoint in (run / CHECKPOINT, run / layout.BEFORE_REFIT / CHECKPOINT):
            if checkpoint.is_dir():
                what = "left behind by a finished training" if finished else "a training goes on from here"
                kind = "finished checkpoint" if finished else "checkpoint"
                yield _prunable(checkpoint, kind, what, locks.holder(run) or "")


def _prunable(path: Path, kind: Any, what: str, user: str = "") -> Prunable:
    sizes, used = [], path.stat().st_mtime
    for file in path.rglob("*"):
        with suppress(FileNotFoundError):  # a running training replaces its checkpoint
            facts = file.lstat()
            sizes.append(min(facts.st_size, facts.st_blocks * 512) if hasattr(facts, "st_blocks") else facts.st_size)
            used = max(used, facts.st_mtime)
    days = max(time.time() - used, 0.0) / 86400
    return Prunable(
        kind=kind, path=str(path), what=what, bytes=sum(sizes), days=round(days, 2), user=user, why="", removed=False
    )


def _remove(one: Prunable) -> bool:
    """Remove a folder under the lock that its users take; False if another process holds the lock."""
    path = Path(one.path)
    run = path.parent.parent if path.parent.name == layout.BEFORE_REFIT else path.parent
    with writing(path):
        try:
            with locks.folder_lock(run) if "checkpoint" in one.kind else _lock(path):
                if one.kind == "store":
                    path = path.rename(path.with_name(f"{path.name}{_REMOVING}"))
                shutil.rmtree(path)
                return True
        except UserError as problem:
            one.user = str(problem)
        except Timeout:
            one.user = _DECODING
    return False
