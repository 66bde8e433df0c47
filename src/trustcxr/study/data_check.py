"""Check the data of a study before any training, for its report."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from trustcxr.console import log
from trustcxr.data import read_manifest
from trustcxr.recipes.study_recipe import StudyRecipe
from trustcxr.runs.provenance import data_hash, hash_of
from trustcxr.storage import atomic, layout

if TYPE_CHECKING:
    from trustcxr.data import Dataset

_OF = "of"  # key of a checksum of images and masks


def write(recipe: StudyRecipe, data: Path, folder: Path, images: Iterable["Dataset"]) -> Path:
    """Write data-check.json into the study's folder, as `trustcxr data check --json`, unless it is current."""
    from trustcxr.data.checks.check import check_data

    path, now = folder / layout.DATA_CHECK_FILE, hash_of(data=[data_hash(one, *one.mask_kinds) for one in images])
    before = str(atomic.read_document(path).get(_OF)) if atomic.is_readable(path) else ""
    if before != now:
        if before:
            log(f"{path}: of other images or masks: checked again")
        listing, labels = recipe.data.listing(), recipe.data.labels
        report = (
            check_data(read_manifest(data, **listing).with_labels(labels)) if labels else check_data(data, **listing)
        )
        atomic.write_json(path, report.to_dict() | {_OF: now})
        log(f"data check: {report.verdict}")
    return path
