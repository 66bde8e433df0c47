"""Define audit.json, an examined model, and what `trustcxr compare` prints of two audits."""

from collections.abc import Iterator

from trustcxr.storage.schemas.document import Document, Number, Share
from trustcxr.storage.schemas.run_document import AuditedModel, RunDocument


class Curve(Document):
    """A curve's points and their 95 % intervals."""

    x: list[Number] = []
    y: list[Number] = []
    low: list[Number] = []
    high: list[Number] = []


class OperatingPoint(Document):
    """A class against the rest, or a finding, at its threshold, under one condition (`attack` "clean": as it is).

    `threshold` is a probability, None where the highest class is the answer; `origin` says who set it. Of the
    likelihood ratios an end that is None has no limit. `sensitivity_at_specificity`: the highest sensitivity that any
    threshold has on these images at a specificity of `at_specificity` or more. Average precision has the interval of
    resamples alone, which says too little near 0 and 1; the others have the score interval there.

    `target_class` names what the attack aimed at. "threshold": this class at its threshold; under worst-case an image
    counts with its worst score under any attack within epsilon. "answer": the highest class, so an attack on the
    threshold may leave less. Empty if nothing was attacked.
    """

    finding: str = ""
    attack: str = ""
    epsilon: Number = None
    steps: int | None = None
    target_class: str = ""
    threshold: Number = None
    origin: str = ""
    n: int | None = None
    positives: int | None = None
    sensitivity: Share = Share()
    specificity: Share = Share()
    likelihood_positive: Share = Share()
    likelihood_negative: Share = Share()
    auroc: Share = Share()
    average_precision: Share = Share()
    sensitivity_at_specificity: Share = Share()
    at_specificity: Number = None
    roc: Curve = Curve()
    precision_recall: Curve = Curve()


class Subgroup(Document):
    """The images with one value of a column. `gap`: their accuracy less that of all others, with p corrected (Holm).

    `n`: answers, of a model of findings several an image; `images`: those that they are of. `findings`: over how many
    of these balanced accuracy and AUROC are means, those that some of the group's images have and some have not.
    """

    name: str = ""
    images: int | None = None
    n: int | None = None
    groups: int | None = None
    findings: int | None = None
    accuracy: Share = Share()
    balanced_accuracy: Share = Share()
    constant_answer: Number = None
    auroc_macro: Share = Share()
    ece: Share = Share()
    gap: Share = Share()
    p_value: Number = None
    p_corrected: Number = None
    settled: bool | None = None


class Division(Document):
    """The images divided by a column of the data's table. `merged`: groups too small to stand alone, and their sizes.

    `alike`: other columns that divide the images exactly so. Without groups where there is nothing to judge: `text`
    says why.
    """

    column: str = ""
    alike: list[str] = []
    groups: list[Subgroup] = []
    worst: str = ""
    merged: dict[str, int] = {}
    text: str = ""


class Finding(Document):
    """A finding of a model with one sigmoid each: whether it could be judged on these images, and on how many.

    `unknown`: images whose label of it is not known, which are left out; `why` it could not be judged.
    """

    name: str = ""
    judged: bool | None = None
    why: str = ""
    threshold: Number = None
    origin: str = ""
    n: int | None = None
    positives: int | None = None
    unknown: int | None = None


class Submitted(Document):
    """Adversarial images that somebody handed in: accuracy on them alone, and what they add to our worst case.

    `found_alone`: images that mislead the model where ours did not; `missed`: the other way round.
    """

    by: str = ""
    sha256: str = ""
    epsilon: Number = None
    n: int | None = None
    accuracy: Share = Share()
    found_alone: int | None = None
    missed: int | None = None


_ROUNDING = 1e-9  # of a share


class EntryCheck(Document):
    """One entry check of an external model; `passed` is None if it could not be carried out."""

    check: str = ""
    passed: bool | None = None
    text: str = ""


class AuditedData(Document):
    """The images that it was examined on; audits compare where the images and what is known of findings are the same.

    `fingerprint` is of names, classes and pixels at the size that the model wants; `files` of names, classes and the
    bytes of the images' files, so the same for a model of any size: empty where these could not be had cheaply;
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
        return f"{which}, or not read at the same size, and not both audits have a checksum of the images' files"

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
    entry_checks: list[EntryCheck] = []
    unreliable: bool | None = None
    reasons: str = ""
    withdrawn: str | None = None
    operating_points: list[OperatingPoint] = []
    subgroups: list[Division] = []
    findings: list[Finding] = []
    submitted: list[Submitted] = []

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
    def misled_alone(self) -> list[Submitted]:
        """Of what was handed in, that of which images mislead the model where our own attacks do not."""
        return [found for found in self.submitted if found.found_alone]

    @classmethod
    def of(
        cls, figures: RunDocument, *, model: AuditedModel, protocol: str | None, data: AuditedData, examination: str
    ) -> "AuditDocument":
        """The figures of a given model, with what was given and on what it was examined."""
        own = {name: getattr(figures, name) for name in figures.model_fields_set - {"model"}}
        return cls(**own, model=model, protocol=protocol, data=data, examination=examination)


class PairRow(Document):
    """One condition: accuracy of both, the second less the first with its interval, and whether they differ.

    `settled`: the interval and the test, corrected for the number of rows, both say that they do.
    """

    measure: str = ""
    first: Number = None
    second: Number = None
    difference: Share = Share()
    p_value: Number = None
    n: int | None = None
    p_corrected: Number = None
    settled: bool = False


class AuditPair(Document):
    """Two audits: the models' names, which of them may not be relied on, and what was withdrawn in one of them.

    `submitted`: of each, who handed in adversarial images that alone changed its worst case.
    `data` as the audit has them of which fewer images have a score. `same_pixels`: whether both models were given the
    same pixels; not where they want images of different sizes. `other_lungs`: images on which the lungs are changed, by
    other lung masks in one of them, and so not compared.
    """

    first: str = ""
    second: str = ""
    protocol: str | None = None
    data: AuditedData = AuditedData()
    same_pixels: bool | None = None
    unreliable: list[bool] = []
    withdrawn: list[str] = []
    other_lungs: list[str] = []
    submitted: list[list[str]] = []
    rows: list[PairRow] = []
