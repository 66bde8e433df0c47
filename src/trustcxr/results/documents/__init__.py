"""What training.json, metrics.json and study.json say, as types. Read once, here; typed from there on.

The files keep their shape (`accuracy` beside `accuracy_ci`): reading folds it and writing unfolds it. Every field may
be missing, keys that are not known are kept, so files of an older or a newer version are read as far as they go.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from trustcxr.errors import UserError
from trustcxr.results import files
from trustcxr.results.documents.answers import FamiliarityDocument, FilmAnswer
from trustcxr.results.documents.audits import AuditDocument, AuditedData, GateCheck
from trustcxr.results.documents.examined import Curve, Division, Finding, HandedIn, OperatingPoint, Subgroup
from trustcxr.results.documents.explained import (
    Change,
    Lead,
    LesionDocument,
    LesionSize,
    Measures,
    Perturbed,
    RandomWeights,
    SaliencyDocument,
    Stage,
    Stratum,
)
from trustcxr.results.documents.exported import ExportDocument
from trustcxr.results.documents.given import AuditedModel
from trustcxr.results.documents.judged import Alarm, Sign, Verdict
from trustcxr.results.documents.pairs import AuditPair, PairRow
from trustcxr.results.documents.plans import CostDocument, RunPlan, StudyPlan, WayCost
from trustcxr.results.documents.pruned import Prunable, PruneDocument
from trustcxr.results.documents.runs import Refit, RunDocument, TrainingDocument
from trustcxr.results.documents.studies import (
    LEVEL,
    BeyondControl,
    Comparison,
    DataCheck,
    DataDescription,
    DataFinding,
    DataProbe,
    FailedRun,
    Hardware,
    OverSeeds,
    Ranked,
    SeedFigure,
    Selection,
    StudyDocument,
)
from trustcxr.results.documents.tested import (
    Accuracy,
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
    PlantedShortcut,
)
from trustcxr.results.documents.verified import Difference, VerifiedDocument
from trustcxr.results.flat import Document, Figure, Measured, Share, understood

__all__ = [
    "LEVEL",
    "VERSION",
    "Accuracy",
    "Alarm",
    "AttackResult",
    "AuditDocument",
    "AuditPair",
    "AuditedData",
    "AuditedModel",
    "BeyondControl",
    "Bin",
    "Calibrated",
    "Calibration",
    "CertifiedResult",
    "Change",
    "ClassResult",
    "Classification",
    "Comparison",
    "CorruptionResult",
    "CorruptionsMean",
    "CostDocument",
    "Curve",
    "DataCheck",
    "DataDescription",
    "DataFinding",
    "DataProbe",
    "Difference",
    "Division",
    "Document",
    "Draws",
    "Drop",
    "ExportDocument",
    "FailedRun",
    "FamiliarityDocument",
    "Figure",
    "FilmAnswer",
    "Finding",
    "GateCheck",
    "HandedIn",
    "Hardware",
    "InputGradients",
    "Lead",
    "LesionDocument",
    "LesionSize",
    "Measured",
    "Measures",
    "OperatingPoint",
    "OverSeeds",
    "PairRow",
    "Perturbed",
    "PlantedShortcut",
    "Prunable",
    "PruneDocument",
    "RandomWeights",
    "Ranked",
    "Refit",
    "RunDocument",
    "RunPlan",
    "SaliencyDocument",
    "SeedFigure",
    "Selection",
    "Share",
    "Sign",
    "Stage",
    "Stratum",
    "StudyDocument",
    "StudyPlan",
    "Subgroup",
    "TrainingDocument",
    "Verdict",
    "VerifiedDocument",
    "WayCost",
    "read",
    "read_audit",
    "read_if_there",
    "refuse_later",
]

VERSION = 1  # of the documents' shape; raised where an older reader would misunderstand a newer file

_D = TypeVar("_D", bound=Document)


def read(kind: type[_D], path: Path) -> _D:
    """A document from its file, as far as it can be understood; UserError where it is missing, broken or of later."""
    content = files.read_document(path)
    refuse_later(content, path)
    return understood(kind, content)[0]


def refuse_later(content: Mapping[str, object], path: Path) -> None:
    """UserError for a document whose shape only a later TrustCXR understands."""
    shape = content.get("version")
    if isinstance(shape, int) and shape > VERSION:
        raise UserError(
            f"{path}: written by a later TrustCXR, in shape {shape}; this one reads up to {VERSION}; install that one"
        )


def read_audit(path: Path) -> AuditDocument:
    """An audit that others are compared with; UserError where something in it is lacking or cannot be understood."""
    content = files.read_document(path)
    refuse_later(content, path)
    document, lost = understood(AuditDocument, content)
    flaw = f"{', '.join(lost)} cannot be understood" if lost else document.flaw
    if flaw:
        raise UserError(f"{path}: damaged: {flaw}; audit the model again, into a new folder")
    return document


def read_if_whole(kind: type[_D], path: Path) -> _D | None:
    """A document from its file; None where there is no such file, or it is damaged: of what can be measured again."""
    try:
        return read_if_there(kind, path)
    except UserError:
        return None


def read_if_there(kind: type[_D], path: Path) -> _D | None:
    """A document from its file; None where there is no such file."""
    return read(kind, path) if path.is_file() else None
