"""The images of an audit: those that are examined, those of validation that thresholds are chosen on, given scores."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from trustcxr.audit.entry_checks import Check
from trustcxr.audit.formats import ExternalModel
from trustcxr.audit.subject import Subject
from trustcxr.data import load_dataset
from trustcxr.data.dataset import Dataset
from trustcxr.data.loader import to_pixels
from trustcxr.data.manifest import NO_SPLIT, SHARES, Manifest
from trustcxr.errors import UserError
from trustcxr.evaluation import predictions as evaluation
from trustcxr.evaluation.trained_run import Run
from trustcxr.recipes.run_recipe import Listing, Splits
from trustcxr.runs.test_data import log_reading, manifest_of, report_skipped
from trustcxr.storage import atomic, layout
from trustcxr.storage.prediction_table import CLEAN

TAUGHT = 256  # images of training that a surrogate learns from, at most
_SURE = 2  # names that are one image's alone


@dataclass(frozen=True)
class Taught:
    """What a surrogate learns from: `rows` of the training images, none of them examined, nor of a patient who is."""

    training: Dataset
    rows: np.ndarray

    def pixels(self, device: torch.device) -> Tensor:
        """The images, (N, 1, H, W) in [0, 1]."""
        return pixels_of(self.training, self.rows, device)


@dataclass(frozen=True)
class AuditImages:
    """`examined`, and `validation` where the data have such a split and the model was not trained on it too.

    taught: images of training for a surrogate; None where the data have none, or there is no model to ask.
    of_validation: whether the images examined are the validation images themselves.
    shared: names that several images of the data have, of whichever split: their files', with and without the ending.
    """

    examined: Dataset
    validation: Dataset | None = None
    taught: Taught | None = None
    shared: frozenset[str] = frozenset()
    of_validation: bool = False

    @property
    def unchosen(self) -> str:
        """Why no threshold could be chosen on validation images, in words, where none of them has an answer."""
        return (
            "validation images are the images looked at" if self.of_validation else "no validation image has an answer"
        )


def open_images(
    subject: Subject,
    data: Path,
    split: str | None,
    labels: Mapping[str, str | None] | None,
    listing: Listing | None,
) -> AuditImages:
    """The data in the model's size, shape and classes: the test split unless said, where there is one, else all.

    Data without splits that a run was trained on are divided as they were then: its training images are not examined.

    Of a model with one sigmoid a finding the classes are the data's own, renamed to findings where `labels` say so.
    """
    renamed, refit = dict(labels or {}), False
    resize: str
    if isinstance(subject, Run):
        recipe = subject.trained_by.data
        resize, splits, renamed = recipe.resize, recipe.splits, renamed or dict(recipe.labels)
        manifest, refit = manifest_of(data, listing, recipe.listing()), subject.trained_by.training.refit
    else:
        resize, splits, manifest = subject.input.resize, Splits(), manifest_of(data, listing, None)
    classes: tuple[str, ...] | None = subject.classes
    if isinstance(subject, ExternalModel) and subject.kind == "sigmoid":
        manifest = manifest.with_labels(renamed, classes=manifest.classes) if renamed else manifest
        classes, renamed = None, {}
    undivided = manifest.splits == (NO_SPLIT,)
    own = undivided and isinstance(subject, Run) and trained_on(subject) == manifest.root.name
    wanted = split or (splits.test if splits.test in manifest.splits or own else None)
    load = partial(load_dataset, manifest, size=subject.size, classes=classes, resize=resize, labels=renamed or None)
    examined = load(wanted)
    log_reading(examined, set())
    report_skipped(examined)
    validation = training = None
    if _has(manifest, splits.val, wanted) and not refit:
        validation = load(splits.val)
    if _has(manifest, splits.train, wanted) and subject.model is not None:
        with suppress(UserError):  # no image of it is readable
            training = load(splits.train)
    taught = None if training is None else _taught(training, examined)
    return AuditImages(examined, validation, taught, _shared(manifest), of_validation=wanted == splits.val)


def _has(manifest: Manifest, split: str, examined: str | None) -> bool:
    """Whether the data have this split beside the one that is examined; None: all of them are."""
    divided = manifest.splits == (NO_SPLIT,) and {examined, split} <= SHARES.keys()
    return examined not in (None, split) and (split in manifest.splits or divided)


def _taught(training: Dataset, examined: Dataset) -> Taught | None:
    """Training images for a surrogate: the classes in turn, the same each time; None where all are images examined."""
    strange = ~np.isin(training.groups, examined.groups) & ~np.isin(training.image_sums, examined.image_sums)
    rows = np.flatnonzero(strange)
    return Taught(training, rows[in_turn(np.asarray(training.labels)[rows], TAUGHT)]) if len(rows) else None


def trained_on(run: Run) -> str:
    """The name of the folder of data that a run was trained on; empty where that is not known."""
    trained = atomic.read_yaml(run.folder / layout.RUN_FILE).get("data")
    return str(trained.get("root_name") or "") if isinstance(trained, dict) else ""


def first_images(dataset: Dataset, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images for the door, (N, 1, H, W) in [0, 1] and their labels (N,): the classes in turn, the same each time."""
    labels = np.asarray(dataset.labels)
    chosen = in_turn(labels, count)
    return pixels_of(dataset, chosen, device), torch.from_numpy(labels[chosen]).to(device)


def in_turn(labels: np.ndarray, count: int) -> np.ndarray:
    """The rows of `count` images, the classes in turn as far as they reach, the same each time."""
    random = np.random.default_rng(0)
    turns = [
        (turn, k, i)
        for k in np.unique(labels)
        for turn, i in enumerate(random.permutation(np.flatnonzero(labels == k)))
    ]
    return np.array([i for _, _, i in sorted(turns)[:count]])


def pixels_of(dataset: Dataset, rows: np.ndarray, device: torch.device) -> Tensor:
    """Some images, (N, 1, H, W) in [0, 1]."""
    return to_pixels(torch.from_numpy(dataset.batch(rows)).to(device))


def scored(
    subject: ExternalModel, dataset: Dataset, shared: frozenset[str] = frozenset()
) -> tuple[pd.DataFrame, list[Check]]:
    """Given scores as clean predictions of the images that they are of; and how many images have none.

    `shared`: names that several images of the data have, so that they say of none which it is.
    """
    assert subject.predictions is not None
    about = evaluation.about_images(dataset)
    scores = dict(zip(subject.predictions["sample_id"], subject.predictions["logits"], strict=True))
    rows, named, unclear = [], 0, 0
    for place, names in enumerate(_names(dataset.table)):
        known = next((n for k, n in enumerate(names) if n in scores and (k < _SURE or n not in shared)), None)
        rows += [(place, scores[known])] if known is not None else []
        named += known is not None
        unclear += known is None and any(name in scores for name in names)
    told = f"; {unclear} are named as several images are: give their ids or paths" if unclear else ""
    if not rows:
        raise UserError(
            f"{subject.origin.path}: no row is of an image in {dataset.where}; ids are such as {about['sample_id'][0]}"
            f"{told}"
        )
    table = about.iloc[[place for place, _ in rows]].reset_index(drop=True)
    table = table.assign(attack=CLEAN, epsilon=0.0, steps=0, severity=0, logits=[logits for _, logits in rows])
    text = f"{named} of {len(about)} images have a score"
    if named < len(about):
        text += "; the others are left out, and may be those that it fails on: give a score for every image"
    text += told
    return table, [Check("scores", named == len(about), text)]


def _names(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """What a table may call each image: its id, its path (_SURE both), its file's name, that without ending."""
    paths = [Path(str(path)) for path in table["path"]]
    return [(str(key), str(path), path.name, path.stem) for key, path in zip(table["sample_id"], paths, strict=True)]


def _shared(manifest: Manifest) -> frozenset[str]:
    """What more than one image of the data may be called."""
    counts = Counter(name for names in _names(manifest.table) for name in set(names))
    return frozenset(name for name, count in counts.items() if count > 1)
