"""Pictures of ours, such as heatmaps beside images: told from images by what their file says of itself."""

from pathlib import Path

from PIL import Image

from trustcxr.data.images.greyscale import quiet
from trustcxr.storage.os_errors import Source, open_source

ENDING = ".heatmap.png"
HEATMAP_REASON = "a heatmap that predict wrote, and no image"
MARK, SOURCE, MAKER = "TrustCXR heatmap", "of", "by"  # text chunks of the PNG


def is_heatmap(path: Path) -> bool:
    """Whether a file is a heatmap that was written here."""
    return path.name.endswith(ENDING) and read_source(path) is not None


def read_source(path: Source) -> str | None:
    """The fingerprint of the image whose heatmap this file is; None for any other file."""
    return read_texts(path, MARK).get(SOURCE)


def read_maker(path: Source) -> str | None:
    """The fingerprint of the run whose heatmap this file is; None where that is not told, and for any other file."""
    return read_texts(path, MARK).get(MAKER)


def read_texts(path: Source, mark: str) -> dict[str, str]:
    """What a PNG that has this mark of ours says of itself in its text chunks; nothing for any other file."""
    try:
        with open_source(path) as file, quiet(), Image.open(file, formats=("PNG",)) as image:
            text = {str(k): v for k, v in image.info.items() if isinstance(v, str)}
    except Exception:  # no PNG, or none that can be read
        return {}
    return text if mark in text else {}
