"""Define the documents on disk and of commands as types, and read them."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from trustcxr.errors import UserError
from trustcxr.storage import atomic
from trustcxr.storage.schemas.audit_details import (
    AuditFacts,
    Characteristic,
    CriterionResult,
    Failure,
    FlowStep,
    PredictiveValue,
)
from trustcxr.storage.schemas.audit_document import (
    AuditDocument,
    AuditedData,
    AuditPair,
    Curve,
    Division,
    EntryCheck,
    Finding,
    OperatingPoint,
    PairRow,
    SmallestChange,
    Statement,
    Subgroup,
    Submitted,
    Verdict,
)
from trustcxr.storage.schemas.command_output import (
    Difference,
    ExportDocument,
    FamiliarityDocument,
    ImageAnswer,
    Prunable,
    PruneDocument,
    VerifiedDocument,
)
from trustcxr.storage.schemas.document import Document, Figure, Measured, Share
from trustcxr.storage.schemas.leaderboard_entry import ENTRY_NAME, ImageResults, LeaderboardEntry
from trustcxr.storage.schemas.run_document import AuditedModel, Refit, RunDocument, TrainingDocument
from trustcxr.storage.schemas.saliency_figures import (
    Change,
    Lead,
    LesionDocument,
    Measures,
    Perturbed,
    RandomWeights,
    SaliencyDocument,
    Stage,
    Stratum,
)
from trustcxr.storage.schemas.study_document import (
    LEVEL,
    Comparison,
    DataCheck,
    DataDescription,
    FailedRun,
    Hardware,
    OverSeeds,
    Ranked,
    SeedFigure,
    Selection,
    StudyDocument,
)
from trustcxr.storage.schemas.study_plan import CostDocument, RunPlan, StudyPlan, WayCost
from trustcxr.storage.schemas.test_figures import (
    Accuracy,
    Alarm,
    AttackResult,
    Bin,
    Calibrated,
    Calibration,
    CertifiedResult,
    Classification,
    ClassResult,
    CorruptionResult,
    CorruptionsMean,
    Draws,
    Drop,
    InputGradients,
    MaskingVerdict,
    PlantedShortcut,
    Sign,
)
from trustcxr.storage.schemas.zoo_entry import ZooAudit, ZooEntry, ZooFigure, ZooInput

VERSION = 2  # of the documents' shape: raised if a field changes its name or meaning

_D = TypeVar("_D", bound=Document)


def read_schema(kind: type[_D], path: Path) -> _D:
    """Read a document from its file. Raises UserError if it is missing, damaged or of another version."""
    return parse(kind, atomic.read_document(path), path)


def parse(kind: type[_D], content: dict[str, Any], path: Path) -> _D:
    """Validate the content of a document's file, as `read_schema`."""
    check_version(content, path)
    try:
        return kind.model_validate(content)
    except ValidationError as problem:
        first = problem.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: damaged: {field}: {first['msg']}; {atomic.REMAKE}") from None


def check_version(content: dict[str, Any], path: Path) -> None:
    """Raise UserError if a document has another version."""
    version = content.get("version", VERSION)
    if version != VERSION:
        raise UserError(
            f"{path}: it has version {version!r} of the documents' shape, and this TrustCXR reads version {VERSION}. "
            "Run the command that wrote it again, into a new folder."
        )


def read_audit(path: Path) -> AuditDocument:
    """Read an audit to compare. Raises UserError if a compared figure is missing."""
    document = read_schema(AuditDocument, path)
    if flaw := document.flaw:
        raise UserError(f"{path}: damaged: {flaw}; audit the model again, into a new folder")
    return document


def read_if_whole(kind: type[_D], path: Path) -> _D | None:
    """Read a document from its file. Returns None if it is missing or damaged."""
    try:
        return read_if_there(kind, path)
    except UserError:
        return None


def read_if_there(kind: type[_D], path: Path) -> _D | None:
    """Read a document from its file. Returns None if it is missing."""
    return read_schema(kind, path) if path.is_file() else None
