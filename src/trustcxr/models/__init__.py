"""Networks from pixel space to logits.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from trustcxr.lazily import loader

_NAMES = {
    "Classifier": "trustcxr.models.classifier",
    "PAPER_MODELS": "trustcxr.models.zoo",
    "architecture": "trustcxr.models.zoo",
    "architectures": "trustcxr.models.zoo",
    "build": "trustcxr.models.factory",
    "check": "trustcxr.models.factory",
    "count_parameters": "trustcxr.models.zoo",
    "paper_models": "trustcxr.models.zoo",
}
__all__ = [
    "PAPER_MODELS",
    "Classifier",
    "architecture",
    "architectures",
    "build",
    "check",
    "count_parameters",
    "paper_models",
]
__getattr__ = loader(__name__, _NAMES)

if TYPE_CHECKING:
    from trustcxr.models.classifier import Classifier
    from trustcxr.models.factory import build, check
    from trustcxr.models.zoo import PAPER_MODELS, architecture, architectures, count_parameters, paper_models


def __dir__() -> list[str]:
    return __all__
