"""Synthetic chest X-rays with known lesions and exact masks.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from trustcxr.lazily import loader

_NAMES = {
    "CLASSES": "trustcxr.data.phantom.anatomy",
    "Film": "trustcxr.data.phantom.film",
    "SHORTCUTS": "trustcxr.data.phantom.shortcuts",
    "SPLITS": "trustcxr.data.phantom.writing",
    "Shortcut": "trustcxr.data.phantom.shortcuts",
    "parse_shortcut": "trustcxr.data.phantom.shortcuts",
    "render": "trustcxr.data.phantom.film",
    "write": "trustcxr.data.phantom.writing",
}
__all__ = [
    "CLASSES",
    "SHORTCUTS",
    "SPLITS",
    "Film",
    "Shortcut",
    "parse_shortcut",
    "render",
    "write",
]
__getattr__ = loader(__name__, _NAMES)

if TYPE_CHECKING:
    from trustcxr.data.phantom.anatomy import CLASSES
    from trustcxr.data.phantom.film import Film, render
    from trustcxr.data.phantom.shortcuts import SHORTCUTS, Shortcut, parse_shortcut
    from trustcxr.data.phantom.writing import SPLITS, write


def __dir__() -> list[str]:
    return __all__
