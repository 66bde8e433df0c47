"""Names that a package offers and loads on first use, so that importing it costs nothing (PEP 562)."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def loader(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of `package`: each name and the module that it is in; a module's own name gives the module."""

    def load(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        module = import_module(names[name])
        return module if names[name].rpartition(".")[2] == name else getattr(module, name)

    return load
