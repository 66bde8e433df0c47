"""What an audit is of: the model, the films, the examination; and what is written of the model."""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256

from trustcxr.about import __version__
from trustcxr.catalogue import DEFENCES
from trustcxr.data.dataset import Dataset
from trustcxr.evaluation.given import Subject
from trustcxr.evaluation.handed_in import Images
from trustcxr.evaluation.run import Run
from trustcxr.models.adapters.loading import Origin
from trustcxr.recipes.exam import ExamRecipe
from trustcxr.results import files, folders
from trustcxr.study.audit_data import Films, trained_on


@dataclass(frozen=True)
class Audit:
    """What is examined: the model, the images, the examination, and the options that data were read with."""

    subject: Subject
    films: Films
    exam: ExamRecipe
    handed: Images | None = None

    @property
    def dataset(self) -> Dataset:
        """The images that are examined."""
        return self.films.examined

    @property
    def at_once(self) -> bool:
        """Whether several threads may ask the model at once: not where it is code that somebody else wrote."""
        return isinstance(self.subject, Run) or self.subject.origin.kind != "python"

    @property
    def key(self) -> str:
        """A checksum of the model, the images and the examination."""
        content = [__version__, about(self.subject), self.dataset.fingerprint, self.exam.model_dump(mode="json")]
        if not isinstance(self.subject, Run):
            content += [part.model_dump(mode="json") for part in (self.subject.input, self.subject.output)]
        content += [] if self.handed is None else [files.checksum(self.handed.path)]
        found = sha256(json.dumps(content, sort_keys=True, default=str).encode())
        for name, tensor in self.subject.model.state_dict().items() if self.subject.model is not None else ():
            found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()[:16]


def about(subject: Subject) -> dict[str, object]:
    """The model, as it stands under `model`."""
    return {"name": subject.name, "reported": _reported(subject)} | asdict(_origin(subject))


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
    weights, folder = subject.folder / folders.WEIGHTS_FILE, str(subject.folder)
    parameters = sum(p.numel() for p in subject.model.parameters())
    return Origin("run", folder, files.checksum(weights), weights.stat().st_size, parameters)
