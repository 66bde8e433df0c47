"""audit.json: a model that was given, examined."""

from collections.abc import Iterator

from trustcxr.results.documents.examined import Division, Finding, HandedIn, OperatingPoint
from trustcxr.results.documents.given import AuditedModel
from trustcxr.results.documents.runs import RunDocument
from trustcxr.results.flat import Document, Records, Share

_ROUNDING = 1e-9  # of a share


class GateCheck(Document):
    """What was checked of a given model at the door; `passed` is None where it could not be checked."""

    check: str = ""
    passed: bool | None = None
    text: str = ""


class AuditedData(Document):
    """The images that it was examined on; audits compare where the images and what is known of findings are the same.

    `fingerprint` is of names, classes and pixels at the size that the model wants; `files` of names, classes and the
    bytes of the films' files, so the same for a model of any size: empty where these could not be had cheaply;
    `lungs` the same of their lung masks, empty where there is none too. `truth`, of a model of findings, is of what is
    known of each finding, in any order. `n` images have a score, of the `total` that the data have.
    """

    name: str = ""
    fingerprint: str = ""
    files: str = ""
    lungs: str = ""
    truth: str = ""
    n: int | None = None
    total: int | None = None

    @property
    def known(self) -> bool:
        """Whether a checksum says which images these are."""
        return bool(self.files or self.fingerprint)

    def same_images(self, other: "AuditedData") -> bool:
        """Whether these are those of another audit: by their files, or by their pixels at one size.

        Images of which nobody knows which they are, are those of no other.
        """
        pairs = ((self.files, other.files), (self.fingerprint, other.fingerprint))
        return any(own and own == another for own, another in pairs)

    def other_lungs(self, other: "AuditedData") -> bool:
        """Whether the same images were surely changed by other lung masks."""
        return self.lungs != other.lungs and bool(self.lungs and other.lungs)

    def same_truth(self, other: "AuditedData") -> bool:
        """Whether of the same images the same is known of each finding."""
        return self.truth == other.truth

    def apart(self, other: "AuditedData") -> str:
        """Which images both are and why they are not the same, in words."""
        which = f"({self.name}, {self.n}; {other.name}, {other.n})"
        if self.files and other.files:
            return f"{which}: their names, labels or files differ"
        return f"{which}, or not read at the same size, and not both audits have a checksum of the films' files"

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

    def same_classes(self, other: "AuditDocument") -> bool:
        """Whether it knows the classes of another one, in whichever order."""
        return sorted(self.classes) == sorted(other.classes)

    @property
    def flaw(self) -> str:
        """Why no other can be compared with it: what it lacks, or a share that is none; empty where it is whole."""
        if not self.classes:
            return "no classes in it"
        if self.clean.accuracy.value is None:
            return "no clean accuracy in it"
        for name, share in self._shown():
            for number in (share.value, *(share.ci or ())):
                if number is not None and not -_ROUNDING <= number <= 1 + _ROUNDING:
                    return f"a {name} of {number:g}, which is no share of one"
        return ""

    def _shown(self) -> Iterator[tuple[str, Share]]:
        """What audits are compared by, and what it is called."""
        yield "clean accuracy", self.clean.accuracy
        yield "clean AUROC", self.clean.auroc_macro
        yield "calibration error", self.clean.ece
        for row in self.attacks:
            yield f"{row.attack} accuracy", row.accuracy
        if self.corruptions_mean is not None:
            yield "corruptions accuracy", self.corruptions_mean.accuracy

    @property
    def misled_alone(self) -> list[HandedIn]:
        """Of what was handed in, that of which images mislead the model where our own attacks do not."""
        return [found for found in self.handed_in if found.found_alone]

    @classmethod
    def of(
        cls, figures: RunDocument, *, model: AuditedModel, protocol: str | None, data: AuditedData, examination: str
    ) -> "AuditDocument":
        """The figures of a given model, with what was given and on what it was examined."""
        own = {name: getattr(figures, name) for name in figures.model_fields_set - {"model"}}
        return cls(**own, model=model, protocol=protocol, data=data, examination=examination)
