"""Define the output of `predict`, `fit-ood`, `export`, `cache`, `verify`, `status` and `study --dry-run`."""

from typing import Any, Literal

from trustcxr.console import format_duration
from trustcxr.storage.schemas.document import Document, Number, Share

UNWRITTEN = ("no heatmap: ", "no DICOM answer: ")  # prefixes of errors of the disk


class ImageAnswer(Document):
    """The class of one image, its probabilities, and whether it survives epsilon; or the reason for no answer.

    `calibrated`: the probabilities are scaled by a temperature. `survives`: by attack. `error`: the file cannot be
    read, or its results cannot be written. `left_out`: it is no image, or no chest radiograph. `dicom`: paths of DICOM
    objects; `no_dicom`: why there are none. `warnings`: reasons for doubt. `border`: text if two classes are nearly as
    likely. `rarer_than`: the share of validation images that are more like the training images. `smallest_change`:
    epsilon of the smallest change found that flips it. `method`: of the heatmap.
    """

    image: str = ""
    predicted: str = ""
    probabilities: dict[str, float] = {}
    calibrated: bool | None = None
    epsilon: Number = None
    survives: dict[str, bool] = {}
    run: str = ""
    heatmap: str | None = None
    method: str = ""
    dicom: list[str] = []
    no_dicom: str | None = None
    warnings: list[str] = []
    border: str | None = None
    rarer_than: Number = None
    smallest_change: Number = None
    error: str | None = None
    left_out: str | None = None

    @property
    def unwritten(self) -> bool:
        """Return whether the error is of the disk and not of the image."""
        return self.error is not None and self.error.startswith(UNWRITTEN)


class OodDocument(Document):
    """The threshold that accepts the share `accepted` of the validation images, and its false alarms on test images.

    `trained`, `validated`, `tested`: numbers of images.
    """

    run: str = ""
    accepted: Number = None
    threshold: Number = None
    false_alarms: Share = Share()
    trained: int | None = None
    validated: int | None = None
    tested: int | None = None


class ExportDocument(Document):
    """An exported file. `largest`: the largest difference of a logit on `n` of the `images`.

    `opset`: of ONNX alone. `gradients`: those that an audit of the file has: own, converted or none (see `note`).
    """

    run: str = ""
    format: str = ""
    file: str = ""
    model_file: str = ""
    opset: int | None = None
    size: int | None = None
    bytes: int | None = None
    sha256: str = ""
    images: str = ""
    n: int | None = None
    largest: Number = None
    allowed: Number = None
    gradients: str = ""
    note: str = ""


class Prunable(Document):
    """A folder that may be removed. `days`: since its last use. `user`: who uses it. `why`: the reason to leave it."""

    kind: Literal["store", "unfinished store", "checkpoint", "finished checkpoint"] = "store"
    path: str = ""
    what: str = ""
    bytes: int = 0
    days: float = 0.0
    user: str = ""
    why: str = ""
    removed: bool = False

    @property
    def old(self) -> bool:
        """Return whether it may be removed."""
        return not self.user and not self.why


class PruneDocument(Document):
    """Folders that may be removed, and bytes that can be or were freed."""

    cache: str = ""
    older_than: float = 0.0
    entries: list[Prunable] = []
    removable: int = 0
    freed: int = 0


class Difference(Document):
    """A figure of a document that its tables do not give."""

    file: str = ""
    key: str = ""
    stored: Any = None
    computed: Any = None


class VerifiedDocument(Document):
    """Counts of recomputed `figures` and `runs`; `differences`: those that differ; `unchecked`: parts and reasons."""

    study: str = ""
    folder: str = ""
    notice: str = ""
    written_by: str = ""
    runs: int = 0
    figures: int = 0
    files: int = 0
    differences: list[Difference] = []
    unchecked: list[str] = []

    @property
    def agrees(self) -> bool:
        """Return whether figures were computed again, and all are as stored."""
        return self.runs > 0 and not self.differences


State = Literal["done", "running", "failed", "waiting", "if chosen"]


class RunPlan(Document):
    """A run of a study. `seconds`: the most that each remaining step takes (None: unknown). `epoch`: finished ones."""

    run: str = ""
    model: str = ""
    way: str = ""
    seed: int | None = None
    state: State = "waiting"
    step: str = ""
    epoch: int | None = None
    epochs: int | None = None
    holder: str = ""
    reason: str = ""
    seconds: dict[str, float | None] = {}

    @property
    def left(self) -> float | None:
        """Seconds of all remaining steps; None if one is unknown."""
        seconds = [part for part in self.seconds.values() if part is not None]
        return sum(seconds) if len(seconds) == len(self.seconds) else None

    @property
    def at(self) -> str:
        """The current, interrupted or next step; of a failed run the reason."""
        if self.state == "failed":
            return self.reason
        epoch = f"train, epoch {min(self.epoch + 1, self.epochs or 0)} of {self.epochs}" if self.epoch else ""
        if self.state == "running":
            return epoch if self.step == "train" and epoch else self.step
        if self.state == "waiting" and self.step == "train" and epoch:
            return f"cut off in {epoch}"
        return f"{self.step} comes next" if self.state == "waiting" and self.step not in ("", "train") else ""


class StudyPlan(Document):
    """Every run of a study. `most`: seconds left with the most expensive choice; None if a run has no estimate.

    `to_choose`: networks that validation will choose. `at_once`: running runs.
    """

    study: str = ""
    folder: str = ""
    notice: str = ""
    holder: str = ""
    at_once: int = 0
    to_choose: int = 0
    runs: list[RunPlan] = []
    most: Number = None

    @property
    def time_left(self) -> str:
        """The time left as text; empty if a run has no estimate."""
        return "" if self.most is None else format_duration(self.most / max(self.at_once, 1))
