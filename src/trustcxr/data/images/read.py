"""Read image and mask files of any usual format as 8-bit grey, shape (H, W), and resize them to squares."""

import logging
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from trustcxr.data.images.greyscale import MAX_PIXELS, UnreadableImage, quiet, scale_depth
from trustcxr.storage.os_errors import Source, open_source

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".jpe", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".pgm", ".ppm"])
SUFFIXES |= {".pnm", ".jp2", ".dcm", ".dicom", ".dic"}
DECODER = "4"  # part of every store's key: raise it if the same file decodes to other pixels
HEATMAP_ENDING = ".heatmap.png"
HEATMAP_REASON = "a heatmap that predict wrote, and no image"
MARK, SOURCE, MAKER = "TrustCXR heatmap", "of", "by"  # text chunks of the PNG
_DICOM = b"DICM"  # at byte 128
_CUT = frozenset(["RGB", "RGBA", "LA"])
_FILLS_16_BITS = 64  # of the higher byte: a level that needs 16 bits
_ORIENTED = frozenset(["exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"])  # PNG chunks with an orientation
_PNG_START = struct.Struct(">16sII5s")  # signature and first chunk's head, width, height, kind of pixels
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_MOST_BYTES = 2 * MAX_PIXELS  # no sound 8-bit grey file is larger
_MOST_FILE = 8 * MAX_PIXELS  # of any format: three colours of 16 bits, and metadata
_DAMAGED = "damaged, or not a supported image format"
_GREY_8 = b"\x08\0\0\0\0"  # 8 bits, grey, not interlaced
_PNG_CHUNK = struct.Struct(">I4s")  # length and name; content and four bytes of checksum follow
# These may rotate, reveal or animate the image.
_PNG_ODDITIES = frozenset([b"eXIf", b"iTXt", b"tEXt", b"zTXt", b"tRNS", b"acTL"])


def read_image(path: Source) -> np.ndarray:
    """Read an image file, or the bytes of one, as 8-bit grey: uint8, shape (H, W), 0 (black) to 255.

    The content decides the format, not the name. EXIF orientation is applied, transparency becomes black, colour
    becomes luma (ITU-R 601). 16-bit grey is scaled by the smallest usual depth (8, 10, 12, 14, 16) that holds its
    brightest pixel, since detectors store 10 to 14 bits in 16. 16-bit colour or transparency must use all 16 bits.
    Raises UnreadableImage.

    >>> import tempfile, trustcxr as tx
    >>> folder = tempfile.mkdtemp()
    >>> images = tx.data.phantom.write(folder + "/images", {"Test": 1}, size=32)
    >>> tx.data.read_image(next(images.rglob("images/*.png"))).shape
    (32, 32)
    """
    return np.array(_read(path))


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask file: uint8, shape (H, W), values 0 and 1.

    1 for grey levels of at least 128, or of 1 if the brightest is 1. Raises UnreadableImage, also if the brightest is
    between, as in a mask that numbers regions.

    >>> import tempfile, trustcxr as tx
    >>> folder = tempfile.mkdtemp()
    >>> images = tx.data.phantom.write(folder + "/images", {"Test": 1}, size=32)
    >>> int(tx.data.read_mask(next(images.rglob("lung masks/*.png"))).max())
    1
    """
    grey = _read(path)
    return (np.asarray(grey) >= _threshold(grey)).astype(np.uint8)


def read_image_at(path: str | Path, size: int, resize: str = "squeeze") -> np.ndarray:
    """Read an image at a size: `resize_image(read_image(path), size, resize)` without copies."""
    return np.asarray(resize_square(_read(path), size, resize, Image.Resampling.BILINEAR))


def read_mask_at(
    path: str | Path, size: int, resize: str = "squeeze", *, image: str | Path | None = None
) -> np.ndarray:
    """Read a mask at a size: by nearest neighbour, so it stays 0 and 1.

    `image`: the file of its image. A mask of another shape covers the same field, and is padded or cropped likewise.
    """
    grey = _read(path)
    if image is not None and resize != "squeeze" and grey.size != (shape := _read(image).size):
        grey = grey.resize(shape, Image.Resampling.NEAREST)
    return (np.asarray(resize_square(grey, size, resize, Image.Resampling.NEAREST)) >= _threshold(grey)).view(np.uint8)


def threshold(brightest: int) -> int:
    """Return the lowest grey level inside a mask, by its brightest."""
    return 1 if brightest == 1 else 128


def _threshold(mask: Image.Image) -> int:
    brightest = int(mask.getextrema()[1])  # type: ignore[arg-type]
    if 1 < brightest < 128:
        raise UnreadableImage(f"a mask whose brightest level is {brightest}: expected black and white, or 0 and 1")
    return threshold(brightest)


def _read(path: Source) -> Image.Image:
    """Read a file as a Pillow image of mode L. Raises UnreadableImage."""
    try:
        with open_source(path, most=_MOST_FILE) as file:
            start = file.read(132)
            if start[128:] != _DICOM and (plain := _plain_png(file, start)) is not None:
                return plain
            with quiet():
                if start[128:] == _DICOM:
                    from trustcxr.data.images.dicom_files import read_dicom

                    return Image.fromarray(read_dicom(path))
                file.seek(0)
                with Image.open(file, formats=FORMATS) as image:
                    return _grey(image)
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError:
        empty = (len(path) if isinstance(path, bytes) else Path(path).stat().st_size) == 0
        raise UnreadableImage("empty file" if empty else _DAMAGED) from None
    except Image.DecompressionBombError:
        raise UnreadableImage(f"more than {MAX_PIXELS:,} pixels: refused") from None
    except FileNotFoundError:
        raise UnreadableImage("no such file") from None
    except Exception as fault:  # a damaged file makes the decoders raise almost anything
        raise UnreadableImage(_describe(path, fault)) from None


def _plain_png(file: BinaryIO, start: bytes) -> Image.Image | None:
    """Decode a plain 8-bit grey PNG by libpng if imagecodecs is installed; None for all else."""
    decode = _png_decoder()
    if decode is None or len(start) < _PNG_START.size:
        return None
    signature, width, height, kind = _PNG_START.unpack_from(start)
    if signature != _PNG or kind != _GREY_8 or width * height > MAX_PIXELS:
        return None
    if file.seek(0, os.SEEK_END) > _MOST_BYTES:  # unlike Pillow, this reads the whole file
        return None
    file.seek(0)
    data = file.read()
    if _has_special_chunks(data):
        return None
    try:
        pixels = decode(data)
    except (RuntimeError, ValueError, MemoryError):  # a PngError is a RuntimeError
        return None
    return Image.fromarray(pixels) if pixels.shape == (height, width) and pixels.dtype == np.uint8 else None


def _has_special_chunks(data: bytes) -> bool:
    """Tell whether a PNG has chunks that change its display, or a broken sequence of chunks."""
    at, last = len(_PNG) - _PNG_CHUNK.size, len(data) - 12
    while at <= last:
        length, name = _PNG_CHUNK.unpack_from(data, at)
        if name in _PNG_ODDITIES:
            return True
        at += length + 12
    return at != len(data)


@cache
def _png_decoder() -> Callable[[bytes], np.ndarray] | None:
    try:
        from imagecodecs import png_decode
    except ImportError:
        return None
    logging.getLogger("imagecodecs").setLevel(logging.ERROR)  # ignore odd metadata
    return png_decode


def _grey(image: Image.Image) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{width} x {height} pixels: more than {MAX_PIXELS:,} are refused")
    if getattr(image, "n_frames", 1) > 1:
        raise UnreadableImage("holds several pages or frames, expected one image")
    inverted = getattr(image, "tag_v2", {}).get(262) == 0  # TIFF WhiteIsZero, which PIL applies to 8 bits only
    cut = image.mode in _CUT and ";16" in str(getattr(image, "tile", ""))  # only the higher byte of each is read
    image.load()
    channels: Any = image.getextrema()  # the lowest and highest of each; those of transparency do not count
    if cut and max(high for _, high in channels[: 1 if image.mode == "LA" else 3]) < _FILLS_16_BITS:
        raise UnreadableImage("16-bit colour or transparency with unused bits: save it as 16-bit grey")
    _turn_upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_deep_grey(np.asarray(image), inverted))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colour.size, (0, 0, 0, 255)), colour)
    if image.mode == "LAB":
        image = image.getchannel("L")
    if image.mode == "L":
        return image
    return (image.convert("RGB") if image.mode == "P" else image).convert("L")


def _turn_upright(image: Image.Image) -> None:
    """Apply the EXIF orientation; ignore damaged EXIF."""
    if image.format == "PNG" and not _ORIENTED.intersection(image.info):
        return  # fast path of most images
    with suppress(SyntaxError, ValueError, TypeError, KeyError, EOFError, OverflowError, struct.error):
        ImageOps.exif_transpose(image, in_place=True)


def _deep_grey(values: np.ndarray, inverted: bool) -> np.ndarray:
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise UnreadableImage("holds numbers that are not finite")
        if values.min() < 0 or values.max() > 255:
            raise UnreadableImage(f"floating-point grey from {values.min():g} to {values.max():g}: expected 0 to 1")
        return np.rint(values * (255 if values.max() <= 1 else 1)).astype(np.uint8)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImage(f"grey levels from {values.min()} to {values.max()}: expected at most 16 bits")
    return scale_depth(values, invert=inverted)


def is_dicom(path: Source) -> bool:
    """Tell by its content whether a file is DICOM."""
    try:
        with open_source(path) as file:
            return file.read(132)[128:] == _DICOM
    except OSError:
        return False


def _describe(source: Source, fault: Exception) -> str:
    if isinstance(fault, MemoryError):
        return "needs more memory than there is"
    if isinstance(source, bytes):
        return _DAMAGED  # a decoder may quote the file, which is about a patient
    text = " ".join(str(getattr(fault, "strerror", None) or fault).split())
    return text[:200] or type(fault).__name__


def resize_image(image: np.ndarray, size: int, resize: str = "squeeze") -> np.ndarray:
    """Resize uint8 (H, W) to (size, size), bilinear with anti-aliasing.

    `squeeze` changes the aspect ratio; `pad` adds black; `crop` takes the largest central square.
    """
    return np.asarray(resize_square(Image.fromarray(image), size, resize, Image.Resampling.BILINEAR))


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


def read_texts(path: Source, mark: str = MARK) -> dict[str, str]:
    """Read the text chunks of a PNG with this mark, by default a heatmap's; {} for any other file."""
    try:
        with open_source(path) as file, quiet(), Image.open(file, formats=("PNG",)) as image:
            text = {str(k): v for k, v in image.info.items() if isinstance(v, str)}
    except Exception:  # not a readable PNG
        return {}
    return text if mark in text else {}
