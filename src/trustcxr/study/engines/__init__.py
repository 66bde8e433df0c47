"""Where the runs of a study are worked on: in this process one after another, or in several processes at once."""

from collections.abc import Callable

from trustcxr.errors import UserError, lookup
from trustcxr.study.engines.contract import Engine, Failure, Task
from trustcxr.study.engines.local import LocalEngine

__all__ = ["ENGINES", "Engine", "Failure", "LocalEngine", "Task", "get"]


def _local(jobs: int) -> Engine:
    """In this process, or in `jobs` processes of this machine."""
    from trustcxr.study.engines.processes import ProcessesEngine

    return LocalEngine() if jobs == 1 else ProcessesEngine(jobs)


ENGINES: dict[str, Callable[[int], Engine]] = {"local": _local}


def get(name: str, jobs: int = 1) -> Engine:
    """The engine of that name, with so many runs at once; UserError with the valid names for any other."""
    engine = lookup(ENGINES, "engine", name)
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: expected 1 or more")
    return engine(jobs)
