"""Name, mark and draw heatmap files."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import chain, count, product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from trustcxr.data.images.read import HEATMAP_ENDING, MAKER, MARK, SOURCE, read_texts
from trustcxr.version import NOTICE

_ROWS = 512  # rows coloured at a time, to save memory
_SMALL = (9, 8, 7, 6)  # pixels of a letter's height


def choose_paths(paths: Sequence[Path], out: Path, run: Path) -> dict[Path, Path]:
    """Choose the path of each image's heatmap by a run, in `out`.

    The name is `x.heatmap.png`; if it is taken, `x.png.heatmap.png`, then with the folder's name, then with a number.
    """
    taken: set[Path] = set()
    heatmaps: dict[Path, Path] = {}
    for path in dict.fromkeys(paths):
        heatmap = next(p for p in _candidates(path, out) if p.absolute() not in taken and _free_for(p, path, run))
        taken.add(heatmap.absolute())
        heatmaps[path] = heatmap
    return heatmaps


def _candidates(path: Path, folder: Path) -> Iterator[Path]:
    parent = path.absolute().parent.name
    name = path.name[:180]
    first = (path.stem[:180], name, f"{parent[:40]}-{name}")
    yield from (
        folder / f"{text}{HEATMAP_ENDING}" for text in chain(first, (f"{name}-{number}" for number in count(2)))
    )


def _free_for(heatmap: Path, image: Path, run: Path) -> bool:
    """Return True if the path is free, or holds this image's heatmap by the same or an unknown run."""
    try:
        there = heatmap.exists() or heatmap.is_symlink()
    except OSError:
        return True  # writing it raises the error
    texts = read_texts(heatmap)
    same_run = texts.get(MAKER) in (None, fingerprint(run.resolve()))
    return not there or (same_run and texts.get(SOURCE) == fingerprint(image))


def make_metadata(image: Path, run: Path) -> PngInfo:
    """Make a heatmap's metadata: notice, and fingerprints of image and run."""
    info = PngInfo()
    for key, text in ((MARK, NOTICE), (SOURCE, fingerprint(image)), (MAKER, fingerprint(run.resolve()))):
        info.add_text(key, text)
    return info


def fingerprint(path: Path) -> str:
    """Hash the path of an image or a run, so that no name is written into heatmaps."""
    address = str(path.absolute()).encode("utf-8", "surrogateescape")
    return hashlib.blake2b(address, digest_size=8).hexdigest()


def overlay(image: np.ndarray, saliency: np.ndarray, strength: float = 0.45, *, smooth: bool = True) -> Image.Image:
    """Draw saliency (h, w) in [0, 1] in the colours of inferno over an image (H, W) uint8, in the image's size."""
    import matplotlib

    height, width = image.shape
    levels = Image.fromarray(np.rint(np.clip(np.asarray(saliency, np.float64), 0, 1) * 255).astype(np.uint8))
    enlarged = levels.resize((width, height), Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST)
    colours = (strength * 255 * matplotlib.colormaps["inferno"](np.arange(256))[:, :3]).astype(np.float32)
    picture = Image.new("RGB", (width, height))
    for top in range(0, height, _ROWS):
        bottom = min(top + _ROWS, height)
        weight = np.asarray(enlarged.crop((0, top, width, bottom)))
        mixed = (1 - strength) * image[top:bottom, :, None].astype(np.float32) + colours[weight]
        picture.paste(Image.fromarray(mixed.round().astype(np.uint8)), (0, top))
    return picture


def write_notice(picture: Image.Image) -> None:
    """Write the notice at the bottom of the picture, as large as fits."""
    pen, (width, height) = ImageDraw.Draw(picture), picture.size
    broken, large = NOTICE.replace(". ", ".\n"), range(max(width // 30, 12), 9, -1)
    for text, size in [*product((NOTICE, broken), large), *((broken, size) for size in _SMALL)]:
        font = ImageFont.load_default(size)
        box = pen.multiline_textbbox((0, 0), text, font=font)
        if box[2] <= width - 4:
            break
    top = max(height - int(box[3]) - 4, 0)
    pen.rectangle((0, top, min(int(box[2]) + 4, width), height), fill=(0, 0, 0))
    pen.multiline_text((2, top + 1), text, fill=(255, 255, 255), font=font)
