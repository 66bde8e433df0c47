"""What is wrong with the data of a study, looked for before anything is trained, and kept for its report."""

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from trustcxr.console import say
from trustcxr.data import read_manifest
from trustcxr.recipes.study import StudyRecipe
from trustcxr.results import files, folders
from trustcxr.study import made

if TYPE_CHECKING:
    from trustcxr.data import Dataset

_OF = "of"  # the key beside what `trustcxr data check --json` prints: a checksum of what was known of the films


def write(recipe: StudyRecipe, data: Path, folder: Path, films: Iterable["Dataset"]) -> Path:
    """data-check.json in the study's folder: what `trustcxr data check --json` prints, the recipe's labels mapped.

    Kept where it is whole, and of these films as they and their masks are now. One from before that was told is kept.
    """
    from trustcxr.data.auditing.audit import audit

    path, now = folder / folders.DATA_CHECK_FILE, _checksum(films)
    before = _of(path)
    if before is not None and before != now:
        if before:
            say(f"{path}: the films or their masks are others since: looked through again")
        listing, labels = recipe.data.listing(), recipe.data.labels
        found = audit(read_manifest(data, **listing).with_labels(labels)) if labels else audit(data, **listing)
        files.write_json(path, found.to_dict() | {_OF: now})
        say(f"data check: {found.verdict}")
    return path


def _of(path: Path) -> str | None:
    """Of what it was made; "" where there is none that can be read, None where that was not told."""
    if not files.reads(path):
        return ""
    known = files.read_document(path).get(_OF)
    return None if known is None else str(known)


def _checksum(films: Iterable["Dataset"]) -> str:
    found = sha256()
    for part in films:
        for piece in made.known(part, sorted(part.mask_kinds)):
            found.update(piece)
    return found.hexdigest()[:16]
