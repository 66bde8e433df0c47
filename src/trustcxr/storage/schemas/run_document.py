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
    PlantedShortcut,
    Verdict,
)


class Reported(Document):
    """What its makers say of a model; of a run the recipe says it."""

    clean: Number = None
    attacked: Number = None
    threat_model: str = ""
    training_data: str = ""
    paper: str = ""


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
    reported: Reported = Reported()


class Refit(Document):
    """The training anew on training and validation images."""

    epochs: int | None = None
    seconds: Number = None
    stopped: str | None = None


class TrainingDocument(Document):
    """training.json: how long a run was trained, what stopped it, which epoch is kept.

    `best_value` of `monitor` is under an attack, or proved, at `epsilon`; without it, on images as they are.
    `processor_seconds` of all cores together. `precision`
    is what was computed in, `precision_asked` what the recipe asks for: other where the machine could not. `world`
    processes shared each batch by `strategy`, and each worked its share off in `parts`: the most, where that changed;
    missing where no batch was split.
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
    """metrics.json: one run on one split. In study.json `training` is beside it.

    `origin`: trained here, or given. `images`: the fingerprint of the images. `notes`: what a reader must know first.
    `given`: of a model file what was given, `examination` a checksum of all that was examined and how; `finding`: of a
    model with a sigmoid for each the one that was explained. `provenance`: a hash of all that the figures were made
    from.
    """

    version: int | None = None
    provenance: str = ""
    run: str = ""
    origin: str = ""
    images: str = ""
    notes: list[str] = []
    model: str = ""
    defence: str = ""
    label: str = ""  # of the defence, where the recipe gives one
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
    masking: Verdict | None = None
    calibration: Calibration | None = None
    alarms: list[Alarm] = []
    drop_from_internal: list[Drop] = []
    planted_shortcuts: dict[str, PlantedShortcut] = {}
    training: TrainingDocument = TrainingDocument()
    given: AuditedModel = AuditedModel()
    examination: str = ""
    finding: str = ""
