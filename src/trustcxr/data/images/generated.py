"""Recognise heatmaps that `predict` wrote, by the text chunks of the PNG."""

from pathlib import Path

from PIL import Image

from trustcxr.data.images.greyscale import quiet
from trustcxr.storage.os_errors import Source, open_source

ENDING = ".heatmap.png"
HEATMAP_REASON = "a heatmap that predict wrote, and no image"
MARK, SOURCE, MAKER = "TrustCXR heatmap", "of", "by"  # text chunks of the PNG


def is_heatmap(path: Path) -> bool:
    """Tell whether a file is a heatmap that `predict` wrote."""
    return path.name.endswith(ENDING) and read_source(path) is not None


def read_source(path: Source) -> str | None:
    """Read the fingerprint of a heatmap's image; None for any other file."""
    return read_texts(path, MARK).get(SOURCE)


def read_maker(path: Source) -> str | None:
    """Read the fingerprint of a heatmap's run; None if it is missing, or for any other file."""
    return read_texts(path, MARK).get(MAKER)


def read_texts(path: Source, mark: str) -> dict[str, str]:
    """Read the text chunks of a PNG with this mark; {} for any other file."""
    try:
        with open_source(path) as file, quiet(), Image.open(file, formats=("PNG",)) as image:
            text = {str(k): v for k, v in image.info.items() if isinstance(v, str)}
    except Exception:  # not a readable PNG
        return {}
    return text if mark in text else {}
