"""Define what `predict`, `fit-ood`, `export`, `prune` and `verify` print."""

from typing import Any, Literal

from trustcxr.storage.schemas.document import Document, Number, Share

UNWRITTEN = ("no heatmap: ", "no DICOM answer: ")  # so an error begins that the disk made


class ImageAnswer(Document):
    """The class of one image, how sure, and whether it survives epsilon; or why there is no answer.

    `calibrated`: whether the probabilities are scaled by a temperature. `survives`: by attack. `error`: the file cannot
    be read, or its heatmap or its DICOM objects cannot be written. `left_out`: it is no image. `dicom`: paths of the
    answer as DICOM objects; `no_dicom`: why there are none.
    `border`: in words, where two classes are nearly as likely. `rarer_than`: the share of the run's validation images
    that are more like its training images, where that was fitted.
    """

    image: str = ""
    predicted: str = ""
    probabilities: dict[str, float] = {}
    calibrated: bool | None = None
    epsilon: Number = None
    survives: dict[str, bool] = {}
    run: str = ""
    heatmap: str | None = None
    dicom: list[str] = []
    no_dicom: str | None = None
    warnings: list[str] = []
    border: str | None = None
    rarer_than: Number = None
    error: str | None = None
    left_out: str | None = None

    @property
    def unwritten(self) -> bool:
        """Whether its error is not the image's: the disk refused what belongs to the answer."""
        return self.error is not None and self.error.startswith(UNWRITTEN)


class FamiliarityDocument(Document):
    """What a run's training images are like: the threshold that accepts `accepted` of the validation images.

    `false_alarms`: the share of the run's own test images that is called unlike. `trained`, `validated`, `tested`: how
    many images each is from.
    """

    run: str = ""
    accepted: Number = None
    threshold: Number = None
    false_alarms: Share = Share()
    trained: int | None = None
    validated: int | None = None
    tested: int | None = None


class ExportDocument(Document):
    """A file that was written from a run; `largest` is the most by which a logit differs on `n` of the `images`.

    `opset` of ONNX alone; `gradients` are those that an audit of the file has: own, converted, or none, as `note` says.
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
    """A folder that may go: `days` since it was last read or written, `held` who uses it, `why` it stays."""

    kind: Literal["store", "unfinished store", "checkpoint", "finished checkpoint"] = "store"
    path: str = ""
    what: str = ""
    bytes: int = 0
    days: float = 0.0
    held: str = ""
    why: str = ""
    removed: bool = False

    @property
    def old(self) -> bool:
        """Whether it would be removed: nobody holds it, and nothing speaks for keeping it."""
        return not self.held and not self.why


class PruneDocument(Document):
    """All of them, and how many bytes are or would be free."""

    cache: str = ""
    older_than: float = 0.0
    found: list[Prunable] = []
    removable: int = 0
    freed: int = 0


class Difference(Document):
    """A figure that is not what the tables give."""

    file: str = ""
    key: str = ""
    said: Any = None
    computed: Any = None


class VerifiedDocument(Document):
    """`figures`: how many were computed again, of so many `runs`; `differences`: those that differ.

    `unchecked`: what could not be computed, and why.
    """

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
        """Whether figures of runs were computed again, and every one is as it was said."""
        return self.runs > 0 and not self.differences
