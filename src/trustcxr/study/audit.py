"""`trustcxr audit`: the whole examination of any model on a folder of images, as audit.json."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from trustcxr.about import __version__
from trustcxr.console import say
from trustcxr.data import load_dataset, read_manifest
from trustcxr.data.batches import to_pixels
from trustcxr.data.dataset import Dataset
from trustcxr.errors import UserError
from trustcxr.evaluation import predictions as evaluation
from trustcxr.evaluation import reliance
from trustcxr.evaluation.carried_out import CarriedOut
from trustcxr.evaluation.door import Check, Door, examine_at_the_door
from trustcxr.evaluation.given import Examined, Subject, load_model
from trustcxr.evaluation.run import Run
from trustcxr.evaluation.summary import describe
from trustcxr.models.adapters.loading import Origin
from trustcxr.recipes.exam import ExamRecipe, load_exam
from trustcxr.recipes.run import Splits
from trustcxr.results import files, folders
from trustcxr.results.documents import AuditDocument, AuditedData, AuditedModel, read
from trustcxr.results.tables import CLEAN

PARTS = ".parts"  # rows of finished batches, until all are there


@dataclass(frozen=True)
class Audit:
    """What is examined: the model, the images, the examination, and the options that data were read with."""

    subject: Subject
    dataset: Dataset
    exam: ExamRecipe

    @property
    def key(self) -> str:
        """A checksum of the model, the images and the examination."""
        content = [__version__, _about(self.subject), self.dataset.fingerprint, self.exam.model_dump(mode="json")]
        if not isinstance(self.subject, Run):
            content += [part.model_dump(mode="json") for part in (self.subject.input, self.subject.output)]
        found = sha256(json.dumps(content, sort_keys=True, default=str).encode())
        for name, tensor in self.subject.model.state_dict().items() if self.subject.model is not None else ():
            found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()[:16]


def audit(
    model: str | Path,
    data: Path,
    out: Path,
    *,
    split: str | None = None,
    attacks: Sequence[str] = (),
    epsilons: Sequence[float] = (),
    labels: Mapping[str, str | None] | None = None,
    listing: Mapping[str, Any] | None = None,
    trust_code: bool = False,
) -> AuditDocument:
    """Examine a model (a run's folder, or a model file) on a data set; the document of audit.json, written into `out`.

    Started again after a cut, it goes on; where the same was examined before, that is the answer.
    Raises UserError for a model or data that cannot be had, or an `out` that holds something else.
    """
    exam = load_exam().changed(tuple(attacks), tuple(epsilons))
    subject = load_model(model) if Path(model).is_dir() else load_model(model, trust_code=trust_code)
    whole = Audit(subject, _open(subject, data, split, labels, listing), exam)
    key, path = whole.key, out / folders.AUDIT_FILE
    if (out / folders.RUN_FILE).exists():
        raise UserError(f"{out}: holds a run; choose another --out")
    if path.is_file() and (before := read(AuditDocument, path)).examination == key:
        say(f"{out}: already examined")
        return before
    document = _document(whole, out, key)
    files.write_json(path, document)
    shutil.rmtree(out / PARTS, ignore_errors=True)
    return document


def _document(whole: Audit, out: Path, key: str) -> AuditDocument:
    subject, dataset, exam = whole.subject, whole.dataset, whole.exam
    films, labels = _films(dataset, exam.gate.films, subject.device)
    door = examine_at_the_door(subject, films, labels, epsilon=exam.gate.epsilon, planted=exam.gate.planted)
    checks = [*door.checks, *_reading(subject)]
    if door.model is None:
        table, more = _scored(subject, dataset)
        checks += more
        examined = Examined(subject.name, torch.nn.Identity(), subject.classes, subject.device)
    else:
        examined = Examined(subject.name, door.model, subject.classes, subject.device)
        table = _predicted(examined, whole, door, films, out / PARTS / key)
    document = AuditDocument.of(
        describe(examined, table, resamples=exam.bootstrap),
        model=AuditedModel.model_validate(_about(subject)),
        protocol=exam.version,
        data=AuditedData(name=dataset.root.name, fingerprint=dataset.fingerprint, n=len(dataset)),
        examination=key,
    )
    reliance.withdraw(document, door)
    checks += reliance.compared(document)
    document.gate = [check.document() for check in checks]
    document.unreliable, document.because = reliance.verdict(document, checks, door)
    files.write_table(out / folders.PREDICTIONS_FILE, table)
    return document


def _predicted(examined: Examined, whole: Audit, door: Door, films: Tensor, parts: Path) -> pd.DataFrame:
    exam = whole.exam
    assert door.traits is not None  # of every model that can be asked
    return evaluation.predict(
        examined,
        whole.dataset,
        exam.attacks if door.gradients else exam.without_gradients,
        corruptions=exam.corruptions,
        batch_size=exam.batch_size,
        carry_out=CarriedOut(examined.model, door.traits, door.gradients, films),
        parts=parts,
    )


def _about(subject: Subject) -> dict[str, object]:
    """The model, as it stands under `model`."""
    return {"name": subject.name} | asdict(_origin(subject))


def _origin(subject: Subject) -> Origin:
    """What was given."""
    if not isinstance(subject, Run):
        return subject.origin
    weights, folder = subject.folder / folders.WEIGHTS_FILE, str(subject.folder)
    parameters = sum(p.numel() for p in subject.model.parameters())
    return Origin("run", folder, files.checksum(weights), weights.stat().st_size, parameters)


def _open(
    subject: Subject,
    data: Path,
    split: str | None,
    labels: Mapping[str, str | None] | None,
    listing: Mapping[str, Any] | None,
) -> Dataset:
    """The data in the model's size and classes: the test split unless said, where there is one, else all."""
    resize, test, renamed = "squeeze", Splits().test, dict(labels or {})
    read = dict(listing or {})
    if isinstance(subject, Run):
        recipe = subject.trained_by.data
        resize, test, renamed = recipe.resize, recipe.splits.test, renamed or recipe.labels
        read = recipe.listing() | read
    elif subject.input.resize == "pad":
        resize = "pad"
    try:
        manifest = read_manifest(data, **read)
    except UserError:
        # Another hospital's data need not look like those that a run was trained on.
        manifest = read_manifest(data, **dict(listing or {}))
    wanted = split or (test if test in manifest.splits else None)
    dataset = load_dataset(
        manifest, wanted, subject.size, classes=subject.classes, resize=resize, labels=renamed or None
    )
    if len(dataset.skipped):
        first = dataset.skipped.iloc[0]
        say(f"{len(dataset.skipped)} unreadable images are left out; the first: {first['path']}: {first['reason']}")
    return dataset


def _films(dataset: Dataset, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Films for the door, (N, 1, H, W) in [0, 1] and their labels (N,): the classes in turn, the same each time."""
    random, labels = np.random.default_rng(0), np.asarray(dataset.labels)
    turns = [(turn, k, i) for k in np.unique(labels) for turn, i in enumerate(random.permutation(_where(labels, k)))]
    chosen = np.array([i for _, _, i in sorted(turns)[:count]])
    pixels = to_pixels(torch.from_numpy(dataset.batch(chosen)).to(device))
    return pixels, torch.from_numpy(labels[chosen]).to(device)


def _where(labels: np.ndarray, label: int) -> np.ndarray:
    return np.flatnonzero(labels == label)


def _reading(subject: Subject) -> list[Check]:
    """What of the model file is not done as it says."""
    if isinstance(subject, Run):
        return []
    found = []
    if subject.model is not None and subject.input.resize == "crop":
        found.append(Check("resize", None, "films were squeezed to a square here, not cropped"))
    if subject.kind == "sigmoid":
        text = "the highest finding counts as the answer: findings are not judged each at its own threshold yet"
        found.append(Check("operating points", None, text))
    return found


def _scored(subject: Subject, dataset: Dataset) -> tuple[pd.DataFrame, list[Check]]:
    """Given scores as clean predictions of the images that they are of; and how many images have none."""
    assert not isinstance(subject, Run)
    assert subject.predictions is not None
    about = evaluation.about_images(dataset)
    scores = dict(zip(subject.predictions["sample_id"], subject.predictions["logits"], strict=True))
    rows, named = [], 0
    for place, names in enumerate(_names(dataset)):
        known = next((name for name in names if name in scores), None)
        rows += [(place, scores[known])] if known is not None else []
        named += known is not None
    if not rows:
        raise UserError(
            f"{subject.origin.path}: no row is of an image in {dataset.root}; ids are such as {about['sample_id'][0]}"
        )
    table = about.iloc[[place for place, _ in rows]].reset_index(drop=True)
    table = table.assign(attack=CLEAN, epsilon=0.0, steps=0, severity=0, logits=[logits for _, logits in rows])
    text = f"{named} of {len(about)} images have a score" + ("" if named == len(about) else "; the others are left out")
    return table, [Check("scores", named == len(about), text)]


def _names(dataset: Dataset) -> list[tuple[str, ...]]:
    """What a table may call each image: its id, its path, or its file's name where no other has that."""
    paths = [Path(str(path)) for path in dataset.table["path"]]
    names, stems = (pd.Series([getattr(p, part) for p in paths]) for part in ("name", "stem"))
    alone = [(~s.duplicated(keep=False)).to_numpy() for s in (names, stems)]
    return [
        (str(key), str(path), *([path.name] if alone[0][i] else []), *([path.stem] if alone[1][i] else []))
        for i, (key, path) in enumerate(zip(dataset.sample_ids, paths, strict=True))
    ]
