"""Recognise heatmaps that `predict` wrote, by the text chunks of the PNG."""

from PIL import Image

from trustcxr.data.images.greyscale import quiet
from trustcxr.storage.os_errors import Source, open_source

ENDING = ".heatmap.png"
HEATMAP_REASON = "a heatmap that predict wrote, and no image"
MARK, SOURCE, MAKER = "TrustCXR heatmap", "of", "by"  # text chunks of the PNG


def read_texts(path: Source, mark: str = MARK) -> dict[str, str]:
    """Read the text chunks of a PNG with this mark, by default a heatmap's; {} for any other file."""
    try:
        with open_source(path) as file, quiet(), Image.open(file, formats=("PNG",)) as image:
            text = {str(k): v for k, v in image.info.items() if isinstance(v, str)}
    except Exception:  # not a readable PNG
        return {}
    return text if mark in text else {}
