"""TrustCXR: can this chest X-ray classifier be trusted? Research software, not for diagnosis.

The names below are loaded on first use, so that `import trustcxr` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trustcxr.about import NOTICE, __version__

_LAZY = {
    "load_run": ("trustcxr.evaluation", "load_run"),
    "load_dataset": ("trustcxr.data", "load_dataset"),
    "attacks": ("trustcxr.attacks", None),
    "data": ("trustcxr.data", None),
    "explain": ("trustcxr.explain", None),
    "models": ("trustcxr.models", None),
}
__all__ = ["NOTICE", "__version__", *sorted(_LAZY)]

if TYPE_CHECKING:
    from trustcxr import attacks, data, explain, models
    from trustcxr.data import load_dataset
    from trustcxr.evaluation import load_run


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'trustcxr' has no attribute '{name}'")
    module_name, attribute = _LAZY[name]
    module = import_module(module_name)
    return module if attribute is None else getattr(module, attribute)


def __dir__() -> list[str]:
    return __all__
