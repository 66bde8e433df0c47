"""One process at a time writes to a folder; the second is told who does."""

import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from trustcxr.errors import UserError
from trustcxr.results.disk import writing
from trustcxr.results.files import write_json

LOCK_FILE, HOLDER_FILE = ".lock", ".lock-holder.json"
_TEMPORARY = re.compile(r"\..+\.(\d+)(\.\w+)?")  # as files.replacing names them: .<stem>.<process><ending>
_WITHIN = (".", "checkpoint", "validated", "validated/checkpoint", "evaluations/*", "report-tables")  # where one writes
_CLOCKS = 5.0  # seconds by which a machine's two clocks may differ
_held: set[Path] = set()  # by this process, which may come back to a folder that it holds


@contextmanager
def holding(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Keep a folder to this process, and sweep what a killed one left half-written in it.

    The lock is the system's own, so it ends with the process however that ends. Raises UserError, which says which
    process holds it, on which machine and since when, where another one does for `patience` seconds. A folder that was
    made for what then was refused, with nothing written, is taken away again.
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
        write_json(folder / HOLDER_FILE, _myself())
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


def refuse_held(folder: Path) -> None:
    """UserError, as `holding` has it, where another process holds a folder now."""
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
    """Remove the temporary files of processes that are gone from a folder that this process holds."""
    for path in (path for within in _WITHIN for path in folder.glob(f"{within}/.*")):
        if is_left(path.name):
            with suppress(OSError):
                path.unlink()


def is_left(name: str) -> bool:
    """Whether this is the name of what a process that is gone, or this one before, had begun to write."""
    named = _TEMPORARY.fullmatch(name)
    return named is not None and (int(named[1]) == os.getpid() or not _lives(int(named[1])))


def _myself() -> dict[str, object]:
    return {"pid": os.getpid(), "host": platform.node(), "since": datetime.now(UTC).isoformat(timespec="seconds")}


def _in_use(folder: Path) -> UserError:
    return UserError(f"{folder}: in use by {_holder(folder)}; wait for it, or choose another folder")


def holder(folder: Path) -> str | None:
    """Who works in a folder now; None where nobody does. Takes no lock, so it is in nobody's way.

    What a process that was killed left behind is seen through on its own machine, and taken for its word elsewhere.
    """
    return None if _said(folder) is None or was_killed(folder) else _holder(folder)


def was_killed(folder: Path) -> bool:
    """Whether a process of this machine began to work in a folder, and is gone without having ended that."""
    found = _said(folder)
    if found is None or found["host"] != platform.node():
        return False
    process, since = int(str(found["pid"])), str(found["since"])
    return not _lives(process) or _began_after(process, since)


def abandoned(folder: Path) -> None:
    """Take away what a process that is lost had said of itself in a folder; not what one that lives here says."""
    found = _said(folder)
    if found is not None and (found["host"] != platform.node() or was_killed(folder)):
        with suppress(OSError):
            (folder / HOLDER_FILE).unlink(missing_ok=True)


def _holder(folder: Path) -> str:
    found = _said(folder)
    return f"process {found['pid']} on {found['host']} since {found['since']}" if found else "another process"


def _said(folder: Path) -> dict[str, object] | None:
    try:
        found = json.loads((folder / HOLDER_FILE).read_text(encoding="utf-8"))
        return {"pid": int(found["pid"]), "host": found["host"], "since": found["since"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lives(process: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _began_after(process: int, since: str) -> bool:
    """Whether a process began after that moment, so that its number was another's then; False where nobody can say."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
        ticks = int(stat.rpartition(")")[2].split()[19])  # since the machine was started
        started = Path("/proc/stat").read_text(encoding="utf-8").partition("btime ")[2].split()[0]
        began = int(started) + ticks / os.sysconf("SC_CLK_TCK")
        return began > datetime.fromisoformat(since).timestamp() + _CLOCKS
    except (OSError, ValueError, IndexError, AttributeError, TypeError):
        return False
