"""Define the exceptions for wrong input, and build their messages."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, TypeVar

Value = TypeVar("Value")
OUT_OF_MEMORY = "more memory is needed than there is: choose a smaller size or batch"
_ALLOCATOR_MESSAGES = ("can't allocate memory", "not enough memory", "out of memory")  # of torch


class UserError(Exception):
    """The input is wrong. The message is one line: what, why, and what to do. The command exits with 2."""


class NotFiniteError(UserError, FloatingPointError):
    """Weights or outputs of a model are NaN or infinite."""


class CannotWrite(UserError):
    """A file cannot be written: full disk, or no permission. The previous file is intact.

    number: the errno of the system, or None.
    """

    def __init__(self, text: str, number: int | None = None) -> None:
        super().__init__(text)
        self.number = number


def require(what: str, install: str, *packages: str) -> None:
    """Raise UserError, with the command that installs it, if a package is missing. what: "serve needs"."""
    for package in packages:
        try:
            import_module(package)
        except ImportError as problem:
            raise UserError(f"{what} {problem.name}: {install}") from None


def is_out_of_memory(problem: BaseException) -> bool:
    """Return True if Python, numpy or torch could not allocate memory."""
    message = str(problem).lower()
    return isinstance(problem, MemoryError) or (
        isinstance(problem, RuntimeError) and any(text in message for text in _ALLOCATOR_MESSAGES)
    )


def check_pixels(what: str, images: Any) -> None:
    """Raise UserError unless a tensor has images (B, C, H, W), floats in [0, 1]; the message has enough digits."""
    if images.ndim != 4 or not images.is_floating_point():
        raise UserError(f"{what}: images must be floats (B, 1, H, W), not {images.dtype} {tuple(images.shape)}")
    low, high = (float(end) for end in images.detach().aminmax()) if images.numel() else (0.0, 1.0)
    if not (low >= 0 and high <= 1):  # a NaN fails this too
        hint = "; clamp them, as images.clamp(0, 1)" if low >= -0.01 and high <= 1.01 else ""
        span = f"these span [{low:.9g}, {high:.9g}]"
        raise UserError(f"{what}: images must lie in [0, 1] (pixel space), but {span}{hint}")


def lookup(table: Mapping[str, Value], what: str, name: str) -> Value:
    """Return the value of `name`. Raises UserError, with the valid names, if there is none."""
    if name not in table:
        raise unknown(what, name, table)
    return table[name]


def unknown(what: str, name: object, choices: Iterable[object]) -> UserError:
    """Return a UserError for an unknown name, with the nearest names and all valid ones."""
    names = [str(c) for c in choices]
    return UserError(f"unknown {what} '{name}': {suggest_nearest(name, names)}valid: {', '.join(names)}")


def suggest_nearest(name: object, names: Iterable[str]) -> str:
    """Return "did you mean fgsm? ", or "" if no name is near."""
    lowered = {n.lower(): n for n in names}
    near = [lowered[n] for n in get_close_matches(str(name).lower(), list(lowered), n=3, cutoff=0.5)]
    return f"did you mean {' or '.join(near)}? " if near else ""
