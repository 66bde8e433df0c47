"""Define the documents on disk and of commands as types, and read them."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from trustcxr.errors import UserError
from trustcxr.storage import atomic
from trustcxr.storage.schemas.audit_document import *
from trustcxr.storage.schemas.audit_document import AuditDocument
from trustcxr.storage.schemas.command_output import *
from trustcxr.storage.schemas.document import *
from trustcxr.storage.schemas.document import Document
from trustcxr.storage.schemas.leaderboard_entry import *
from trustcxr.storage.schemas.run_document import *
from trustcxr.storage.schemas.study_document import *
from trustcxr.storage.schemas.zoo_entry import *

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
