"""Warn about images that may not be frontal chest images, by simple features and without a network.

The thresholds flag about one real image in a hundred (COVID-QU-Ex and other hospitals; a test measures it), so they
only warn. A DICOM header of another kind of image is an error.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from trustcxr.data.images.greyscale import quiet
from trustcxr.data.images.read import FORMATS, is_dicom
from trustcxr.storage.os_errors import Source, open_source

SIDE = 64  # pixels of the thumbnail
FLAT, NOISY, COLOURED = 8.0, 0.75, 15.0  # grey levels; correlation of neighbours; levels between the colour channels
LAYOUT, UPSIDE = 0.6, -1.2  # see Signs
_IMAGES = {"CR", "DX", "DR", "RG", "RF", "OT", "SC", "XC", "PX"}  # modalities that an image may be stored as
_OTHERS = {"CT", "MR", "US", "MG", "PT", "NM", "XA", "ECG", "OPT", "OP", "ES", "GM", "SM", "IO", "BMD", "SEG", "SR"}
_CHEST = ("CHEST", "THORAX", "LUNG", "RIB", "HEART", "TORSO", "TRUNK", "STERN")


@dataclass(frozen=True)
class Signs:
    """Features of a thumbnail (64, 64) uint8.

    Attributes:
        spread: standard deviation of the grey levels.
        smoothness: correlation of pixels with their right neighbours.
        symmetry: correlation of the 16 x 16 image with its mirror image.
        middle: how much brighter the mediastinum is than the lung fields, in standard deviations.
        below: how much brighter the upper abdomen is than the lung fields, likewise.
    """

    spread: float
    smoothness: float
    symmetry: float
    middle: float
    below: float

    @property
    def layout(self) -> float:
        """High for a chest image: symmetric, dark lungs, bright middle and abdomen."""
        return self.symmetry + self.middle + self.below


def measure_signs(thumb: np.ndarray) -> Signs:
    """Measure the features of a thumbnail (64, 64) uint8."""
    levels = thumb.astype(np.float64)
    spread = float(levels.std())
    if spread < 1:
        return Signs(spread, 0.0, 0.0, 0.0, 0.0)
    coarse = levels.reshape(16, 4, 16, 4).mean(axis=(1, 3))
    lungs = (_zone(levels, 0.3, 0.6, 0.2, 0.4) + _zone(levels, 0.3, 0.6, 0.6, 0.8)) / 2
    middle = (_zone(levels, 0.35, 0.75, 0.45, 0.56) - lungs) / spread
    below = (_zone(levels, 0.8, 1.0, 0.2, 0.8) - lungs) / spread
    smoothness = _correlation(levels[:, 1:], levels[:, :-1])
    return Signs(spread, smoothness, _correlation(coarse, coarse[:, ::-1]), middle, below)


def find_doubts(thumb: np.ndarray, colour: float = 0.0) -> dict[str, str]:
    """Return doubts that this is a chest image: a fixed word -> the reason.

    thumb: the image squeezed to (64, 64) uint8. colour: mean distance of the colour channels in grey levels.
    """
    signs = measure_signs(thumb)
    doubts = {"colour": "it is in colour"} if colour > COLOURED else {}
    if signs.spread < FLAT:
        doubts["constant"] = "it is nearly one grey level"
    elif signs.smoothness < NOISY:
        doubts["noise"] = "its pixels have little to do with their neighbours, as in noise"
    elif signs.middle + signs.below < UPSIDE and signs.symmetry > 0:
        doubts["inverted"] = "its lungs are brighter than the middle of the chest: inverted, or no chest image"
    elif signs.layout < LAYOUT:
        doubts["unlike"] = "it is not laid out as a frontal chest image is"
    return doubts


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
    try:
        from trustcxr.data.images.dicom_files import read_header

        tags = ["Modality", "BodyPartExamined"]
        with quiet():
            header = read_header(path, tags)
        modality, part = (str(header.get(tag) or "").strip().upper() for tag in tags)
    except Exception:  # damaged, or no pydicom: reading the image reports it
        return None
    if modality and modality not in _IMAGES:
        code = modality if modality in _OTHERS else "another modality"
        return f"a DICOM file of {code}: expected a chest image (CR or DX)"
    if part and not any(word in part for word in _CHEST):
        return "a DICOM file of another body part: expected the chest"
    return None


def _zone(levels: np.ndarray, top: float, bottom: float, left: float, right: float) -> float:
    height, width = levels.shape
    zone = levels[int(top * height) : int(bottom * height), int(left * width) : int(right * width)]
    return float(zone.mean())


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    one, other = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / scale if scale > 1e-9 else 0.0
