"""Which images a run is tested on: known by what they are, not by their folder's name, and said where it matters."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trustcxr.console import log
from trustcxr.data import load_dataset, read_manifest
from trustcxr.data.images.read import SUFFIXES
from trustcxr.data.layouts.csv_lists import NoColumns
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import Run
from trustcxr.recipes.run_recipe import Listing
from trustcxr.storage import atomic, layout
from trustcxr.storage.evaluations import FOLDER

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset
    from trustcxr.data.manifest import Manifest


@dataclass(frozen=True)
class Source:
    """A data set as it was typed: its folder or list, the split, what its labels are called, how its list is read."""

    data: Path
    split: str | None = None
    labels: Mapping[str, str | None] | None = None
    listing: Listing | None = None
    told: set[str] = field(default_factory=set, compare=False, repr=False)  # what was said of it, each once


def load(run: Run, source: Source, split: str | None = None) -> "Dataset":
    """The data in the run's size and classes: `split`, else the one asked for, else the run's test split, else all."""
    dataset = _read(run, source, split)
    log_reading(dataset, source.told)
    report_skipped(dataset)
    return dataset


def _read(run: Run, source: Source, split: str | None) -> "Dataset":
    recipe = run.trained_by.data
    manifest = manifest_of(source.data, source.listing, recipe.listing())
    test = recipe.splits.test
    own = manifest.root.name == _kept(run).get("root_name")
    wanted = split or source.split or (test if own or test in manifest.splits else None)
    labels = dict(source.labels or {}) or recipe.labels
    return load_dataset(manifest, wanted, run.size, classes=run.classes, resize=recipe.resize, labels=labels)


def manifest_of(data: str | Path, listing: Listing | None, of_run: Listing | None = None) -> "Manifest":
    """The data read as was typed, and for the rest as a run's own images were read, where they look like those.

    Another hospital's list need not have the columns of the run's, which is said; and images in folders have none.
    Raises UserError where it has them and cannot be read by them: other columns may hold other labels.
    """
    typed, usual = listing or Listing(), of_run or Listing()
    if Path(data).is_dir():
        usual = Listing(layout=usual["layout"]) if "layout" in usual else Listing()
    elif usual.get("images") is not None:
        usual |= Listing(images=_images_of(Path(data), str(usual["images"])))
    elsewhere = Listing(layout=usual.get("layout", "auto"), columns=usual.get("columns"), images=None)
    try:
        return read_manifest(data, **(usual | typed))
    except NoColumns as problem:
        found = read_manifest(data, **typed)
        found.notes.append(f"{problem}, as the list of the run's own images has: read by its usual columns")
        return found
    except UserError:
        if usual.get("columns") is None or "columns" in typed:
            return read_manifest(data, **typed)
        if usual.get("images") is None or "images" in typed:
            raise
    return read_manifest(data, **(elsewhere | typed))  # another's list, with its images beside it


def _images_of(file: Path, images: str) -> str | None:
    """Where a run's folder of images is: as it was typed then, from here or beside the list; None: the list's own."""
    above = [Path(), *file.absolute().parents]
    return next((str(place / images) for place in above if (place / images).expanduser().is_dir()), None)


def folder_for(run: Run, images: "Dataset", options: str, out: Path | None = None) -> Path:
    """Return the folder for what a command measures: `out`, else one in evaluations/, by data set and `options`.

    `options` is a hash of what was asked for. UserError if `out` belongs to a run, a study or an audit.
    """
    if out is None:
        return run.folder / FOLDER / f"{images.root.name}-{images.split or 'all'}-{options[:8]}"
    held = {
        "a run, which its training and its study own": out / layout.RUN_FILE,
        "a study": out / layout.STUDY_FILE,
        "an audit": out / layout.AUDIT_FILE,
    }
    if what := next((what for what, path in held.items() if path.is_file()), None):
        raise UserError(f"{out}: holds {what}; choose another --out")
    written = (layout.METRICS_FILE, layout.SALIENCY_FILE, layout.LESIONS_FILE, layout.CERTIFIED_FILE)
    layout.check_foreign(out, written, (layout.PREDICTIONS_FILE,))
    return out


def are_other_images(run: Run, images: "Dataset") -> bool:
    """Tell whether these are surely not the images of that split beside which the run was trained."""
    known = atomic.section(_kept(run), "fingerprints").get(str(images.split))
    return known is not None and images.fingerprint != known


def is_own_test(run: Run, images: "Dataset") -> bool:
    """Tell whether these are the run's own test images, by what they are."""
    kept, test = _kept(run), run.trained_by.data.splits.test
    if images.split != test:
        return False
    own = images.fingerprint == atomic.section(kept, "fingerprints").get(test)
    if images.root.name == kept.get("root_name") and not own:
        log(
            f"{images.root}: has the name of the data that {run.name} was trained beside, but holds other {test} images"
        )
    return own


def notes(run: Run, images: "Dataset") -> list[str]:
    """What stands at the top of every result: images that the run was trained on, another split than its test split."""
    test, found = run.trained_by.data.splits.test, []
    if count := trained_on(run, images):
        some = f"{count} of these {len(images)}" if count < len(images) else f"these {count}"
        found.append(f"{run.name} was trained on {some} images: what is measured there flatters it")
    if images.split != test:
        which = f"the split {images.split}" if images.split else f"all {len(images)} images"
        found.append(f"measured on {which} of {images.root.name}, not on a split {test}")
    return found


def trained_on(run: Run, images: "Dataset") -> int:
    """Count the images that the run was trained on, by their pixels; 0 for a run that does not say."""
    path = run.folder / layout.IMAGES_FILE
    return (
        int(np.isin(images.image_sums, atomic.read_table(path)["image"].to_numpy(str)).sum()) if path.is_file() else 0
    )


def validation_of(run: Run, source: Source, else_say: str) -> "Dataset | None":
    """The run's validation images of the same data; None, which is said, where they are not there."""
    try:
        return load(run, source, run.trained_by.data.splits.val)
    except UserError as problem:
        log(f"{else_say}: {problem}")
        return None


def training_of(run: Run, source: Source, images: "Dataset") -> "Dataset | None":
    """The training images of the same data, whose lesion masks maps are held against; None where there are none."""
    if "infection" not in images.mask_kinds:
        return None
    with suppress(UserError):
        return _read(run, source, run.trained_by.data.splits.train)
    return None


def log_notes(run: Run, images: "Dataset") -> None:
    """Say what a reader must know first."""
    for note in notes(run, images):
        log(note)


def log_reading(images: "Dataset", told: set[str]) -> None:
    """Say what reading the data found worth saying, but for what was `told`: what is not there, or left out."""
    for note in images.notes:
        if note not in told:
            log(note)
            told.add(note)


def report_skipped(*parts: "Dataset") -> None:
    """Say of each part of the data how many images and masks could not be read, and the first of them."""
    for part in parts:
        of = f" of {part.split}" if part.split else ""
        for table, what in ((part.skipped, "images{} are left out"), (part.bad_masks, "masks{} count as absent")):
            if len(table):
                first = table.iloc[0]
                log(f"{len(table)} unreadable {what.format(of)}; the first: {first['path']}: {first['reason']}")


def _kept(run: Run) -> dict[str, object]:
    """What run.yaml keeps of the data that the run was trained on."""
    return atomic.section(atomic.read_yaml(run.folder / layout.RUN_FILE), "data")


def validation_file(run: Path, folder: Path) -> Path:
    """Return the predictions on validation images that count in a folder of results: its own, else the run's."""
    own = folder / layout.VALIDATION_FILE
    return own if own.is_file() else run / layout.VALIDATION_FILE


def check_out(out: Path | None, data: Path) -> None:
    """UserError where results are asked for in the very folder of the images, or in one of theirs within it."""
    if out is None or not out.is_dir() or not data.is_dir():
        return
    ours = (layout.RUN_FILE, layout.STUDY_FILE, layout.AUDIT_FILE, layout.METRICS_FILE)
    within = out.resolve().is_relative_to(data.resolve()) and not any((out / name).is_file() for name in ours)
    if out.samefile(data) or (within and any(path.suffix.lower() in SUFFIXES for path in out.rglob("*"))):
        raise UserError(f"{out}: holds the images; choose another --out")
