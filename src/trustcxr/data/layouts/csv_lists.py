"""Lists of images: a table with a file and a label a row, as data sets publish it, or our own manifest."""

import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trustcxr.data.layouts import multilabel_columns
from trustcxr.data.layouts.listing import Record
from trustcxr.data.manifest import (
    MASK_SUFFIX,
    MAY_BE_UNKNOWN,
    NEEDED,
    NO_SPLIT,
    USUAL,
    Manifest,
    extra_columns,
    from_records,
    from_table,
    split_name,
)
from trustcxr.data.tabular import check_distinct_columns, find_columns_like, is_blank, read_table, row_number
from trustcxr.errors import UserError, unknown

if TYPE_CHECKING:
    import pandas as pd

Columns = Mapping[str, str | int]
SUFFIXES = frozenset([".csv", ".tsv", ".txt", ".parquet"])
# Our word for a column -> the published list's column: its name, or its place where the list has no header.
PUBLISHED: dict[str, Columns] = {
    "covidx": {"patient": 0, "path": 1, "class": 2, "source": 3},
    "nih": {"path": "Image Index", "class": "Finding Labels", "patient": "Patient ID", "view": "View Position"},
    "rsna": {"path": "patientId", "class": "class"},  # that id is one an image, and says nothing about patients
    "rsna-boxes": {"path": "patientId", "class": "Target"},
    "chexpert": {"path": "Path", "view": "AP/PA"},  # a column a finding; the patient is a folder of the path
}
_SAID_ONCE = ("class", "split", "patient", "group")  # of an image that is listed several times
_OPTIONAL = ("source", "view", "patient")  # columns of published lists that not every copy has
_WORDS = {"sample_id", "path", "class", "split", "patient", "group", "source", "view"}
_NIH_SPLITS = {"train_val_list.txt": "Train", "test_list.txt": "Test"}


class NoColumns(UserError):
    """A list lacks columns that were asked for."""


def read_list(file: Path, *, columns: str | Columns | None = None, images: str | Path | None = None) -> Manifest | None:
    """A manifest from a list of images, or None where `file` is not of a list's type.

    `columns` is the name of a published list (`covidx`, `nih`, `rsna`, `rsna-boxes`, `chexpert`) or a mapping from our
    words (path, class, split, patient, group, source, view, `<kind>_mask`) to the list's columns, by name or by place,
    beside which columns of the usual names are taken for the words that it leaves out; None: told from the header. A
    list without a class that has a column a finding (1, 0, -1 or blank) has as the class what an image has, `|` between
    several. `images` is the folder of the images (default: the list's own), searched by file name where a path is not
    found as it stands. Raises UserError where rows, columns or all images are missing.
    """
    if not file.is_file() or file.suffix.lower() not in SUFFIXES:
        return None
    table = read_table(file)
    if table.empty:
        named = f"no rows below its header ({', '.join(map(str, table.columns))})"
        raise UserError(f"{file}: the list has {named if len(table.columns) else 'no columns and no rows'}")
    ours = columns is None and set(NEEDED) <= set(map(str, table.columns))
    if ours and images is None:
        return from_table(table, file)
    mapping = dict(_mapping(table, file, columns))
    _refuse_alike(table, file, mapping, {ours: ours for ours in mapping} if ours else columns)
    if ours:
        mapping["sample_id"] = "sample_id"
    chosen = {ours: table[theirs].tolist() for ours, theirs in mapping.items()}
    notes: list[str] = []
    if "class" not in mapping:
        names = multilabel_columns.list_finding_columns(table, mapping.values())
        for name in names:
            check_distinct_columns(table, file, find_columns_like(table, name, exactly=False))
        chosen["class"] = multilabel_columns.build_classes(table, names)
        notes.append(f"the class of each image of {file.name} is what its columns say: {', '.join(names)}")
        if "patient" not in mapping and (patients := multilabel_columns.extract_patients(chosen["path"])):
            chosen["patient"] = patients
            notes.append(f"patients of {file.name} are told from the folders in its paths, such as {patients[0]}")
    # A finding's column that was named as the class still says what is known of that finding.
    kept = {k: v for k, v in mapping.items() if k != "class" or not isinstance(columns, Mapping)}
    chosen |= {name: table[name].tolist() for name in extra_columns(table, [*kept, *kept.values()])}
    base = Path(images).expanduser().absolute() if images else file.parent
    if not base.is_dir():
        raise UserError(f"{images}: no such folder of images")
    records = _records(chosen, file, base, notes, row_number(table, file, 0))
    manifest = from_records(records, base, "list", notes, file)
    manifest.split_column = str(mapping["split"]) if "split" in mapping else None
    return manifest


def _refuse_alike(table: "pd.DataFrame", file: Path, mapping: Columns, named: str | Columns | None) -> None:
    """UserError where a column that is read has another called like it, and nobody named which of the two is meant."""
    named = named if isinstance(named, Mapping) else {}
    there = list(table.columns)
    for ours, column in mapping.items():
        if not isinstance(column, str) or (ours in named and str(named[ours]) != column):  # by its place
            continue
        taken = [theirs for word, theirs in mapping.items() if word != ours]
        alike = find_columns_like(table, column, exactly=ours in named)
        check_distinct_columns(table, file, [place for place in alike if there[place] not in taken], ours)


def _mapping(table: "pd.DataFrame", file: Path, columns: str | Columns | None) -> dict[str, str | int]:
    """Map our words to the table's columns, all of which it has; words that are not named to the usual columns."""
    there = list(table.columns)
    named = columns if isinstance(columns, Mapping) else _published(there, columns)
    for ours in named:
        if ours not in _WORDS and not ours.endswith(MASK_SUFFIX):
            raise unknown("column", ours, [*sorted(_WORDS), "<kind>_mask"])
    found = {ours: column for ours, theirs in named.items() if (column := _place(theirs, there)) is not None}
    lowered = {name.strip().lower(): name for name in reversed(there) if isinstance(name, str)} | {c: c for c in there}
    usual = {ours: next((lowered[n] for n in names if n in lowered), None) for ours, names in USUAL.items()}
    others = {o: c for o, c in usual.items() if c is not None and o not in named and c not in found.values()}
    mapping = {**others, **found}
    missing = [str(theirs) for ours, theirs in named.items() if ours not in mapping]
    missing += [] if "path" in named or "path" in mapping else ["path"]
    known = "class" in named or "class" in mapping or multilabel_columns.list_finding_columns(table, mapping.values())
    missing += [] if known else ["class"]
    if missing and columns is None:
        raise UserError(
            f"{file}: which columns hold the image and its class? found {', '.join(map(str, there))}; "
            "give a column mapping, such as path: 'Image Index', class: 'Finding Labels' (--column path='Image Index' "
            "...), or columns of 1 and 0 that are called by their findings"
        )
    if missing:
        raise NoColumns(f"{file}: no column {', '.join(map(repr, missing))}; found {', '.join(map(str, there))}")
    return mapping


def _published(there: Sequence[Any], name: str | None) -> Columns:
    """Return the columns of the published list of that name, or of the one that these columns are of; else none."""
    for other, columns in PUBLISHED.items():
        needed = [columns["path"], columns["class" if "class" in columns else "view"]]
        headed = isinstance(columns["path"], str) or 3 <= len(there) <= 4
        if other == name or (name is None and headed and all(column in there for column in needed)):
            return {k: v for k, v in columns.items() if k not in _OPTIONAL or _place(v, there) is not None}
    return {}


def _place(column: str | int, there: Sequence[Any]) -> str | int | None:
    """Return the table's own name of a column given by name or place; None if it has none such."""
    if column in there:
        return column
    if isinstance(column, int):
        by_place: str | int | None = there[column] if 0 <= column < len(there) else None
        return str(column) if str(column) in there else by_place
    return None


def _records(chosen: dict[str, list[Any]], file: Path, base: Path, notes: list[str], first_row: int) -> list[Record]:
    """One record an image that is there; the same image and class on several rows is one."""
    finder = _Finder(base, file)
    split_of = _splits_of(file)
    records: dict[str, Record] = {}
    given: dict[str, str] = {}  # path -> how the list spelt it
    absent: list[str] = []
    masks: list[str] = []  # that are not there
    divided = False
    undivided: dict[str, int] = {}  # path -> the row that says no split
    for number, row in _rows(chosen, file, notes, first_row):
        said_split = row.get("split") or split_of(row["path"])
        divided = divided or said_split is not None
        split = said_split or NO_SPLIT
        split = split_name(split) or split
        path = finder.find(row["path"], split)
        if path is None:
            absent.append(row["path"])
            continue
        if said_split is None:
            undivided.setdefault(path, number)
        record = row | {
            "path": path,
            "split": split,
            "sample_id": row.get("sample_id") or f"{split}/{finder.listed(row['path'], path)}",
        }
        masks += _find_masks(record, row, finder)
        _refuse_contradiction(records.setdefault(path, record), record, file, given.setdefault(path, row["path"]), row)
    if not records:
        some = f"{absent[0]} is not in {base}; give the folder of the images (--images)" if absent else "no row"
        raise UserError(f"{file}: none of its images was found: {some}")
    if undivided and divided:
        notes.append(
            f"{len(undivided)} rows of {file.name} have no split where others have one, and are in a split "
            f"'{NO_SPLIT}' of their own, which is not trained on; the first is row {min(undivided.values())}"
        )
    if absent:
        notes.append(f"{len(absent)} images of the list are not there and were left out, such as {absent[0]}")
    if masks:
        notes.append(f"{len(masks)} masks of the list are not there: their images count as without, such as {masks[0]}")
    return list(records.values())


def _splits_of(file: Path) -> Callable[[str], str | None]:
    """Find the split of a path whose row has none: by NIH's lists beside a list, or by the list's own name."""
    words = file.stem.lower().replace("-", "_").split("_")
    from_name = next((s for word in words if (s := split_name(word))), None)
    lists = {split: file.parent / name for name, split in _NIH_SPLITS.items() if (file.parent / name).is_file()}
    listed = {name.strip(): split for split, path in lists.items() for name in path.read_text().splitlines()}
    return lambda path: listed.get(os.path.basename(path)) or from_name


def _find_masks(record: Record, row: Record, finder: "_Finder") -> list[str]:
    """Put the paths of a row's masks into its record; those that are not there are given back."""
    lost = []
    for column in [c for c in row if c.endswith(MASK_SUFFIX) and row[c]]:
        there = finder.find(str(row[column]), record["split"])
        # The image itself, of the same name, is no mask of it.
        record[column] = None if there == record["path"] else there
        lost += [] if record[column] else [str(row[column])]
    return lost


def _refuse_contradiction(before: Record, record: Record, file: Path, spelt: str, row: Record) -> None:
    """UserError where an image that is listed again has another class, split, patient or group there."""
    for word in [word for word in _SAID_ONCE if before.get(word) != record.get(word)]:
        how = "as" if word == "class" else f"with {word}"
        said, again = (f"{how} '{one.get(word) or ''}'" for one in (before, record))
        same = "" if spelt == row["path"] else f", the same image as {spelt},"
        raise UserError(f"{file}: {row['path']}{same} is listed {said} and {again}")


def _rows(chosen: dict[str, list[Any]], file: Path, notes: list[str], first_row: int) -> Iterator[tuple[int, Record]]:
    """The rows that have an image and a class, each with its number in the file; at the end a note of the others."""
    incomplete = []
    for number, values in enumerate(zip(*chosen.values(), strict=True), first_row):
        row = {k: None if v is None or v != v else str(v).strip() or None for k, v in zip(chosen, values, strict=True)}
        row |= {k: None for k in MAY_BE_UNKNOWN if (said := row.get(k)) is not None and is_blank(said)}
        if row["path"] and row["class"]:
            yield number, row
        else:
            incomplete.append(number)
    if incomplete:
        notes.append(
            f"{len(incomplete)} rows of {file.name} have no image or no class and were left out; "
            f"the first is row {incomplete[0]}"
        )


class _Finder:
    """Finds a listed image in a folder: by the path as it stands, else by its file name anywhere below."""

    def __init__(self, base: Path, file: Path) -> None:
        self.base, self.file = base, file
        self.names: dict[str, list[str]] | None = None

    def find(self, given: str, split: str) -> str | None:
        """The path relative to the folder; None where there is no such file. Raises UserError where several are."""
        given = self._plain(given.replace("\\", "/"))
        if os.path.isfile(f"{self.base}/{given}") and not os.path.isabs(given):
            return given
        if os.path.isabs(given) and os.path.isfile(given):
            return Path(os.path.relpath(given, self.base)).as_posix()
        if self.names is None:
            self.names = self._index()
        found = self.names.get(os.path.basename(given), [])
        folder = os.path.dirname(given)
        if folder and not os.path.isabs(given) and os.path.isdir(f"{self.base}/{folder}"):
            found = [f for f in found if f.startswith(folder + "/")]  # elsewhere are others, as masks beside images
        ending = self._as_deep(given, found)
        inside = [f for f in ending if split.lower() in f.lower().split("/")[:-1]] or ending
        if len(inside) > 1:
            where = ", ".join(inside[:3])
            raise UserError(f"{self.file}: {given} is in several folders ({where}): the list must say which")
        return inside[0] if inside else None

    def listed(self, given: str, found: str) -> str:
        """How an image that was found is called: as the list spells it, where it stands there; so it ever was."""
        given = given.replace("\\", "/")
        return given if os.path.isfile(f"{self.base}/{given}") and not os.path.isabs(given) else found

    def _plain(self, given: str) -> str:
        """A path without `./`, `//` and `x/../`, so that each spelling of a file is one image.

        As it stands where that is another file, as it is where `x` is a link to a folder elsewhere.
        """
        plain = posixpath.normpath(given)
        stands = plain == given or not os.path.isfile(os.path.join(self.base, given))
        same = stands or ((self.base / plain).is_file() and (self.base / given).samefile(self.base / plain))
        return plain if same else given

    def _as_deep(self, given: str, found: list[str]) -> list[str]:
        """Of files of the same name those that share most folders with the path as given, from the name on upwards.

        A list may name the folder that it lies in itself, as CheXpert's does.
        """
        parts = given.split("/")
        for first in range(len(parts) - 1):
            tail = "/".join(parts[first:])
            if ending := [f for f in found if f == tail or f.endswith("/" + tail)]:
                return ending
        return found

    def _index(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for folder, _, files in os.walk(self.base):
            inside = os.path.relpath(folder, self.base).replace(os.sep, "/")
            for file in files:
                path = file if inside == "." else f"{inside}/{file}"
                names.setdefault(file, []).append(path)
                stem = os.path.splitext(file)[0]
                if stem != file:  # RSNA lists its images without `.dcm`
                    names.setdefault(stem, []).append(path)
        return names


def find_published_lists(folder: Path) -> list[Path]:
    """COVIDx's own lists (`train_COVIDx9A.txt`, `test_...`) in a folder; none where it has several of one split."""
    files = sorted(f for f in folder.glob("*_COVIDx*.txt") if split_name(f.name.split("_")[0]))
    counts = Counter(f.name.split("_")[0].lower() for f in files)
    return files if files and max(counts.values()) == 1 else []


def read_covidx(folder: Path) -> Manifest | None:
    """COVIDx as published: its lists of each split in one folder, with `train/` and `test/` beside them."""
    if not folder.is_dir():
        return None
    manifests = [m for f in find_published_lists(folder) if (m := read_list(f, columns="covidx")) is not None]
    if not manifests:
        return None
    rows: list[Any] = [row for m in manifests for row in m.table.to_dict("records")]
    return from_records(rows, folder, "covidx", [n for m in manifests for n in m.notes])
