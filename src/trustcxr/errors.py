"""Define the exceptions for wrong input, and build their messages."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

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


def is_out_of_memory(problem: BaseException) -> bool:
    """Return True if Python, numpy or torch could not allocate memory."""
    message = str(problem).lower()
    return isinstance(problem, MemoryError) or (
        isinstance(problem, RuntimeError) and any(text in message for text in _ALLOCATOR_MESSAGES)
    )


def pixel_range_error(what: str, low: float, high: float) -> UserError:
    """Return a UserError for images outside [0, 1], with enough digits to show it."""
    hint = "; clamp them, as images.clamp(0, 1)" if low >= -0.01 and high <= 1.01 else ""
    return UserError(f"{what}: images must lie in [0, 1] (pixel space), but these span [{low:.9g}, {high:.9g}]{hint}")


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
