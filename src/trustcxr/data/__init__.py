"""Images and labels: a folder becomes a manifest, the manifest a pixel store, the store a Dataset.

The names below are loaded on first use, so that `import trustcxr.data` imports neither pandas nor PIL.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "Dataset": "trustcxr.data.dataset",
    "load_dataset": "trustcxr.data.dataset",
    "Manifest": "trustcxr.data.manifest",
    "read_manifest": "trustcxr.data.layouts",
    "read_image": "trustcxr.data.images",
    "read_mask": "trustcxr.data.images",
    "UnreadableImage": "trustcxr.data.images",
    "open_store": "trustcxr.data.store",
}
_MODULES = ("audit", "batches", "phantom")
__all__ = [
    "Dataset",
    "Manifest",
    "UnreadableImage",
    "audit",
    "batches",
    "load_dataset",
    "open_store",
    "phantom",
    "read_image",
    "read_manifest",
    "read_mask",
]

if TYPE_CHECKING:
    from trustcxr.data import audit, batches, phantom
    from trustcxr.data.dataset import Dataset, load_dataset
    from trustcxr.data.images import UnreadableImage, read_image, read_mask
    from trustcxr.data.layouts import read_manifest
    from trustcxr.data.manifest import Manifest
    from trustcxr.data.store import open_store


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"trustcxr.data.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'trustcxr.data' has no attribute '{name}'")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__
