"""TrustCXR: can this chest X-ray classifier be trusted? Research software, not for diagnosis.

The names below are loaded on first use, so that `import trustcxr` does not import torch.
"""

from typing import TYPE_CHECKING

from trustcxr.about import NOTICE, __version__
from trustcxr.lazily import loader

_NAMES = {
    "load_dataset": "trustcxr.data.dataset",
    "load_model": "trustcxr.evaluation.given",
    "load_run": "trustcxr.evaluation.run",
}
_MODULES = ("attacks", "data", "explain", "models")
__all__ = ["NOTICE", "__version__", *sorted((*_NAMES, *_MODULES))]
__getattr__ = loader(__name__, _NAMES, _MODULES)

if TYPE_CHECKING:
    from trustcxr import attacks, data, explain, models
    from trustcxr.data import load_dataset
    from trustcxr.evaluation.given import load_model
    from trustcxr.evaluation.run import load_run


def __dir__() -> list[str]:
    return __all__
