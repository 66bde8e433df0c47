"""Lock a folder, so that one process at a time writes to it, and name that process to others."""

import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trustcxr.errors import UserError
from trustcxr.storage.atomic import write_json
from trustcxr.storage.os_errors import writing

LOCK_FILE, HOLDER_FILE = ".lock", ".lock-holder.json"
_TEMPORARY = re.compile(r"\..+\.(\d+)(\.\w+)?")  # as atomic_write names them: .<stem>.<process><ending>
_WITHIN = (".", "checkpoint", "before_refit", "before_refit/checkpoint", "evaluations/*", "report-tables")


_locked: set[Path] = set()  # folders of this process, which may lock one again


@contextmanager
def folder_lock(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Lock a folder for this process, and remove what a killed process left half-written in it.

    The system ends the lock with the process. Raises UserError, with process, machine and time, if another process
    holds it for `patience` seconds. A new folder in which nothing was written is removed again.
    """
    from filelock import FileLock, Timeout

    key = folder.absolute()
    if key in _locked:
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
    _locked.add(key)
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(folder / HOLDER_FILE, {"pid": os.getpid(), "host": platform.node(), "since": since})
        sweep(folder)
        yield
    finally:
        _locked.discard(key)
        with suppress(OSError):
            (folder / HOLDER_FILE).unlink(missing_ok=True)
            if new and [path.name for path in folder.iterdir()] == [LOCK_FILE]:
                (folder / LOCK_FILE).unlink()
                folder.rmdir()
        lock.release()


def check_unlocked(folder: Path) -> None:
    """Raise UserError if another process holds a folder now."""
    from filelock import FileLock, Timeout

    if folder.absolute() in _locked or not (folder / LOCK_FILE).is_file():
        return
    with suppress(OSError, NotImplementedError):
        try:
            with FileLock(folder / LOCK_FILE).acquire(timeout=0):
                pass
        except Timeout:
            raise _in_use(folder) from None


def sweep(folder: Path) -> None:
    """Remove temporary files of dead processes from a folder."""
    for path in (path for within in _WITHIN for path in folder.glob(f"{within}/.*")):
        if is_left(path.name):
            with suppress(OSError):
                path.unlink()


def is_left(name: str) -> bool:
    """Return whether this names a temporary file of a dead process, or an old one of this process."""
    match = _TEMPORARY.fullmatch(name)
    return match is not None and (int(match[1]) == os.getpid() or not _lives(int(match[1])))


def holder(folder: Path) -> str | None:
    """Describe the process that works in a folder and, if it is of this machine, lives. Takes no lock."""
    process = _read_holder(folder)
    if process is None or was_killed(folder):
        return None
    return f"process {process['pid']} on {process['host']} since {process['since']}"


def was_killed(folder: Path) -> bool:
    """Return whether a process of this machine ended in the middle of its work in a folder."""
    process = _read_holder(folder)
    return process is not None and process["host"] == platform.node() and not _lives(process["pid"])


def forget_lost(folder: Path) -> None:
    """Remove the record of a process that was lost, unless it lives on this machine."""
    process = _read_holder(folder)
    if process is not None and (process["host"] != platform.node() or was_killed(folder)):
        with suppress(OSError):
            (folder / HOLDER_FILE).unlink(missing_ok=True)


def _in_use(folder: Path) -> UserError:
    text = holder(folder) or "another process"
    return UserError(f"{folder}: in use by {text}; wait for it, or choose another folder")


def _read_holder(folder: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((folder / HOLDER_FILE).read_text(encoding="utf-8"))
        return {"pid": int(content["pid"]), "host": content["host"], "since": content["since"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        pass
    return True
