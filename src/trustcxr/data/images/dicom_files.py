"""Read DICOM images as the grey levels that a viewer shows.

Messages never quote the file's text, so that no patient's identifier reaches a message, a log or a report.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from typing import Any

import numpy as np

from trustcxr.data.images.greyscale import MAX_PIXELS, UnreadableImage, quiet, scale_depth
from trustcxr.storage.os_errors import Source, open_source

INSTALL = "pip install 'trustcxr[dicom]'"
MANUFACTURER = "TrustCXR"  # of our own DICOM results, which are no input
_DEFLATED = "1.2.840.10008.1.2.1.99"
_MOST_BYTES = 4 * MAX_PIXELS  # of an inflated file
ADULT = 18  # years
RESULT_ENDINGS = (".heatmap.dcm", ".finding.dcm")
RESULT_REASON = "a result that TrustCXR wrote, and no image"
IMAGES = (
    "1.2.840.10008.5.1.4.1.1.1",  # Computed Radiography
    "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray, for presentation
    "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture: digitised films
)
_LATERAL_CODES = {"LL", "RL", "LAT", "LATERAL"}
_LATERAL_WORD = re.compile(r"\blat(eral)?\b", re.IGNORECASE)
_FRONTAL_WORD = re.compile(r"\b(pa|ap|frontal|decub\w*)\b", re.IGNORECASE)


def read_dicom(path: Source) -> np.ndarray:
    """Read a single-frame DICOM image as 8-bit grey: uint8 (H, W), air dark and bone bright.

    Applies the modality LUT or rescale, then the first VOI LUT or window, else the range of the pixels. MONOCHROME1 is
    inverted, padding is black, colour becomes luma, overlays are ignored. Raises UnreadableImage for several frames,
    lateral views, missing pixels, more than 16 bits, and damage.
    """
    try:
        import pydicom
    except ImportError:
        raise UnreadableImage(f"a DICOM file: reading it needs {INSTALL}") from None
    with _translate_faults():
        _check_header(read_header(path))
        with open_source(path) as file:
            return _grey(pydicom.dcmread(file))


def reason_not_image(path: Source) -> str | None:
    """Return why a DICOM header is not of one frontal image; None for an image or an unreadable file."""
    try:
        with _translate_faults():
            header = read_header(path)
            if str(header.get("Manufacturer") or "") == MANUFACTURER:
                return RESULT_REASON
            _check_header(header)
    except _Damaged:  # reading the image reports it
        return None
    except UnreadableImage as problem:
        return str(problem)
    return None


class _Damaged(UnreadableImage):
    """A file that cannot be decoded, or of an image's SOP class without an image."""


@contextmanager
def _translate_faults() -> Iterator[None]:
    with quiet():
        try:
            yield
        except (UnreadableImage, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as fault:  # pydicom raises almost anything; its Rust decoder panics, which is no Exception
            raise _Damaged(_describe(fault)) from None


def is_own_result(source: Source) -> bool:
    """Tell whether a file, or its content, is a DICOM result that TrustCXR wrote."""
    return read_tags(source, "Manufacturer") == [MANUFACTURER]


def read_tags(source: Source, *names: str) -> list[str]:
    """Return values of the header as text, empty if unknown; all empty if the file is damaged or not DICOM."""
    try:
        with quiet():
            header = read_header(source, list(names))
            return [str(header.get(name) or "").strip() for name in names]
    except Exception:  # pydicom raises almost anything
        return [""] * len(names)


def read_age(source: Source) -> float | None:
    """Return the patient's age in years by the header, or by the dates of birth and study; None if unknown."""
    age, born, seen = read_tags(source, "PatientAge", "PatientBirthDate", "StudyDate")
    if re.fullmatch(r"\d{1,3}[DWMY]", age.upper()):
        return int(age[:-1]) / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[age[-1].upper()]
    try:
        days = (datetime.strptime(seen, "%Y%m%d") - datetime.strptime(born, "%Y%m%d")).days
    except ValueError:
        return None
    return days / 365.25 if days >= 0 else None


def read_accession(source: Source) -> str:
    """Return the accession number of the header in printable characters; empty if there is none."""
    (text,) = read_tags(source, "AccessionNumber")
    return "".join(character for character in text[:16] if character.isprintable()).strip()


def read_header(path: Source, tags: list[str] | None = None) -> Any:
    """Read the header, or some tags of it. Raises UnreadableImage for a decompression bomb, else pydicom's errors."""
    import pydicom

    _check_inflated_size(path)
    with open_source(path) as file:
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)


def _describe(fault: BaseException) -> str:
    if isinstance(fault, MemoryError):
        return "needs more memory than there is"
    text = str(fault)
    if "missing dependencies" in text or "missing required dependencies" in text:
        return f"a compressed DICOM file: reading it needs {INSTALL}"
    if "available plugins" in text:
        return "a DICOM file whose compressed image no decoder can read"
    return f"damaged DICOM file ({type(fault).__name__})"


def _check_inflated_size(path: Source) -> None:
    """Raise UnreadableImage if a deflated file is larger than any image: pydicom inflates without a limit."""
    with open_source(path) as file:
        head = file.read(1 << 20)
        if _DEFLATED.encode() not in head:
            return
        start = 144 + struct.unpack_from("<I", head, 140)[0] if head[132:136] == b"\x02\x00\x00\x00" else 0
        if _DEFLATED.encode() not in head[144:start]:  # pydicom reads it nevertheless
            raise UnreadableImage("a deflated DICOM file that does not say where its content begins: refused")
        file.seek(start)
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        total = 0
        while data := inflate.unconsumed_tail or file.read(1 << 16):
            total += len(inflate.decompress(data, 1 << 22))
            if total > _MOST_BYTES:
                raise UnreadableImage(f"inflates to more than {_MOST_BYTES >> 20} MiB: refused")
            if inflate.eof:
                return


def _check_header(header: Any) -> None:
    """Raise UnreadableImage for all but one frontal image of at most 16 bits."""
    if not header.get("Rows") or not header.get("Columns"):
        meta = getattr(header, "file_meta", None) or {}
        if str(header.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID")) in IMAGES:
            raise _Damaged("damaged DICOM file: an image without an image, as if cut off")
        raise UnreadableImage("a DICOM file without an image")
    frames = header.get("NumberOfFrames")
    if frames is not None and str(frames).strip() not in ("", "0", "1"):
        raise UnreadableImage("a DICOM file with several frames: expected one image")
    rows, columns = int(header.Rows), int(header.Columns)
    if rows * columns > MAX_PIXELS:
        raise UnreadableImage(f"{columns} x {rows} pixels: more than {MAX_PIXELS:,} are refused")
    if header.get("BitsAllocated") not in (8, 16) or not 1 <= header.get("BitsStored", 0) <= header.BitsAllocated:
        raise UnreadableImage("a DICOM file whose pixels are not of 8 to 16 bits")
    if header.get("HighBit") not in (None, header.BitsStored - 1):
        raise UnreadableImage("a DICOM file whose pixels do not lie in the lowest bits")
    if header.get("SamplesPerPixel", 1) not in (1, 3):
        raise UnreadableImage("a DICOM file with neither one nor three samples a pixel")
    if is_lateral(header):
        raise UnreadableImage("a lateral view: only frontal images are read")


def is_lateral(header: Any) -> bool:
    """Tell whether a DICOM header describes a lateral view."""
    view = str(header.get("ViewPosition") or "").strip().upper()
    if view:
        return view in _LATERAL_CODES
    for code in header.get("ViewCodeSequence") or []:
        return bool(re.search(r"\blateral\b", str(code.get("CodeMeaning") or ""), re.IGNORECASE))
    orientation = header.get("PatientOrientation")
    if orientation and len(orientation) == 2:  # rows run towards the front or back of the body
        return str(orientation[0])[:1] in ("A", "P")
    words = str(header.get("SeriesDescription") or "")
    return bool(_LATERAL_WORD.search(words)) and not _FRONTAL_WORD.search(words)


def _grey(image: Any) -> np.ndarray:
    if "PixelData" not in image or not image.PixelData:
        raise UnreadableImage("a DICOM file without pixel data")
    if image.file_meta.TransferSyntaxUID.is_encapsulated:
        _check_stream(image)
    pixels = image.pixel_array
    if pixels.shape[:2] != (image.Rows, image.Columns):
        raise UnreadableImage("a DICOM file whose pixels are not of the size it states")
    kind = str(image.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        colour = apply_color_lut(pixels, image)[..., :3]
        return _luma(colour, 8 * colour.dtype.itemsize)
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        return _luma(pixels, int(image.BitsStored))
    if pixels.ndim != 2 or kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnreadableImage("a DICOM file whose pixels are neither grey nor colour")
    return _render(pixels, image, inverted=kind == "MONOCHROME1")


def _luma(colour: np.ndarray, bits: int) -> np.ndarray:
    """Convert colour (H, W, 3) of `bits` bits to 8-bit luma (ITU-R 601)."""
    luma = colour[..., 0] * np.float32(0.299) + colour[..., 1] * np.float32(0.587) + colour[..., 2] * np.float32(0.114)
    return np.rint(np.clip(luma * np.float32(255 / (2**bits - 1)), 0, 255)).astype(np.uint8)


def _render(pixels: np.ndarray, image: Any, *, inverted: bool) -> np.ndarray:
    """Return grey as displayed, computed once for each level."""
    value, padding = image.get("PixelPaddingValue"), None
    if value is not None:
        other = image.get("PixelPaddingRangeLimit")
        low, high = sorted((int(value), int(value if other is None else other)))
        padding = (pixels >= low) & (pixels <= high)
    used = pixels if padding is None or padding.all() else pixels[~padding]
    low, high = int(used.min()), int(used.max())
    shades = _shades(np.arange(low, high + 1, dtype=np.int32).astype(pixels.dtype), image)
    grey = shades[np.clip(pixels.astype(np.int32), low, high) - low]
    grey = 255 - grey if inverted else grey
    return grey if padding is None else np.where(padding, np.uint8(0), grey)


def _shades(levels: np.ndarray, image: Any) -> np.ndarray:
    """Return the displayed shade, uint8 (N,), of each stored level (N,), from the lowest to the highest."""
    from pydicom.pixels import apply_modality_lut

    for name in ("RescaleSlope", "RescaleIntercept", "VOILUTFunction"):
        if name in image and image.get(name) in (None, ""):  # empty, as anonymisers leave it: absent
            del image[name]
    values = apply_modality_lut(levels, image)
    result = _apply_voi_table(values, image) or _apply_window(values, image)
    if result is None and image.BitsStored <= 8 and image.PixelRepresentation == 0 and np.array_equal(values, levels):
        return scale_depth(levels[None])[0]  # already for display
    shown, low, high = result or (values.astype(np.float64), float(values.min()), float(values.max()))
    span = high - low  # negative if the rescale's slope is
    return np.rint(np.clip((shown - low) / (span or 1e-9), 0, 1) * 255).astype(np.uint8)


Shown = tuple[np.ndarray, float, float]  # float64 (N,) with the values of black and white


def _apply_voi_table(values: np.ndarray, image: Any) -> Shown | None:
    """Return the values after the first VOI LUT; None without a complete one.

    pydicom 3.0 keeps the index in the type of the output: with 8-bit output it wraps at 256.
    """
    table: Any = next(iter(image.get("VOILUTSequence") or []), {})
    descriptor, data = table.get("LUTDescriptor"), table.get("LUTData")
    if not descriptor or len(descriptor) != 3 or data is None:
        return None
    count, first, bits = int(descriptor[0]) % 2**16 or 2**16, int(descriptor[1]), int(descriptor[2])
    order = "<" if image.file_meta.TransferSyntaxUID.is_little_endian else ">"
    words = np.frombuffer(data, f"{order}u2") if isinstance(data, bytes) else np.atleast_1d(data)
    words = words.astype("<u2")
    entries = words.view(np.uint8)[:count] if bits == 8 and len(words) < count else words  # two entries to a word
    if not 8 <= bits <= 16 or len(entries) < count:
        return None
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, count - 1)
    return entries[index].astype(np.float64), 0.0, 2.0**bits - 1


def _apply_window(values: np.ndarray, image: Any) -> Shown | None:
    """Return the values after the first window; None without a valid one."""
    from pydicom.pixels import apply_windowing

    if image.get("WindowCenter") in (None, "") or image.get("WindowWidth") in (None, ""):
        return None
    try:
        shown = apply_windowing(values, image)
    except (ValueError, TypeError, IndexError, AttributeError):  # such as one of no width
        return None
    if image.get("ModalityLUTSequence"):
        return shown, 0.0, 2.0 ** int(image.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    bits = int(image.BitsStored)
    low, high = (0, 2**bits - 1) if image.PixelRepresentation == 0 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    slope, intercept = 1.0, 0.0
    if "RescaleSlope" in image and "RescaleIntercept" in image:
        slope, intercept = float(image.RescaleSlope), float(image.RescaleIntercept)
    return shown, low * slope + intercept, high * slope + intercept


def _check_stream(image: Any) -> None:
    """Raise UnreadableImage if a compressed image's size differs from the header: the decoder would allocate it."""
    from pydicom.encaps import generate_fragments

    # The first fragment is the offset table.
    size = stream_size(next(islice(generate_fragments(image.PixelData), 1, None), b"")[: 1 << 16])
    if size is not None and size != (image.Columns, image.Rows):
        raise UnreadableImage("a DICOM file whose compressed image is not of the size it states")


def stream_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a JPEG, JPEG-LS or JPEG 2000 stream from its first markers; None otherwise."""
    if data[:4] == b"\xff\x4f\xff\x51" and len(data) >= 24:
        right, bottom, left, top = struct.unpack(">4I", data[8:24])
        return right - left, bottom - top
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            height, width = struct.unpack(">2H", data[at + 5 : at + 9])
            return width, height
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return None
