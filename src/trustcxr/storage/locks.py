"""Lock a folder: one process at a time writes to it, and the second is told who does."""

import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from trustcxr.errors import UserError
from trustcxr.storage.atomic import write_json
from trustcxr.storage.os_errors import writing

LOCK_FILE, HOLDER_FILE = ".lock", ".lock-holder.json"
_TEMPORARY = re.compile(r"\..+\.(\d+)(\.\w+)?")  # as files.replacing names them: .<stem>.<process><ending>
_WITHIN = (".", "checkpoint", "before_refit", "before_refit/checkpoint", "evaluations/*", "report-tables")


class _Note(TypedDict):
    """Who holds a folder."""

    pid: int
    host: str
    since: str


_held: set[Path] = set()  # by this process, which may come back to a folder that it holds


@contextmanager
def folder_lock(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Lock a folder for this process, and remove what a killed process left half-written in it.

    The lock is the system's own, so it ends with the process however that ends. Raises UserError if another process
    holds it for `patience` seconds, with the process, its machine and since when. A new folder in which nothing was
    written is removed again.
    """
    from filelock import FileLock, Timeout

    key = folder.absolute()
    if key in _held:
        yield
        return
    new = not folder.exists()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE)
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            raise _in_use(folder) from None
        except NotImplementedError:
            pass  # a file system that knows no locks
    _held.add(key)
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(folder / HOLDER_FILE, _Note(pid=os.getpid(), host=platform.node(), since=since))
        sweep(folder)
        yield
    finally:
        _held.discard(key)
        with suppress(OSError):
            (folder / HOLDER_FILE).unlink(missing_ok=True)
            if new and [path.name for path in folder.iterdir()] == [LOCK_FILE]:
                (folder / LOCK_FILE).unlink()
                folder.rmdir()
        lock.release()


def check_unlocked(folder: Path) -> None:
    """Raise UserError, as `holding` does, if another process holds a folder now."""
    from filelock import FileLock, Timeout

    if folder.absolute() in _held or not (folder / LOCK_FILE).is_file():
        return
    with suppress(OSError, NotImplementedError):
        try:
            with FileLock(folder / LOCK_FILE).acquire(timeout=0):
                pass
        except Timeout:
            raise _in_use(folder) from None


def sweep(folder: Path) -> None:
    """Remove the temporary files of dead processes from a folder that this process holds."""
    for path in (path for within in _WITHIN for path in folder.glob(f"{within}/.*")):
        if is_left(path.name):
            with suppress(OSError):
                path.unlink()


def is_left(name: str) -> bool:
    """Return whether this names a temporary file of a dead process, or an old one of this process."""
    named = _TEMPORARY.fullmatch(name)
    return named is not None and (int(named[1]) == os.getpid() or not _lives(int(named[1])))


def holder(folder: Path) -> str | None:
    """Return who works in a folder now; None if nobody does. Takes no lock.

    A note of another machine is believed; one of this machine counts only while its process lives.
    """
    note = _note(folder)
    return None if note is None or was_killed(folder) else _describe(note)


def was_killed(folder: Path) -> bool:
    """Return whether a process of this machine began to work in a folder, and is gone without having ended that."""
    note = _note(folder)
    return note is not None and note["host"] == platform.node() and not _lives(note["pid"])


def abandoned(folder: Path) -> None:
    """Remove the note of a process that was lost; not that of one that lives on this machine."""
    note = _note(folder)
    if note is not None and (note["host"] != platform.node() or was_killed(folder)):
        with suppress(OSError):
            (folder / HOLDER_FILE).unlink(missing_ok=True)


def _in_use(folder: Path) -> UserError:
    note = _note(folder)
    return UserError(
        f"{folder}: in use by {_describe(note) if note else 'another process'}; wait for it, or choose another folder"
    )


def _describe(note: _Note) -> str:
    return f"process {note['pid']} on {note['host']} since {note['since']}"


def _note(folder: Path) -> _Note | None:
    try:
        found = json.loads((folder / HOLDER_FILE).read_text(encoding="utf-8"))
        return {"pid": int(found["pid"]), "host": found["host"], "since": found["since"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lives(process: int) -> bool:
    """Return whether there is such a process on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
