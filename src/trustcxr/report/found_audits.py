"""The audits under a folder: every one is found, and what cannot be read is named, with the reason."""

import os
from collections.abc import Iterator
from pathlib import Path

from trustcxr.errors import UserError
from trustcxr.results import folders
from trustcxr.results.disk import reason
from trustcxr.results.documents import AuditDocument, read_audit

Named = tuple[str, str]  # a folder, and why its audit does not compare


def found(folder: Path) -> tuple[list[tuple[str, AuditDocument]], list[Named]]:
    """The whole examinations under a folder by the names of theirs, and what is none, and why.

    UserError where there is no such folder.
    """
    if not folder.is_dir():
        what = "a file, where a folder is wanted" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {what}; give the folder that the folders of audits are in")
    audits: list[tuple[str, AuditDocument]] = []
    refused: list[Named] = []
    for path in sorted(_files(folder, refused)):
        name = path.parent.relative_to(folder).as_posix()
        try:
            document = read_audit(path)
        except UserError as problem:
            refused.append((name, str(problem)))
            continue
        if why := _why(document):
            refused.append((name, why))
        else:
            audits.append((name, document))
    return audits, refused


def _why(document: AuditDocument) -> str:
    """Why an audit compares with no other, whatever that is; empty where it may."""
    if document.protocol is None:
        return "examined with other options than a protocol's"
    return "" if document.data.known else f"unknown films: no checksum of them in its {folders.AUDIT_FILE}"


def _files(folder: Path, refused: list[Named]) -> Iterator[Path]:
    """Every audit.json under a folder, links followed; folders that may not be read go to `refused`.

    Each real folder counts once, by its own name where it lies under `folder` itself: so links wait until all else was
    seen, and a circle of them ends.
    """

    def refuse(problem: OSError) -> None:
        name = Path(problem.filename).relative_to(folder).as_posix()
        refused.append((name, f"this folder cannot be read: {reason(problem.errno or 0)}"))

    seen, waiting = set[str](), [folder]
    for start in waiting:
        for here, inside, names in os.walk(start, onerror=refuse):
            real = os.path.realpath(here)
            if real in seen:
                inside.clear()
                continue
            seen.add(real)
            inside.sort()
            waiting += [place for name in inside if (place := Path(here) / name).is_symlink()]
            if folders.AUDIT_FILE in (*names, *inside):
                yield Path(here) / folders.AUDIT_FILE
