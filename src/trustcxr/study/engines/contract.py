"""What every engine is: the same work for many tasks, a failure told and never a study lost."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

Task = TypeVar("Task")


@dataclass(frozen=True)
class Failure:
    """A task that did not end well; the others go on."""

    name: str
    reason: str


class Engine(Protocol):
    """Does the same work for many tasks."""

    def map(self, work: Callable[[Task], Any], tasks: Iterable[Task]) -> list[Any]:
        """Results in the order of the tasks; a Failure where one could not be done."""
        ...
