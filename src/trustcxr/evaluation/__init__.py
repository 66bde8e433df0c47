"""A trained run against a data set: clean, attacked, corrupted, with the lungs hidden; each figure with an interval.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from trustcxr.lazily import loader

_NAMES = {
    "Run": "trustcxr.evaluation.run",
    "describe": "trustcxr.evaluation.summary",
    "load_model": "trustcxr.evaluation.given",
    "load_run": "trustcxr.evaluation.run",
    "predict": "trustcxr.evaluation.predictions",
}
__all__ = [
    "Run",
    "describe",
    "load_model",
    "load_run",
    "predict",
]
__getattr__ = loader(__name__, _NAMES)

if TYPE_CHECKING:
    from trustcxr.evaluation.given import load_model
    from trustcxr.evaluation.predictions import predict
    from trustcxr.evaluation.run import Run, load_run
    from trustcxr.evaluation.summary import describe


def __dir__() -> list[str]:
    return __all__
