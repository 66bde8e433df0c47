"""Images and labels: a folder becomes a manifest, the manifest a pixel store, the store a Dataset.

The names below are loaded on first use, so that `import trustcxr.data` imports neither pandas nor PIL.
"""

from typing import TYPE_CHECKING

from trustcxr.lazily import attach

if TYPE_CHECKING:
    from trustcxr.data import batches, phantom
    from trustcxr.data.auditing.audit import audit
    from trustcxr.data.dataset import Dataset, load_dataset
    from trustcxr.data.images.grey import UnreadableImage
    from trustcxr.data.images.reading import read_image, read_mask
    from trustcxr.data.layouts import read_manifest
    from trustcxr.data.manifest import Manifest
    from trustcxr.data.store import open_store
else:
    __getattr__, __dir__, __all__ = attach(__name__)
