"""What every entry of the catalogue has, and how the function that it names is found."""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, Protocol, TypeVar


class Named(Protocol):
    """What every entry has."""

    @property
    def name(self) -> str:
        """How recipes, commands and files on disk say it."""
        ...


Entry = TypeVar("Entry", bound=Named)


def by_name(entries: Iterable[Entry]) -> dict[str, Entry]:
    """The entries, each found by its name, in their order."""
    return {entry.name: entry for entry in entries}


def load_function(wing: str, where: str) -> Callable[..., Any]:
    """The function at "module:name" of a wing, such as ("attacks", "pgd:pgd_l2"); or at "package.module:name"."""
    module, _, name = where.partition(":")
    path = module if "." in module else f"trustcxr.{wing}.{module}"
    return getattr(import_module(path), name)
