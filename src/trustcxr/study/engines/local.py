"""Runs one after another in this process."""

import traceback
from collections.abc import Callable, Iterable
from typing import Any

from trustcxr.console import say
from trustcxr.errors import CannotWrite, UserError
from trustcxr.study.engines.contract import Failure, Task


class LocalEngine:
    """One task after another in this process, each with all the cores and the accelerator."""

    def map(self, work: Callable[[Task], Any], tasks: Iterable[Task]) -> list[Any]:
        """Results in the order of the tasks; a Failure where one could not be done."""
        found: list[Any] = []
        for task in tasks:
            name = getattr(task, "name", str(task))
            try:
                found.append(work(task))
            except CannotWrite:  # the next run would not be written either
                raise
            except UserError as problem:
                found.append(Failure(name, str(problem)))
                say(f"{name}: {problem}")
            except Exception as problem:  # one run's fault must not lose a study of 27
                traceback.print_exc()
                found.append(Failure(name, f"{type(problem).__name__}: {problem}"))
        return found
