"""Define training.json and metrics.json: one trained run, or an external model."""

from typing import TYPE_CHECKING

from trustcxr.storage.schemas.document import Document, Number, Result
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

if TYPE_CHECKING:
    import pandas as pd


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

        clean: dict[str, object] = {"condition": "clean", "epsilon": None, "steps": None, "queries": None}
        clean |= {"severity": None}
        rows = [clean | {"n": self.clean.n} | self.clean.accuracy.columns]
        for row in self.attacks:
            which = {"condition": row.attack, "epsilon": row.epsilon, "n": row.n}
            rows.append(clean | which | {"steps": row.steps, "queries": row.queries} | row.accuracy.columns)
        for proved in self.certified:
            which = {"condition": f"certified, {proved.method}", "epsilon": proved.epsilon, "n": proved.n}
            rows.append(clean | which | proved.accuracy.columns)
        for damaged in self.corruptions:
            which = {"condition": damaged.corruption, "severity": damaged.severity, "n": damaged.n}
            rows.append(clean | which | damaged.accuracy.columns)
        return pd.DataFrame(rows)
