"""Find images that are no upright frontal chest images, by their pixels, colour and DICOM header.

The limits flag about one real image in a hundred: `benchmarks/chest_check.py` measures it.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from trustcxr.data.images.greyscale import quiet
from trustcxr.data.images.read import FORMATS, is_dicom
from trustcxr.storage.os_errors import Source, open_source

SIDE = 64  # pixels of the thumbnail
FLAT, COLOURED = 8.0, 15.0  # grey levels: standard deviation; distance of the colour channels
_REASONS = {
    "colour": "it is in colour",
    "constant": "it is nearly one grey level",
    "mirrored": "its heart lies on the other side: mirrored, or dextrocardia",
    "turned": "it is turned or upside down",
    "inverted": "its black and white are inverted",
    "other": "it does not look like an upright frontal chest X-ray",
}
_IMAGES = {"CR", "DX", "DR", "RG", "RF", "OT", "SC", "XC", "PX"}  # modalities that an image may be stored as
_OTHERS = {"CT", "MR", "US", "MG", "PT", "NM", "XA", "ECG", "OPT", "OP", "ES", "GM", "SM", "IO", "BMD", "SEG", "SR"}
_CHEST = ("CHEST", "THORAX", "LUNG", "RIB", "HEART", "TORSO", "TRUNK", "STERN")


def find_doubts(thumbs: np.ndarray, colours: Sequence[float]) -> list[dict[str, str]]:
    """Return doubts that these are upright frontal chest images: for each, a fixed word -> the reason.

    thumbs: the images squeezed to (N, 64, 64) uint8. colours: mean distance of the colour channels in grey levels.
    """
    from trustcxr.data.images.chest_network import name_kinds

    results = []
    for thumb, colour, kind in zip(thumbs, colours, name_kinds(thumbs), strict=True):
        kinds = [*(["colour"] if colour > COLOURED else []), "constant" if thumb.std() < FLAT else kind]
        results.append({kind: _REASONS[kind] for kind in kinds if kind in _REASONS})
    return results


def make_thumbnail(image: np.ndarray) -> np.ndarray:
    """Squeeze an image (H, W) uint8 to (64, 64)."""
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0))


def measure_colour(path: Source) -> float:
    """Return the mean of max - min over red, green and blue, 0 to 255; 0 for grey or unreadable files."""
    try:
        with open_source(path) as file, quiet(), Image.open(file, formats=FORMATS) as image:
            if image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I"):
                return 0.0
            image.draft("RGB", (4 * SIDE, 4 * SIDE))
            image.thumbnail((2 * SIDE, 2 * SIDE))
            return colour_of(image)
    except Exception:  # reading the image reports the problem
        return 0.0


def colour_of(image: Image.Image) -> float:
    """Return the colour of an open image, as `measure_colour`."""
    small = np.asarray(image.convert("RGB").resize((SIDE, SIDE))).astype(np.int16)
    return float((small.max(axis=2) - small.min(axis=2)).mean())


def find_wrong_kind(path: Source) -> str | None:
    """Return why a DICOM header is not of a chest image; None otherwise. Quotes known modality codes only."""
    if not is_dicom(path):
        return None
    from trustcxr.data.images.dicom_files import read_tags

    modality, part = (text.upper() for text in read_tags(path, "Modality", "BodyPartExamined"))
    if modality and modality not in _IMAGES:
        code = modality if modality in _OTHERS else "another modality"
        return f"a DICOM file of {code}: expected a chest image (CR or DX)"
    if part and not any(word in part for word in _CHEST):
        return "a DICOM file of another body part: expected the chest"
    return None
