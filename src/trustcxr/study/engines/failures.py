"""Write and read failure.json, the reason why a run failed."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from trustcxr.errors import CannotWrite, UserError
from trustcxr.storage import atomic, locks
from trustcxr.storage.layout import FAILURE_FILE
from trustcxr.study.engines.base import Failure, Task


def failure_folder(task: Task) -> Path:
    """Return the folder of a task's run."""
    return task.study / "runs" / task.run


def record(folder: Path, failure: Failure) -> None:
    """Write a failure into the folder of its run, if the disk has room."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    with suppress(CannotWrite):  # which stops the study by itself
        atomic.write_json(folder / FAILURE_FILE, {"run": failure.name, "reason": failure.reason, "when": when})


def lost(task: Task, how: str) -> Failure:
    """Record the failure of a task whose process, job or node was lost, and remove its lock record."""
    failure = Failure(task.run, f"{task.step}: {how}")
    record(failure_folder(task), failure)
    locks.forget_lost(failure_folder(task))
    return failure


def reason(folder: Path) -> str | None:
    """Return why a run failed; empty if failure.json is damaged, None if it did not fail."""
    if not (folder / FAILURE_FILE).is_file():
        return None
    with suppress(UserError):
        return str(atomic.read_document(folder / FAILURE_FILE).get("reason", ""))
    return ""


def clear_step(task: Task) -> None:
    """Remove the failure of a step that is done now; the failure of a later step stays."""
    if (reason(failure_folder(task)) or "").startswith(f"{task.step}: "):
        forget(failure_folder(task))


def forget(folder: Path) -> None:
    """Remove the failure of a run."""
    with suppress(OSError):
        (folder / FAILURE_FILE).unlink(missing_ok=True)
