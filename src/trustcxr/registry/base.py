"""Index entries by name, and load the functions that they name."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol, TypeVar


class Named(Protocol):
    """An entry."""

    @property
    def name(self) -> str:
        """Return the name that recipes, commands and files on disk use."""
        ...


Entry = TypeVar("Entry", bound=Named)


def by_name(*entries: Entry) -> dict[str, Entry]:
    """Index entries by name, in their order."""
    return {entry.name: entry for entry in entries}


def load_function(package: str, function: str) -> Callable[..., Any]:
    """Import a function: "module:name" of a package, as in ("attacks", "pgd:pgd_l2"), or "package.module:name"."""
    module, _, name = function.partition(":")
    path = module if "." in module else f"trustcxr.{package}.{module}"
    return getattr(import_module(path), name)
