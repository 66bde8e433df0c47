"""Prepare the data of an audit: images to examine, validation and surrogate images, scores, and its checksum."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trustcxr.audit import multilabel
from trustcxr.audit.entry_checks import Check
from trustcxr.audit.formats import ExternalModel
from trustcxr.audit.subject import Subject, describe_model, is_multilabel, training_data_name
from trustcxr.console import log
from trustcxr.data import load_dataset
from trustcxr.data.dataset import Dataset
from trustcxr.data.loader import to_pixels
from trustcxr.data.manifest import NO_SPLIT, SHARES
from trustcxr.errors import UserError
from trustcxr.evaluation import predictions as evaluation
from trustcxr.evaluation.trained_run import Run
from trustcxr.recipes.evaluation_recipe import AttackRecipe
from trustcxr.recipes.protocol import ExamRecipe
from trustcxr.recipes.run_recipe import Splits
from trustcxr.runs.provenance import data_hash
from trustcxr.runs.test_data import Source, log_reading, manifest_of, report_skipped
from trustcxr.storage import atomic, layout
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import AuditedData

AUDIT_VERSION = 4  # of the algorithms: an audit of another version is computed again
SURROGATE_IMAGES = 256  # training images that a surrogate learns from, at most
_UNIQUE = 2  # of the names of an image, the first that no other image shares
_ROUNDING = 1e-6  # of a distance from an image


@dataclass(frozen=True)
class AuditImages:
    """The images of an audit."""

    examined: Dataset
    validation: Dataset | None = None  # None too if the model was trained on them
    surrogate: "ImageRows | None" = None  # training images to distil from; None too without a model to query
    ambiguous_names: frozenset[str] = frozenset()  # of files, with and without ending, that several images share
    examines_validation: bool = False
    listed: int = 0  # images of the data set, in all splits and with all labels
    in_split: int | None = None  # those of the examined split; None without splits

    def why_no_threshold(self, missing: str = "an answer") -> str:
        """Return why no threshold can be chosen on validation images, none of which has what is `missing`."""
        if self.examines_validation:
            return "validation images are the images looked at"
        return f"no validation image has {missing}"


class SubmittedImages(NamedTuple):
    """Adversarial images by sample id, their radius, and who submitted them."""

    path: Path
    by: str
    epsilon: float
    images: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Audit:
    """The input of an audit: the model, the images, the protocol, and submitted adversarial images."""

    subject: Subject
    images: AuditImages
    exam: ExamRecipe
    submitted: SubmittedImages | None = None
    token: bytes = field(default_factory=lambda: os.urandom(8))  # a part of the key of a Python object

    @property
    def dataset(self) -> Dataset:
        """Return the images to examine."""
        return self.images.examined

    @property
    def parallel(self) -> bool:
        """Return whether several threads may query the model: not if it is foreign Python code."""
        return isinstance(self.subject, Run) or self.subject.origin.kind != "python"

    def attacks(self, *, gradients: bool) -> Sequence[AttackRecipe]:
        """Return the protocol's attacks on a model with gradients, or without."""
        return self.exam.attacks if gradients else self.exam.without_gradients

    def rows_to_attack(self, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the `rows` that the protocol attacks, in their order; `labels` (M,) are those of the rows."""
        most = self.exam.images
        if most is None or most >= len(rows):
            return rows
        return np.sort(rows[first_by_hash(self.dataset.sample_ids[rows], labels, most)])

    @property
    def key(self) -> str:
        """Return a checksum of the model, all images with their labels, and the protocol."""
        exam = self.exam.model_dump(mode="json", exclude={"about"})
        exam = {key: value for key, value in exam.items() if (key, value) != ("images", None)}
        content = [AUDIT_VERSION, describe_model(self.subject).plain(), self.dataset.fingerprint, exam]
        if not isinstance(self.subject, Run):
            content += [part.model_dump(mode="json") for part in (self.subject.input, self.subject.output)]
        content += [] if self.submitted is None else [atomic.checksum(self.submitted.path)]
        content += [] if self.images.surrogate is None else [self.images.surrogate.image_sums.tolist()]
        digest = sha256(json.dumps(content, sort_keys=True, default=str).encode())
        if not isinstance(self.subject, Run) and self.subject.model is not None and self.subject.origin.sha256 is None:
            digest.update(self.token)  # an object's code has no checksum: nothing of another audit is taken for its own
        for name, tensor in self.subject.model.state_dict().items() if self.subject.model is not None else ():
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        for dataset in (self.dataset, self.images.validation):
            digest.update(b"" if dataset is None else data_hash(dataset, "lung").encode())
        return digest.hexdigest()[:16]

    def describe_data(self, count: int | None) -> AuditedData:
        """Return the part `data` of audit.json; `count` images have a score. `truth` is a checksum of all findings."""
        truth = ""
        if is_multilabel(self.subject):
            names, order = sorted(self.subject.classes), np.argsort(self.dataset.sample_ids)
            labels = multilabel.labelled_findings(self.dataset.table, names)[order]
            truth = sha256("\n".join(names).encode() + labels.tobytes()).hexdigest()[:16]
        return AuditedData(
            name=self.dataset.root.name,
            fingerprint=self.dataset.fingerprint,
            files=self.dataset.files_fingerprint,
            lungs=self.dataset.lung_files_fingerprint,
            truth=truth,
            n=count,
            total=len(self.dataset),
        )


class ImageRows(Dataset):
    """Some images of a data set as a data set: the index of each in the whole, and its label."""

    def __init__(self, dataset: Dataset, rows: np.ndarray, labels: np.ndarray | None = None) -> None:
        self.whole, self.rows = dataset, rows
        self.labels = (dataset.labels[rows] if labels is None else labels).astype(np.int64)
        self.table = dataset.table.iloc[rows].reset_index(drop=True)
        self.classes, self.size, self.root, self.where = dataset.classes, dataset.size, dataset.root, dataset.where
        self._store, self.bad_masks, self.image_sums = dataset._store, dataset.bad_masks, dataset.image_sums[rows]

    def batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the images at `indices`: uint8 (B, 1, size, size)."""
        return self.whole.batch(self.rows[np.asarray(indices)])

    def masks(self, kind: str) -> Any:
        """Return the masks of a kind, (N, size, size), read on access."""
        return _Rows(self.whole.masks(kind), self.rows)


class _Rows:
    """Rows of an array that is too large to copy."""

    def __init__(self, values: np.ndarray, rows: np.ndarray) -> None:
        self.values, self.rows = values, rows

    def __getitem__(self, index: Any) -> Any:
        return self.values[self.rows[index]]


class OneFinding(ImageRows):
    """The images with a label of one finding as a data set of two classes: those with it are explained."""

    def __init__(self, dataset: Dataset, rows: np.ndarray, labels: np.ndarray) -> None:
        super().__init__(dataset, rows, labels)
        self.classes, self.explained = multilabel.STATES, self.labels == 1
        self.healthy = ~self.explained & self.table["class"].str.strip().str.lower().isin(multilabel.NOTHING).to_numpy()


def check_out_folder(out: Path, further: Mapping[str, str]) -> None:
    """Raise UserError if a folder for results holds a run, a study, or one of the `further` kinds, by its file."""
    kinds = {"a run": layout.RUN_FILE, "a study": layout.STUDY_FILE, "the results of a study": layout.STUDY_RESULTS}
    for kind, name in {**kinds, **further}.items():
        if (out / name).exists():
            raise UserError(f"{out}: holds {kind}; choose another --out")


def open_images(subject: Subject, data: Source | Dataset) -> AuditImages:
    """Open the data in the model's size and classes: by default the test split if there is one, else all images.

    Data without splits that a run was trained on are split as in training. `labels` rename the data's classes, for a
    model with one sigmoid a finding to findings. A Dataset is examined as it is.
    """
    if isinstance(data, Dataset):
        for what, own, own_of_model in (("size", data.size, subject.size), ("classes", data.classes, subject.classes)):
            if own != own_of_model:
                advice = f"Load it with {what}={own_of_model!r}"
                raise UserError(f"{data.where}: its {what} {own} is not the model's. {advice}")
        return AuditImages(data, listed=len(data) + len(data.skipped))
    renamed, refit, listing = dict(data.labels or {}), False, data.listing
    resize: str
    if isinstance(subject, Run):
        recipe = subject.recipe.data
        resize, splits, renamed = recipe.resize, recipe.splits, renamed or dict(recipe.labels)
        manifest, refit = manifest_of(data.data, listing, recipe.listing()), subject.recipe.training.refit
    else:
        resize, splits, manifest = subject.input.resize, Splits(), manifest_of(data.data, listing, None)
    classes: tuple[str, ...] | None = subject.classes
    if is_multilabel(subject):
        manifest = manifest.with_labels(renamed, classes=manifest.classes) if renamed else manifest
        classes, renamed = None, {}
    undivided = manifest.splits == (NO_SPLIT,)
    trained_here = undivided and isinstance(subject, Run) and training_data_name(subject) == manifest.root.name
    wanted = data.split or (splits.test if splits.test in manifest.splits or trained_here else None)

    def has(other: str) -> bool:
        """Return whether the data have another split than the examined one."""
        divided = undivided and {wanted, other} <= SHARES.keys()
        return wanted not in (None, other) and (other in manifest.splits or divided)

    load = partial(load_dataset, manifest, size=subject.size, classes=classes, resize=resize, labels=renamed or None)
    examined = load(wanted)
    log_reading(examined, set())
    report_skipped(examined)
    validation = surrogate = None
    if has(splits.val) and not refit:
        try:
            validation = load(splits.val)
        except UserError as problem:  # such as no readable image, or none of a class of the model
            log(f"validation images are not used: {problem}")
    if has(splits.train) and subject.model is not None:
        with suppress(UserError):
            training = load(splits.train)
            new = ~np.isin(training.groups, examined.groups) & ~np.isin(training.image_sums, examined.image_sums)
            if new.any():
                rows = np.flatnonzero(new)[balanced_rows(training.labels[new], SURROGATE_IMAGES)]
                surrogate = ImageRows(training, rows)
    in_split = int((manifest.table["split"] == wanted).sum()) if wanted in manifest.splits else None
    if undivided and wanted in SHARES:
        in_split = len(examined) + len(examined.skipped)
    names = Counter(name for names in _image_names(manifest.table) for name in set(names))
    ambiguous = frozenset(name for name, count in names.items() if count > 1)
    listed, examines_validation = len(manifest.table), wanted == splits.val
    return AuditImages(examined, validation, surrogate, ambiguous, examines_validation, listed, in_split)


def first_images(dataset: Dataset, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Load images (N, 1, H, W) in [0, 1] and labels (N,) for the entry checks: the classes in turn."""
    labels = np.asarray(dataset.labels)
    rows = balanced_rows(labels, count)
    return load_pixels(dataset, rows, device), torch.from_numpy(labels[rows]).to(device)


def balanced_rows(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the rows of `count` images, the classes in turn as far as they reach, always the same."""
    random = np.random.default_rng(0)
    parts = [random.permutation(np.flatnonzero(labels == k)) for k in np.unique(labels)]
    return np.array([row for turn in zip_longest(*parts) for row in turn if row is not None][:count])


def first_by_hash(sample_ids: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Return `count` rows (at most N), the classes in turn, each in the order of the SHA-256 of its ids (N,)."""
    order = np.argsort([sha256(str(name).encode()).hexdigest() for name in sample_ids])
    turns = pd.Series(order).groupby(labels[order]).cumcount()
    return order[turns.argsort(kind="stable")][:count]


def load_pixels(dataset: Dataset, rows: np.ndarray, device: torch.device) -> Tensor:
    """Load some images, (N, 1, H, W) in [0, 1]."""
    return to_pixels(torch.from_numpy(dataset.batch(rows)).to(device))


def read_submitted(path: Path, dataset: Dataset, findings: Sequence[str] = ()) -> SubmittedImages:
    """Read a file of adversarial images; UserError if one is not in [0, 1] and within its epsilon of its original.

    A safetensors file: a float image (1, H, W) in [0, 1] at the model's size under each sample id; if the model answers
    `findings`, also under `id#finding`. Its metadata has `epsilon`, the L-infinity radius, and `by`, the submitter.
    """
    try:
        with safe_open(path, "pt") as file:
            images, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError, json.JSONDecodeError) as problem:
        raise UserError(f"{path}: no safetensors file of adversarial images ({problem})") from None
    try:
        epsilon, by = float(metadata["epsilon"]), metadata["by"].strip()
    except (KeyError, ValueError):
        raise UserError(f"{path}: its metadata must say epsilon (such as '0.02') and by, who made the images") from None
    if not by.isprintable():
        raise UserError(f"{path}: by: one line of letters that can be printed: it stands in reports")
    if not 0 < epsilon <= 1 or not by:
        raise UserError(f"{path}: epsilon {epsilon:g} by '{by}': a radius in (0, 1] and a name are needed")
    if not images:
        raise UserError(f"{path}: holds no image")
    rows = {str(name): row for row, name in enumerate(dataset.sample_ids)}
    for key, image in images.items():
        name, _, finding = key.rpartition("#")
        row = rows.get(key, rows.get(name))
        if key not in rows and row is not None and finding not in findings:
            listed = f"one of its findings, {', '.join(findings)}" if findings else f"nothing (write {name})"
            raise UserError(f"{path}: {key}: behind an image's id may stand {listed}")
        if row is None:
            raise UserError(f"{path}: {key} is none of these images; ids are such as {dataset.sample_ids[0]}")
        radiograph = to_pixels(torch.from_numpy(dataset.batch([row])))[0]
        if image.shape != radiograph.shape or not image.is_floating_point():
            kind = f"{image.dtype} {tuple(image.shape)}"
            raise UserError(f"{path}: {key} is {kind}, but the image is a float image {tuple(radiograph.shape)}")
        if not (bool(image.isfinite().all()) and float(image.min()) >= 0 and float(image.max()) <= 1):
            raise UserError(f"{path}: {key} leaves [0, 1]")
        if (distance := float((image.float() - radiograph).abs().max())) > epsilon + _ROUNDING:
            raise UserError(f"{path}: {key} lies {distance:.4g} from its image, beyond the epsilon of {epsilon:g}")
    return SubmittedImages(path, by, epsilon, {key: image.float() for key, image in images.items()})


def match_scores(subject: ExternalModel, dataset: Dataset, unclear: frozenset[str]) -> tuple[pd.DataFrame, list[Check]]:
    """Return a score table as clean predictions, and a check of how many images have a score; UserError if none has."""
    assert subject.predictions is not None
    images = evaluation.about_images(dataset)
    ids = (_shorten_path(name, dataset.root) for name in subject.predictions["sample_id"])
    scores = dict(zip(ids, subject.predictions["logits"], strict=True))
    rows, logits, ambiguous = list[int](), [], 0
    for row, names in enumerate(_image_names(dataset.table)):
        usable = (n for k, n in enumerate(names) if n in scores and (k < _UNIQUE or n not in unclear))
        if (name := next(usable, None)) is not None:
            rows.append(row)
            logits.append(scores[name])
        else:
            ambiguous += any(name in scores for name in names)
    remark = f"; {ambiguous} are named as several images are: give their ids or paths" if ambiguous else ""
    if not rows:
        where, example = subject.origin.path, images["sample_id"][0]
        raise UserError(f"{where}: no row is of an image in {dataset.where}; ids are such as {example}{remark}")
    table = images.iloc[rows].reset_index(drop=True)
    table = table.assign(attack=CLEAN, epsilon=0.0, steps=0, severity=0, logits=logits)
    text, complete = f"{len(rows)} of {len(images)} images have a score", len(rows) == len(images)
    if not complete:
        text += "; the others are left out, and may be those that it fails on: give a score for every image"
    return table, [Check("scores", complete, text + remark, grave=True)]


def _shorten_path(name: str, root: Path) -> str:
    """Return the path of a file within `root` relative to it; any other name as it is."""
    path = Path(name)
    inside = path.is_file() and path.resolve().is_relative_to(root.resolve())
    return str(path.resolve().relative_to(root.resolve())) if inside else name


def _image_names(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """Return the possible names of each image: its id and path (_UNIQUE both), file name, name without ending."""
    paths = [Path(str(path)) for path in table["path"]]
    return [(str(key), str(path), path.name, path.stem) for key, path in zip(table["sample_id"], paths, strict=True)]
