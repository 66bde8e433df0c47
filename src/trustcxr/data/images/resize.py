"""Images and masks as squares: squeezed, padded, or their middle."""

import numpy as np
from PIL import Image


def resize_image(image: np.ndarray, size: int, resize: str = "squeeze") -> np.ndarray:
    """Resize uint8 (H, W) to (size, size), bilinear with anti-aliasing.

    `pad` keeps the aspect ratio on black, `crop` by leaving out what lies beyond the largest square in the middle.
    """
    return _resized(image, size, resize, Image.Resampling.BILINEAR)


def resize_mask(mask: np.ndarray, size: int, resize: str = "squeeze") -> np.ndarray:
    """Resize a 0/1 mask (H, W) to (size, size) by nearest neighbour, so it stays 0/1."""
    return _resized(mask, size, resize, Image.Resampling.NEAREST)


def to_original(size: int, shape: tuple[int, ...], resize: str) -> tuple[slice, slice]:
    """Which rows and columns of an image's square of that size lie on the image itself, (H, W) before: not on padding.

    Of `crop` all do, though they are not all of the image.
    """
    if resize != "pad":
        return slice(None), slice(None)
    sides = [max(1, round(size * side / max(shape))) for side in shape]
    down, across = (slice((size - side) // 2, (size - side) // 2 + side) for side in sides)
    return down, across


def _resized(pixels: np.ndarray, size: int, resize: str, filter: Image.Resampling) -> np.ndarray:
    return np.asarray(_square(Image.fromarray(pixels), size, resize, filter))


def _square(image: Image.Image, size: int, resize: str, filter: Image.Resampling) -> Image.Image:
    width, height = image.size
    if resize == "pad" and height != width:
        side = max(height, width)
        padded = Image.new("L", (side, side))
        padded.paste(image, ((side - width) // 2, (side - height) // 2))
        image = padded
    elif resize == "crop" and height != width:
        side = min(height, width)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return image if image.size == (size, size) else image.resize((size, size), filter)
