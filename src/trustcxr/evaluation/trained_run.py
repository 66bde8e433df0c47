"""Load a trained run."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from trustcxr.errors import UserError
from trustcxr.evaluation import hub, trained_models
from trustcxr.models import classifier
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.storage import atomic, layout, schemas
from trustcxr.storage.evaluations import own_figures
from trustcxr.storage.schemas import RunDocument, TrainingDocument


@dataclass(frozen=True)
class ModelUnderTest:
    """A model to be measured: `model` maps pixel space to logits in the order of `classes`, on `device`."""

    name: str
    model: nn.Module
    classes: tuple[str, ...]
    device: torch.device


@dataclass(frozen=True)
class About:
    """Identity and origin of a model, as every document states it.

    origin: `trained` here, by a recipe; or `given`: its training is unknown.
    """

    name: str
    model: str
    defence: str = ""
    background: str = "full"
    seed: int | None = None
    label: str = ""
    origin: Literal["trained", "given"] = "given"

    @classmethod
    def trained(cls, recipe: RunRecipe) -> "About":
        """Describe a run that was trained here."""
        way = (recipe.defence.name, recipe.background, recipe.seed, recipe.label)
        return cls(recipe.name, recipe.model.called, *way, origin="trained")


@dataclass
class Run:
    """A trained model in a run's folder.

    `metrics`: its figures on its own test images, by its study or by the newest evaluation.
    """

    folder: Path
    model: classifier.Classifier
    classes: tuple[str, ...]
    recipe: RunRecipe
    metrics: RunDocument | None = None
    training: TrainingDocument = field(default_factory=TrainingDocument)

    def __repr__(self) -> str:
        return f"Run({self.name}, {self.size} pixels, classes {', '.join(self.classes)}, in {self.folder})"

    @property
    def about(self) -> About:
        """Identity and origin of the model."""
        about = About.trained(self.recipe)
        return replace(about, name=trained_models.name_of(self.folder) or about.name)

    @property
    def name(self) -> str:
        """Name of the run: <model>-<defence>-s<seed>, or of the trained model."""
        return self.about.name

    @property
    def size(self) -> int:
        """Side in pixels of its training images."""
        return self.recipe.data.size

    @property
    def resize(self) -> str:
        """Return how its training images became squares: squeeze or pad."""
        return self.recipe.data.resize

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device


AnyModel = Run | ModelUnderTest


def device() -> torch.device:
    """Return the accelerator, or the CPU without one."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_run(folder: str | Path, *, on: torch.device | str | None = None) -> Run:
    """Load a trained run in evaluation mode: from its folder, by a zoo model's name, or from an address `hf://owner/name`.

    Nothing is unpickled; only an address uses the network. Raises UserError if the folder is not a run, its files do
    not belong together, or a zoo model's answers differ from those that its entry expects.

    >>> import trustcxr as tx
    >>> run = tx.load_run("covid-robust")
    >>> run.classes, run.size
    (('COVID-19', 'Non-COVID', 'Normal'), 48)
    """
    from trustcxr.models import factory  # importing timm takes seconds

    path = layout.check_run(hub.fetch(folder) if hub.is_address(folder) else trained_models.resolve(folder))
    content = atomic.read_yaml(path / layout.RUN_FILE)
    try:
        recipe = validate(RunRecipe, content["recipe"], str(path / layout.RUN_FILE))
        if not isinstance(names := content["classes"], list):
            raise TypeError("a list of classes")
        classes = tuple(map(str, names))
    except (KeyError, TypeError) as problem:
        raise UserError(f"{path / layout.RUN_FILE}: not the file of a run ({problem} is missing)") from None
    layout.check_sums(path, content)
    model = factory.build(recipe.model.name, classes=len(classes), **recipe.network_options())
    factory.load_weights(model, path / layout.WEIGHTS_FILE)
    model = model.eval().to(on or device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    if name := trained_models.name_of(path):
        trained_models.check_logits(name, model, recipe.data.size)
    try:
        measured = own_figures(path)
    except UserError:  # damaged, and measured again by its study; `trustcxr report` says it
        measured = None
    training = schemas.read_if_there(TrainingDocument, path / layout.TRAINING_FILE)
    return Run(
        path, model, classes, recipe, None if measured is None else measured.document, training or TrainingDocument()
    )


def load_before_refit(run: Run) -> Run:
    """Load the run with the weights that validation judged; they differ if it was refit on validation images too.

    Raises UserError if they are missing.
    """
    folder = layout.before_refit(run.folder)
    if folder == run.folder and run.recipe.training.refit:
        raise UserError(
            f"{folder / layout.BEFORE_REFIT}: not there: the weights that validation judged; the run's own were "
            "trained on the validation images too. Restore the folder, or train again"
        )
    return run if folder == run.folder else load_run(folder, on=run.device)
