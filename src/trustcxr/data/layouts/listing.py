"""List folders, image files and masks in order, record what cannot be listed, and read a `manifest.csv` beside them."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from trustcxr.data.images.dicom_files import RESULT_ENDINGS, RESULT_REASON, is_own_result
from trustcxr.data.images.read import HEATMAP_ENDING, HEATMAP_REASON, SUFFIXES, is_dicom, read_texts
from trustcxr.data.manifest import NO_SPLIT, USUAL, extra_columns, format_unsplit, split_name
from trustcxr.data.tabular import has_unknown_word, is_blank, read_table
from trustcxr.errors import UserError
from trustcxr.storage.os_errors import escaped

Record = dict[str, Any]  # a sample: column of the manifest -> text or None
_SIDECAR = {word: USUAL[word] for word in ("patient", "group", "source", "view")}
_SIDECAR |= {word: (word,) for word in ("strict_external", "split")}
_SKIPPED: ContextVar[dict[str, str] | None] = ContextVar("skipped files and folders", default=None)


@contextmanager
def record_skipped() -> Iterator[dict[str, str]]:
    """Record what cannot be listed inside the block: escaped path -> reason."""
    skipped: dict[str, str] = {}
    token = _SKIPPED.set(skipped)
    try:
        yield skipped
    finally:
        _SKIPPED.reset(token)


def _skip(path: str, reason: str) -> None:
    skipped = _SKIPPED.get()
    if skipped is not None:
        skipped[escaped(path)] = reason


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """List the visible entries of a folder with names in UTF-8; record the others."""
    try:
        with os.scandir(folder) as listed:
            entries = [e for e in listed if e.name[0] != "."]
    except OSError as fault:
        _skip(f"{folder}", f"cannot be opened: {(fault.strerror or str(fault)).lower()}")
        return []
    for entry in entries:
        if not _is_text(entry.name):
            _skip(entry.path, "its name is not UTF-8")
    return [e for e in entries if _is_text(e.name)]


def _is_text(name: str) -> bool:
    return name.isascii() or name.encode("utf-8", "ignore").decode() == name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as fault:  # a link to itself
        _skip(entry.path, (fault.strerror or str(fault)).lower())
        return False


def list_folders(folder: str | Path) -> list[str]:
    """List the subfolders of a folder."""
    return sorted(e.name for e in _entries(folder) if _is_folder(e))


def list_files(folder: str | Path) -> list[str]:
    """List the image files in a folder by their suffix, and DICOM files without a known suffix by their content.

    If the folder has images, only files with a numeric suffix or none are opened.
    """
    names = [e.name for e in _entries(folder) if e.name.upper() != "DICOMDIR" and not _is_own_result(e)]
    images = [n for n in names if _ending(n) in SUFFIXES]
    others = [n for n in names if _ending(n) not in SUFFIXES and (not images or _ending(n).strip(".0123456789") == "")]
    return sorted([*images, *(n for n in others if is_dicom(f"{folder}/{n}"))])


def _ending(name: str) -> str:
    return name[name.rfind(".") :].lower() if "." in name else ""


def remove_suffix(name: str) -> str:
    """Remove the suffix of an image file; of a DICOM file named by its UID, the last number is none."""
    ending = _ending(name)
    return name[: -len(ending)] if ending in SUFFIXES else name


def _is_own_result(entry: os.DirEntry[str]) -> bool:
    """Tell whether `predict` wrote a file, and record it."""
    if entry.name.endswith(HEATMAP_ENDING) and read_texts(entry.path):
        _skip(entry.path, HEATMAP_REASON)
        return True
    if entry.name.endswith(RESULT_ENDINGS) and is_own_result(entry.path):
        _skip(entry.path, RESULT_REASON)
        return True
    return False


class Masks:
    """The mask files of a folder, by an image's file name, else by its name without the suffix."""

    def __init__(self, root: Path, relative: str) -> None:
        names = list_files(root / relative)
        self.paths = {n: f"{relative}/{n}" for n in names}
        self.stems = {remove_suffix(n): f"{relative}/{n}" for n in names}

    def get(self, name: str) -> str | None:
        """Return the path of an image's mask, or None."""
        return self.paths.get(name) or self.stems.get(remove_suffix(name))


def join_side_car(records: list[Record], root: Path, home: Path, notes: list[str], *, splits: bool) -> None:
    """Add the columns of `manifest.csv` in `home` to records; `split` only if `splits`."""
    file = home / "manifest.csv"
    if not file.is_file():
        return
    rows = _read_side_car(file)
    prefix = "" if home == root else root.relative_to(home).as_posix() + "/"
    missing = 0
    for record in records:
        row = rows.get(prefix + record["path"])
        missing += row is None
        for column, value in (row or {}).items():
            if column != "split" or splits:
                record[column] = value
    if missing:
        notes.append(f"{missing} images are not in {file.name}: their patients and sources are unknown")
    unsplit = [record["path"] for record in records if record["split"] == NO_SPLIT] if splits else []
    if 0 < len(unsplit) < len(records):
        notes.append(format_unsplit(f"{len(unsplit)} images", file.name, min(unsplit)))


def _read_side_car(file: Path) -> dict[str, Mapping[str, str]]:
    """Read the known values of each path. Raises UserError if there is no column `path`."""
    table = read_table(file)
    if "path" not in table:
        raise UserError(f"{file}: no column 'path' among {', '.join(map(str, table.columns))}. Add it")
    mapping = {word: next((n for n in names if n in table), None) for word, names in _SIDECAR.items()}
    columns = {word: table[name].tolist() for word, name in mapping.items() if name}
    taken = [name for names in _SIDECAR.values() for name in names]
    columns |= {name: table[name].tolist() for name in extra_columns(table, taken)}
    rows: dict[str, Mapping[str, str]] = {}
    for i, path in enumerate(table["path"]):
        values = {word: v[i].strip() for word, v in columns.items()}
        values = {k: v for k, v in values.items() if v and not (is_blank(v) if k in _SIDECAR else has_unknown_word(v))}
        if split := values.get("split"):
            values["split"] = split_name(split) or split
        before = rows.setdefault(path.replace("\\", "/"), values)
        for column in [c for c in columns if before.get(c) != values.get(c)]:
            raise UserError(f"{file}: {path} is listed twice, with two values of {column}. Remove one row")
    return rows
