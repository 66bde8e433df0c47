"""What an audit is of: the model, the images, the examination; and what is written of the model."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
from torch import Tensor

from trustcxr.audit import multilabel
from trustcxr.audit.audit_data import AuditImages, trained_on
from trustcxr.audit.formats import ExternalModel
from trustcxr.audit.formats.loading import Origin
from trustcxr.audit.subject import Subject
from trustcxr.audit.submitted import Images
from trustcxr.data.dataset import Dataset
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import Run
from trustcxr.recipes.evaluation_recipe import AttackRecipe
from trustcxr.recipes.protocol import ExamRecipe
from trustcxr.registry import DEFENCES
from trustcxr.runs.provenance import data_hash
from trustcxr.storage import atomic, layout
from trustcxr.storage.schemas import AuditedData, AuditedModel

AUDIT_VERSION = 1  # of how figures are computed: an audit of another version is made again


@dataclass(frozen=True)
class Audit:
    """What is examined: the model, the images, the examination, and images that were handed in."""

    subject: Subject
    images: AuditImages
    exam: ExamRecipe
    handed: Images | None = None

    @property
    def dataset(self) -> Dataset:
        """The images that are examined."""
        return self.images.examined

    @property
    def at_once(self) -> bool:
        """Whether several threads may ask the model at once: not where it is code that somebody else wrote."""
        return isinstance(self.subject, Run) or self.subject.origin.kind != "python"

    @property
    def taught(self) -> Callable[[], Tensor] | None:
        """Gets the training images that a surrogate learns from; None where there are none."""
        found = self.images.taught
        return None if found is None else partial(found.pixels, self.subject.device)

    @property
    def of_findings(self) -> bool:
        """Whether the model has one sigmoid a finding."""
        return isinstance(self.subject, ExternalModel) and self.subject.kind == "sigmoid"

    def attacks(self, *, gradients: bool) -> Sequence[AttackRecipe]:
        """Return the attacks of the examination on a model with gradients, or without."""
        return self.exam.attacks if gradients else self.exam.without_gradients

    @property
    def key(self) -> str:
        """A checksum of the model, of all that is known of the images examined and of validation, and of the exam.

        Of the images that a surrogate may learn from by their pixels.
        """
        exam = self.exam.model_dump(mode="json", exclude={"effort", "seeds"})
        content = [AUDIT_VERSION, about(self.subject).plain(), self.dataset.fingerprint, exam]
        if not isinstance(self.subject, Run):
            content += [part.model_dump(mode="json") for part in (self.subject.input, self.subject.output)]
        content += [] if self.handed is None else [atomic.checksum(self.handed.path)]
        if (taught := self.images.taught) is not None:
            content += [taught.training.image_sums[taught.rows].tolist()]
        found = sha256(json.dumps(content, sort_keys=True, default=str).encode())
        for name, tensor in self.subject.model.state_dict().items() if self.subject.model is not None else ():
            found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        for dataset in (self.dataset, self.images.validation):
            found.update(b"" if dataset is None else data_hash(dataset, "lung").encode())
        return found.hexdigest()[:16]

    @property
    def truth(self) -> str:
        """A checksum of which findings are known of each image, in any order; empty if one class is all that counts."""
        if not self.of_findings:
            return ""
        names, order = sorted(self.subject.classes), np.argsort(self.dataset.sample_ids)
        known = multilabel.labelled_findings(self.dataset.table, names)[order]
        return sha256("\n".join(names).encode() + known.tobytes()).hexdigest()[:16]

    def data(self, count: int | None) -> AuditedData:
        """The images, as they stand under `data`; `count` of them have a score."""
        return AuditedData(
            name=self.dataset.root.name,
            fingerprint=self.dataset.fingerprint,
            files=self.dataset.files_fingerprint,
            lungs=self.dataset.lung_files_fingerprint,
            truth=self.truth,
            n=count,
            total=len(self.dataset),
        )


def about(subject: Subject) -> AuditedModel:
    """The model, as it stands under `model`."""
    parts = {"name": subject.name, "reported": _reported(subject)}
    return AuditedModel.model_validate(parts | asdict(_origin(subject)))


def check_empty(out: Path, further: Mapping[str, str]) -> None:
    """UserError where a folder for results holds a run or a study, or a `further` thing, known by its file."""
    held = {
        "a run": layout.RUN_FILE,
        "a study": layout.STUDY_FILE,
        "the results of a study": layout.STUDY_RESULTS,
        **further,
    }
    for what, name in held.items():
        if (out / name).exists():
            raise UserError(f"{out}: holds {what}; choose another --out")


def is_another(before: AuditedModel, subject: Subject) -> bool:
    """Return whether an audit is of another model, and not of this one before its file was changed or moved."""
    origin = _origin(subject)
    moved = before.path is not None and Path(before.path).resolve() != Path(origin.path or "").resolve()
    return before.name != subject.name or (moved and before.sha256 != origin.sha256)


def _reported(subject: Subject) -> dict[str, object]:
    """What its makers say of it; of a run what it was trained on, and against."""
    if not isinstance(subject, Run):
        return subject.reported.model_dump()
    recipe = subject.trained_by
    against = f", L-infinity {recipe.defence.epsilon:g}" if DEFENCES[recipe.defence.name].attacks else ""
    return {"threat_model": f"{recipe.defence.name}{against}", "training_data": trained_on(subject)}


def _origin(subject: Subject) -> Origin:
    """What was given."""
    if not isinstance(subject, Run):
        return subject.origin
    weights, folder = subject.folder / layout.WEIGHTS_FILE, str(subject.folder)
    parameters = sum(p.numel() for p in subject.model.parameters())
    return Origin("run", folder, atomic.checksum(weights), weights.stat().st_size, parameters)
