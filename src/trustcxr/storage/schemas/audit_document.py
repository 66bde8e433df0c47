"""Define audit.json, the output of `trustcxr compare`, and leaderboard/<data>/<name>-<hash>.json."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, WithJsonSchema

from trustcxr.errors import UserError
from trustcxr.registry import WORST_CASE
from trustcxr.storage.schemas.document import Document, Number, Result, Share, read_schema
from trustcxr.storage.schemas.run_document import Attacked, AttackResult, AuditedModel, RunDocument
from trustcxr.storage.schemas.study_document import Hardware

if TYPE_CHECKING:
    import pandas as pd

RUN_HERE, SCORES_ONLY, REPORTED = BADGES = "run here", "scores only", "reported"
ENTRY_NAME = re.compile(r".+-[0-9a-f]{8}\.json")
# What an entry has of audit.json: nothing of single images or patients.
AUDIT_PARTS = (
    *("version", "protocol", "classes", "split", "data", "model", "clean", "attacks", "corruptions_mean", "masking"),
    *("entry_checks", "verdict", "withdrawn", "submitted", "examination", "facts"),
)
FACTS = ("date", "versions", "hardware", "bfloat16")
_COMMIT = re.compile(r"\S+@[0-9a-f]{7,40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class FlowStep(Document):
    """Images that are left after a step, and those that it left out, with the reason."""

    step: str = ""
    n: int | None = None
    left_out: int = 0
    why: str = ""


class Characteristic(Document):
    """A value of a column of the data, with its count in each class; quartiles instead of counts for an age.

    `by_class`: of each class, the images with this value. `quartiles`: of each class, lower quartile, median and upper.
    """

    column: str = ""
    value: str = ""
    n: int | None = None
    by_class: dict[str, int] = {}
    quartiles: dict[str, tuple[Number, Number, Number]] = {}


class AuditFacts(Document):
    """Date, software, machine and images of an audit.

    `patients` is the number of known patients, None if no image names its patient; `without_patient`: images without
    one. `classes`: images with each class, or with each finding and a label of it, in `labelled`. `bfloat16`: attacks
    that searched in bfloat16; every answer that counts is in the model's own precision.
    """

    date: str = ""
    versions: dict[str, str] = {}
    hardware: Hardware = Hardware()
    bfloat16: list[str] = []
    patients: int | None = None
    without_patient: int | None = None
    classes: dict[str, int] = {}
    labelled: dict[str, int] = {}
    flow: list[FlowStep] = []
    characteristics: list[Characteristic] = []


class Failure(Document):
    """A wrong answer on an unperturbed image, and the probability that the model gave it."""

    sample_id: str = ""
    finding: str = ""
    label: str = ""
    answer: str = ""
    probability: Number = None


class PredictiveValue(Attacked):
    """Predictive values of an operating point at a prevalence, from its likelihood ratios."""

    finding: str = ""
    aimed_at: str = ""
    prevalence: Number = None
    n: int | None = None
    ppv: Share = Share()
    npv: Share = Share()


class CriterionResult(Document):
    """An acceptance criterion and its result; `met` is None if these images do not settle it.

    `result`: the figure, or its difference from that of another audit if `not_worse_than` names one. `bound` is what
    it is compared with, from `side` (at_least, at_most). `images_needed`: images that would settle it with a chance of
    80 % if the true value is this estimate. `beforehand`: whether the criterion was given before the audit had figures.
    """

    name: str = ""
    figure: str = ""
    side: str = ""
    bound: Number = None
    by: str = ""
    not_worse_than: str = ""
    margin: Number = None
    result: Share = Share()
    n: int | None = None
    met: bool | None = None
    images_needed: int | None = None
    beforehand: bool | None = None
    text: str = ""


class Curve(Document):
    """A curve's points and their 95 % intervals."""

    x: list[Number] = []
    y: list[Number] = []
    low: list[Number] = []
    high: list[Number] = []


class OperatingPoint(Attacked):
    """A class against the rest, or a finding, at its threshold, under one condition (`attack` "clean": none).

    `threshold`: a probability, None if the highest class is the answer; `origin`: who set it. An end None of a
    likelihood ratio's interval has no limit. `sensitivity_at_specificity`: the highest sensitivity of any threshold at
    a specificity of `at_specificity` or more. Near 0 and 1 figures have the score interval; average precision has that
    of resamples.

    `aimed_at`: the target of the attack. "threshold": this class at its threshold; under worst-case an image
    counts with its worst score under any attack within epsilon. "answer": the highest class, so an attack on the
    threshold may leave less. Empty if nothing was attacked.
    """

    finding: str = ""
    aimed_at: str = ""
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

    `n`: answers on `images` images. `findings`: the number that balanced accuracy and AUROC are means over.
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
    """The images divided by a column of the data's table. `merged`: sizes of groups that are too small.

    `same_groups`: other columns with the same division. `text`: why there are no groups.
    """

    column: str = ""
    same_groups: list[str] = []
    groups: list[Subgroup] = []
    worst: str = ""
    merged: dict[str, int] = {}
    text: str = ""


class Finding(Document):
    """A finding of a model with a sigmoid for each: whether it was judged, and on how many images.

    `unknown`: images without a label of it, which are left out; `why` it was not judged.
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
    """Submitted adversarial images: accuracy on them alone, and what they add to our worst case.

    `found_alone`: images that only the submitted ones mislead; `missed`: images that only ours mislead.
    """

    by: str = ""
    sha256: str = ""
    epsilon: Number = None
    n: int | None = None
    accuracy: Share = Share()
    found_alone: int | None = None
    missed: int | None = None


class SmallestChange(Document):
    """The smallest L-infinity change found that flips a right answer; `epsilon` is None if none was found."""

    sample_id: str = ""
    label: str = ""
    answer: str = ""
    epsilon: Number = None


class EntryCheck(Document):
    """One entry check; `passed` is None if it could not be carried out.

    `grave`: without it passed, no figure of the audit is sound. Attacks adapt to the failure of the others.
    """

    check: str = ""
    passed: bool | None = None
    text: str = ""
    grave: bool = False


class Statement(Document):
    """One answer about the model, in a sentence with its figures; `met` is None if it is not settled or measured."""

    question: str = ""
    met: bool | None = None
    text: str = ""


class Verdict(Document):
    """Both answers of an audit: whether the measurement is sound, or why not, and how good the model is."""

    sound: bool | None = None
    reasons: list[str] = []
    model: list[Statement] = []


class AuditedData(Document):
    """The images of an audit; audits compare if images and labels of findings are the same.

    `fingerprint`: of names, classes and pixels at the model's size. `files`: of names, classes and the bytes of the
    files, whatever the size; empty if these are expensive to read. `lungs`: the same of the lung masks. `truth`: of the
    labels of each finding. `n` images of `total` have a score.
    """

    name: str = ""
    fingerprint: str = ""
    files: str = ""
    lungs: str = ""
    truth: str = ""
    n: int | None = None
    total: int | None = None

    def same_images(self, other: "AuditedData") -> bool:
        """Return whether both audits have the same images: by their files, or by their pixels at one size."""
        return any(a and a == b for a, b in ((self.files, other.files), (self.fingerprint, other.fingerprint)))

    def other_lungs(self, other: "AuditedData") -> bool:
        """Return whether the lung masks surely differ."""
        return self.lungs != other.lungs and bool(self.lungs and other.lungs)

    def describe_difference(self, other: "AuditedData") -> str:
        """Describe both sets of images and why they are not the same."""
        which = f"({self.name}, {self.n}; {other.name}, {other.n})"
        if self.files and other.files:
            return f"{which}: their names, labels or files differ"
        return f"{which}, or not read at the same size, and not both audits have a checksum of the images' files"

    @property
    def partial(self) -> bool:
        """Return whether images without a score were left out."""
        return self.n is not None and self.total is not None and self.n < self.total

    @property
    def images(self) -> str:
        """The number of images as text: `72`, or `67 of 72`."""
        return f"{self.n} of {self.total}" if self.partial else f"{self.n}"


class AuditDocument(RunDocument):
    """audit.json: a metrics.json of an external model, and its verdict.

    `protocol`: None if options were changed. Figures under an attack that missed planted examples are None, and
    `withdrawn` says why. `examination`: a checksum of model, data and options.
    """

    model: AuditedModel = AuditedModel()  # type: ignore[assignment]
    protocol: str | None = None
    data: AuditedData = AuditedData()
    entry_checks: list[EntryCheck] = []
    verdict: Verdict = Verdict()
    withdrawn: str | None = None
    operating_points: list[OperatingPoint] = []
    subgroups: list[Division] = []
    findings: list[Finding] = []
    submitted: list[Submitted] = []
    smallest_changes: list[SmallestChange] = []
    facts: AuditFacts = AuditFacts()
    failures: list[Failure] = []
    predictive_values: list[PredictiveValue] = []
    criteria: list[CriterionResult] = []

    def summary(self) -> str:
        """Return in one sentence whether the figures can be relied on, and why not."""
        if self.verdict.sound is None:
            return ""
        if self.verdict.sound:
            return "The measurement is sound."
        return f"The measurement is NOT sound: do not rely on the figures. {'; '.join(self.verdict.reasons)}"

    @property
    def largest_worst_case(self) -> AttackResult | None:
        """The worst case at its largest epsilon; None if there is none, or if it was withdrawn."""
        rows = [row for row in self.attacks if row.attack == WORST_CASE]
        largest = max(rows, key=lambda row: row.epsilon or 0.0, default=None)
        return None if largest is None or largest.accuracy.value is None else largest

    @property
    def misled_alone(self) -> list[Submitted]:
        """The submitted images that mislead the model if our own attacks do not."""
        return [one for one in self.submitted if one.found_alone]

    @classmethod
    def from_figures(
        cls, figures: RunDocument, *, model: AuditedModel, protocol: str | None, data: AuditedData, examination: str
    ) -> "AuditDocument":
        """Build an audit from the figures of a model."""
        values = {name: getattr(figures, name) for name in figures.model_fields_set - {"model"}}
        return cls(**values, model=model, protocol=protocol, data=data, examination=examination)


def read_audit(path: Path) -> AuditDocument:
    """Read an audit to compare. Raises UserError if a compared figure is missing."""
    document = read_schema(AuditDocument, path)
    parts: list[tuple[str, object]] = [("clean", document.clean), ("corruptions", document.corruptions_mean)]
    parts += [(row.attack, row) for row in document.attacks]
    outliers = [fault for name, part in parts for fault in _find_outliers(part, name)]
    flaws = [f"a {name.replace('.', ' ')} of {number:g}, which is no share of one" for name, number in outliers]
    if not document.classes or document.clean.accuracy.value is None:
        flaws = [f"no {'clean accuracy' if document.classes else 'classes'} in it"]
    if flaws:
        raise UserError(f"{path}: damaged: {flaws[0]}; audit the model again, into a new folder")
    return document


class PairRow(Document):
    """Accuracy of both models under one condition, and the second less the first.

    `settled`: the interval and the test, corrected for the number of rows, agree that they differ. `p_least`: the
    p-value if all answers that differ were right in the same model.
    """

    measure: str = ""
    first: Number = None
    second: Number = None
    difference: Share = Share()
    p_value: Number = None
    p_least: Number = None
    n: int | None = None
    p_corrected: Number = None
    settled: bool = False


class AuditPair(Result):
    """Two audits: the models' names, which of them are sound, and what was withdrawn in one of them.

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
    sound: list[bool] = []
    withdrawn: list[str] = []
    other_lungs: list[str] = []
    submitted: list[list[str]] = []
    rows: list[PairRow] = []

    def table(self) -> "pd.DataFrame":
        """Return a row for each condition: accuracy of both, the difference with its interval, and p."""
        import pandas as pd

        return pd.DataFrame(
            {"condition": row.measure, self.first: row.first, self.second: row.second}
            | row.difference.columns("difference")
            | {"p, corrected": row.p_corrected, "n": row.n}
            for row in self.rows
        )


class ImageResults(Document):
    """Right (1) or wrong (0) for each image, so that two entries can be compared image by image; no image is named.

    The images are in the order of their groups (patients) and names. `images`: SHA-256 of this list.
    `new_group`: 1 for the first image of each group. `worst_case`: at its largest epsilon, "-" for an image that was
    not attacked; empty if there is no worst case. A finding of an image counts as an image.
    """

    model_config = ConfigDict(validate_by_name=True, extra="forbid")

    images: str = ""
    new_group: str = ""
    clean: str = ""
    worst_case: str = ""

    def same_images(self, other: "ImageResults") -> bool:
        """Return whether both list the same images in the same groups, so that they compare image by image."""
        return (self.images, self.new_group) == (other.images, other.new_group)

    def find_fault(self, audit: AuditDocument) -> str:
        """Return why these are not the results of an audit; empty if they give its figures."""
        if not _SHA256.fullmatch(self.images):
            return f"images: {self.images!r} is no SHA-256"
        worst = audit.largest_worst_case
        for name, text, share in (
            ("new_group", self.new_group, None),
            ("clean", self.clean, audit.clean.accuracy),
            *([] if worst is None else [("worst_case", self.worst_case, worst.accuracy)]),
        ):
            allowed = "01-" if name == "worst_case" else "01"
            if not text or len(text) != len(self.clean) or text.strip(allowed):
                return f"{name}: it is not one of {', '.join(allowed)} for each of {len(self.clean)} images"
            right, wrong = text.count("1"), text.count("0")
            value = right / (right + wrong) if right + wrong else 0.0
            if share is not None and abs(value - (share.value or 0.0)) > 1e-9:
                return f"{name}: its share of right images is {value:g}, but the audit's accuracy {share.value or 0:g}"
        return "worst_case: the audit has none" if worst is None and self.worst_case else ""


class LeaderboardEntry(Document):
    """One audit of one model, with its licence and source.

    `source`: address and commit of the model, ADDRESS@COMMIT. `badge`: "run here", "scores only" (the model was never
    asked, only its scores are known) or "reported" (audited by those who submit it). `model_file`: the declaration of
    an external model. `audit`: its figures, without those of single images; the model, the package's version and the
    machine are in it. `image_results`: for paired comparisons; an entry without them is valid.
    """

    model_config = ConfigDict(validate_by_name=True, extra="forbid")

    version: int | None = None
    badge: str = ""
    run_by: str = ""
    licence: str = ""
    source: str = ""
    command: str = ""
    model_file: dict[str, object] = {}
    audit: Annotated[AuditDocument, WithJsonSchema({"type": "object", "description": "As in audit.schema.json."})] = (
        AuditDocument()
    )
    image_results: ImageResults | None = None

    @property
    def file_name(self) -> str:
        """Return the path below the folder of the leaderboard: `<data>/<name>-<first 8 of sha256>.json`."""
        model = self.audit.model
        return f"{_slug(self.audit.data.name)}/{_slug(model.name)}-{(model.sha256 or '')[:8]}.json"

    def list_faults(self) -> Iterator[str]:
        """Yield what is wrong with the entry itself, `what: why. Do this.`"""
        model, facts, machine = self.audit.model, self.audit.facts, self.audit.facts.hardware.processor
        for key in ("run_by", "licence", "command"):
            if not getattr(self, key).strip():
                yield f"{key}: it is missing. Add it."
        if not _COMMIT.fullmatch(self.source):
            yield f"source: {self.source!r} is not ADDRESS@COMMIT. Give 7 to 40 hexadecimal digits of the commit."
        if self.badge not in BADGES:
            yield f"badge: {self.badge!r} is unknown. Use one of {', '.join(BADGES)}."
        elif (self.badge == RUN_HERE) == (model.kind == "predictions") and self.badge != REPORTED:
            yield f"badge: {self.badge!r} does not fit a model of kind {model.kind!r}. Use {make_badge(model.kind)!r}."
        if not _SHA256.fullmatch(model.sha256 or ""):
            yield f"audit.model.sha256: {model.sha256!r} is no SHA-256. Audit a file of the model."
        if not model.bytes or model.bytes < 0:
            yield f"audit.model.bytes: {model.bytes} is no size of a file. Audit a file of the model."
        whole = {
            "facts: version, date or machine is missing": all((facts.versions.get("trustcxr"), facts.date, machine)),
            "data: no checksum of the images": self.audit.data.files or self.audit.data.fingerprint,
            "verdict: it is missing": self.audit.verdict.sound is not None,
            "clean: no accuracy or no classes": self.audit.clean.accuracy.value is not None and self.audit.classes,
        }
        yield from (f"audit.{text}. Audit the model again." for text, present in whole.items() if not present)
        if self.image_results is not None and (fault := self.image_results.find_fault(self.audit)):
            yield f"image_results.{fault}. Add the audit again."
        for name, number in _find_outliers(self.audit, "audit"):
            yield f"{name}: {number:g} is no share of one. Add the audit again."
        for name, share in _find_shares(self.audit, "audit"):
            low, high = share.interval or (0.0, 1.0)
            if share.interval and share.value is not None and not low - 1e-9 <= share.value <= high + 1e-9:
                yield f"{name}: {share.value:g} is outside its interval [{low:g}, {high:g}]. Add the audit again."


def make_badge(kind: str, *, reported: bool = False) -> str:
    """Return the badge of a model of this kind; `reported`: audited by those who submit it."""
    return REPORTED if reported else SCORES_ONLY if kind == "predictions" else RUN_HERE


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", PurePath(text).name.lower()).strip("-.") or "unnamed"


def _find_outliers(part: object, name: str) -> Iterator[tuple[str, float]]:
    """Yield the names and numbers of shares, and of ends of their intervals, that are not within [0, 1]."""
    for key, share in _find_shares(part, name):
        numbers = (number for number in (share.value, *(share.ci or ())) if number is not None)
        yield from ((key, number) for number in numbers if not -1e-9 <= number <= 1 + 1e-9)


def _find_shares(part: object, name: str) -> Iterator[tuple[str, Share]]:
    if isinstance(part, Share):
        yield name, part
    elif isinstance(part, BaseModel | dict):
        for key, one in dict(part).items():
            yield from _find_shares(one, f"{name}.{key}")
    elif isinstance(part, list):
        for index, one in enumerate(part):
            yield from _find_shares(one, f"{name}[{index}]")
