"""Define training.json and metrics.json: one trained run, or an external model."""

from trustcxr.storage.schemas.document import Document, Number
from trustcxr.storage.schemas.saliency_figures import LesionDocument, SaliencyDocument
from trustcxr.storage.schemas.test_figures import (
    Accuracy,
    Alarm,
    AttackResult,
    Calibration,
    CertifiedResult,
    Classification,
    CorruptionResult,
    CorruptionsMean,
    Drop,
    InputGradients,
    MaskingVerdict,
    PlantedShortcut,
)


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
    `processor_seconds`: of all cores together. `precision_asked`: the recipe's, which differs if the machine lacks it.
    `world` processes shared each batch by `strategy`, each in `parts` (the most, if that changed); missing if no batch
    was split.
    """

    version: int | None = None
    precision: str = ""
    precision_asked: str = ""
    epochs: int | None = None
    best_epoch: int | None = None
    seconds: Number = None
    processor_seconds: Number = None
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


class RunDocument(Document):
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
    label: str = ""  # of the defence, if the recipe has one
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
