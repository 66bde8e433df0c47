"""Read every file of a data set once: facts about the files, and thumbnails."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from trustcxr.data.checks.row_file import RowFile
from trustcxr.data.images.greyscale import MAX_PIXELS, UnreadableImage, quiet
from trustcxr.data.images.plausibility import colour_of
from trustcxr.data.images.read import read_image, resize_image, threshold
from trustcxr.data.manifest import MASK_SUFFIX, Manifest
from trustcxr.data.worker_pool import pool
from trustcxr.storage.os_errors import open_regular

THUMB, PROBE = 64, 32
_CHUNK = 64
_COLOUR_MODES = ("P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")
_DARK, _LIGHT = 10, 245
_EVEN = 3  # standard deviation in grey levels below which a row or column at the edge is border
_FORMAT_OF = {".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".tif": "TIFF", ".png": "PNG", ".tiff": "TIFF"}
_FORMAT_OF |= {".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".jp2": "JPEG2000", ".pgm": "PPM", ".ppm": "PPM"}
_FORMAT_OF |= {".pnm": "PPM", ".dcm": "DICOM", ".dicom": "DICOM", ".dic": "DICOM"}


@dataclass
class Scan:
    """The results of reading; every array and table has one row for each sample, in the manifest's order.

    Arrays are read from temporary files by their rows, as in `thumbs[:8]`.

    Attributes:
        files: DataFrame fault (reason, or None if readable), format, mode, width, height, named (the format by the
            suffix, None if unknown), pixels (digest of the decoded image), colour (mean distance of the colour
            channels in grey levels).
        thumbs: (N, 64, 64) uint8, the image squeezed.
        trimmed: (N, 64, 64) uint8, the image without its uniform borders, squeezed.
        blanked: (N, 32, 32) uint8, the image with the lungs at 0; all 0 without a usable lung mask.
        lungs: (N, 32, 32) uint8, the image with all but the lungs at 0, likewise.
        shapes: (N, 32, 32) uint8, the lung mask, 0 to 255.
        grey: (N, 7) float32: mean, standard deviation, quartiles, share of nearly black and of nearly white pixels.
        masks: kind of mask -> DataFrame fault, width, height, binary, share (0..1), digest, outside (share of the mask
            outside the lung mask, NaN if unknown); NaN for samples without one.
    """

    files: pd.DataFrame
    masks: dict[str, pd.DataFrame]
    thumbs: RowFile
    trimmed: RowFile
    blanked: RowFile
    lungs: RowFile
    shapes: RowFile
    grey: RowFile

    @property
    def readable(self) -> np.ndarray:
        """bool (N,): the image is readable."""
        return self.files["fault"].isna().to_numpy()

    @property
    def has_lungs(self) -> np.ndarray:
        """bool (N,): the image and a lung mask of its size are readable, and the mask is not empty."""
        if "lung" not in self.masks:
            return np.zeros(len(self.files), bool)
        lung = self.masks["lung"]
        same = (lung["width"] == self.files["width"]) & (lung["height"] == self.files["height"])
        return self.readable & (lung["fault"].isna() & same & (lung["share"] > 0)).to_numpy()


def scan(manifest: Manifest, *, workers: int | None = None) -> Scan:
    """Read every image and mask once, in `workers` processes (default: one for each core), with progress."""
    from joblib import delayed

    from trustcxr.console import Progress

    columns = {name.removesuffix(MASK_SUFFIX): paths for name, paths in manifest.files.items()}
    count = len(manifest.table)
    starts = range(0, count, _CHUNK)
    root = str(manifest.root)
    jobs = (delayed(_read_rows)(root, {k: v[i : i + _CHUNK] for k, v in columns.items()}) for i in starts)
    facts = {name: list[Any]() for name in _FILE_FACTS}
    masks = {kind: {name: list[Any]() for name in _MASK_FACTS} for kind in manifest.mask_kinds}
    arrays = [RowFile(count, array.shape, array.dtype) for array in _NO_PICTURES]
    with Progress("Reading every file", count) as bar:
        for start, chunk in zip(starts, pool(workers, files=count)(jobs), strict=True):
            for file, _, of_kind in chunk:
                _append(facts, file)
                for kind, columns_of_kind in masks.items():
                    _append(columns_of_kind, of_kind[kind])
            pictures = [pictures or _NO_PICTURES for _, pictures, _ in chunk]
            for array, rows in zip(arrays, zip(*pictures, strict=True), strict=True):
                array.write(start, np.stack(rows))
            bar.advance(len(chunk))
    return Scan(_table(facts), {kind: _table(of_kind) for kind, of_kind in masks.items()}, *arrays)


Facts = dict[str, Any]  # a row of Scan.files or of a table of Scan.masks; unknown values may be left out
Sample = tuple[Facts, tuple[np.ndarray, ...] | None, dict[str, Facts]]  # a row of files, of each array, of each mask
_FILE_FACTS = ("fault", "format", "mode", "width", "height", "named", "pixels", "colour")
_MASK_FACTS = ("fault", "width", "height", "binary", "share", "digest", "outside")
_NUMBERS = ("width", "height", "colour", "share", "outside")


_NO_PICTURES: tuple[np.ndarray, ...] = (
    *(np.zeros((side, side), np.uint8) for side in (THUMB, THUMB, PROBE, PROBE, PROBE)),
    np.zeros(7, np.float32),
)


def _append(columns: dict[str, list[Any]], facts: Facts) -> None:
    for name, column in columns.items():
        column.append(facts.get(name))


def _table(columns: dict[str, list[Any]]) -> pd.DataFrame:
    """Build a table with None, not NaN, for unknown texts and booleans."""
    kinds = {name: float if name in _NUMBERS else object for name in columns}
    return pd.DataFrame({name: pd.Series(column, dtype=kinds[name]) for name, column in columns.items()})


def _read_rows(root: str, paths: dict[str, list[str | None]]) -> list[Sample]:
    """Read a few samples. Runs in a worker."""
    return [_read_one(root, dict(zip(paths, row, strict=True))) for row in zip(*paths.values(), strict=True)]


def _read_one(root: str, paths: dict[str, str | None]) -> Sample:
    facts, image = _read_file(Path(root, str(paths["images"])))
    read = {kind: _read_mask(root, path) for kind, path in paths.items() if kind != "images"}
    lung = read["lung"][1] if "lung" in read else None
    for kind, (mask_facts, pixels) in read.items():
        if kind == "lung" or pixels is None or lung is None:
            continue
        if pixels.shape == lung.shape and pixels.any():
            mask_facts["outside"] = float(pixels[lung == 0].sum() / pixels.sum())
    masks = {kind: mask_facts for kind, (mask_facts, _) in read.items()}
    return facts, None if image is None else _pictures(image, lung), masks


def _read_file(file: Path) -> tuple[Facts, np.ndarray | None]:
    kind, mode, colour = _identify(file)
    facts: Facts = {"format": kind, "mode": mode, "colour": colour, "named": _FORMAT_OF.get(file.suffix.lower())}
    try:
        image = read_image(file)
    except UnreadableImage as fault:
        return facts | {"fault": str(fault), "width": 0, "height": 0}, None
    return facts | {"height": image.shape[0], "width": image.shape[1], "pixels": _digest(image)}, image


def _identify(file: Path) -> tuple[str | None, str | None, float]:
    """Return the format, PIL's mode (None if unknown) and the amount of colour, by the content."""
    try:
        with open_regular(file, most=8 * MAX_PIXELS) as opened:
            data = opened.read()
        if data[128:132] == b"DICM":
            return "DICOM", None, 0.0
        with quiet(), Image.open(io.BytesIO(data)) as image:
            colour = colour_of(image) if image.mode in _COLOUR_MODES else 0.0
            return image.format, image.mode, colour
    except Exception:  # reading the image reports the problem
        return None, None, 0.0


def _digest(pixels: np.ndarray) -> str:
    shape = f"{pixels.shape}".encode()
    return hashlib.blake2b(shape + np.ascontiguousarray(pixels).tobytes(), digest_size=16).hexdigest()


def _read_mask(root: str, path: str | None) -> tuple[Facts, np.ndarray | None]:
    if path is None:
        return {}, None
    try:
        grey = read_image(Path(root, path))
    except UnreadableImage as fault:
        return {"fault": str(fault)}, None
    levels = np.flatnonzero(np.bincount(grey.ravel(), minlength=256))
    top = int(levels[-1])
    mask = (grey >= threshold(top)).astype(np.uint8)
    binary = bool(np.isin(levels, (0, 255) if top > 1 else (0, 1)).all())
    facts = {"height": grey.shape[0], "width": grey.shape[1], "binary": binary}
    return facts | {"share": float(mask.mean()), "digest": _digest(mask)}, mask


def _pictures(image: np.ndarray, lung: np.ndarray | None) -> tuple[np.ndarray, ...]:
    thumb, trimmed = resize_image(image, THUMB), resize_image(_without_borders(image), THUMB)
    parts = [np.zeros((PROBE, PROBE), np.uint8)] * 3
    if lung is not None and lung.shape == image.shape:
        # Blanked before resizing: a probe would see the remains of a lung at its edge.
        parts = [resize_image(part, PROBE) for part in (image * (1 - lung), image * lung, lung * 255)]
    quartiles = np.percentile(image, [25, 50, 75])
    dark, light = np.mean(image < _DARK), np.mean(image > _LIGHT)
    grey = np.array([image.mean(), image.std(), *quartiles, dark, light], np.float32)
    return thumb, trimmed, *parts, grey


def _without_borders(image: np.ndarray) -> np.ndarray:
    """Cut uniform rows and columns at the edges; return the whole image if little would remain."""
    varied = [np.flatnonzero(image.std(axis=1 - axis) > _EVEN) for axis in (0, 1)]
    if any(len(lines) < size / 3 for lines, size in zip(varied, image.shape, strict=True)):
        return image
    (top, bottom), (left, right) = ((lines[0], lines[-1] + 1) for lines in varied)
    return image[top:bottom, left:right]
