"""Define the recipe of one trained model."""

from collections.abc import Callable, Sequence
from itertools import combinations
from operator import attrgetter
from typing import Annotated, Any, Literal, TypedDict

from pydantic import BeforeValidator, Field, model_validator

from trustcxr.errors import UserError
from trustcxr.recipes.parsing import Seed, Strict
from trustcxr.recipes.training_recipe import Background, DefenceRecipe, ModelRecipe, TrainingRecipe
from trustcxr.registry import BACKGROUNDS, networks

# A number, such as a fold of cross-validation, needs no quotes.
SplitName = Annotated[str, BeforeValidator(lambda name: str(name) if type(name) is int else name)]


class Splits(Strict):
    """The data set's names of the three splits."""

    train: SplitName = "Train"
    val: SplitName = "Val"
    test: SplitName = "Test"


def check_splits(splits: Splits) -> None:
    """Raise UserError if one split has two roles: training or validation images would be tested."""
    for (first, name), (second, other) in combinations(splits.model_dump().items(), 2):
        if name == other:
            raise UserError(f"data.splits: {first} and {second} are both {name}; name three, for unseen images")


class Listing(TypedDict, total=False):
    """Options of `read_manifest`."""

    layout: str
    columns: str | dict[str, str | int] | None
    images: str | None


_LABELS = "the data set's label -> the class that it belongs to; null leaves its images out"
_LEAVE_OUT = "sample ids not to train on, such as images that are in the first data set's Val or Test"
_RESIZE = "how an image becomes square: squeeze (as in COVID-QU-Ex), or pad with black"
_ADD = "other data sets to train on, each with its share of the images; the first data set has the rest"


class ImagesRecipe(Strict):
    """Options of reading the images and labels of a data set."""

    labels: dict[str, str | None] = Field({}, description=_LABELS)
    layout: str = Field("auto", description="auto, list, covidqu, covidx or folders")
    columns: str | dict[str, str | int] | None = Field(
        None, description="of a list: covidx, nih, rsna, rsna-boxes, or our word -> the list's column (name or number)"
    )
    images: str | None = Field(None, description="of a list: the folder of its images; default: the list's folder")

    def listing(self) -> Listing:
        """Return the options of `read_manifest`."""
        return Listing(layout=self.layout, columns=self.columns, images=self.images)


class AddedData(ImagesRecipe):
    """Another data set to train on; validation and test images are of the first data set alone."""

    path: str = Field(min_length=1, description="its folder or list, beside the first data set or from here")
    share: float = Field(gt=0, lt=1, description="share of the drawn images of each class that this data set has")
    split: str = Field("Train", description="its split to train on")
    leave_out: tuple[str, ...] = Field((), description=_LEAVE_OUT)


class DataRecipe(ImagesRecipe):
    """Images and labels of a data set, and other data sets to train on."""

    size: int = Field(224, ge=16, le=2048, description="side of the square image in pixels")
    splits: Splits = Splits()
    resize: Literal["squeeze", "pad"] = Field("squeeze", description=_RESIZE)
    add: tuple[AddedData, ...] = Field((), description=_ADD)

    def reading(self) -> dict[str, Any]:
        """Return the options of `load_dataset`."""
        return self.model_dump(include={"size", "labels", "resize", "layout", "columns", "images"})

    @property
    def shares(self) -> tuple[float, ...]:
        """Return the share of the first data set, then of each added one."""
        return (1 - sum(added.share for added in self.add), *(added.share for added in self.add))

    def at_paths_of(self, other: "DataRecipe") -> "DataRecipe":
        """Return the recipe with the paths of another; images are identified by their pixels."""
        add = tuple(
            mine.model_copy(update={"path": theirs.path, "images": theirs.images})
            for mine, theirs in zip(self.add, other.add, strict=False)
        )
        return self.model_copy(update={"images": other.images, "add": add + self.add[len(add) :]})

    @model_validator(mode="after")
    def _check_shares(self) -> "DataRecipe":
        if self.shares[0] <= 0:
            total = 1 - self.shares[0]
            raise ValueError(f"add: the shares are together {total:g}, so the first data set has none; choose less")
        return self


# A key of training -> the test if a run uses it, and what to add if no run does.
_NEEDS: dict[str, tuple[Callable[[TrainingRecipe], bool], str]] = {
    "balanced_by": (lambda training: training.balanced, "training.balanced: true"),
    **{
        f"counterfactuals.{key}": (lambda training: training.counterfactuals.share > 0, "counterfactuals.share: 0.3")
        for key in ("fills", "epsilon", "healthy_class")
    },
    "tracking_uri": (lambda training: training.track == "mlflow", "training.track: mlflow, which has a server"),
}


def check_unused(trainings: Sequence[TrainingRecipe]) -> None:
    """Raise UserError for a key that is set and that none of the trainings of one recipe uses."""
    for key, (uses, wanted) in _NEEDS.items():
        default, values = attrgetter(key)(TrainingRecipe()), map(attrgetter(key), trainings)
        changed = [value for value in values if value != default]
        if changed and not any(map(uses, trainings)):
            raise UserError(f"{key}: {changed[0]} does nothing without {wanted}; add that, or leave {key} out")


class RunRecipe(Strict):
    """Everything that defines one trained model."""

    model: ModelRecipe
    defence: DefenceRecipe = DefenceRecipe()
    seed: Seed = 0
    data: DataRecipe = DataRecipe()
    training: TrainingRecipe = TrainingRecipe()

    @property
    def name(self) -> str:
        """Return the name of the run's folder: <model>-<training>-s<seed>."""
        return f"{self.model.called.lower()}-{self.trained_how}-s{self.seed}"

    @property
    def trained_how(self) -> str:
        """Return the background (if not full), the use of lesion masks, and the defence, joined by hyphens."""
        background = "" if self.background == "full" else self.background
        return "-".join(part for part in (background, *self._lesion_uses, self.defence.called) if part)

    @property
    def label(self) -> str:
        """Return the defence's label, or else the use of lesion masks."""
        return self.defence.label or " ".join(self._lesion_uses)

    @property
    def _lesion_uses(self) -> list[str]:
        uses = {"guided": self.training.guidance, "counterfactual": self.training.counterfactuals.share}
        return [name for name, amount in uses.items() if amount]

    @property
    def background(self) -> Background:
        """Return what training shows outside the lungs."""
        return self.training.background

    def same_as(self, other: "RunRecipe") -> bool:
        """Return True if both recipes make the same run.

        Trackers, parts of a batch (memory decides) and paths of images (pixels identify them) do not count.
        """
        trainings = [each.training.without_tracker().model_copy(update={"accumulate": 1}) for each in (self, other)]
        rest = other.model_copy(update={"training": self.training, "data": other.data.at_paths_of(self.data)})
        return trainings[0] == trainings[1] and self == rest

    def network_options(self) -> dict[str, Any]:
        """Return the keywords of `models.build` besides name, classes and weights."""
        return self.model.options() | ({"lung_gate": True} if BACKGROUNDS[self.background].gate else {})

    @property
    def needs_lungs(self) -> bool:
        """Return True if training needs lung masks."""
        return self.background != "full" or self.training.needs_lesions

    @model_validator(mode="after")
    def _check_parts(self) -> "RunRecipe":
        if self.training.needs_lesions and self.defence.name == "mixup":
            raise ValueError("guidance and counterfactuals need the lesion of one image, and mixup shows two at once")
        self._check_guidance()
        self._check_training()
        if self.model.is_ensemble and self.defence.name == "free":
            raise ValueError("the members of an ensemble learn each on an attack of its own, which free cannot do")
        return self

    def _check_training(self) -> None:
        training, defence = self.training, self.defence
        if self.data.add and not training.balanced:
            path = self.data.add[0].path
            raise ValueError(f"data.add: {path} has a share of each class, so draw evenly: set training.balanced: true")
        if defence.attacks and not defence.epsilon:
            raise ValueError(f"{defence.name} at epsilon 0 attacks nothing; set a radius, such as 0.02, or drop it")
        if defence.regulariser and not defence.ramp:
            raise ValueError(f"regulariser: {defence.regulariser:g} does nothing alone; set defence.ramp, such as 0.5")
        if training.warmup_epochs > training.epochs:
            raise ValueError(f"warmup_epochs: {training.warmup_epochs:g} is more than the {training.epochs} epochs")
        if training.weight_decay * training.learning_rate >= 1:
            raise ValueError(
                f"weight_decay: {training.weight_decay:g} at a learning rate of {training.learning_rate:g} takes all "
                "of the weights away at each step; choose less, such as 0.01"
            )

        if defence.certifies and training.guidance and not defence.clean_weight:
            raise ValueError(
                f"guidance is of answers; {defence.name} asks for bounds alone; set defence.clean_weight too"
            )
        if defence.certifies and BACKGROUNDS[self.background].emptied:
            raise ValueError(
                f"background: {self.background} shows images that {defence.name} cannot bound; use full or swap"
            )

    def _check_guidance(self) -> None:
        training, name = self.training, self.model.name
        on_evidence = training.guidance_on == "evidence"
        if not training.guidance:
            if not on_evidence:
                raise ValueError(f"guidance_on: {training.guidance_on} does nothing without a weight; set guidance")
        elif on_evidence and not all(n.startswith("evidence") for n in networks(name.lower())):
            raise ValueError(f"guidance_on: evidence needs an evidence network, unlike {name}; choose gradients")
