"""training.json and metrics.json: one trained run."""

from trustcxr.results.documents.explained import LesionDocument, SaliencyDocument
from trustcxr.results.documents.given import AuditedModel
from trustcxr.results.documents.judged import Alarm, Verdict
from trustcxr.results.documents.tested import (
    Accuracies,
    Accuracy,
    AttackResult,
    Calibration,
    CertifiedResult,
    Classification,
    CorruptionResult,
    CorruptionsMean,
    Drop,
    InputGradients,
    PlantedShortcut,
)
from trustcxr.results.flat import Document, Named, Number, Records


class Refit(Document):
    """The training anew on training and validation images."""

    epochs: int | None = None
    seconds: Number = None
    stopped: str | None = None


class TrainingDocument(Document):
    """training.json: how long a run was trained, what stopped it, which epoch is kept.

    `best_value` of `monitor` is under an attack, or proved, at `epsilon`; without it, on images as they are.
    `processor_seconds` of all cores together; `energy_kwh` is an estimate, `energy_method` how it was made. `precision`
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
    energy_kwh: Number = None
    energy_method: str = ""
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

    `origin`: trained here, or given. `films`: the fingerprint of the images. `notes`: what a reader must know first.
    `given`: of a model file what was given, `examination` a checksum of all that was examined and how; `finding`: of a
    model with a sigmoid for each the one that was explained. `provenance`: a hash of all that the figures were made
    from.
    """

    version: int | None = None
    provenance: str = ""
    run: str = ""
    origin: str = ""
    films: str = ""
    notes: list[str] = []
    model: str = ""
    defence: str = ""
    label: str = ""  # of the defence, where the recipe gives one
    background: str = "full"
    seed: int | None = None
    classes: list[str] = []
    split: str = ""
    clean: Classification = Classification()
    by_source: Named[Accuracy] = {}
    by_group: dict[str, Named[Accuracy]] = {}
    shortcuts: Accuracies = {}
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
    given: AuditedModel = AuditedModel()
    examination: str = ""
    finding: str = ""
