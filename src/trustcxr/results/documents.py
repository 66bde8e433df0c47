"""What training.json, metrics.json and study.json say, as types. Read once, here; typed from there on.

The files keep their shape (`accuracy` beside `accuracy_ci`): reading folds it and writing unfolds it. Every field may
be missing, keys that are not known are kept, so files of an older or a newer version are read as far as they go.
"""

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from trustcxr.results import files
from trustcxr.results.flat import Document, Figure, Measured, Named, Number, Records, Share, understood

__all__ = [
    "VERSION",
    "Alarm",
    "AttackResult",
    "AuditDocument",
    "Calibrated",
    "Calibration",
    "Classification",
    "Comparison",
    "CorruptionResult",
    "Document",
    "Figure",
    "RunDocument",
    "SaliencyDocument",
    "Share",
    "StudyDocument",
    "TrainingDocument",
    "Verdict",
]

LEVEL = 0.05  # of a p-value, corrected for the number of comparisons
VERSION = 1  # of the documents' shape; raised where an older reader would misunderstand a newer file


class ClassResult(Document):
    """One class on the unperturbed images."""

    precision: Share = Share()
    recall: Share = Share()
    f1: Share = Share()
    auroc: Share = Share()
    n: int | None = None


class Classification(Document):
    """The unperturbed images of a split."""

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
    per_class: Named[ClassResult] = {}


class Accuracy(Document):
    """How many images of one condition are answered rightly; `constant_answer`: what the commonest class has."""

    accuracy: Share = Share()
    balanced_accuracy: Share = Share()
    n: int | None = None
    constant_answer: Number = None
    view: str = ""


class AttackResult(Document):
    """One attack at one epsilon (L-infinity in pixel space, but for L2 attacks); `steps` where it has any.

    `unmoved`: the share of the images answered right that it left as they were; `broken_by`: of worst-case, how many
    images each of its attacks broke.
    """

    attack: str = ""
    epsilon: Number = None
    accuracy: Share = Share()
    balanced_accuracy: Share = Share()
    success_rate: Share = Share()
    ece: Share = Share()
    ece_plug_in: Number = None
    n: int | None = None
    steps: int | None = None
    unmoved: Number = None
    broken_by: dict[str, int] = {}

    def at(self, epsilon: float | None) -> bool:
        """Whether it was tried at this epsilon."""
        return epsilon is not None and self.epsilon is not None and abs(self.epsilon - epsilon) < 1e-9


class CertifiedResult(Document):
    """What is proved at one epsilon (L-infinity in pixel space): `accuracy` of answers that are right and proved.

    `balanced_accuracy`: its mean over the classes; `proved`: the share of answers, right or wrong, that cannot change.
    """

    epsilon: Number = None
    accuracy: Share = Share()
    balanced_accuracy: Number = None
    proved: Number = None
    n: int | None = None


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


class Calibrated(Document):
    """How sure a model is under one condition, as it is and with the temperature; `attack` is empty when clean."""

    attack: str = ""
    epsilon: Number = None
    steps: int | None = None
    accuracy: Share = Share()
    ece: Share = Share()
    ece_plug_in: Number = None
    log_loss: Share = Share()
    confidence: Share = Share()
    bins: Records[Bin] = []
    ece_scaled: Share = Share()
    ece_plug_in_scaled: Number = None
    log_loss_scaled: Share = Share()
    confidence_scaled: Share = Share()
    bins_scaled: Records[Bin] = []
    n: int | None = None


class Calibration(Document):
    """A temperature fitted on validation images, and what it does on the tested ones."""

    temperature: Number = None
    split: str = ""
    n: int | None = None
    clean: Calibrated = Calibrated()
    attacks: Records[Calibrated] = []


class InputGradients(Document):
    """The cross-entropy's gradient in the image, on `n` images answered right, and the share where it is none."""

    n: int | None = None
    vanishing: Number = None


class Sign(Document):
    """A sign that gradients fail, or that FGSM overstates, in a sentence."""

    kind: str = ""
    text: str = ""


class Verdict(Document):
    """Whether gradients are masked (None: not looked for), the signs, why, and for which signs was looked.

    Without `signs`: of another judge, of version 0.1.
    """

    masked: bool | None = None
    because: str = ""
    looked_for: list[str] = []
    signs: Records[Sign] = []


class Alarm(Document):
    """What a reader must not miss."""

    run: str = ""
    kind: str = ""
    text: str = ""


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
    """A shortcut planted on the films of one class: accuracy as it is, without it, and with it on another class."""

    carrier: str = Field("", alias="class")
    moved_to: str = ""
    n: int | None = None
    as_is: Accuracy = Accuracy()
    removed: Accuracy = Accuracy()
    moved: Accuracy = Accuracy()
    follows: Number = None
    follows_before: Number = None


class Measures(Measured):
    """Measures of one saliency method on some of the images; `n` of them."""

    n: int | None = None


class Stratum(Measures):
    """Images by how much of the lungs the lesion covers, from `start` to `end`."""

    stratum: str = ""
    start: Number = Field(None, alias="from")
    end: Number = Field(None, alias="to")


class Change(Measures):
    """How like the map of the clean image that of the changed one is."""

    condition: str = ""
    kind: str = ""
    epsilon: Number = None
    severity: int | None = None


class Stage(Measures):
    """How like the trained model's map it is once the network is random from the logits down to this part."""

    part: str = ""


class Perturbed(Measures):
    """The measures on perturbed images."""

    attack: str = ""
    epsilon: Number = None


class Lead(Document):
    """What a map has over the map without a model that comes closest, on the same images, by one measure."""

    measure: str = ""
    control: str = ""
    difference: Share = Share()


class SaliencyDocument(Measures):
    """One saliency method against the masks: its own figures are those on the clean images."""

    target: str = ""
    condition: str = ""
    without_mask: int | None = None
    threshold: Number = None
    beyond: Records[Lead] = []
    correct: Measures = Measures()
    by_lesion: Records[Stratum] = []
    stability: Records[Change] = []
    faithfulness: Measures | None = None
    sanity: Records[Stage] = []
    perturbed: Perturbed | None = None


class Refit(Document):
    """The training anew on training and validation images."""

    epochs: int | None = None
    seconds: Number = None
    stopped: str | None = None


class TrainingDocument(Document):
    """training.json: how long a run was trained, what stopped it, which epoch is kept."""

    version: int | None = None
    epochs: int | None = None
    best_epoch: int | None = None
    seconds: Number = None
    monitor: str = ""
    best_value: Number = None
    stopped: str | None = None
    refit: Refit | None = None
    steps: int | None = None
    images_without_lung_mask: int | None = None
    parameters: int | None = None
    watched_images: int | None = None
    alarm: str | None = None


class LesionSize(Document):
    """The lesion effect where the lesion covers more than `above`, and at most `up_to`, of the lungs."""

    above: Number = None
    up_to: Number = None
    films: int | None = None
    effect: Number = None
    low: Number = None
    high: Number = None


class LesionDocument(Document):
    """What removing the lesion does to the probability of the film's class, by one fill and control.

    `before`: as it is; `without`: the part of the lesion with a congruent counterpart removed, `share` of it; `beside`:
    the counterpart removed instead; `whole`: all of the lesion removed. `effect` is `beside` less `without`.
    """

    fill: str = ""
    control: str = ""
    before: Number = None
    without: Number = None
    beside: Number = None
    whole: Number = None
    share: Number = None
    effect: Share = Share()
    flipped: Share = Share()
    flipped_control: Number = None
    films: int | None = None
    left_out: int | None = None
    by_size: Records[LesionSize] = []


class RunDocument(Document):
    """metrics.json: one run on one split. In study.json `training` is beside it.

    `origin`: trained here, or given. `films`: the fingerprint of the images. `notes`: what a reader must know first.
    """

    version: int | None = None
    run: str = ""
    origin: str = ""
    films: str = ""
    notes: list[str] = []
    model: str = ""
    defence: str = ""
    background: str = "full"
    seed: int | None = None
    classes: list[str] = []
    split: str = ""
    clean: Classification = Classification()
    by_source: Named[Accuracy] = {}
    by_group: dict[str, Named[Accuracy]] = {}
    shortcuts: Named[Accuracy] = {}
    without_lungs: Accuracy | None = None
    attacks: Records[AttackResult] = []
    certified: Records[CertifiedResult] = []
    input_gradients: InputGradients | None = None
    corruptions: Records[CorruptionResult] = []
    corruptions_mean: CorruptionsMean | None = None
    saliency: Named[SaliencyDocument] = {}
    lesions: Records[LesionDocument] = []
    masking: Verdict | None = None
    calibration: Calibration | None = None
    alarms: Records[Alarm] = []
    drop_from_internal: Records[Drop] = []
    planted_shortcuts: Named[PlantedShortcut] = {}
    training: TrainingDocument = TrainingDocument()


class GateCheck(Document):
    """What was checked of a given model at the door; `passed` is None where it could not be checked."""

    check: str = ""
    passed: bool | None = None
    text: str = ""


class AuditedModel(Document):
    """What was given: its kind, its file and checksum, whether its gradients are its own, what is worth saying."""

    name: str = ""
    kind: str = ""
    path: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    parameters: int | None = None
    gradients: str = ""
    notes: list[str] = []


class AuditedData(Document):
    """The images that it was examined on; audits compare where the fingerprints agree."""

    name: str = ""
    fingerprint: str = ""
    n: int | None = None


class AuditDocument(RunDocument):
    """audit.json: a metrics.json of a given model, with what may be relied on.

    `protocol` is the version of the examination, None where its options were changed. Figures under an attack that
    missed planted examples are withdrawn: None, and `withdrawn` says why. `examination` is a checksum of all that was
    examined and how.
    """

    model: AuditedModel = AuditedModel()  # type: ignore[assignment]
    protocol: str | None = None
    data: AuditedData = AuditedData()
    gate: Records[GateCheck] = []
    unreliable: bool | None = None
    because: str = ""
    withdrawn: str | None = None
    examination: str = ""


class Comparison(Document):
    """A robust run against the standard one on the same images, by one measure; `method` is None for accuracy.

    `better` says which way is good (None: neither); `difference` is robust minus standard, with its interval.
    """

    model: str = ""
    seed: int | None = None
    defence: str = ""
    background: str = "full"
    split: str = ""
    measure: str = ""
    method: str | None = None
    better: Literal["higher", "lower"] | None = "higher"
    standard: Number = None
    robust: Number = None
    difference: Share = Share()
    improved: Number = None
    p_value: Number = None
    n: int | None = None
    p_corrected: Number = None
    comparisons: int | None = None
    verdict: str = ""

    @property
    def outcome(self) -> Literal["higher", "lower", "not settled"]:
        """Which way the interval and the test, corrected for the number of comparisons, agree that it went."""
        ends, corrected = self.difference.interval, self.p_corrected
        if ends is None or ends[0] <= 0 <= ends[1] or (corrected is not None and corrected >= LEVEL):
            return "not settled"
        return "higher" if ends[0] > 0 else "lower"


class BeyondControl(Document):
    """A CAM against the activation of its own layer: `value` less `control`, image by image."""

    method: str = ""
    measure: str = ""
    control: Number = None
    value: Number = None
    difference: Share = Share()
    n: int | None = None
    p_value: Number = None
    p_corrected: Number = None


class Ranked(Document):
    """A network's place on validation."""

    model: str = ""
    value: Number = None
    chosen: bool = False


class Selection(Document):
    """Which networks were chosen for robust training, on which split, by what."""

    split: str = ""
    by: str = ""
    count: int | None = None
    ranking: Records[Ranked] = []


class DataDescription(Document):
    """The data as they were read: images by split and class, masks and groups by split."""

    root_name: str = ""
    layout: str = ""
    notes: list[str] = []
    counts: dict[str, dict[str, int]] = {}
    skipped: int | None = None
    size: int | None = None
    infection_masks: dict[str, int] = {}
    fingerprint: str = ""
    fingerprints: dict[str, str] = {}
    groups: dict[str, int] = {}


class Hardware(Document):
    """What the study ran on."""

    processor: str | None = None
    cores: int | None = None
    accelerator: str | None = None
    system: str | None = None


class FailedRun(Document):
    """A run that is not in the tables, and why."""

    run: str = ""
    reason: str = ""


class StudyDocument(Document):
    """study.json: all runs of a study with their metrics, their comparisons, and where they come from."""

    version: int | None = None
    study: str = ""
    title: str = ""
    notice: str = ""
    created: str = ""
    trustcxr: str = ""
    versions: dict[str, str] = {}
    hardware: Hardware = Hardware()
    seconds: Number = None
    data: DataDescription = DataDescription()
    recipe: dict[str, Any] = {}
    classes: list[str] = []
    selection: Selection = Selection()
    runs: Records[RunDocument] = []
    comparisons: Records[Comparison] = []
    alarms: Records[Alarm] = []
    failures: Records[FailedRun] = []


_D = TypeVar("_D", bound=Document)


def read(kind: type[_D], path: Path) -> _D:
    """A document from its file, as far as it can be understood; UserError where it is missing or broken."""
    return understood(kind, files.read_document(path))[0]


def read_if_there(kind: type[_D], path: Path) -> _D | None:
    """A document from its file; None where there is no such file."""
    return read(kind, path) if path.is_file() else None
