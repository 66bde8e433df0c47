"""Define the interface of engines, tasks and failures, and the engine of this process."""

import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trustcxr.console import Progress, log
from trustcxr.errors import OUT_OF_MEMORY, CannotWrite, UserError, is_out_of_memory
from trustcxr.storage import atomic, locks
from trustcxr.storage.layout import FAILURE_FILE


@dataclass(frozen=True)
class Task:
    """One step of one run, for any process; the study's folder has the rest.

    step: train, validate, test, explain or describe. devices: of one machine, that share a training.
    """

    study: Path
    run: str
    step: str
    devices: int = 1

    @property
    def folder(self) -> Path:
        """Return the folder of the run."""
        return self.study / "runs" / self.run


@dataclass(frozen=True)
class Failure:
    """A failed task, and failure.json in the folder of its run."""

    name: str
    reason: str

    @classmethod
    def from_error(cls, task: Task, problem: Exception) -> "Failure":
        """Describe what a task raised; the type is named unless the user can mend it."""
        text = f"{type(problem).__name__}: {' '.join(str(problem).split())}"
        if isinstance(problem, UserError):
            text = str(problem)
        elif is_out_of_memory(problem):
            text = OUT_OF_MEMORY
        return cls(task.run, f"{task.step}: {text}")

    @classmethod
    def of_lost(cls, task: Task, how: str) -> "Failure":
        """Record the failure of a task whose process, job or node was lost, and remove its lock record."""
        failure = cls(task.run, f"{task.step}: {how}")
        failure.record(task.folder)
        locks.forget_lost(task.folder)
        return failure

    def record(self, folder: Path) -> None:
        """Write failure.json, if the disk has room."""
        when = datetime.now(UTC).isoformat(timespec="seconds")
        with suppress(CannotWrite):  # which stops the study by itself
            atomic.write_json(folder / FAILURE_FILE, {"run": self.name, "reason": self.reason, "when": when})


def read_failure(folder: Path) -> str | None:
    """Return why a run failed; empty if failure.json is damaged, None if it did not fail."""
    if not (folder / FAILURE_FILE).is_file():
        return None
    with suppress(UserError):
        return str(atomic.read_document(folder / FAILURE_FILE).get("reason", ""))
    return ""


def forget_failure(folder: Path) -> None:
    """Remove the failure of a run."""
    with suppress(OSError):
        (folder / FAILURE_FILE).unlink(missing_ok=True)


@dataclass(frozen=True)
class Needs:
    """Cores and GPUs (or a share of one) of a task.

    gpus None: on Ray one if the cluster has any; on SLURM the default of its nodes, often none.
    """

    cpus: int = 1
    gpus: float | None = None


Work = Callable[[Task], object]  # a function of a module, so that it can be sent to another process
Outcome = Failure | CannotWrite | None
Outcomes = list[Failure | None]


class Engine:
    """Do the same work for many tasks. threads: of torch for a run, unless its study fixes another; None: as here."""

    threads: int | None = 1

    def preflight(self, study: Path) -> None:
        """Raise UserError if the engine cannot be used with its options."""

    def map(self, work: Work, tasks: Sequence[Task], after: Callable[[], object] = lambda: None) -> Outcomes:
        """Do every task; return its Failure or None, in their order.

        Tasks of one run are done in their order; after a failure the rest of the run is not tried. `after` is called
        after every task. Raises CannotWrite if the disk refuses. `work` records its errors; the engine records lost
        tasks (`Failure.of_lost`).
        """
        raise NotImplementedError


def attempt(work: Work, task: Task) -> Outcome:
    """Do one task; return its Failure, a CannotWrite (no other task could write either), or None."""
    try:
        work(task)
    except CannotWrite as problem:
        return problem
    except Exception as problem:  # one run must not lose a study
        failure = Failure.from_error(task, problem)
        plain = isinstance(problem, UserError) or is_out_of_memory(problem)
        text = f"{task.run}: {failure.reason.removeprefix(f'{task.step}: ')}"
        log(text if plain else traceback.format_exc().rstrip())
        return failure
    return None


class Order:
    """The order of tasks: of each run one at a time, and none after a failure."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks, self.left = tasks, dict(enumerate(tasks))
        self.busy: set[int] = set()
        self.failed: dict[str, Failure] = {}

    def next(self) -> int | None:
        """Return the index of a task that may begin; None if there is none."""
        runs = {self.tasks[index].run for index in self.busy}
        first = next((index for index, task in self.left.items() if task.run not in runs), None)
        if first is not None:
            self.left.pop(first)
            self.busy.add(first)
        return first

    def end(self, index: int, outcome: Outcome) -> int:
        """Record the end of a task; return how many tasks it settles. Raises CannotWrite if that is the outcome."""
        if isinstance(outcome, CannotWrite):
            raise outcome
        self.busy.discard(index)
        if outcome is None:
            return 1
        self.failed[outcome.name] = outcome
        dropped = [other for other, task in self.left.items() if task.run == outcome.name]
        for other in dropped:
            self.left.pop(other)
        return 1 + len(dropped)

    def settle(self, index: int, outcome: Outcome, after: Callable[[], object], bar: Progress) -> None:
        """Record the end of a task, call `after`, and advance the bar."""
        settled, task = self.end(index, outcome), self.tasks[index]
        after()
        bar.advance(settled, note=f"{task.step} {task.run}")

    def outcomes(self) -> Outcomes:
        """Return the Failure of every task, or None, in their order."""
        return [self.failed.get(task.run) for task in self.tasks]


class LocalEngine(Engine):
    """Run one task after another in this process."""

    threads = None

    def map(self, work: Work, tasks: Sequence[Task], after: Callable[[], object] = lambda: None) -> Outcomes:
        """Do every task; the outcomes in their order, None for one that was done."""
        order = Order(tasks)
        while (index := order.next()) is not None:
            log(f"[{index + 1}/{len(tasks)}] {tasks[index].step} {tasks[index].run}")
            order.end(index, attempt(work, tasks[index]))
            after()
        return order.outcomes()
