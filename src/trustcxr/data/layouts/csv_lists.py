"""Read lists of images: a table with a file and a label in each row, as published, or a manifest."""

import os
import posixpath
import re
import shlex
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from trustcxr.data.layouts.listing import Record, is_blank, read_table, remove_suffix, row_number
from trustcxr.data.manifest import (
    MASK_SUFFIX,
    MAY_BE_UNKNOWN,
    NEEDED,
    NO_SPLIT,
    OPTIONAL,
    USUAL,
    Manifest,
    extra_columns,
    format_unsplit,
    from_records,
    split_name,
)
from trustcxr.errors import UserError, unknown

Columns = Mapping[str, str | int]
SUFFIXES = frozenset([".csv", ".tsv", ".txt", ".parquet"])
# Our word for a column -> the published list's column: its name, or its index if the list has no header.
PUBLISHED: dict[str, Columns] = {
    "covidx": {"patient": 0, "path": 1, "class": 2, "source": 3},
    "nih": {"path": "Image Index", "class": "Finding Labels", "patient": "Patient ID", "view": "View Position"},
    "rsna": {"path": "patientId", "class": "class"},  # an id of the image, not of the patient
    "rsna-boxes": {"path": "patientId", "class": "Target"},
    "chexpert": {"path": "Path", "view": "AP/PA"},  # one column for each finding; the patient is a folder of the path
}
_SINGLE_VALUED = ("class", "split", "patient", "group")  # must agree if an image is listed several times
_OPTIONAL = ("source", "view", "patient")  # columns of published lists that not every copy has
_WORDS = {"sample_id", "path", "class", "split", "patient", "group", "source", "view"}
_NIH_SPLITS = {"train_val_list.txt": "Train", "test_list.txt": "Test"}


class NoColumns(UserError):
    """A list lacks columns that the caller named."""


def read_list(file: Path, *, columns: str | Columns | None = None, images: str | Path | None = None) -> Manifest | None:
    """Read a list of images into a manifest; None if `file` is not of a list's type.

    `columns`: the name of a published list (a key of PUBLISHED), or a mapping from our words to columns by name or
    index. Our words are path, class, split, patient, group, source, view and `<kind>_mask`; those left out take the
    columns with usual names. None: chosen by the header. If the list has one column for
    each finding (1, 0, -1 or blank) and no class, the class is the findings present, joined by `|`. `images`: the
    folder of the images (default: the list's), whose subfolders are searched too. Raises UserError if
    rows, columns or all images are missing.
    """
    if not file.is_file() or file.suffix.lower() not in SUFFIXES:
        return None
    table = read_table(file)
    if table.empty:
        header = f"no rows below its header ({', '.join(map(str, table.columns))})"
        raise UserError(f"{file}: the list has {header if len(table.columns) else 'no columns and no rows'}")
    is_manifest = columns is None and set(NEEDED) <= set(map(str, table.columns))
    if is_manifest and images is None:
        return _read_manifest(table, file)
    mapping = dict(_mapping(table, file, columns))
    if is_manifest:
        mapping["sample_id"] = "sample_id"
    else:
        named = columns if isinstance(columns, Mapping) else {}
        for word, column in mapping.items():
            if word not in named:
                _check_similar(table, file, column, {*mapping.values()} - {column}, word)
    chosen = {ours: table[theirs].tolist() for ours, theirs in mapping.items()}
    notes: list[str] = []
    if "class" not in mapping:
        names = list_finding_columns(table, mapping.values())
        for name in names:
            _check_similar(table, file, name)
        chosen["class"] = build_classes(table, names)
        notes.append(f"the classes of {file.name} come from its columns {', '.join(names)}")
        if "patient" not in mapping and (patients := extract_patients(chosen["path"])):
            chosen["patient"] = patients
            notes.append(f"the patients of {file.name} come from the folders in its paths, such as {patients[0]}")
    # A finding's column that is named as the class also stays a column of that finding.
    used = {k: v for k, v in mapping.items() if k != "class" or not isinstance(columns, Mapping)}
    chosen |= {name: table[name].tolist() for name in extra_columns(table, [*used, *used.values()])}
    base = Path(images).expanduser().absolute() if images else file.parent
    if not base.is_dir():
        raise UserError(f"{images}: no such folder of images. Check --images")
    records = _records(chosen, file, base, notes, row_number(table, file, 0))
    manifest = from_records(records, base, "list", notes, file)
    manifest.split_column = str(mapping["split"]) if "split" in mapping else None
    return manifest


def _read_manifest(table: pd.DataFrame, file: Path) -> Manifest:
    """Build a manifest from the table of a manifest `file`, which has the columns of NEEDED."""
    notes = []
    if "dropped" in table:
        out = table["dropped"].map(_text_or_none).notna()
        notes += [f"{int(out.sum())} samples are marked as dropped"] if out.any() else []
        table = table[~out].drop(columns="dropped")
    incomplete = table[list(NEEDED)].map(_text_or_none).isna().any(axis=1)
    if incomplete.any():
        first = row_number(table, file, int(incomplete.index[incomplete][0]))
        raise UserError(
            f"{file}: {int(incomplete.sum())} rows lack one of {', '.join(NEEDED)}, the first is row {first}. Fill "
            "in the values, or remove the rows"
        )
    texts = {str(c): [_text_or_none(v) for v in table[c]] for c in table.columns}
    texts["split"] = [split_name(str(v)) or v for v in texts["split"]]
    for name in filter(texts.get, MAY_BE_UNKNOWN):
        texts[name] = [None if v is None or is_blank(v) else v for v in texts[name]]
    records = (dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True))
    manifest = from_records(records, file.parent, "manifest", notes, file)
    manifest.split_column = "split"
    return manifest


def _text_or_none(value: Any) -> str | None:
    """Return a value as text; None for None, NaN or blanks."""
    return None if value is None or value != value or not str(value).strip() else str(value)


def _check_similar(
    table: pd.DataFrame, file: Path, column: str | int, used: Container[Any] = (), word: str | None = None
) -> None:
    """Raise UserError if another column, not in `used`, differs only in capitals or blanks; `word` is ours for it."""
    similar = [n for n in table.columns if str(n).strip().lower() == str(column).strip().lower() and n not in used]
    if len(similar) > 1:
        choose = f", or choose one, such as --column {word}={shlex.quote(similar[0])}" if word else ""
        raise UserError(
            f"{file}: the columns {' and '.join(map(repr, similar))} differ only in capitals or blanks. Rename or "
            f"remove one{choose}"
        )


def _mapping(table: pd.DataFrame, file: Path, columns: str | Columns | None) -> dict[str, str | int]:
    """Map our words to columns of the table; words that are not named, to columns with usual names."""
    available = list(table.columns)
    named = columns if isinstance(columns, Mapping) else _published_columns(available, columns)
    for word in named:
        if word not in _WORDS and not word.endswith(MASK_SUFFIX):
            raise unknown("column", word, [*sorted(_WORDS), "<kind>_mask"])
    resolved = {word: name for word, column in named.items() if (name := _column_name(column, available)) is not None}
    lowered = {name.strip().lower(): name for name in reversed(available) if isinstance(name, str)}
    lowered |= {name: name for name in available}
    usual = {word: next((lowered[n] for n in names if n in lowered), None) for word, names in USUAL.items()}
    others = {w: c for w, c in usual.items() if c is not None and w not in named and c not in resolved.values()}
    mapping = {**others, **resolved}
    missing = [str(column) for word, column in named.items() if word not in mapping]
    missing += [] if "path" in named or "path" in mapping else ["path"]
    if not ("class" in named or "class" in mapping or list_finding_columns(table, mapping.values())):
        missing.append("class")
    listed = ", ".join(map(str, available))
    if missing and columns is None:
        raise UserError(
            f"{file}: no columns for the image and its class among {listed}. Name them, as in "
            "--column path='Image Index' --column class='Finding Labels', or give columns of 1 and 0 with the names of "
            "their findings"
        )
    if missing:
        raise NoColumns(f"{file}: no column {', '.join(map(repr, missing))} among {listed}. Correct the name")
    return mapping


def _published_columns(available: Sequence[Any], name: str | None) -> Columns:
    """Return the columns of a published list by name, else of the one with these columns; {} for any other list."""
    for other, columns in PUBLISHED.items():
        needed = [columns["path"], columns["class" if "class" in columns else "view"]]
        has_header = isinstance(columns["path"], str) or 3 <= len(available) <= 4
        if other == name or (name is None and has_header and all(column in available for column in needed)):
            return {k: v for k, v in columns.items() if k not in _OPTIONAL or _column_name(v, available) is not None}
    return {}


def _column_name(column: str | int, available: Sequence[Any]) -> str | int | None:
    """Return the table's name of a column given by name or index; None if the table lacks it."""
    if column in available or not isinstance(column, int):
        return column if column in available else None
    if str(column) in available:
        return str(column)
    return available[column] if 0 <= column < len(available) else None


def _records(chosen: dict[str, list[Any]], file: Path, base: Path, notes: list[str], first_row: int) -> list[Record]:
    """Return one record for each existing image; rows that repeat an image must agree."""
    finder = _Finder(base, file)
    find_split = _split_finder(file)
    records: dict[str, Record] = {}
    spellings: dict[str, str] = {}  # path -> the list's spelling
    missing: list[str] = []
    missing_masks: list[str] = []
    has_splits = False
    unsplit: dict[str, int] = {}  # path -> number of the row without a split
    for number, row in _rows(chosen, file, notes, first_row):
        row_split = row.get("split") or find_split(row["path"])
        has_splits = has_splits or row_split is not None
        split = row_split or NO_SPLIT
        split = split_name(split) or split
        path = finder.find(row["path"], split)
        if path is None:
            missing.append(row["path"])
            continue
        if row_split is None:
            unsplit.setdefault(path, number)
        spelling = row["path"].replace("\\", "/")
        exact = os.path.isfile(f"{base}/{spelling}") and not os.path.isabs(spelling)
        sample_id = row.get("sample_id") or f"{split}/{spelling if exact else path}"
        record = row | {"path": path, "split": split, "sample_id": sample_id}
        for column in [c for c in row if c.endswith(MASK_SUFFIX) and row[c]]:
            mask = finder.find(str(row[column]), split)
            record[column] = None if mask == path else mask  # an image is no mask of itself
            missing_masks += [] if record[column] else [str(row[column])]
        _check_repeated(records.setdefault(path, record), record, file, spellings.setdefault(path, row["path"]), row)
    if not records:
        why = f"{missing[0]} is not in {base}. Name the folder of the images (--images)" if missing else "no row"
        raise UserError(f"{file}: none of its images exists: {why}")
    if unsplit and has_splits:
        notes.append(format_unsplit(f"{len(unsplit)} rows", file.name, f"row {min(unsplit.values())}"))
    if missing:
        notes.append(f"{len(missing)} images of the list do not exist and are left out, such as {missing[0]}")
    if missing_masks:
        count, first = len(missing_masks), missing_masks[0]
        notes.append(f"{count} masks of the list do not exist: their images count as without, such as {first}")
    return list(records.values())


def _split_finder(file: Path) -> Callable[[str], str | None]:
    """Return a function path -> split for rows without one, by NIH's lists in the folder or by the list's name."""
    words = file.stem.lower().replace("-", "_").split("_")
    from_name = next((s for word in words if (s := split_name(word))), None)
    lists = {split: file.parent / name for name, split in _NIH_SPLITS.items() if (file.parent / name).is_file()}
    listed = {name.strip(): split for split, path in lists.items() for name in path.read_text().splitlines()}
    return lambda path: listed.get(os.path.basename(path)) or from_name


def _check_repeated(before: Record, record: Record, file: Path, spelling: str, row: Record) -> None:
    """Raise UserError if an image is listed with two classes, splits, patients or groups."""
    for word in [word for word in _SINGLE_VALUED if before.get(word) != record.get(word)]:
        how = "as" if word == "class" else f"with {word}"
        first, second = (f"{how} '{one.get(word) or ''}'" for one in (before, record))
        same = "" if spelling == row["path"] else f", the same image as {spelling},"
        raise UserError(f"{file}: {row['path']}{same} is listed {first} and {second}")


def _rows(chosen: dict[str, list[Any]], file: Path, notes: list[str], first_row: int) -> Iterator[tuple[int, Record]]:
    """Yield the rows with an image and a class, with their numbers in the file; note the others."""
    incomplete = []
    for number, values in enumerate(zip(*chosen.values(), strict=True), first_row):
        row = {k: None if v is None or v != v else str(v).strip() or None for k, v in zip(chosen, values, strict=True)}
        row |= {k: None for k in MAY_BE_UNKNOWN if (value := row.get(k)) is not None and is_blank(value)}
        if row["path"] and row["class"]:
            yield number, row
        else:
            incomplete.append(number)
    if incomplete:
        notes.append(
            f"{len(incomplete)} rows of {file.name} have no image or no class and are left out; "
            f"the first is row {incomplete[0]}"
        )


class _Finder:
    """Finds a listed image in a folder: by its path, below any subfolder, or by its path without the first folders."""

    def __init__(self, base: Path, file: Path) -> None:
        self.base, self.file = base, file
        self.endings: dict[int, dict[str, list[str]]] = {}

    def find(self, path: str, split: str) -> str | None:
        """Return the path relative to the folder; None if no file matches. Raises UserError if several do."""
        path = self._normalise(path.replace("\\", "/"))
        if os.path.isfile(f"{self.base}/{path}") and not os.path.isabs(path):
            return path
        if os.path.isabs(path) and os.path.isfile(path):
            folder, name = os.path.split(path)
            return Path(os.path.relpath(os.path.realpath(folder), os.path.realpath(self.base)), name).as_posix()
        parts = path.strip("/").split("/")
        matches = self._index(len(parts)).get("/".join(parts), [])
        folder = os.path.dirname(path)
        if folder and not os.path.isabs(path) and os.path.isdir(f"{self.base}/{folder}"):
            matches = [f for f in matches if f.startswith(folder + "/")]  # not masks with the name of an image
        matches = [f for f in matches if split.lower() in f.lower().split("/")[:-1]] or matches
        if len(matches) > 1:
            folders = ", ".join(matches[:3])
            raise UserError(f"{self.file}: {path} is in several folders ({folders}). Add the folder to the list")
        return matches[0] if matches else self._find_shorter(parts)

    def _find_shorter(self, parts: list[str]) -> str | None:
        """Find a path without its first folders: a list may name the folder that it is in."""
        for first in range(1, len(parts)):
            if os.path.isdir(f"{self.base}/{'/'.join(parts[first - 1 : -1])}"):  # the folder is here, the file is not
                return None
            path = "/".join(parts[first:])
            if os.path.isfile(f"{self.base}/{path}"):
                return path
            named = [f for f in self._index(len(parts) - first).get(path, []) if remove_suffix(f) == path]
            if len(named) == 1:
                return named[0]
        return None

    def _normalise(self, path: str) -> str:
        """Remove `./`, `//` and `x/../`, unless that leads to another file because `x` is a link."""
        plain = posixpath.normpath(path)
        exact = plain == path or not os.path.isfile(os.path.join(self.base, path))
        same = exact or ((self.base / plain).is_file() and (self.base / path).samefile(self.base / plain))
        return plain if same else path

    @cached_property
    def _files(self) -> list[str]:
        folders = ((Path(folder).relative_to(self.base), files) for folder, _, files in os.walk(self.base))
        return [(folder / file).as_posix() for folder, files in folders for file in files]

    def _index(self, depth: int) -> dict[str, list[str]]:
        """Return the files by the last `depth` parts of their paths, with and without the suffix."""
        if depth not in self.endings:
            index = self.endings[depth] = {}
            for path in self._files:
                ending = "/".join(path.split("/")[-depth:])
                for name in {ending, remove_suffix(ending)}:  # RSNA lists its images without `.dcm`
                    index.setdefault(name, []).append(path)
        return self.endings[depth]


def read_covidx(folder: Path) -> Manifest | None:
    """Read COVIDx as published: a list of each split (`train_COVIDx9A.txt`) in a folder with `train/` and `test/`.

    None for any other folder, or several lists of one split.
    """
    files = sorted(f for f in folder.glob("*_COVIDx*.txt") if split_name(f.name.split("_")[0]))
    counts = Counter(f.name.split("_")[0].lower() for f in files)
    if not files or max(counts.values()) > 1:
        return None
    manifests = [m for f in files if (m := read_list(f, columns="covidx")) is not None]
    rows: list[Any] = [row for m in manifests for row in m.table.to_dict("records")]
    return from_records(rows, folder, "covidx", [n for m in manifests for n in m.notes])


NO_FINDING = "No Finding"
UNCERTAIN = "Uncertain"
_PRESENT, _ABSENT, _UNCERTAIN, _BLANK = ("1", "1.0"), ("0", "0.0"), ("-1", "-1.0"), ("", "nan", "none")
# Names of CheXpert, MIMIC-CXR, NIH ChestX-ray14, PadChest, VinDr-CXR and torchxrayvision, without spaces.
_FINDINGS = frozenset(Path(__file__).with_name("findings.txt").read_text(encoding="utf-8").split())
_PATIENT = re.compile(r"(?:^|/)(patient[ _-]?\w*\d\w*)/", re.IGNORECASE)


def list_finding_columns(table: pd.DataFrame, taken: Iterable[Any]) -> list[str]:
    """List the columns, other than `taken`, that label a known finding, in their order.

    Other columns of 1 and 0, such as smoking, make no class.
    """
    named = [c for c in extra_columns(table, [*OPTIONAL, *taken]) if _plain(c) in _FINDINGS]
    return [c for c in named if _is_label(set(map(_word, table[c])))]


def build_classes(table: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """Return the class of each image: its findings joined by `|`, else `No Finding` or `Uncertain`.

    `No Finding` needs a 1 in the column of that name; without that column, no uncertain finding.
    """
    names = list(names)
    classes, healthy = [], [name for name in names if _plain(name) == _plain(NO_FINDING)]
    for values in zip(*([_word(value) for value in table[name]] for name in names), strict=True):
        labels = dict(zip(names, values, strict=True))
        present = [name for name in names if labels[name] in _PRESENT and name not in healthy]
        sure = labels[healthy[0]] in _PRESENT if healthy else not any(value in _UNCERTAIN for value in values)
        classes.append("|".join(present) or (NO_FINDING if sure else UNCERTAIN))
    return classes


def extract_patients(paths: Iterable[Any]) -> list[str] | None:
    """Return the folder `patient...` of each path; None unless every path has one."""
    matches = [_PATIENT.search(str(path).replace("\\", "/")) for path in paths]
    patients = [match.group(1) for match in matches if match is not None]
    return patients if patients and len(patients) == len(matches) else None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _word(value: Any) -> str:
    return str(value).strip().lower()


def _is_label(words: set[str]) -> bool:
    return not words.isdisjoint({*_PRESENT, *_ABSENT}) and words <= {*_PRESENT, *_ABSENT, *_UNCERTAIN, *_BLANK}
