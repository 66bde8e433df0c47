"""One file becomes one grey image: decoding, depth, DICOM, squares.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from trustcxr.lazily import loader

_NAMES = {
    "UnreadableImage": "trustcxr.data.images.grey",
    "read_image": "trustcxr.data.images.reading",
    "read_mask": "trustcxr.data.images.reading",
    "resize_image": "trustcxr.data.images.squares",
    "resize_mask": "trustcxr.data.images.squares",
}
__all__ = [
    "UnreadableImage",
    "read_image",
    "read_mask",
    "resize_image",
    "resize_mask",
]
__getattr__ = loader(__name__, _NAMES)

if TYPE_CHECKING:
    from trustcxr.data.images.grey import UnreadableImage
    from trustcxr.data.images.reading import read_image, read_mask
    from trustcxr.data.images.squares import resize_image, resize_mask


def __dir__() -> list[str]:
    return __all__
