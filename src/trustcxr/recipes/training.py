"""The parts of a recipe that say what is trained and how: network, training, defence."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypedDict, cast

from pydantic import BeforeValidator, Field, model_validator

from trustcxr.catalogue import BACKGROUNDS, DEFENCES, networks
from trustcxr.recipes.validation import Fraction, Strict

# The names of the catalogue's BACKGROUNDS; a type checker wants them written out.
Background = Literal["full", "swap", "mask", "crop", "emptied", "gate", "gate-emptied"]
Fill = Literal["grey", "mirror", "surroundings"]  # of data.lesions.TAUGHT, written out likewise
_SWITCHES = ("lung_gate", "empty_lungs")
MONITOR_IMAGES = 256  # validation images that PGD is run on after every epoch of a robust run
MONITOR_STEPS = 10


def _with_background(content: Any) -> Any:
    """`content` with `lung_gate` and `empty_lungs` as the one word that says both with `background`. ValueError."""
    said = {key: content[key] for key in _SWITCHES if key in content} if isinstance(content, dict) else {}
    word = content.get("background") or "full" if said else "full"
    if not said or word not in BACKGROUNDS:
        return content
    for key, value in said.items():
        if not isinstance(value, bool):
            raise ValueError(f"{key} is true or false, not {value!r}")
    entry = BACKGROUNDS[word]
    if (entry.gate and said.get("lung_gate") is False) or (entry.emptied and said.get("empty_lungs") is False):
        raise ValueError(f"background: {word} says the opposite of {', '.join(said)}: false")
    wanted = entry.gate or said.get("lung_gate", False), entry.emptied or said.get("empty_lungs", False)
    if entry.view and any(wanted):
        raise ValueError(f"lung_gate and empty_lungs go with the whole image, not with background: {word}")
    if entry.view is None:
        word = next(b.name for b in BACKGROUNDS.values() if b.view is None and (b.gate, b.emptied) == wanted)
    return {key: value for key, value in content.items() if key not in _SWITCHES} | {"background": word}


class Augment(Strict):
    """Ranges of the random changes to each training image; what a radiograph survives, so no flips by default."""

    rotation: float = Field(10.0, ge=0, le=45, description="degrees, either way")
    shift: float = Field(0.05, ge=0, le=0.3, description="share of the side, either way")
    scale: float = Field(0.1, ge=0, le=0.5, description="share of the size, either way")
    brightness: float = Field(0.1, ge=0, le=0.5, description="added to the pixels, either way")
    contrast: float = Field(0.1, ge=0, le=0.9, description="share of the contrast, either way")
    flip: Fraction = Field(0.0, description="share of images mirrored left to right; the heart has a side")
    erase: Fraction = Field(0.0, description="share of images with one rectangle made an even grey")
    crop_shift: float = Field(
        0.0, ge=0, le=0.9, description="largest share of the side that is cut off; what is left lies anywhere on black"
    )
    spectrum: float = Field(
        0.0, ge=0, le=3, description="logarithm of the largest gain of a band of spatial frequencies, either way"
    )


class TrainingRecipe(Strict):
    """How a model is fitted. `lung_gate: true` and `empty_lungs: true` are two more ways to say the background."""

    former: ClassVar[Mapping[str, str]] = {"rrr": "outside_gradient"}
    short: ClassVar[tuple[str, ...]] = _SWITCHES

    @classmethod
    def as_now(cls, content: Any) -> Any:
        """`content` with the keys of today, `lung_gate` and `empty_lungs` among `background`."""
        return _with_background(super().as_now(content))

    epochs: int = Field(30, ge=1)
    batch_size: int = Field(32, ge=2)
    optimiser: Literal["adam", "adamw"] = Field("adam", description="the paper's is Adam; adamw decouples the decay")
    learning_rate: float = Field(5e-4, gt=0, lt=100)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: float = Field(0.5, ge=0)
    patience: int = Field(8, ge=1, description="epochs without a better validation figure before training stops")
    averaging: float = Field(0.0, ge=0, lt=1, description="decay of the moving average of the weights; 0 for none")
    refit: bool = Field(
        False,
        description="train once more, on training and validation images together, for as long as validation chose; "
        "what is fitted or chosen on validation stays with the weights from before",
    )
    label_smoothing: Fraction = 0.0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accumulate: int = Field(
        1,
        ge=1,
        description="parts that each batch is worked off in, their gradients added up: for a batch that does not fit "
        "in memory (which is noticed, and halved, by itself)",
    )
    balanced: bool = Field(False, description="draw every class equally often")
    balanced_by: str = Field(
        "",
        description="with balanced: a column of the data, such as source, each value of which is drawn equally often "
        "within each class; films without one are a value of their own",
    )
    class_weights: bool = Field(False, description="weigh the loss of each class against how many images it has")
    background: Background = Field(
        "full",
        description="of training images: full, swap (the lungs on another film's), mask (black), crop (to the lungs); "
        "emptied (or empty_lungs: true): adds to each batch copies with the lungs filled with grey, trained towards "
        "equal class probabilities; gate (or lung_gate: true): the model contains a lung segmenter and replaces what "
        "is outside by mid-grey; gate-emptied: both",
    )
    swap_share: Fraction = Field(
        0.85, description="of training images whose background is changed; the others, like all test images, are not"
    )
    outside_gradient: float = Field(
        0.0, ge=0, description="weight of the squared gradient outside the lungs (Ross et al. 2017); was rrr"
    )
    guidance: float = Field(
        0.0, ge=0, description="weight of the loss that holds what explains an answer to the lesion masks"
    )
    guidance_on: Literal["evidence", "cam", "gradients"] = Field(
        "evidence",
        description="with guidance: what explains it: the evidence of an evidence network, Grad-CAM, or the pixels "
        "times the gradient in them",
    )
    guidance_layer: int = Field(
        -1, le=-1, description="with guidance_on: cam: whose map; -1 the last, -2 the stage before, of twice the cells"
    )
    guidance_loss: Literal["energy", "l1", "odds"] = Field(
        "energy",
        description="what guidance asks: the energy inside the mask, the map like the mask, or that the evidence be "
        "the logarithm of the odds that a place is diseased",
    )
    counterfactuals: Fraction = Field(
        0.0, description="share of the films with a lesion, and of the healthy ones, that lose it, or get another's"
    )
    counterfactual_fills: tuple[Fill, ...] = Field(
        ("grey",),
        min_length=1,
        description="with counterfactuals: what takes a lesion's place, in turn: grey (of the healthy lung), mirror "
        "(the lung of the other side), surroundings (the healthy lung around it)",
    )
    counterfactual_parts: Fraction = Field(
        0.0,
        description="with counterfactuals: share of the removals that take the part of a lesion that has a counterpart "
        "in healthy lung, and make the film healthy as often as that part is a share of the lesion",
    )
    counterfactual_epsilon: Fraction = Field(
        1.0,
        description="with counterfactuals: share of the defence's epsilon within which the films so made are attacked; "
        "0: they are shown as they are",
    )
    healthy: str = Field("Normal", description="with counterfactuals: the class of a film whose lesion is removed")
    augment: Augment = Augment()
    track: Literal["none", "tensorboard", "mlflow"] = Field(
        "none", description="also follow each epoch there: tensorboard, mlflow (extra `track`); no part of the result"
    )
    tracking_uri: str = Field(
        "", description="with track: mlflow: its server; a SQLite file beside the runs unless said"
    )

    def untracked(self) -> "TrainingRecipe":
        """The same training, followed nowhere: what a run is does not depend on who looks on."""
        return self.model_copy(update={"track": "none", "tracking_uri": ""})

    @property
    def needs_lesions(self) -> bool:
        """Whether training looks at lesion masks."""
        return self.guidance > 0 or self.counterfactuals > 0

    @property
    def guides_a_layer(self) -> bool:
        """Whether the map of a layer is held to lesion masks."""
        return self.guidance > 0 and self.guidance_on == "cam"


# A part of a run's folder's name.
Label = Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,39})?$")]
Training = Annotated[dict[str, Any], BeforeValidator(TrainingRecipe.as_now)]  # keys of TrainingRecipe


class DefenceRecipe(Strict):
    """How a model is made robust. Training keys given here replace the study's.

    The catalogue says which keys a defence uses; one that it does not use must stay as it is. What is said here of the
    background, by its word or by `lung_gate` and `empty_lungs`, takes the place of all that the study says of it.
    """

    short: ClassVar[tuple[str, ...]] = _SWITCHES

    @classmethod
    def as_now(cls, content: Any) -> Any:
        """`content` with `lung_gate` and `empty_lungs` among `background`."""
        return _with_background(super().as_now(content))

    name: str = "standard"
    label: Label = Field("", description="what runs and tables call it, where one defence stands twice in a study")
    epsilon: Fraction = Field(0.02, description="L-infinity radius in pixel space")
    clean_share: Fraction = Field(0.0, description="share of the loss that is on clean images")
    attack_share: Fraction = Field(
        0.0,
        description="ibp and crown-ibp: share of the loss that is on FGSM's images",
    )
    regulariser: float = Field(
        0.0,
        ge=0,
        description="ibp and crown-ibp: weight of Shi et al.'s regularisers while epsilon grows (theirs: 0.5)",
    )
    ramp: Fraction = Field(0.0, description="share of training over which epsilon grows from 0 to its value")
    epsilon_outside: Fraction | None = Field(
        None, description="radius outside the lungs while the model is attacked in training; it grows as epsilon does"
    )
    mode: Literal["eval", "train"] = Field("eval", description="mode of BatchNorm while the model is attacked")
    attack_precision: Literal["same", "bf16"] = Field(
        "same", description="bf16: the attack's passes alone, of which only the gradient's sign is used"
    )
    weight_perturbation: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of each layer's weights that these are moved by against the model in each step (AWP; 0.005)",
    )
    steps: int = Field(3, ge=1, le=100, description="pgd and trades: gradients of the attack in each training step")
    beta: float = Field(6.0, ge=0, description="trades: weight of the divergence beside the clean loss")
    replays: int = Field(
        4, ge=1, le=100, description="free: optimiser steps on each batch, so that an epoch has so many times the steps"
    )
    alpha: float = Field(0.2, gt=0, description="mixup: of the Beta distribution that shares are drawn from")
    size: float = Field(0.25, gt=0, le=1, description="cutout: side of a square as a share of the image's")
    holes: int = Field(1, ge=1, le=100, description="cutout: squares in each image")
    sigma: float = Field(0.05, gt=0, le=1, description="gaussian: standard deviation of the noise in pixel space")
    separate_batchnorm: bool = Field(
        False, description="clean and adversarial batches have BatchNorm layers of their own while training"
    )
    evaluated_batchnorm: Literal["adversarial", "clean"] = Field(
        "adversarial", description="with separate_batchnorm: whose layers the model keeps; the others are not saved"
    )
    start_from: Literal["scratch", "standard"] = Field("scratch", description="standard: the trained standard run")
    background: Background | None = Field(None, description="of its training; the study's unless said")
    training: Training = Field(default_factory=dict)

    @property
    def called(self) -> str:
        """What runs call it: its label, or its name."""
        return self.label or self.name

    @property
    def attacks(self) -> bool:
        """Whether training attacks the model, so that it is judged by its accuracy under attack."""
        entry = DEFENCES.get(self.name)
        return entry is None or entry.attacks

    @property
    def at_epsilon(self) -> str:
        """What stands behind a robust accuracy on validation: its radius; empty where it is judged without attacks."""
        return f" at epsilon {self.epsilon:g}" if self.attacks or self.certifies else ""

    @property
    def certifies(self) -> bool:
        """Whether training is by bounds, so that it is judged by its certified accuracy."""
        return self.name in DEFENCES and DEFENCES[self.name].certifies

    @model_validator(mode="after")
    def _used(self) -> "DefenceRecipe":
        if self.name in DEFENCES:
            uses = DEFENCES[self.name].options
            options = {key for entry in DEFENCES.values() for key in entry.options}
            for key, field in type(self).model_fields.items():
                if key in options and key not in uses and getattr(self, key) != field.default:
                    takes = f"it takes {', '.join(uses)}" if uses else "it takes no options"
                    raise ValueError(f"defence {self.name} does not use {key}; {takes}")
        if self.separate_batchnorm and self.name != "trades" and not 0 < self.clean_share < 1:
            raise ValueError("separate_batchnorm needs clean images beside adversarial ones: clean_share in (0, 1)")
        if self.clean_share + self.attack_share > 1:
            raise ValueError("clean_share and attack_share are shares of one loss: together at most 1")
        if self.evaluated_batchnorm == "clean" and not self.separate_batchnorm:
            raise ValueError("evaluated_batchnorm: clean needs separate_batchnorm: true")
        return self


class NetworkOptions(TypedDict, total=False):
    """Keywords of `models.build` beside name, classes and weights."""

    normalisation: str
    activation: str
    stem_pool: bool
    members: int
    input_blur: int
    local_contrast: int
    lung_gate: bool


class ModelRecipe(Strict):
    """A network, or an ensemble. Training keys given here replace the study's."""

    former: ClassVar[Mapping[str, str]] = {"first_pool": "stem_pool", "copies": "members"}

    name: str = Field(description="one of the 21 or a timm architecture; A+B: an ensemble of both, logits averaged")
    label: Label = Field("", description="what runs and tables call it, where one network stands twice in a study")
    weights: str = "imagenet"
    normalisation: Literal["batch", "frozen", "group"] = Field(
        "batch", description="BatchNorm; BatchNorm with the statistics of its weights, never updated; or GroupNorm"
    )
    activation: Literal["own", "silu", "gelu", "softplus"] = Field(
        "own", description="a smooth one in the place of each ReLU (softplus with beta 10)"
    )
    stem_pool: bool = Field(
        True, description="the network's first max pooling; without it every map after it has twice the side"
    )
    members: int = Field(
        1, ge=1, le=20, description="networks of this name in an ensemble, each trained for itself, logits averaged"
    )
    input_blur: int = Field(0, ge=0, le=31, description="side of a mean filter at the input in pixels; 0 for none")
    local_contrast: int = Field(
        0,
        ge=0,
        le=255,
        description="side in pixels of the square by whose mean and spread each input pixel is measured; 0 for none",
    )
    training: Training = Field(default_factory=dict)

    @property
    def called(self) -> str:
        """What runs and tables call it: its label, or its name."""
        return self.label or self.name

    @property
    def is_ensemble(self) -> bool:
        """Whether it is more than one network."""
        return self.members > 1 or len(networks(self.name)) > 1

    def options(self) -> NetworkOptions:
        """Keywords of `models.build` beside name, classes and weights: the options that are not the default."""
        names = ("normalisation", "activation", "stem_pool", "members", "input_blur", "local_contrast")
        said = {n: getattr(self, n) for n in names if getattr(self, n) != type(self).model_fields[n].default}
        return cast(NetworkOptions, said)

    @model_validator(mode="after")
    def _fits(self) -> "ModelRecipe":
        for key in ("input_blur", "local_contrast"):
            if (side := getattr(self, key)) and side % 2 == 0:
                raise ValueError(f"{key} must be odd, not {side}: an even filter would shift the image")
        if self.normalisation == "frozen" and self.weights == "none":
            raise ValueError("normalisation: frozen needs trained weights, whose statistics it keeps; weights is none")
        return self
