"""One run trained, cut off or not.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from trustcxr.lazily import loader

_NAMES = {
    "class_weights": "trustcxr.training.loop",
    "fit": "trustcxr.training.loop",
}
__all__ = [
    "class_weights",
    "fit",
]
__getattr__ = loader(__name__, _NAMES)

if TYPE_CHECKING:
    from trustcxr.training.loop import class_weights, fit


def __dir__() -> list[str]:
    return __all__
