"""Bringing COVID-QU-Ex from Kaggle, through kagglehub (extra `[download]`)."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from trustcxr.console import log
from trustcxr.data.layouts import covidqu
from trustcxr.errors import UserError

HANDLE = "anasmohammedtahir/covidqu"
PAGE = f"https://www.kaggle.com/datasets/{HANDLE}"
PUBLISHED, _OF_INFECTION = covidqu.PUBLISHED.values()
PUBLISHED_INFECTION = sum(_OF_INFECTION.values())
_ROOM = 3 << 30  # the archive and its content stand side by side while it is unpacked
_BY_HAND = f"or fetch it by hand from {PAGE}, unpack it, and give that folder"


def download_covidqu(destination: str | Path | None = None, *, tell: Callable[[str], None] = log) -> Path:
    """Bring COVID-QU-Ex and return its folder, which `load_dataset` takes as it is.

    `destination` is the folder to keep it in (default: kagglehub's own cache). `tell` is given a line at a time. What
    was brought before is not brought again, and a download that was cut off goes on. Raises UserError where kagglehub
    is not installed, there is no network or no room, or what arrived is not complete.
    """
    try:
        import kagglehub
        from kagglehub.config import get_cache_folder
    except ImportError:
        raise UserError(f"bringing data from Kaggle needs pip install '.[download]'; {_BY_HAND}") from None
    given = Path(destination).expanduser().absolute() if destination else None
    place = given or Path(get_cache_folder())
    tell("COVID-QU-Ex: 33,920 chest X-rays with lung masks, 5,826 with infection masks; about 1.2 GB, for research.")
    tell(f"From {PAGE} (see there for its terms) to {place}")
    there = place / "datasets" / HANDLE
    _check_room(place, needed=0 if there.is_dir() and any(there.rglob("Train")) else _ROOM)
    before = os.environ.get("KAGGLEHUB_CACHE")
    try:
        if given:
            os.environ["KAGGLEHUB_CACHE"] = str(given)  # unlike its output folder, its cache resumes
        folder = Path(kagglehub.dataset_download(HANDLE))
    except Exception as fault:  # kagglehub lets through those of its HTTP, archive and credential layers
        raise UserError(_reason(fault)) from None
    finally:
        if before is not None:
            os.environ["KAGGLEHUB_CACHE"] = before
        elif given:
            os.environ.pop("KAGGLEHUB_CACHE", None)
    for line in verify(folder):
        tell(line)
    return folder


def verify(folder: Path) -> list[str]:
    """Compare what arrived with what was published: lines that say so. Raises UserError where images are missing."""
    from trustcxr.data.layouts import read_manifest

    manifest = read_manifest(folder, layout="covidqu")
    found = {c: int((manifest.table["class"] == c).sum()) for c in PUBLISHED}
    infection = int(manifest.table["infection_mask"].notna().sum())
    short = [f"{c} {found[c]:,} of {n:,}" for c, n in PUBLISHED.items() if found[c] < n]
    if infection < PUBLISHED_INFECTION:
        short.append(f"infection masks {infection:,} of {PUBLISHED_INFECTION:,}")
    if short:
        raise UserError(f"{folder}: not complete ({'; '.join(short)}); delete the folder and start again")
    counts = ", ".join(f"{c} {n:,}" for c, n in found.items())
    return [f"Complete: {sum(found.values()):,} images ({counts}); {infection:,} with infection masks", *manifest.notes]


def _check_room(place: Path, *, needed: int) -> None:
    disk = next(p for p in (place, *place.parents) if p.exists())
    free = shutil.disk_usage(disk).free
    if free < needed:
        raise UserError(f"{place}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed; give another destination")


def _reason(fault: Exception) -> str:
    """One line for what went wrong, and what to do."""
    import requests

    if isinstance(fault, requests.HTTPError) and fault.response is not None:
        return f"Kaggle refused ({fault.response.status_code}): sign in with a Kaggle token, {_BY_HAND}"
    if isinstance(fault, requests.RequestException):
        return f"no connection to Kaggle ({type(fault).__name__}): try again with a network, {_BY_HAND}"
    if isinstance(fault, OSError) and fault.errno == 28:
        return "no space left: give another destination; the same command then goes on"
    if type(fault).__name__ == "DataCorruptionError":
        return "what arrived is damaged: start the same command again"
    return f"Kaggle: {' '.join(str(fault).split())[:200] or type(fault).__name__}; {_BY_HAND}"
