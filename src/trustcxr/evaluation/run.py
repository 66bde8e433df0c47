"""A trained run, loaded."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from trustcxr.errors import UserError
from trustcxr.models import classifier, factory
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.validation import validate
from trustcxr.results import documents, files, folders
from trustcxr.results.documents import RunDocument, TrainingDocument


@dataclass
class Run:
    """A trained model and what is known of it."""

    folder: Path
    model: classifier.Classifier
    classes: tuple[str, ...]
    recipe: RunRecipe
    metrics: RunDocument | None = None
    training: TrainingDocument = field(default_factory=TrainingDocument)

    def __repr__(self) -> str:
        return f"Run({self.name}, {self.size} pixels, classes {', '.join(self.classes)}, in {self.folder})"

    @property
    def name(self) -> str:
        """The run's name: <model>-<defence>-s<seed>."""
        return self.recipe.name

    @property
    def size(self) -> int:
        """Side in pixels of the images it was trained on."""
        return self.recipe.data.size

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device


def device() -> torch.device:
    """The accelerator where there is one, else the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_run(folder: str | Path, *, on: torch.device | str | None = None) -> Run:
    """A trained run from its folder, in evaluation mode. Nothing is unpickled.

    Raises UserError where the folder is not a run, or its files do not belong together.
    """
    from trustcxr.models.weights import load_weights

    path = folders.check_run(Path(folder))
    content = files.read_yaml(path / folders.RUN_FILE)
    try:
        recipe = validate(RunRecipe, content["recipe"], str(path / folders.RUN_FILE))
        classes = tuple(str(name) for name in content["classes"])
    except (KeyError, TypeError) as problem:
        raise UserError(f"{path / folders.RUN_FILE}: not the file of a run ({problem} is missing)") from None
    folders.check_sums(path, content)
    model = factory.build(recipe.model.name, classes=len(classes), **recipe.network_options())
    load_weights(model, path / folders.WEIGHTS_FILE)
    model = model.eval().to(on or device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    metrics = documents.read_if_there(RunDocument, path / folders.METRICS_FILE)
    training = documents.read_if_there(TrainingDocument, path / folders.TRAINING_FILE)
    return Run(path, model, classes, recipe, metrics, training or TrainingDocument())


def as_before_refit(run: Run) -> Run:
    """The run with the weights that validation judged: others where it was trained once more on validation images."""
    folder = folders.before_refit(run.folder)
    return run if folder == run.folder else load_run(folder, on=run.device)
