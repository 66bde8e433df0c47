"""Define leaderboard/<data>/<name>-<hash>.json: an entry of the leaderboard."""

import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, WithJsonSchema

from trustcxr.storage.schemas.audit_document import AuditDocument
from trustcxr.storage.schemas.document import Document, Share

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

    @property
    def faults(self) -> list[str]:
        """Return what is wrong with the entry itself, `what: why. Do this.`; empty if nothing is."""
        return list(self._faults())

    def _faults(self) -> Iterator[str]:
        model, facts = self.audit.model, self.audit.facts
        for key in ("run_by", "licence", "command"):
            if not getattr(self, key).strip():
                yield f"{key}: it is missing. Add it."
        if not _COMMIT.fullmatch(self.source):
            yield f"source: {self.source!r} is not ADDRESS@COMMIT. Give 7 to 40 hexadecimal digits of the commit."
        if self.badge not in BADGES:
            yield f"badge: {self.badge!r} is unknown. Use one of {', '.join(BADGES)}."
        elif (self.badge == RUN_HERE) == (model.kind == "predictions") and self.badge != REPORTED:
            yield f"badge: {self.badge!r} does not fit a model of kind {model.kind!r}. Use {_badge(model.kind)!r}."
        if not _SHA256.fullmatch(model.sha256 or ""):
            yield f"audit.model.sha256: {model.sha256!r} is no SHA-256. Audit a file of the model."
        if not model.bytes or model.bytes < 0:
            yield f"audit.model.bytes: {model.bytes} is no size of a file. Audit a file of the model."
        if not (facts.versions.get("trustcxr") and facts.date and facts.hardware.processor):
            yield "audit.facts: version, date or machine is missing. Audit the model again."
        if not self.audit.data.is_identified:
            yield "audit.data: no checksum of the images. Audit the model again."
        if self.audit.verdict.sound is None:
            yield "audit.verdict: it is missing. Audit the model again."
        if self.audit.clean.accuracy.value is None or not self.audit.classes:
            yield "audit.clean: no accuracy or no classes. Audit the model again."
        if self.image_results is not None and (fault := self.image_results.find_fault(self.audit)):
            yield f"image_results.{fault}. Add the audit again."
        for name, share in _find_shares(self.audit, "audit"):
            numbers = [number for number in (share.value, *(share.ci or ())) if number is not None]
            if any(not -1e-9 <= number <= 1 + 1e-9 for number in numbers):
                yield f"{name}: {max(numbers, key=abs):g} is no share of one. Add the audit again."
            elif share.value is not None and share.interval is not None:
                low, high = share.interval
                if not low - 1e-9 <= share.value <= high + 1e-9:
                    yield f"{name}: {share.value:g} is outside its interval [{low:g}, {high:g}]. Add the audit again."


def _badge(kind: str) -> str:
    return SCORES_ONLY if kind == "predictions" else RUN_HERE


def make_badge(kind: str, *, reported: bool) -> str:
    """Return the badge of a model of this kind; `reported`: audited by those who submit it."""
    return REPORTED if reported else _badge(kind)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", PurePath(text).name.lower()).strip("-.") or "unnamed"


def _find_shares(part: object, name: str) -> Iterator[tuple[str, Share]]:
    if isinstance(part, Share):
        yield name, part
    elif isinstance(part, BaseModel):
        for field in type(part).model_fields:
            yield from _find_shares(getattr(part, field), f"{name}.{field}")
    elif isinstance(part, dict):
        for key, one in part.items():
            yield from _find_shares(one, f"{name}.{key}")
    elif isinstance(part, list):
        for index, one in enumerate(part):
            yield from _find_shares(one, f"{name}[{index}]")
