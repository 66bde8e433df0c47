"""audit.json: a model that was given, examined."""

from trustcxr.results.documents.examined import Division, Finding, HandedIn, OperatingPoint
from trustcxr.results.documents.given import AuditedModel
from trustcxr.results.documents.runs import RunDocument
from trustcxr.results.flat import Document, Records


class GateCheck(Document):
    """What was checked of a given model at the door; `passed` is None where it could not be checked."""

    check: str = ""
    passed: bool | None = None
    text: str = ""


class AuditedData(Document):
    """The images that it was examined on; audits compare where `fingerprint` and `truth` agree.

    `fingerprint` is of names, classes and pixels; `truth`, of a model of findings, of what is known of each finding.
    `n` images have a score, of the `total` that the data have.
    """

    name: str = ""
    fingerprint: str = ""
    truth: str = ""
    n: int | None = None
    total: int | None = None

    @property
    def partial(self) -> bool:
        """Whether images were left out, since they have no score."""
        return self.n is not None and self.total is not None and self.n < self.total

    @property
    def images(self) -> str:
        """How many images, in words: `72`, or `67 of 72`."""
        return f"{self.n} of {self.total}" if self.partial else f"{self.n}"


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
    operating_points: Records[OperatingPoint] = []
    subgroups: Records[Division] = []
    findings: Records[Finding] = []
    handed_in: Records[HandedIn] = []

    @classmethod
    def of(
        cls, figures: RunDocument, *, model: AuditedModel, protocol: str | None, data: AuditedData, examination: str
    ) -> "AuditDocument":
        """The figures of a given model, with what was given and on what it was examined."""
        own = {name: getattr(figures, name) for name in figures.model_fields_set - {"model"}}
        return cls(**own, model=model, protocol=protocol, data=data, examination=examination)
