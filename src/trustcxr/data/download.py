"""Download COVID-QU-Ex from Kaggle, through kagglehub (extra `[download]`)."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from trustcxr.console import log
from trustcxr.data.layouts import read_manifest
from trustcxr.data.layouts.folders import compare_with_published
from trustcxr.errors import UserError

HANDLE = "anasmohammedtahir/covidqu"
PAGE = f"https://www.kaggle.com/datasets/{HANDLE}"
_NEEDED_BYTES = 3 << 30  # of the archive and its content together
_BY_HAND = f"or download it from {PAGE}, unpack it, and give that folder"


def download_covidqu(destination: str | Path | None = None, *, tell: Callable[[str], None] = log) -> Path:
    """Download COVID-QU-Ex and return its folder, for `load_dataset`.

    `destination`: its folder (default: kagglehub's cache). `tell` prints a line. A complete download is reused, and a
    partial one continues. Raises UserError if kagglehub, the network or disk space is missing, or images are missing.
    """
    try:
        import kagglehub
        from kagglehub.config import get_cache_folder
    except ImportError:
        raise UserError(
            f"downloading from Kaggle needs kagglehub: pip install 'trustcxr[download]', {_BY_HAND}"
        ) from None
    cache = Path(destination or get_cache_folder()).expanduser().absolute()
    tell("COVID-QU-Ex: 33,920 chest X-rays with lung masks, 5,826 with infection masks; about 1.2 GB, for research.")
    tell(f"From {PAGE} (see there for its terms) to {cache}")
    folder = cache / "datasets" / HANDLE
    free = shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free
    if free < _NEEDED_BYTES and not (folder.is_dir() and any(folder.rglob("Train"))):
        needed = _NEEDED_BYTES / 1e9
        raise UserError(f"{cache}: {free / 1e9:.1f} GB free, {needed:.1f} GB needed. Give another destination")
    before = os.environ.get("KAGGLEHUB_CACHE")
    try:
        os.environ["KAGGLEHUB_CACHE"] = str(cache)  # its cache resumes, its output folder does not
        folder = Path(kagglehub.dataset_download(HANDLE))
    except Exception as fault:  # from its HTTP, archive and credential layers
        raise UserError(_reason(fault)) from None
    finally:
        if before is None:
            del os.environ["KAGGLEHUB_CACHE"]
        else:
            os.environ["KAGGLEHUB_CACHE"] = before
    for line in verify(folder):
        tell(line)
    return folder


def verify(folder: Path) -> list[str]:
    """Compare the images with those published; return lines of text. Raises UserError if images are missing."""
    manifest = read_manifest(folder, layout="covidqu")
    images, infection = compare_with_published(manifest).values()
    with_masks, published = (sum(numbers) for numbers in zip(*infection.values(), strict=True))
    short = [f"{c} {n:,} of {expected:,}" for c, (n, expected) in images.items() if n < expected]
    if with_masks < published:
        short.append(f"infection masks {with_masks:,} of {published:,}")
    if short:
        raise UserError(f"{folder}: not complete ({'; '.join(short)}). Delete the folder and start again")
    classes = ", ".join(f"{c} {n:,}" for c, (n, _) in images.items())
    count = f"{sum(n for n, _ in images.values()):,} images ({classes})"
    return [f"Complete: {count}; {with_masks:,} with infection masks", *manifest.notes]


def _reason(fault: Exception) -> str:
    import requests

    if isinstance(fault, requests.HTTPError) and fault.response is not None:
        return f"Kaggle refused ({fault.response.status_code}): sign in with a Kaggle token, {_BY_HAND}"
    if isinstance(fault, requests.RequestException):
        return f"no connection to Kaggle ({type(fault).__name__}): try again with a network, {_BY_HAND}"
    if isinstance(fault, OSError) and fault.errno == 28:
        return "no space left. Give another destination, or free space and start the same command again to continue"
    if type(fault).__name__ == "DataCorruptionError":
        return "the download is damaged. Start the same command again"
    return f"Kaggle: {' '.join(str(fault).split())[:200] or type(fault).__name__}; {_BY_HAND}"
