"""Arrays as PNG files in memory."""

import base64
import io
from functools import cache

import numpy as np
from PIL import Image
from torch import Tensor

LONGEST = 768  # pixels of an image as the page shows it
MOST_MAGNIFIED = 100.0


def grey(pixels: Tensor) -> str:
    """An image (H, W) in [0, 1]."""
    return packed(Image.fromarray(_levels(pixels)))


def image(pixels: np.ndarray) -> str:
    """An image (H, W) uint8, made smaller where it is larger than a page shows."""
    image = Image.fromarray(pixels)
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return packed(image)


def heat(pixels: Tensor) -> str:
    """A map (H, W) in [0, 1] in the colours of inferno."""
    return packed(Image.fromarray(_inferno()[_levels(pixels)]))


def difference(change: Tensor) -> tuple[str, float]:
    """A change (H, W) around mid-grey, magnified so that its largest is black or white; and by how much."""
    largest = float(change.abs().max())
    factor = min(0.5 / largest, MOST_MAGNIFIED) if largest > 0 else 1.0
    return grey((0.5 + factor * change).clamp(0, 1)), factor


def packed(image: Image.Image) -> str:
    """An image as a PNG file in base64."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=3)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _levels(pixels: Tensor) -> np.ndarray:
    return (pixels.detach().float().cpu().numpy().clip(0, 1) * 255).round().astype(np.uint8)


@cache
def _inferno() -> np.ndarray:
    import matplotlib

    return (matplotlib.colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
