"""Load the images that a run is tested on, and identify its own test images by their content."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trustcxr.console import log
from trustcxr.data import load_dataset, read_manifest
from trustcxr.data.dataset import Dataset
from trustcxr.data.images.read import SUFFIXES
from trustcxr.data.layouts.csv_lists import NoColumns
from trustcxr.data.manifest import Manifest
from trustcxr.errors import UserError
from trustcxr.evaluation import trained_models
from trustcxr.evaluation.trained_run import Run
from trustcxr.recipes.run_recipe import Listing
from trustcxr.storage import atomic, layout
from trustcxr.storage.evaluations import FOLDER


@dataclass(frozen=True)
class Source:
    """A data set of the command line: folder or list, split, mapping of labels, and how to read the list."""

    data: Path
    split: str | None = None
    labels: Mapping[str, str | None] | None = None
    listing: Listing | None = None
    logged: set[str] = field(default_factory=set, compare=False, repr=False)  # notes of it, each once


def load(run: Run, source: Source, split: str | None = None) -> Dataset:
    """Load the data in the run's size and classes: `split`, the source's, the run's test split, or all images."""
    dataset = _read(run, source, split)
    log_reading(dataset, source.logged)
    report_skipped(dataset)
    return dataset


def _read(run: Run, source: Source, split: str | None) -> Dataset:
    recipe = run.recipe.data
    manifest = manifest_of(source.data, source.listing, recipe.listing())
    test = recipe.splits.test
    same_name = manifest.root.name == _training_data(run).get("root_name")
    split = split or source.split or (test if same_name or test in manifest.splits else None)
    labels = dict(source.labels or {}) or recipe.labels
    return load_dataset(manifest, split, run.size, classes=run.classes, resize=recipe.resize, labels=labels)


def manifest_of(data: str | Path, listing: Listing | None, of_run: Listing | None = None) -> Manifest:
    """Read data by the options of `listing`, and else by those of the run, if they suit.

    A list of another hospital may lack the run's columns, which a note says; folders have none. Raises UserError if a
    list has the columns and they cannot be read: other columns may hold other labels.
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
        manifest = read_manifest(data, **typed)
        manifest.notes.append(f"{problem}, as the list of the run's own images has: read by its usual columns")
        return manifest
    except UserError:
        if usual.get("columns") is None or "columns" in typed:
            return read_manifest(data, **typed)
        if usual.get("images") is None or "images" in typed:
            raise
    return read_manifest(data, **(elsewhere | typed))  # another list, in the folder of its images


def _images_of(file: Path, images: str) -> str | None:
    """Return a run's folder of images, from here or from a folder above the list; None if there is none."""
    folders = [Path(), *file.absolute().parents]
    return next((str(folder / images) for folder in folders if (folder / images).expanduser().is_dir()), None)


def folder_for(run: Run, images: Dataset, options: str, out: Path | None = None) -> Path:
    """Return the folder for results of a command: `out`, else one in evaluations/, by data set and `options`, a hash.

    Raises UserError if `out` belongs to a run, a study or an audit.
    """
    if out is None:
        name = f"{images.root.name}-{images.split or 'all'}-{options[:8]}"
        return trained_models.results_folder(run.folder) / FOLDER / name
    for name, what in (
        (layout.RUN_FILE, "a run, which its training and its study own"),
        (layout.STUDY_FILE, "a study"),
        (layout.AUDIT_FILE, "an audit"),
    ):
        if (out / name).is_file():
            raise UserError(f"{out}: holds {what}; choose another --out")
    written = (layout.METRICS_FILE, layout.SALIENCY_FILE, layout.LESIONS_FILE, layout.CERTIFIED_FILE)
    layout.check_foreign(out, written, (layout.PREDICTIONS_FILE,))
    return out


def are_other_images(run: Run, images: Dataset) -> bool:
    """Return whether these are surely other images of their split than those of the run's data."""
    fingerprint = atomic.section(_training_data(run), "fingerprints").get(str(images.split))
    return fingerprint is not None and images.fingerprint != fingerprint


def is_own_test(run: Run, images: Dataset) -> bool:
    """Return whether these are the run's own test images, by their content."""
    data, test = _training_data(run), run.recipe.data.splits.test
    if images.split != test:
        return False
    if images.fingerprint == atomic.section(data, "fingerprints").get(test):
        return True
    if images.root.name == data.get("root_name"):
        log(
            f"{images.root}: has the name of the data that {run.name} was trained beside, but holds other {test} images"
        )
    return False


def notes(run: Run, images: Dataset) -> list[str]:
    """Return the notes at the top of every result: images of the training, another split than the test split."""
    test, texts = run.recipe.data.splits.test, []
    if count := trained_on(run, images):
        some = f"{count} of these {len(images)}" if count < len(images) else f"these {count}"
        texts.append(f"{run.name} was trained on {some} images: what is measured there flatters it")
    if images.split != test:
        which = f"the split {images.split}" if images.split else f"all {len(images)} images"
        texts.append(f"measured on {which} of {images.root.name}, not on a split {test}")
    return texts


def trained_on(run: Run, images: Dataset) -> int:
    """Count the images that the run was trained on, by their pixels; 0 if the run has no list of them."""
    path = run.folder / layout.IMAGES_FILE
    if not path.is_file():
        return 0
    return int(np.isin(images.image_sums, atomic.read_table(path)["image"].to_numpy(str)).sum())


def training_of(run: Run, source: Source, images: Dataset) -> Dataset | None:
    """Load the training images of the same data, for their lesion masks; None if there are none."""
    if "infection" not in images.mask_kinds:
        return None
    with suppress(UserError):
        return _read(run, source, run.recipe.data.splits.train)
    return None


def log_reading(images: Dataset, logged: set[str]) -> None:
    """Log the notes of reading the data, except those `logged` already."""
    for note in images.notes:
        if note not in logged:
            log(note)
            logged.add(note)


def report_skipped(*parts: Dataset) -> None:
    """Log, for each part of the data, the number of unreadable images and masks, and the first."""
    for part in parts:
        of = f" of {part.split}" if part.split else ""
        for table, what in ((part.skipped, "images{} are left out"), (part.bad_masks, "masks{} count as absent")):
            if len(table):
                first = table.iloc[0]
                log(f"{len(table)} unreadable {what.format(of)}; the first: {first['path']}: {first['reason']}")


def _training_data(run: Run) -> dict[str, object]:
    return atomic.section(atomic.read_yaml(run.folder / layout.RUN_FILE), "data")


def validation_file(run: Path, folder: Path) -> Path:
    """Return the path of the predictions on validation images: in a folder of results, else in the run's."""
    path = folder / layout.VALIDATION_FILE
    return path if path.is_file() else run / layout.VALIDATION_FILE


def check_out(out: Path | None, data: Path) -> None:
    """Raise UserError if `out` is the folder of the images, or one with images in it."""
    if out is None or not out.is_dir() or not data.is_dir():
        return
    ours = (layout.RUN_FILE, layout.STUDY_FILE, layout.AUDIT_FILE, layout.METRICS_FILE)
    within = out.resolve().is_relative_to(data.resolve()) and not any((out / name).is_file() for name in ours)
    if out.samefile(data) or (within and any(path.suffix.lower() in SUFFIXES for path in out.rglob("*"))):
        raise UserError(f"{out}: holds the images; choose another --out")
