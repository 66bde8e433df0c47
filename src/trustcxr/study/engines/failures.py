"""failure.json, why a run could not be worked on: written as soon as that is known, not once the whole study ends."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from trustcxr.errors import CannotWrite, UserError
from trustcxr.storage import atomic, locks
from trustcxr.storage.layout import FAILURE_FILE
from trustcxr.study.engines.base import Failure, Task


def failure_folder(task: Task) -> Path:
    """Where a task's run is."""
    return task.study / "runs" / task.run


def record(folder: Path, failure: Failure) -> None:
    """Write a failure into the folder of its run, where there is room for that."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    with suppress(CannotWrite):  # a disk that refuses says so by itself, and stops the study
        atomic.write_json(folder / FAILURE_FILE, {"run": failure.name, "reason": failure.reason, "when": when})


def lost(task: Task, how: str) -> Failure:
    """The failure of a task whose process, job or node is gone and could not record it: recorded for it.

    Nor could it take its name from the run's folder, where it would be said to work on.
    """
    failure = Failure(task.run, f"{task.step}: {how}")
    record(failure_folder(task), failure)
    locks.forget_lost(failure_folder(task))
    return failure


def reason(folder: Path) -> str | None:
    """Why a run failed when it was last tried, empty where that cannot be read; None where it did not fail."""
    if not (folder / FAILURE_FILE).is_file():
        return None
    with suppress(UserError):  # damaged: it failed, and why is not known
        return str(atomic.read_document(folder / FAILURE_FILE).get("reason", ""))
    return ""


def over(task: Task) -> None:
    """A step is done: that it failed before is no longer so. What is said of a later step stays, until that is done."""
    if (reason(failure_folder(task)) or "").startswith(f"{task.step}: "):
        forget(failure_folder(task))


def forget(folder: Path) -> None:
    """Take a failure away: its run is done."""
    with suppress(OSError):
        (folder / FAILURE_FILE).unlink(missing_ok=True)
