"""Define training.json and metrics.json: one trained run, or an external model, and the figures of its images."""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from trustcxr.registry import Effort
from trustcxr.storage.schemas.document import Document, Measured, Number, Result, Share

if TYPE_CHECKING:
    import pandas as pd

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

    `clean`, `clean_balanced_accuracy` and `constant_answer`: accuracy of the same images unperturbed, and of their
    commonest class, if they are a part of all; `unmoved`: the share of the right images that it left unchanged;
    `broken_by`: of worst-case, the images that each of its attacks broke, ", 8-bit" if only after rounding; `rounded`:
    whether the worse of the floats and of their rounding to the grey levels of an 8-bit file counts, and not the floats
    alone; `draws` of a stochastic model; `surrogate`: of transfer, the run that its images were made on.
    """

    accuracy: Share = Share()
    clean: Share = Share()
    clean_balanced_accuracy: Share = Share()
    constant_answer: Number = None
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

    `clean`, `clean_balanced_accuracy` and `constant_answer`: accuracy of the same images unperturbed, and of their
    commonest class, if they are a part of all.
    """

    accuracy: Share = Share()
    balanced_accuracy: Share = Share()
    clean: Share = Share()
    clean_balanced_accuracy: Share = Share()
    constant_answer: Number = None
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
        heading = "No masked gradients found" if self.masked is False else "Masked gradients"
        return f"{heading}: {'; '.join(self.reasons)}"


class Alarm(Document):
    """A warning that readers must see."""

    run: str = ""
    kind: str = ""
    text: str = ""


class Measures(Measured):
    """Measures of one saliency method on some of the images; `n` of them."""

    n: int | None = None


class Stratum(Measures):
    """Images by how much of the lungs the lesion covers, from `start` to `end`."""

    stratum: str = ""
    start: Number = Field(None, alias="from")
    end: Number = Field(None, alias="to")


class Change(Measures):
    """Similarity of the maps of the clean and the changed image."""

    condition: str = ""
    kind: str = ""
    epsilon: Number = None
    severity: int | None = None


class Stage(Measures):
    """Similarity to the trained model's map if the network is random from the logits down to this part."""

    part: str = ""


class Perturbed(Measures):
    """The measures on perturbed images."""

    attack: str = ""
    epsilon: Number = None


class Lead(Document):
    """The difference of a map and a baseline map, or the closest of several, on the same images by one measure."""

    measure: str = ""
    baseline: str = ""
    difference: Share = Share()


class RandomWeights(Document):
    """The method on `draws` networks with random weights (lung gates stay trained), on `n` images."""

    n: int | None = None
    draws: int | None = None
    leads: list[Lead] = []


class SaliencyDocument(Measures):
    """One saliency method against the masks; its own figures are of the clean images.

    `over_baselines`: lead over each baseline map; `beyond`: over the closest. `cells`: rows and columns of a CAM,
    "2 x 2"; `withheld`: why the hit rate, or every figure of a map of one cell, is null. `shows`: measures by which the
    map is above its baseline maps and random weights; `verdict`: that in a sentence. `void`: measures that a map of
    random weights reaches too; `survives`: that in words.
    """

    target: str = ""
    cells: str = ""
    withheld: str = ""
    shows: list[str] | None = None
    verdict: str = ""
    survives: str = ""
    void: list[str] = []
    random_weights: RandomWeights | None = None
    condition: str = ""
    without_mask: int | None = None
    threshold: Number = None
    beyond: list[Lead] = []
    over_baselines: list[Lead] = []
    correct: Measures = Measures()
    by_lesion: list[Stratum] = []
    stability: list[Change] = []
    faithfulness: Measures | None = None
    sanity: list[Stage] = []
    perturbed: Perturbed | None = None


class LesionSize(Document):
    """The lesion effect if the lesion covers more than `above`, and at most `up_to`, of the lungs."""

    above: Number = None
    up_to: Number = None
    images: int | None = None
    effect: Number = None
    low: Number = None
    high: Number = None


class LesionsWithoutControl(Document):
    """Images of which less than a tenth of the lesion has a congruent counterpart: the whole lesion removed.

    `fall`: `before` less `whole`. It includes the effect of the edit itself, which no control shows.
    """

    images: int | None = None
    before: Number = None
    whole: Number = None
    fall: Share = Share()
    flipped: Share = Share()


class LesionDocument(Document):
    """The probability of the image's class with and without its lesion, by one fill and control.

    `before`: unchanged; `without`: the part of the lesion with a congruent counterpart removed, `share` of it;
    `control_answer`: the counterpart removed instead; `whole`: all of the lesion removed. `fall`: `before` less
    `without`; `effect`: `control_answer` less `without`; `least`: the smaller of both, which is reported.

    Of the control "healthy image" `control_before` and `control_answer` are the healthy image's, for its own class, and
    `effect` is `fall` less theirs. Of the fill transplant: a healthy image before, with another's lesion, and with a
    healthy patch instead; `effect`: `without` less `control_answer`. `condition`: clean, or the attack at `epsilon` on
    the image.
    """

    condition: str = "clean"
    epsilon: Number = None
    fill: str = ""
    control: str = ""
    before: Number = None
    without: Number = None
    control_before: Number = None
    control_answer: Number = None
    whole: Number = None
    share: Number = None
    effect: Share = Share()
    fall: Share = Share()
    least: Share = Share()
    flipped: Share = Share()
    flipped_control: Number = None
    images: int | None = None
    left_out: int | None = None
    without_control: LesionsWithoutControl | None = None
    by_size: list[LesionSize] = []


class Reported(Document):
    """Figures that a model's authors report."""

    clean: Number = None
    attacked: Number = None
    threat_model: str = ""
    training_data: str = ""
    paper: str = ""


class AuditedModel(Document):
    """The audited model: its kind, file, checksum, kind of gradients, and notes."""

    name: str = ""
    kind: str = ""
    path: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    parameters: int | None = None
    gradients: str = ""
    notes: list[str] = []
    reported: Reported = Reported()


class Refit(Document):
    """The second training, on training and validation images."""

    epochs: int | None = None
    seconds: Number = None
    stopped: str | None = None


class TrainingDocument(Document):
    """training.json: the length of a training, what stopped it, and its best epoch.

    `best_value` of `monitor`: under an attack, or proved, at `epsilon`; without it on clean images.
    `precision_asked`: the recipe's, which differs if the machine lacks it. `world` processes shared each batch by
    `strategy`, each in `parts` (the most, if that changed); missing if no batch was split.
    """

    version: int | None = None
    precision: str = ""
    precision_asked: str = ""
    epochs: int | None = None
    best_epoch: int | None = None
    seconds: Number = None
    parts: int | None = None
    world: int | None = None
    strategy: str | None = None
    monitor: str = ""
    epsilon: Number = None
    best_value: Number = None
    stopped: str | None = None
    refit: Refit | None = None
    steps: int | None = None
    images_without_lung_mask: int | None = None
    parameters: int | None = None
    watched_images: int | None = None
    alarm: str | None = None


class RunDocument(Result):
    """metrics.json: one run on one split; study.json adds `training`.

    `origin`: trained here, or external. `images`: fingerprint of the images. `given`: the external model;
    `examination`: a checksum of model, data and options. `finding`: the explained one, of a model with a sigmoid for
    each. `provenance`: a hash of weights, tables and options.
    """

    version: int | None = None
    provenance: str = ""
    run: str = ""
    origin: str = ""
    images: str = ""
    notes: list[str] = []
    model: str = ""
    defence: str = ""
    label: str = ""  # of the defence, or guided or counterfactual
    background: str = "full"
    seed: int | None = None
    classes: list[str] = []
    split: str = ""
    clean: Classification = Classification()
    by_source: dict[str, Accuracy] = {}
    by_group: dict[str, dict[str, Accuracy]] = {}
    shortcuts: dict[str, Accuracy] = {}
    without_lungs: Accuracy | None = None
    attacks: list[AttackResult] = []
    certified: list[CertifiedResult] = []
    input_gradients: InputGradients | None = None
    corruptions: list[CorruptionResult] = []
    corruptions_mean: CorruptionsMean | None = None
    saliency: dict[str, SaliencyDocument] = {}
    lesions: list[LesionDocument] = []
    masking: MaskingVerdict | None = None
    calibration: Calibration | None = None
    alarms: list[Alarm] = []
    drop_from_internal: list[Drop] = []
    planted_shortcuts: dict[str, PlantedShortcut] = {}
    training: TrainingDocument = TrainingDocument()
    external_model: AuditedModel = AuditedModel()
    examination: str = ""
    finding: str = ""

    @property
    def lesion_effect(self) -> LesionDocument | None:
        """Return the lesion effect to report: the smallest by any fill, against healthy lung or a healthy image.

        Fills of a sample alone do not count.
        """
        rows = [row for row in self.lesions if row.control in ("lung", "healthy image") and not row.epsilon]
        counts = [(row.images or 0) + (row.left_out or 0) for row in rows]
        whole = [row for row, count in zip(rows, counts, strict=True) if count == max(counts)]
        measured = [row for row in whole if row.least.value is not None]
        return min(measured, key=lambda row: row.least.value or 0.0, default=None)

    def table(self) -> "pd.DataFrame":
        """Return accuracy under each condition, with its interval: clean, attacks, certified, corruptions."""
        import pandas as pd

        parts: list[tuple[str, Any]] = [("clean", self.clean), *((row.attack, row) for row in self.attacks)]
        parts += [(f"certified, {row.method}", row) for row in self.certified]
        parts += [(row.corruption, row) for row in self.corruptions]
        keys = ("epsilon", "steps", "queries", "severity", "n")
        return pd.DataFrame(
            {"condition": name} | {key: getattr(part, key, None) for key in keys} | part.accuracy.columns()
            for name, part in parts
        )
