"""One file becomes one grey image: decoding, depth, DICOM, squares.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from trustcxr.lazily import attach

if TYPE_CHECKING:
    from trustcxr.data.images.grey import UnreadableImage
    from trustcxr.data.images.reading import read_image, read_mask
    from trustcxr.data.images.squares import resize_image, resize_mask
else:
    __getattr__, __dir__, __all__ = attach(__name__)
