"""Heatmaps that `predict` writes beside films: told from films by what their file says of itself."""

from pathlib import Path

from PIL import Image

from trustcxr.data.images.grey import quiet
from trustcxr.results.disk import open_regular

ENDING = ".heatmap.png"
SAID = "a heatmap that predict wrote, and no film"
MARK, SOURCE = "TrustCXR heatmap", "of"  # text chunks of the PNG


def is_ours(path: Path) -> bool:
    """Whether a file is a heatmap that was written here."""
    return path.name.endswith(ENDING) and source_of(path) is not None


def source_of(path: Path) -> str | None:
    """The fingerprint of the image whose heatmap this file is; None for any other file."""
    try:
        with open_regular(path) as file, quiet(), Image.open(file, formats=("PNG",)) as image:
            text = {k: v for k, v in image.info.items() if isinstance(v, str)}
    except Exception:  # no PNG, or none that can be read
        return None
    return text.get(SOURCE) if MARK in text else None
