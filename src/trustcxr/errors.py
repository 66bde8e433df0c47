"""The one exception that means the user's input is wrong, and how to word it."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar


class UserError(Exception):
    """The user's input is wrong. The message is one line: what, where, and what to do. The command exits with 2."""


class NotFiniteError(UserError, FloatingPointError):
    """Weights or answers of a model that are NaN or infinite. While training, it ends as a loss that is no number."""


class CannotWrite(UserError):
    """A file could not be written: the disk is full, or the place read-only or forbidden. What was there is whole.

    `number`: the error number that the system gave, where it gave one.
    """

    def __init__(self, text: str, number: int | None = None) -> None:
        super().__init__(text)
        self.number = number


OUT_OF_MEMORY = "more memory is needed than there is: choose a smaller size or batch"
_ALLOCATORS = ("can't allocate memory", "not enough memory", "out of memory")  # what torch's say, on CPU and elsewhere


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether it is for want of memory that something failed, be it Python's, numpy's or torch's."""
    said = str(problem).lower()
    return isinstance(problem, MemoryError) or (
        isinstance(problem, RuntimeError) and any(words in said for words in _ALLOCATORS)
    )


def pixel_range_error(what: str, low: float, high: float) -> UserError:
    """A UserError for images that are not in [0, 1], with digits enough that what is outside is seen."""
    hint = "; clamp them, as images.clamp(0, 1)" if low >= -0.01 and high <= 1.01 else ""
    return UserError(f"{what}: images must lie in [0, 1] (pixel space), but these span [{low:.9g}, {high:.9g}]{hint}")


Found = TypeVar("Found")


def lookup(table: Mapping[str, Found], what: str, name: str) -> Found:
    """What a table has under that name; UserError with the valid names for any other."""
    if name not in table:
        raise unknown(what, name, table)
    return table[name]


def unknown(what: str, given: object, choices: Iterable[object]) -> UserError:
    """A UserError for a name outside a known set: suggests the nearest and lists the valid ones."""
    names = [str(c) for c in choices]
    return UserError(f"unknown {what} '{given}': {suggest_nearest(given, names)}valid: {', '.join(names)}")


def suggest_nearest(given: object, names: Iterable[str]) -> str:
    """`did you mean fgsm? `, to stand before the valid names; empty where none of them is near."""
    lowered = {n.lower(): n for n in names}
    near = [lowered[n] for n in get_close_matches(str(given).lower(), list(lowered), n=3, cutoff=0.5)]
    return f"did you mean {' or '.join(near)}? " if near else ""
