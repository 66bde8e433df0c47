"""Where the runs of a study are worked on: in this process, one after another."""

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from trustcxr.console import say
from trustcxr.errors import UserError, unknown

Task = TypeVar("Task")


@dataclass(frozen=True)
class Failure:
    """A task that did not end well; the others go on."""

    name: str
    reason: str


class Engine(Protocol):
    """Does the same work for many tasks; yields (task, result or Failure) in the order of the tasks."""

    def map(self, work: Callable[[Task], Any], tasks: Iterable[Task]) -> list[Any]:
        """Results in the order of the tasks; a Failure where one could not be done."""
        ...


class LocalEngine:
    """One task after another in this process, each with all the cores and the accelerator."""

    def map(self, work: Callable[[Task], Any], tasks: Iterable[Task]) -> list[Any]:
        """Results in the order of the tasks; a Failure where one could not be done."""
        found: list[Any] = []
        for task in tasks:
            name = getattr(task, "name", str(task))
            try:
                found.append(work(task))
            except UserError as problem:
                found.append(Failure(name, str(problem)))
                say(f"{name}: {problem}")
            except Exception as problem:  # one run's fault must not lose a study of 27
                traceback.print_exc()
                found.append(Failure(name, f"{type(problem).__name__}: {problem}"))
        return found


ENGINES: dict[str, Callable[[], Engine]] = {"local": LocalEngine}


def get(name: str) -> Engine:
    """The engine of that name; UserError with the valid names for any other."""
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    return ENGINES[name]()
