"""Names that were other ones in earlier versions: an old key of a recipe or an old keyword still says the same."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import ParamSpec, TypeVar

Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")
Value = TypeVar("Value")


def keys(content: Mapping[str, Value], former: Mapping[str, str]) -> dict[str, Value]:
    """`content` with each former key under its name of today. ValueError where it has both."""
    for old, new in former.items():
        if old in content and new in content:
            raise ValueError(f"{old} is the former name of {new}: give one of them")
    return {former.get(key, key): value for key, value in content.items()}


def keywords(**former: str) -> Callable[[Callable[Asked, Answer]], Callable[Asked, Answer]]:
    """A function that may still be called by former names of its keywords: `keywords(old="new")`."""

    def taking(function: Callable[Asked, Answer]) -> Callable[Asked, Answer]:
        @wraps(function)
        def called(*args: Asked.args, **kwargs: Asked.kwargs) -> Answer:
            return function(*args, **keys(kwargs, former))  # type: ignore[arg-type]

        return called

    return taking
