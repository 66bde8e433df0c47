"""Load data sets: a folder becomes a manifest, the manifest a store of pixels, the store a Dataset.

The names below are loaded on first use, so that `import trustcxr.data` imports neither pandas nor PIL.
"""

from typing import TYPE_CHECKING

from trustcxr._lazy import attach

if TYPE_CHECKING:
    from trustcxr.data import loader, phantom
    from trustcxr.data.cache import open_store
    from trustcxr.data.checks.check import check_data
    from trustcxr.data.dataset import Dataset, load_dataset
    from trustcxr.data.images.greyscale import UnreadableImage
    from trustcxr.data.images.read import read_image, read_mask
    from trustcxr.data.layouts import read_manifest
    from trustcxr.data.manifest import Manifest
else:
    __getattr__, __dir__, __all__ = attach(__name__)
