"""Define the parts of a recipe for training: network, training, defence."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from trustcxr.recipes.parsing import Fraction, Strict
from trustcxr.registry import DEFENCES, networks

# The names of the registry's BACKGROUNDS, written out for the type checker.
Background = Literal["full", "swap", "mask", "emptied", "gate", "gate-emptied"]
Fill = Literal["grey", "mirror", "surroundings"]  # the names of data.lesion_edits.TRAINING_FILLS
MONITOR_IMAGES = 256  # validation images that PGD is run on after every epoch of a robust run
MONITOR_STEPS = 10


class Augment(Strict):
    """Ranges of the random changes to each training image; no flips by default, since the heart has a side."""

    rotation: float = Field(10.0, ge=0, le=45, description="degrees, either way")
    shift: float = Field(0.05, ge=0, le=0.3, description="share of the side, either way")
    scale: float = Field(0.1, ge=0, le=0.5, description="share of the size, either way")
    brightness: float = Field(0.1, ge=0, le=0.5, description="added to the pixels, either way")
    contrast: float = Field(0.1, ge=0, le=0.9, description="share of the contrast, either way")
    flip: Fraction = Field(0.0, description="share of images mirrored left to right; the heart has a side")


class CounterfactualRecipe(Strict):
    """Edited copies of training images: the lesion removed, or another image's lesion put in."""

    share: Fraction = Field(0.0, description="share of the images with a lesion, and of the healthy ones, to edit")
    fills: tuple[Fill, ...] = Field(
        ("grey",),
        min_length=1,
        description="what replaces a lesion, in turn: grey (of the healthy lung), mirror (the lung of the other side), "
        "surroundings (the healthy lung around it)",
    )
    epsilon: Fraction = Field(
        1.0, description="radius of attacks on edited images, as a share of the defence's epsilon; 0: no attack"
    )
    healthy_class: str = Field("Normal", description="class of an image whose lesion is removed")


class TrainingRecipe(Strict):
    """Training of a model."""

    epochs: int = Field(30, ge=1)
    batch_size: int = Field(32, ge=2)
    optimiser: Literal["adam", "adamw"] = Field("adam", description="the paper's is Adam; adamw decouples the decay")
    learning_rate: float = Field(5e-4, gt=0, lt=100)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: float = Field(0.5, ge=0)
    patience: int = Field(8, ge=1, description="epochs without a better validation figure before training stops")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="decay of the moving average of the weights; 0 for none")
    refit: bool = Field(
        False,
        description="train once more, on training and validation images, to the epoch that validation chose; "
        "validation figures stay those of the first training",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accumulate: int = Field(
        1, ge=1, description="parts of each batch, their gradients added up; doubled if a batch exceeds the memory"
    )
    balanced: bool = Field(False, description="draw every class equally often")
    balanced_by: str = Field(
        "",
        description="with balanced: a column of the data, such as source, each value of which is drawn equally often "
        "within each class; images without one are a value of their own",
    )
    background: Background = Field(
        "full",
        description="of training images: full, swap (the lungs on another image's), mask (black); emptied: adds "
        "to each batch copies with the lungs filled with grey, trained towards equal class probabilities; gate: the "
        "model contains a lung segmenter and replaces what is outside by mid-grey; gate-emptied: both",
    )
    guidance: float = Field(
        0.0, ge=0, description="weight of the loss that holds what explains an answer to the lesion masks"
    )
    guidance_on: Literal["evidence", "gradients"] = Field(
        "evidence",
        description="with guidance: what explains it: the evidence of an evidence network, or the pixels times the "
        "gradient in them",
    )
    counterfactuals: CounterfactualRecipe = CounterfactualRecipe()
    augment: Augment = Augment()
    track: Literal["none", "tensorboard", "mlflow"] = Field(
        "none", description="also follow each epoch there: tensorboard, mlflow (extra `track`); no part of the result"
    )
    tracking_uri: str = Field("", description="with track: mlflow: its server; default: a SQLite file beside the runs")

    def without_tracker(self) -> "TrainingRecipe":
        """Return the same training without a tracker."""
        return self.model_copy(update={"track": "none", "tracking_uri": ""})

    @property
    def needs_lesions(self) -> bool:
        """Return True if training needs lesion masks."""
        return self.guidance > 0 or self.counterfactuals.share > 0


# A part of a run's folder's name.
Label = Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,39})?$")]


class _Labelled(Strict):
    name: str
    label: Label = Field("", description="what runs and tables call it, if its name stands twice in a study")

    @property
    def called(self) -> str:
        """Return the label, or the name."""
        return self.label or self.name


class DefenceRecipe(_Labelled):
    """A defence. Its training keys replace the study's; keys that it does not use must keep their defaults."""

    name: str = "standard"
    epsilon: Fraction = Field(0.02, description="L-infinity radius in pixel space")
    clean_weight: Fraction = Field(0.0, description="share of the loss that is on clean images")
    regulariser: float = Field(
        0.0,
        ge=0,
        description="ibp and crown-ibp: weight of Shi et al.'s regularisers while epsilon grows (theirs: 0.5)",
    )
    ramp: Fraction = Field(0.0, description="share of training over which epsilon grows from 0 to its value")
    attack_precision: Literal["same", "bf16"] = Field(
        "same", description="bf16: the attack's passes alone, of which only the gradient's sign is used"
    )
    steps: int = Field(3, ge=1, le=100, description="pgd and trades: gradients of the attack in each training step")
    beta: float = Field(6.0, gt=0, description="trades: weight of the divergence beside the clean loss")
    replays: int = Field(
        4, ge=1, le=100, description="free: optimiser steps on each batch, so an epoch has so many times the steps"
    )
    alpha: float = Field(0.2, gt=0, description="mixup: of the Beta distribution that shares are drawn from")
    size: float = Field(0.25, gt=0, le=1, description="cutout: side of the square as a share of the image's")
    sigma: float = Field(0.05, gt=0, le=1, description="gaussian: standard deviation of the noise in pixel space")
    training: dict[str, Any] = Field({}, description="keys of training that take the place of the study's")

    @property
    def attacks(self) -> bool:
        """Return True if training attacks the model, so that validation does too."""
        entry = DEFENCES.get(self.name)
        return entry is None or entry.attacks

    @property
    def at_epsilon(self) -> str:
        """Return the radius as text after a robust accuracy; empty without attacks."""
        return f" at epsilon {self.epsilon:g}" if self.attacks or self.certifies else ""

    @property
    def certifies(self) -> bool:
        """Return True if training is by bounds, so that validation certifies."""
        return self.name in DEFENCES and DEFENCES[self.name].certifies

    @model_validator(mode="after")
    def _check_keys(self) -> "DefenceRecipe":
        if self.name in DEFENCES:
            uses = DEFENCES[self.name].options
            options = {key for entry in DEFENCES.values() for key in entry.options}
            for key, field in type(self).model_fields.items():
                if key in options and key not in uses and getattr(self, key) != field.default:
                    takes = f"it takes {', '.join(uses)}" if uses else "it takes no options"
                    raise ValueError(f"defence {self.name} does not use {key}; {takes}")
        return self


class ModelRecipe(_Labelled):
    """A network, or an ensemble. Its training keys replace the study's."""

    name: str = Field(description="one of the 21 or a timm architecture; A+B: an ensemble of both, logits averaged")
    weights: str = "imagenet"
    normalisation: Literal["batch", "group"] = Field("batch", description="BatchNorm, or GroupNorm in its place")
    activation: Literal["own", "silu", "gelu", "softplus"] = Field(
        "own", description="a smooth one in the place of each ReLU (softplus with beta 10)"
    )
    members: int = Field(
        1, ge=1, le=20, description="networks of this name in an ensemble, each trained for itself, logits averaged"
    )
    training: dict[str, Any] = Field({}, description="keys of training that take the place of the study's")

    @property
    def is_ensemble(self) -> bool:
        """Return True if it is more than one network."""
        return self.members > 1 or len(networks(self.name)) > 1

    def options(self) -> dict[str, Any]:
        """Return the keywords of `models.build` that are not the default."""
        return self.model_dump(include={"normalisation", "activation", "members"}, exclude_defaults=True)
