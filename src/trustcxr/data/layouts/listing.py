"""Folders and files of a data set, listed in one order; masks beside their images; what cannot be listed is noted."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from trustcxr.data.images import generated
from trustcxr.data.images.dicom_files import RESULT_ENDINGS, RESULT_REASON, is_own_result
from trustcxr.data.images.read import SUFFIXES, is_dicom
from trustcxr.storage.os_errors import escaped

Record = dict[str, Any]  # a sample, by the names of the manifest's columns: text, and None where there is none
_PASSED_OVER: ContextVar[dict[str, str] | None] = ContextVar("passed over while a data set is read", default=None)


@contextmanager
def record_skipped() -> Iterator[dict[str, str]]:
    """While it lasts, what cannot be listed is passed over and kept here: its escaped path, and why."""
    found: dict[str, str] = {}
    token = _PASSED_OVER.set(found)
    try:
        yield found
    finally:
        _PASSED_OVER.reset(token)


def _pass_over(path: str, why: str) -> None:
    found = _PASSED_OVER.get()
    if found is not None:
        found[escaped(path)] = why


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What a folder holds, where it can be looked into and the name is text."""
    try:
        with os.scandir(folder) as found:
            entries = [e for e in found if e.name[0] != "."]
    except OSError as fault:
        _pass_over(f"{folder}", f"cannot be looked into: {(fault.strerror or str(fault)).lower()}")
        return []
    for entry in entries:
        if not _is_text(entry.name):
            _pass_over(entry.path, "its name is not UTF-8")
    return [e for e in entries if _is_text(e.name)]


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as fault:  # a link to itself
        _pass_over(entry.path, (fault.strerror or str(fault)).lower())
        return False


def _folders(folder: str | Path) -> list[str]:
    return sorted(e.name for e in _entries(folder) if _is_folder(e))


def _files(folder: str | Path) -> list[str]:
    """The image files in a folder, told by their names, and DICOM files without such a name, told by their content.

    Beside images only what has no ending, or numbers for one, is looked into: so DICOM files are often called. A
    DICOMDIR lists images, and is none.
    """
    names = [e.name for e in _entries(folder) if e.name.upper() != "DICOMDIR" and not _answer(e)]
    images = [n for n in names if _ending(n) in SUFFIXES]
    others = [n for n in names if _ending(n) not in SUFFIXES and (not images or _ending(n).strip(".0123456789") == "")]
    return sorted([*images, *(n for n in others if is_dicom(f"{folder}/{n}"))])


def _ending(name: str) -> str:
    return name[name.rfind(".") :].lower() if "." in name else ""


def _answer(entry: os.DirEntry[str]) -> bool:
    """Whether a file is what `predict` wrote beside an image."""
    if entry.name.endswith(generated.ENDING) and generated.is_heatmap(Path(entry.path)):
        _pass_over(entry.path, generated.HEATMAP_REASON)
        return True
    if entry.name.endswith(RESULT_ENDINGS) and is_own_result(entry.path):
        _pass_over(entry.path, RESULT_REASON)
        return True
    return False


class _Masks:
    """The mask files of a folder, found by an image's file name, else by its name without the suffix."""

    def __init__(self, folder: str, relative: str) -> None:
        names = _files(folder)
        self.paths = {n: f"{relative}/{n}" for n in names}
        self.stems = {os.path.splitext(n)[0]: f"{relative}/{n}" for n in names}

    def get(self, name: str) -> str | None:
        return self.paths.get(name) or self.stems.get(os.path.splitext(name)[0])
