"""Write one picture with all corruptions of an image at all severities."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from trustcxr import corruptions
from trustcxr.data.images import greyscale, read
from trustcxr.errors import UserError
from trustcxr.storage.atomic import atomic_write
from trustcxr.version import NOTICE

_MARK = "TrustCXR corruptions"  # a text chunk of the PNG
_LABEL, _GAP = 150, 4  # pixels
_LEAST = 160  # pixels of a shown image's side at least


def draw(radiograph: NDArray[np.uint8], *, seed: int = 0) -> Image.Image:
    """Draw a row for each corruption and a column for each severity, after the image (H, W) uint8."""
    height, width = radiograph.shape
    zoom = -(-_LEAST // min(height, width))
    names, columns = list(corruptions.CORRUPTIONS), 1 + len(corruptions.SEVERITIES)
    step_x, step_y = zoom * width + _GAP, zoom * height + _GAP
    page = Image.new("L", (_LABEL + columns * step_x, 24 + len(names) * step_y), 255)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for column, title in enumerate(["as it is", *(f"severity {s}" for s in corruptions.SEVERITIES)]):
        pen.text((_LABEL + column * step_x, 3), title, fill=0, font=font)
    pixels = torch.from_numpy(radiograph.copy()).float().div_(255)[None, None]
    for row, name in enumerate(names):
        top = 24 + row * step_y
        pen.multiline_text((4, top + 6), name.replace("_", "\n"), fill=0, font=font)
        shown = [pixels, *(corruptions.corrupt(pixels, name, s, seed=seed) for s in corruptions.SEVERITIES)]
        for column, image in enumerate(shown):
            levels = image[0, 0].mul(255).round().byte().numpy()
            tile = Image.fromarray(levels).resize((zoom * width, zoom * height), Image.Resampling.NEAREST)
            page.paste(tile, (_LABEL + column * step_x, top))
    return page


def write(out: Path, *, size: int = 224, image: Path | None = None, seed: int = 0) -> Path:
    """Write the sheet of an image at `size` pixels a side (default: a synthetic one) as a PNG.

    Only another sheet is overwritten. Raises UserError if the image cannot be read, the PNG cannot be written, or
    another file exists.
    """
    from trustcxr.data.phantom.render_image import render

    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed}: out of range. Choose 0 to {2**32 - 1}")
    if out.exists() and not read.read_texts(out, _MARK):
        raise UserError(f"{out}: another file with this name exists. Choose another OUT")
    if image is None:
        picture = render("COVID-19", seed, size).image
    else:
        try:
            picture = np.asarray(read.resize_image(read.read_image(image), size))
        except (greyscale.UnreadableImage, OSError) as problem:
            raise UserError(f"{image}: cannot be read: {problem}. Give an image file") from None
    try:
        with atomic_write(out) as temporary:
            info = PngInfo()
            info.add_text(_MARK, NOTICE)
            draw(picture, seed=seed).save(temporary, pnginfo=info)
    except (OSError, ValueError) as problem:
        raise UserError(f"{out}: cannot be written: {problem}. Give a path that ends in .png") from None
    return out
