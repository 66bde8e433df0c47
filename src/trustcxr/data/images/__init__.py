"""Read files as grey images: decoding, depth, DICOM, resizing.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from trustcxr._lazy import attach

if TYPE_CHECKING:
    from trustcxr.data.images.greyscale import UnreadableImage
    from trustcxr.data.images.read import read_image, read_mask
    from trustcxr.data.images.resize import resize_image, resize_mask
else:
    __getattr__, __dir__, __all__ = attach(__name__)
