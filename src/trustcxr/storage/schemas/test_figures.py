"""Define the figures of the images of a split, gradient masking and alarms."""

from pydantic import Field

from trustcxr.registry import Effort
from trustcxr.storage.schemas.document import Document, Number, Share

CONSTANT, OVERFITTING = "no_better_than_constant", "catastrophic_overfitting"  # kinds of alarms
FGSM_OVERSTATES = "fgsm_overstates"  # the kind of a sign: the gradients of the stronger attack are sound


class ClassResult(Document):
    """One class on the unperturbed images."""

    precision: Share = Share()
    recall: Share = Share()
    f1: Share = Share()
    auroc: Share = Share()
    n: int | None = None


class Draws(Document):
    """Accuracy of a stochastic model over `count` draws of each image.

    `one`: the mean over draws; `each`: the share of images on which every draw is right. The condition's `accuracy` is
    of the mean logits, under worst-case of the worst draw.
    """

    count: int | None = None
    one: Share = Share()
    each: Share = Share()


class Classification(Document):
    """The unperturbed images of a split; `draws` of a stochastic model.

    `findings`: of a model with a sigmoid for each finding, the number of findings with positive and negative images.
    Then accuracy and counts are of all decisions, and `constant_answer` is of the commonest answer to each finding.
    Every other figure is the mean over findings; calibration is of the stated probability, whatever the threshold.
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
    """Accuracy under one condition; `constant_answer`: accuracy of the commonest class, or answer to each finding."""

    accuracy: Share = Share()
    balanced_accuracy: Share = Share()
    n: int | None = None
    constant_answer: Number = None
    view: str = ""


class Attacked(Document):
    """A result under one attack at one epsilon (L-infinity in pixel space, except for L2 attacks).

    `steps`: gradient steps, of Square its queries; `queries`: forward passes of Square, in the worst case too.
    """

    attack: str = ""
    epsilon: Number = None
    steps: int | None = None
    queries: int | None = None

    @property
    def effort(self) -> Effort:
        """Return the attack with its steps and queries."""
        return Effort(self.attack, self.steps, self.queries)

    def is_at(self, epsilon: float | None) -> bool:
        """Return whether it is of this epsilon."""
        return self.epsilon is not None and epsilon is not None and abs(self.epsilon - epsilon) < 1e-9


class AttackResult(Attacked):
    """One attack at one epsilon.

    `clean`: accuracy of the same images unperturbed, if they are a part of all; `unmoved`: the share of the right
    images that it left unchanged; `broken_by`: of worst-case, the images that each of its attacks broke, ", 8-bit" if
    only after rounding; `rounded`: whether the worse of the floats and of their rounding to the grey levels of an 8-bit
    file counts, and not the floats alone; `draws` of a stochastic model; `surrogate`: of transfer, the run that its
    images were made on.
    """

    accuracy: Share = Share()
    clean: Share = Share()
    balanced_accuracy: Share = Share()
    success_rate: Share = Share()
    ece: Share = Share()
    ece_plug_in: Number = None
    n: int | None = None
    unmoved: Number = None
    rounded: bool | None = None
    broken_by: dict[str, int] = {}
    draws: Draws | None = None
    surrogate: str = ""


class CertifiedResult(Document):
    """Certified accuracy at one epsilon: answers that are right and proved.

    `balanced_accuracy`: its mean over the classes; `proved`: the share of answers, right or wrong, that cannot change;
    `method`: crown (intervals, then CROWN) or ibp (intervals alone); `tf32`: whether the model answered with TF32,
    whose rounding the proof does not allow for; None if unknown.
    """

    epsilon: Number = None
    accuracy: Share = Share()
    balanced_accuracy: Share = Share()
    proved: Share = Share()
    n: int | None = None
    method: str = ""
    tf32: bool | None = None

    def is_at(self, epsilon: float | None) -> bool:
        """Return whether it is of this epsilon."""
        return Attacked(epsilon=self.epsilon).is_at(epsilon)


class CorruptionResult(Document):
    """One corruption at one severity, 1 to 5; `flip_rate`: the share of answers that differ from the clean image's."""

    corruption: str = ""
    severity: int | None = None
    accuracy: Share = Share()
    flip_rate: Share = Share()
    n: int | None = None


class CorruptionsMean(Document):
    """The mean over all corruptions and severities within each image.

    `clean`: accuracy of the same images unperturbed, if they are a part of all.
    """

    accuracy: Share = Share()
    clean: Share = Share()
    flip_rate: Share = Share()
    n: int | None = None
    conditions: int | None = None


class Bin(Document):
    """One bin of a reliability diagram."""

    confidence: Number = None
    accuracy: Number = None
    n: int | None = None


class Calibrated(Attacked):
    """Calibration under one condition, without and with the temperature; `attack` is empty if clean."""

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
    """A temperature fitted on validation images, and its effect on test images."""

    temperature: Number = None
    split: str = ""
    n: int | None = None
    clean: Calibrated = Calibrated()
    attacks: list[Calibrated] = []


class InputGradients(Document):
    """The cross-entropy's gradient in `n` images answered right: the share for which it vanishes."""

    n: int | None = None
    vanishing: Number = None


class Drop(Attacked):
    """The loss of accuracy from internal to external test images, clean or under one attack."""

    internal: Number = None
    external: Number = None
    drop: Share = Share()
    n_internal: int | None = None
    n_external: int | None = None


class PlantedShortcut(Document):
    """A shortcut planted on the images of one class: accuracy with it, without it, and with it on another class."""

    carrier: str = Field("", alias="class")
    moved_to: str = ""
    n: int | None = None
    as_is: Accuracy = Accuracy()
    removed: Accuracy = Accuracy()
    moved: Accuracy = Accuracy()
    follows: Number = None
    follows_before: Number = None


class Sign(Document):
    """A sign that gradients fail or that FGSM overstates robustness."""

    kind: str = ""
    text: str = ""


class MaskingVerdict(Document):
    """The verdict on masked gradients: `masked` is None without any test; `at_random`: the model is stochastic."""

    masked: bool | None = None
    reasons: list[str] = []
    looked_for: list[str] = []
    signs: list[Sign] = []
    at_random: bool = False

    @property
    def sentence(self) -> str:
        """Return the verdict as the terminal and the report print it."""
        heading = {True: "Masked gradients", False: "No masked gradients found", None: "Masked gradients"}
        return f"{heading[self.masked]}: {'; '.join(self.reasons)}"


class Alarm(Document):
    """A warning that readers must see."""

    run: str = ""
    kind: str = ""
    text: str = ""
