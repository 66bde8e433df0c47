"""Resize images and masks to squares: squeezed, padded or cropped."""

import numpy as np
from PIL import Image


def resize_image(image: np.ndarray, size: int, resize: str = "squeeze") -> np.ndarray:
    """Resize uint8 (H, W) to (size, size), bilinear with anti-aliasing.

    `squeeze` changes the aspect ratio; `pad` adds black; `crop` takes the largest central square.
    """
    return np.asarray(resize_square(Image.fromarray(image), size, resize, Image.Resampling.BILINEAR))


def resize_mask(mask: np.ndarray, size: int, resize: str = "squeeze") -> np.ndarray:
    """Resize a 0/1 mask (H, W) to (size, size) by nearest neighbour, so it stays 0/1."""
    return np.asarray(resize_square(Image.fromarray(mask), size, resize, Image.Resampling.NEAREST))


def to_original(size: int, shape: tuple[int, ...], resize: str) -> tuple[slice, slice]:
    """Return the rows and columns of a square of `size` that are not padding, for an image of `shape` (H, W)."""
    if resize != "pad":
        return slice(None), slice(None)
    sides = [max(1, round(size * side / max(shape))) for side in shape]
    down, across = (slice((size - side) // 2, (size - side) // 2 + side) for side in sides)
    return down, across


def resize_square(image: Image.Image, size: int, resize: str, filter: Image.Resampling) -> Image.Image:
    """Resize a Pillow image to (size, size)."""
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
