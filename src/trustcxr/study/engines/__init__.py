"""Where the runs of a study are worked on: in this process, one after another."""

from collections.abc import Callable

from trustcxr.errors import unknown
from trustcxr.study.engines.contract import Engine, Failure
from trustcxr.study.engines.local import LocalEngine

__all__ = ["ENGINES", "Engine", "Failure", "LocalEngine", "get"]

ENGINES: dict[str, Callable[[], Engine]] = {"local": LocalEngine}


def get(name: str) -> Engine:
    """The engine of that name; UserError with the valid names for any other."""
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    return ENGINES[name]()
