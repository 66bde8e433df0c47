"""Images and labels: a folder becomes a manifest, the manifest a pixel store, the store a Dataset.

The names below are loaded on first use, so that `import trustcxr.data` imports neither pandas nor PIL.
"""

from typing import TYPE_CHECKING

from trustcxr.lazily import loader

_NAMES = {
    "Dataset": "trustcxr.data.dataset",
    "Manifest": "trustcxr.data.manifest",
    "UnreadableImage": "trustcxr.data.images.grey",
    "audit": "trustcxr.data.auditing.audit",
    "load_dataset": "trustcxr.data.dataset",
    "open_store": "trustcxr.data.store",
    "read_image": "trustcxr.data.images.reading",
    "read_manifest": "trustcxr.data.layouts",
    "read_mask": "trustcxr.data.images.reading",
}
_MODULES = ("batches", "phantom")
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
__getattr__ = loader(__name__, _NAMES, _MODULES)

if TYPE_CHECKING:
    from trustcxr.data import batches, phantom
    from trustcxr.data.auditing.audit import audit
    from trustcxr.data.dataset import Dataset, load_dataset
    from trustcxr.data.images.grey import UnreadableImage
    from trustcxr.data.images.reading import read_image, read_mask
    from trustcxr.data.layouts import read_manifest
    from trustcxr.data.manifest import Manifest
    from trustcxr.data.store import open_store


def __dir__() -> list[str]:
    return __all__
