"""Define what is measured on the images of a split, and what follows: masked gradients, alarms."""

from pydantic import Field

from trustcxr.storage.schemas.document import Document, Number, Share

CONSTANT = "no_better_than_constant"  # kinds of alarms
OVERFITTING = "catastrophic_overfitting"
FGSM_OVERSTATES = "fgsm_overstates"  # a sign of its own: the stronger attack's gradients are sound


class ClassResult(Document):
    """One class on the unperturbed images."""

    precision: Share = Share()
    recall: Share = Share()
    f1: Share = Share()
    auroc: Share = Share()
    n: int | None = None


class Draws(Document):
    """Of a model that answers at random: how many draws of each image, and how often they are right.

    `one`: the mean over draws, which is what one answer is worth; `each`: the share of images on which every draw is
    right. `accuracy` beside it is that of the mean of the draws' logits, under worst-case that of the worst draw.
    """

    count: int | None = None
    one: Share = Share()
    each: Share = Share()


class Classification(Document):
    """The unperturbed images of a split; `draws` where the model answers at random.

    `findings`: of a model with one sigmoid a finding, of how many findings there are images that have it and images
    that have it not. Accuracy and counts are then of all decisions on findings, `constant_answer` is what the commonest
    answer to each finding has, and every other figure is the mean over findings of that of each; calibration is that of
    the probability as the model states it, wherever the threshold lies.
    """

    accuracy: Share = Share()
    balanced_accuracy: Share = Share()
    constant_answer: Number = None
    precision_macro: Share = Share()
    recall_macro: Share = Share()
    f1_macro: Share = Share()
    auroc_macro: Share = Share()
    ece: Share = Share()
    ece_plug_in: Number = None
    n: int | None = None
    groups: int | None = None
    confusion: list[list[int]] = []
    per_class: dict[str, ClassResult] = {}
    draws: Draws | None = None
    findings: int | None = None


class Accuracy(Document):
    """How many images of one condition are answered rightly; `constant_answer`: what the commonest class has.

    Of findings that is what the commonest answer to each has, and `balanced_accuracy` is the mean over findings.
    """

    accuracy: Share = Share()
    balanced_accuracy: Share = Share()
    n: int | None = None
    constant_answer: Number = None
    view: str = ""


def _same(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and abs(one - other) < 1e-9


class Tried(Document):
    """What was tried at one epsilon."""

    attack: str = ""
    epsilon: Number = None

    def at(self, epsilon: float | None) -> bool:
        """Whether it was tried at this epsilon."""
        return _same(self.epsilon, epsilon)


class AttackResult(Tried):
    """One attack at one epsilon (L-infinity in pixel space, but for L2 attacks); `steps` where it has any.

    `unmoved`: the share of the images answered right that it left as they were; `broken_by`: of worst-case, how many
    images each of its attacks broke; `draws` where the model answers at random; `surrogate`: of transfer, the run that
    its images were made on.
    """

    accuracy: Share = Share()
    balanced_accuracy: Share = Share()
    success_rate: Share = Share()
    ece: Share = Share()
    ece_plug_in: Number = None
    n: int | None = None
    steps: int | None = None
    unmoved: Number = None
    broken_by: dict[str, int] = {}
    draws: Draws | None = None
    surrogate: str = ""


class CertifiedResult(Document):
    """What is proved at one epsilon (L-infinity in pixel space): `accuracy` of answers that are right and proved.

    `balanced_accuracy`: its mean over the classes; `proved`: the share of answers, right or wrong, that cannot change;
    `method`: crown (intervals, and CROWN where these prove nothing) or ibp (intervals alone); nothing where not known.
    """

    epsilon: Number = None
    accuracy: Share = Share()
    balanced_accuracy: Share = Share()
    proved: Share = Share()
    n: int | None = None
    method: str = ""

    def at(self, epsilon: float | None) -> bool:
        """Whether it is of this epsilon."""
        return _same(self.epsilon, epsilon)


class CorruptionResult(Document):
    """One corruption at one severity, 1 to 5; `flip_rate`: answers that are not those of the clean image."""

    corruption: str = ""
    severity: int | None = None
    accuracy: Share = Share()
    flip_rate: Share = Share()
    n: int | None = None


class CorruptionsMean(Document):
    """The mean over all corruptions and severities within each image."""

    accuracy: Share = Share()
    flip_rate: Share = Share()
    n: int | None = None
    conditions: int | None = None


class Bin(Document):
    """One bin of a reliability diagram."""

    confidence: Number = None
    accuracy: Number = None
    n: int | None = None


class Calibrated(Tried):
    """How sure a model is under one condition, as it is and with the temperature; `attack` is empty when clean."""

    steps: int | None = None
    accuracy: Share = Share()
    ece: Share = Share()
    ece_plug_in: Number = None
    log_loss: Share = Share()
    confidence: Share = Share()
    bins: list[Bin] = []
    ece_scaled: Share = Share()
    ece_plug_in_scaled: Number = None
    log_loss_scaled: Share = Share()
    confidence_scaled: Share = Share()
    bins_scaled: list[Bin] = []
    n: int | None = None


class Calibration(Document):
    """A temperature fitted on validation images, and what it does on the tested ones."""

    temperature: Number = None
    split: str = ""
    n: int | None = None
    clean: Calibrated = Calibrated()
    attacks: list[Calibrated] = []


class InputGradients(Document):
    """The cross-entropy's gradient in the image, on `n` images answered right, and the share where it is none."""

    n: int | None = None
    vanishing: Number = None


class Drop(Document):
    """What accuracy is lost from the run's own test images to others, clean or under one attack."""

    attack: str = ""
    epsilon: Number = None
    steps: int | None = None
    internal: Number = None
    external: Number = None
    drop: Share = Share()
    n_internal: int | None = None
    n_external: int | None = None


class PlantedShortcut(Document):
    """A shortcut planted on the images of one class: accuracy as it is, without it, and with it on another class."""

    carrier: str = Field("", alias="class")
    moved_to: str = ""
    n: int | None = None
    as_is: Accuracy = Accuracy()
    removed: Accuracy = Accuracy()
    moved: Accuracy = Accuracy()
    follows: Number = None
    follows_before: Number = None


class Sign(Document):
    """A sign that gradients fail, or that FGSM overstates, in a sentence."""

    kind: str = ""
    text: str = ""


class Verdict(Document):
    """The verdict on masked gradients: `masked` is None if nothing was looked for.

    `at_random`: the model draws random numbers when it answers; the attack and the evaluation used the same draw.
    """

    masked: bool | None = None
    reasons: str = ""
    looked_for: list[str] = []
    signs: list[Sign] = []
    at_random: bool = False

    @property
    def sentence(self) -> str:
        """Return the verdict as the terminal and the report print it."""
        heading = {True: "Masked gradients", False: "No masked gradients found", None: "Masked gradients"}
        return f"{heading[self.masked]}: {self.reasons}"


class Alarm(Document):
    """What a reader must not miss."""

    run: str = ""
    kind: str = ""
    text: str = ""
