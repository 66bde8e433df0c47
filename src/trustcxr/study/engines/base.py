"""Define what every engine does: steps of runs, wherever they are carried out; one failure never loses a study."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trustcxr.console import log
from trustcxr.errors import OUT_OF_MEMORY, CannotWrite, UserError, is_out_of_memory


@dataclass(frozen=True)
class Task:
    """One step of one run: all that another process, here or elsewhere, needs to know. The study's folder has the rest.

    step: train, validate, test, explain or describe. devices: cards of one machine that share a training.
    """

    study: Path
    run: str
    step: str
    devices: int = 1


@dataclass(frozen=True)
class Failure:
    """A task that did not end well; the others go on."""

    name: str
    reason: str

    @classmethod
    def of(cls, task: Task, problem: Exception) -> "Failure":
        """What a task raised, as it is told: what a person can mend in words alone, any other with its type."""
        said = f"{type(problem).__name__}: {' '.join(str(problem).split())}"
        if isinstance(problem, UserError):
            said = str(problem)
        elif is_out_of_memory(problem):
            said = OUT_OF_MEMORY
        return cls(task.run, f"{task.step}: {said}")


@dataclass(frozen=True)
class Needs:
    """What one task is given: cores, and cards (a share where several fit on one).

    Where no cards are said: one if the cluster has any on Ray; on SLURM what its nodes give unasked, often none.
    """

    cpus: int = 1
    gpus: float | None = None


Work = Callable[[Task], object]  # a function of a module, so that it can be sent to another process
Outcome = Failure | CannotWrite | None
Outcomes = list[Failure | None]


class Engine(Protocol):
    """Do the same work for many tasks."""

    @property
    def threads(self) -> int:
        """Return the torch threads of a run, unless its study fixes another number."""
        ...

    def preflight(self, study: Path) -> None:
        """UserError where it cannot be used as it was asked; before images are read, and nothing is written for it."""
        ...

    def map(self, work: Work, tasks: Sequence[Task], after: Callable[[], object] = ...) -> Outcomes:
        """What became of every task, in their order: None where it was done.

        The tasks of one run are done in the order given; what follows one that failed is not tried, and has its
        Failure. `after` is called here after every task. Raises CannotWrite where the disk refuses, which stops all.
        `work` records what it raises (`failures.record`); an engine at once what it lost (`failures.lost`).
        """
        ...


def attempt(work: Work, task: Task) -> Failure | None:
    """Do one task; its Failure where it could not be done. Raises CannotWrite: no other task could write either."""
    try:
        work(task)
    except CannotWrite:
        raise
    except Exception as problem:  # one run's fault must not lose a study of 27
        failure = Failure.of(task, problem)
        told_plainly = isinstance(problem, UserError) or is_out_of_memory(problem)
        said = f"{task.run}: {failure.reason.removeprefix(f'{task.step}: ')}"
        log(said if told_plainly else traceback.format_exc().rstrip())
        return failure
    return None


def run_task(work: Work, task: Task) -> Outcome:
    """Do one task in a process of its own, as `attempt`; a CannotWrite is returned."""
    try:
        return attempt(work, task)
    except CannotWrite as problem:
        return problem


class Order:
    """Which tasks may begin: of each run the first that is left, and none after one that failed."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks, self.left = tasks, dict(enumerate(tasks))
        self.busy: set[int] = set()
        self.failed: dict[str, Failure] = {}

    def next(self) -> int | None:
        """The place of a task that begins now; None where nothing is left, or each run that is is being worked on."""
        taken = {self.tasks[place].run for place in self.busy}
        found = next((place for place, task in self.left.items() if task.run not in taken), None)
        if found is not None:
            self.left.pop(found)
            self.busy.add(found)
        return found

    def end(self, place: int, outcome: Outcome) -> int:
        """A task has ended: how many tasks that settles. Raises CannotWrite where that is its outcome."""
        if isinstance(outcome, CannotWrite):
            raise outcome
        self.busy.discard(place)
        if outcome is None:
            return 1
        self.failed[outcome.name] = outcome
        dropped = [other for other, task in self.left.items() if task.run == outcome.name]
        for other in dropped:
            self.left.pop(other)
        return 1 + len(dropped)

    def outcomes(self) -> Outcomes:
        """What became of every task, in their order: None where it was done."""
        return [self.failed.get(task.run) for task in self.tasks]
