"""Reading one file: whatever a chest X-ray is stored in becomes 8-bit grey, shape (H, W)."""

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
from trustcxr.data.images.resize import _square
from trustcxr.storage.os_errors import Source, open_source

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".jpe", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".pgm", ".ppm"])
SUFFIXES |= {".pnm", ".jp2", ".dcm", ".dicom", ".dic"}
DECODER = "3"  # part of every store's key: raise it when the same file would decode to other pixels
_DICOM = b"DICM"  # at byte 128
_CUT = frozenset(["RGB", "RGBA", "LA"])
_FILLS_16_BITS = 64  # of the higher byte: from there on no smaller depth holds the level
_ORIENTED = frozenset(["exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"])  # where a PNG may say it
_PNG_START = struct.Struct(">16sII5s")  # signature and head of the first chunk, width, height, and what pixels are
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_MOST_BYTES = 2 * MAX_PIXELS  # no sound 8-bit grey file is larger
_MOST_FILE = 8 * MAX_PIXELS  # of any format: 16 bits, three colours, and room
_DAMAGED = "damaged, or not an image format that is read here"
_GREY_8 = b"\x08\0\0\0\0"  # 8 bits, grey, not interlaced
_PNG_CHUNK = struct.Struct(">I4s")  # length and name, before its content and four bytes of checksum
_PNG_ODDITIES = frozenset([b"eXIf", b"iTXt", b"tEXt", b"zTXt", b"tRNS", b"acTL"])  # may turn, uncover or move it


def read_image(path: Source) -> np.ndarray:
    """Read an image file, or the bytes of one, as 8-bit grey: uint8, shape (H, W), 0 (black) to 255.

    The format is told from the content, not from the name. EXIF orientation is applied, transparency is flattened on
    black, colour becomes luma (ITU-R 601). Grey of 16 bits is scaled by the smallest usual depth (8, 10, 12, 14, 16)
    that holds its brightest pixel, since detectors store 10 to 14 bits in 16; of 16 bits a colour, or with
    transparency, only files that fill them are read. Raises UnreadableImage.
    """
    return np.array(_read(path))


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask file: uint8, shape (H, W), values 0 and 1.

    1 where the grey level is at least 128; in a file whose brightest pixel is 1, where it is 1. Raises UnreadableImage,
    too where the brightest lies between, as of a mask that numbers several regions.
    """
    grey = _read(path)
    return (np.asarray(grey) >= _threshold(grey)).astype(np.uint8)


def read_image_at(path: str | Path, size: int, resize: str = "squeeze") -> np.ndarray:
    """An image file as the store holds it: `resize_image(read_image(path), size, resize)` without the copies."""
    return np.asarray(_square(_read(path), size, resize, Image.Resampling.BILINEAR))


def read_mask_at(
    path: str | Path, size: int, resize: str = "squeeze", *, image: str | Path | None = None
) -> np.ndarray:
    """A mask file as the store holds it: `resize_mask(read_mask(path), size, resize)` without the copies.

    `image`: the file that it is a mask of. One of another shape is of the same field, and is padded or cropped as that
    is.
    """
    grey = _read(path)
    if image is not None and resize != "squeeze" and grey.size != (of := _read(image).size):
        grey = grey.resize(of, Image.Resampling.NEAREST)
    return (np.asarray(_square(grey, size, resize, Image.Resampling.NEAREST)) >= _threshold(grey)).view(np.uint8)


def threshold(brightest: int) -> int:
    """The lowest grey level of a mask that counts as inside, by its brightest."""
    return 1 if brightest == 1 else 128


def _threshold(mask: Image.Image) -> int:
    brightest = int(mask.getextrema()[1])  # type: ignore[arg-type]
    if 1 < brightest < 128:
        raise UnreadableImage(f"a mask whose brightest level is {brightest}: expected black and white, or 0 and 1")
    return threshold(brightest)


def _read(path: Source) -> Image.Image:
    """A file as a Pillow image of mode L, in memory. Raises UnreadableImage."""
    try:
        with open_source(path, most=_MOST_FILE) as file:
            start = file.read(132)
            if start[128:] != _DICOM and (plain := _plain_png(file, start)) is not None:
                return plain
            with quiet():
                return _odd(path, file, start)
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError:
        raise UnreadableImage(_not_an_image(path)) from None
    except Image.DecompressionBombError:
        raise UnreadableImage(f"more than {MAX_PIXELS:,} pixels: refused") from None
    except FileNotFoundError:
        raise UnreadableImage("no such file") from None
    except OSError as fault:
        raise UnreadableImage(_in_words(path, fault.strerror or fault)) from None
    except Exception as fault:  # a damaged file makes the decoders raise almost anything
        raise UnreadableImage(_in_words(path, fault)) from None


def _odd(path: Source, file: BinaryIO, start: bytes) -> Image.Image:
    """A DICOM file, or any that Pillow reads; its decoders' warnings are for nobody here."""
    if start[128:] == _DICOM:
        from trustcxr.data.images.dicom_files import read_dicom

        return Image.fromarray(read_dicom(path))
    file.seek(0)
    with Image.open(file, formats=FORMATS) as image:
        return _grey(image)


def _plain_png(file: BinaryIO, start: bytes) -> Image.Image | None:
    """An 8-bit grey PNG without oddities, decoded by libpng where imagecodecs is installed; None for all else.

    Most images by far are such files, and libpng takes about a seventh less time for them than Pillow. It refuses
    whatever Pillow refuses and more; what it refuses is left to Pillow, which says what is wrong.
    """
    decode = _png_decoder()
    if decode is None:
        return None
    if len(start) < _PNG_START.size:
        return None
    signature, width, height, kind = _PNG_START.unpack_from(start)
    if signature != _PNG or kind != _GREY_8 or width * height > MAX_PIXELS:
        return None
    if file.seek(0, os.SEEK_END) > _MOST_BYTES:  # it is read whole, as Pillow does not
        return None
    file.seek(0)
    data = file.read()
    if _odd_chunks(data):
        return None
    try:
        pixels = decode(data)
    except (RuntimeError, ValueError, MemoryError):  # a PngError is a RuntimeError
        return None
    return Image.fromarray(pixels) if pixels.shape == (height, width) and pixels.dtype == np.uint8 else None


def _odd_chunks(data: bytes) -> bool:
    """Whether a PNG has chunks that change how it is shown, or that do not follow one another to its end."""
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
    logging.getLogger("imagecodecs").setLevel(logging.ERROR)  # odd metadata matters to nobody here
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
    if cut and max(high for _, high in _extrema(image)) < _FILLS_16_BITS:
        raise UnreadableImage("16 bits a colour, or with transparency, of which it fills fewer: save it as 16-bit grey")
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


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    """The darkest and the brightest of each channel but transparency."""
    found: Any = image.getextrema()
    return list(found[: {"LA": 1}.get(image.mode, 3)])


def _turn_upright(image: Image.Image) -> None:
    """Apply the EXIF orientation; damaged EXIF in a sound image says nothing about orientation."""
    if image.format == "PNG" and not _ORIENTED.intersection(image.info):
        return  # most images by far: not to look further saves time
    with suppress(SyntaxError, ValueError, TypeError, KeyError, EOFError, OverflowError, struct.error):
        ImageOps.exif_transpose(image, in_place=True)


def _deep_grey(values: np.ndarray, inverted: bool) -> np.ndarray:
    """Grey of more than 8 bits as 8 bits."""
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
    """Whether a file is a DICOM file, by its content."""
    try:
        with open_source(path) as file:
            return file.read(132)[128:] == _DICOM
    except OSError:
        return False


def _not_an_image(source: Source) -> str:
    size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    if size == 0:
        return "empty file"
    return _DAMAGED


def _in_words(source: Source, fault: Exception | str) -> str:
    if isinstance(fault, MemoryError):
        return "needs more memory than there is"
    if isinstance(source, bytes):
        return _DAMAGED  # a decoder's words may quote the file, and who sent it need not be who it is of
    text = " ".join(str(fault).split())
    return text[:200] or type(fault).__name__
