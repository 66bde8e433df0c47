"""List folders, image files and masks in order; read tables of text in any usual format, as a `manifest.csv`."""

import codecs
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trustcxr.data.images.dicom_files import RESULT_ENDINGS, RESULT_REASON, is_own_result
from trustcxr.data.images.read import HEATMAP_ENDING, HEATMAP_REASON, SUFFIXES, is_dicom, read_texts
from trustcxr.data.manifest import NO_SPLIT, USUAL, extra_columns, format_unsplit, split_name
from trustcxr.errors import UserError
from trustcxr.storage.os_errors import escaped

Record = dict[str, Any]  # a sample: column of the manifest -> text or None
Columns = dict[str, list[str | None]]  # column of the manifest -> a value for each sample
_SIDECAR = {word: USUAL[word] for word in ("patient", "group", "source", "view")}
_SIDECAR |= {word: (word,) for word in ("strict_external", "split")}
_UNKNOWN_WORDS = ("not recorded", "unknown", "unspecified")
_UNKNOWN = frozenset(["", "na", "n/a", "nan", "none", "null", "-", "--", "?"])
_ROWS = 4096
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
    heatmap = entry.name.endswith(HEATMAP_ENDING) and bool(read_texts(entry.path))
    result = heatmap or (entry.name.endswith(RESULT_ENDINGS) and is_own_result(entry.path))
    if result:
        _skip(entry.path, HEATMAP_REASON if heatmap else RESULT_REASON)
    return result


class Masks:
    """The mask files of a folder, by an image's file name, else by its name without the suffix."""

    def __init__(self, root: Path, relative: str) -> None:
        names = list_files(root / relative)
        self.paths = {n: f"{relative}/{n}" for n in names}
        self.stems = {remove_suffix(n): f"{relative}/{n}" for n in names}

    def get(self, name: str) -> str | None:
        """Return the path of an image's mask, or None."""
        return self.paths.get(name) or self.stems.get(remove_suffix(name))


def read_side_car(records: list[Record], root: Path, home: Path, notes: list[str], *, splits: bool) -> Columns:
    """Return the columns of `manifest.csv` in `home`, a value for each record; if `splits`, set the split of records.

    Raises UserError if there is no column `path`, or an image is listed with two values.
    """
    file = home / "manifest.csv"
    if not file.is_file():
        return {}
    prefix = "" if home == root else root.relative_to(home).as_posix() + "/"
    rows = {prefix + record["path"]: row for row, record in enumerate(records)}
    columns, missing = _read_columns(file, rows)
    given = columns.pop("split", [])
    for record, split in zip(records, given if splits else [], strict=False):
        record["split"] = split or record["split"]
    if missing:
        notes.append(f"{missing} images are not in {file.name}: their patients and sources are unknown")
    unsplit = [record["path"] for record in records if record["split"] == NO_SPLIT] if splits else []
    if 0 < len(unsplit) < len(records):
        notes.append(format_unsplit(f"{len(unsplit)} images", file.name, min(unsplit)))
    return columns


def _read_columns(file: Path, rows: Mapping[str, int]) -> tuple[Columns, int]:
    """Return columns of known values, one for each path in `rows`, and how many of the paths are not listed."""
    names: dict[str, str] = {}  # column of the manifest -> column of the file
    columns: Columns = {}
    seen: set[int] = set()
    same: dict[str, str] = {}  # equal values are one text in memory
    for table in read_parts(file):
        if not names:
            names = _side_car_names(table, file)
            columns = {word: [None] * len(rows) for word in names}
        for path, *texts in table[["path", *names.values()]].itertuples(index=False, name=None):
            row = rows.get(path.replace("\\", "/"))
            if row is None:
                continue
            for (word, column), text in zip(columns.items(), texts, strict=True):
                value = _known_value(word, text.strip())
                if row in seen and column[row] != value:
                    raise UserError(f"{file}: {path} is listed twice, with two values of {word}. Remove one row")
                column[row] = value and same.setdefault(value, value)
            seen.add(row)
    return {word: column for word, column in columns.items() if any(column)}, len(rows) - len(seen)


def _side_car_names(table: pd.DataFrame, file: Path) -> dict[str, str]:
    """Return the file's column for each column of the manifest. Raises UserError if there is no column `path`."""
    if "path" not in table:
        raise UserError(f"{file}: no column 'path' among {', '.join(map(str, table.columns))}. Add it")
    names = {word: found for word, usual in _SIDECAR.items() if (found := next((n for n in usual if n in table), None))}
    taken = [name for usual in _SIDECAR.values() for name in usual]
    return names | {name: name for name in extra_columns(table, taken)}


def _known_value(word: str, text: str) -> str | None:
    """Return a value of a column, or None if it means unknown."""
    if not text or (is_blank(text) if word in _SIDECAR else has_unknown_word(text)):
        return None
    return (split_name(text) or text) if word == "split" else text


# Tables; errors name the row ------------------------------------------------------------------------------------------


def read_table(file: Path) -> pd.DataFrame:
    """Read a table of text from a CSV, tab- or space-separated, or Parquet file. Raises UserError."""
    return pd.concat(read_parts(file))


def read_parts(file: Path) -> Iterator[pd.DataFrame]:
    """Read a table as `read_table` does, in parts of _ROWS rows if values are separated: they take less memory."""
    try:
        if file.suffix.lower() == ".parquet":
            yield _read_parquet(file)
            return
        content = _read_utf8(file)
        head = "".join(content[: 1 << 20].decode(errors="ignore").splitlines()[:1])
        separator = max(",;\t", key=head.count)
        if separator not in head:
            # COVIDx: no header, and the source of an image only in some lines.
            rows = [line.split() for line in content.decode().splitlines() if line.strip()]
            yield pd.DataFrame(list(zip_longest(*zip_longest(*rows)))).astype(object)
            return
        yield from _separated(file, content, separator)
    except pd.errors.ParserWarning:
        raise UserError(
            f"{file}: its rows have more cells than its header. Remove a '{separator}' at their end, or quote texts "
            "that contain one"
        ) from None
    except (ValueError, OSError) as fault:  # pandas' and pyarrow's faults are ValueErrors
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise UserError(f"{file}: not a readable table: {reason}. Save it again as CSV or Parquet") from None


def _read_parquet(file: Path) -> pd.DataFrame:
    """Read a table with None for unknown values, a named index as columns, and lists joined by `|` as findings are."""
    table = pd.read_parquet(file)
    unnamed = [name for name in table.index.names if name is None or name in table.columns]
    table = table.reset_index(drop=len(unnamed) == len(table.index.names))
    for name in [name for name in table if pd.api.types.is_object_dtype(table[name])]:
        table[name] = table[name].map(lambda v: "|".join(map(str, v)) if isinstance(v, np.ndarray) else v)
    return table.astype(object).where(table.notna(), None)


def _separated(file: Path, content: bytes, separator: str) -> Iterator[pd.DataFrame]:
    # Without `index_col`, the first cell of rows longer than the header would become the index.
    how: Any = {"sep": separator, "dtype": str, "keep_default_na": False, "index_col": False}
    header = pd.read_csv(BytesIO(content), header=None, nrows=1, **how).iloc[0].tolist()
    if twice := next((name for name in header if name.strip() and header.count(name) > 1), None):
        numbers = " and ".join(str(index) for index, name in enumerate(header) if name == twice)
        raise UserError(f"{file}: columns {numbers}, counted from 0, are both called '{twice}'. Rename or remove one")
    named = [name == "" or bool(name.strip()) for name in header]  # not of blanks alone
    with pd.read_csv(BytesIO(content), **how, chunksize=_ROWS) as parts:
        while (part := _next_part(parts)) is not None:
            yield part.loc[:, named]


def _next_part(parts: Iterator[pd.DataFrame]) -> pd.DataFrame | None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return next(parts, None)


def _read_utf8(file: Path) -> bytes:
    """Read UTF-8 text, without its byte order mark. The error names the row of the first other byte."""
    content = file.read_bytes()
    row, why = 1, "looks like UTF-16"
    if not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b"\0" not in content.partition(b"\n")[0]:
        try:
            content.decode()
            return content.removeprefix(codecs.BOM_UTF8)
        except UnicodeDecodeError as fault:
            row, why = len((content[: fault.start] + b"x").splitlines()), f"has the byte 0x{content[fault.start]:02x}"
    raise UserError(
        f"{file}: row {row} is not UTF-8 text ({why}). Save it as UTF-8, which spreadsheets call 'CSV UTF-8'"
    )


def row_number(table: pd.DataFrame, file: Path, index: int) -> int:
    """Convert a table's row index to the file's row number, as spreadsheets count: the header is row 1."""
    has_header = file.suffix.lower() != ".parquet" and any(isinstance(name, str) for name in table.columns)
    return index + (2 if has_header else 1)


def is_blank(value: str) -> bool:
    """Tell whether a value means that a patient, source or view is unknown."""
    return value.strip().lower() in _UNKNOWN or has_unknown_word(value)


def has_unknown_word(value: str) -> bool:
    """Tell whether a value contains a word for unknown."""
    return any(word in value.lower() for word in _UNKNOWN_WORDS)
