"""Layouts: each a function from a folder to records, from which the manifest is built."""

import filecmp
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trustcxr.data.images import SUFFIXES, is_dicom
from trustcxr.data.lists import NO_SPLIT, read_covidx, read_list
from trustcxr.data.manifest import MASK_SUFFIX, Manifest, from_records, split_name
from trustcxr.errors import UserError, unknown

Record = dict[str, Any]
EXPECTED = (
    "expected COVID-QU-Ex ('Lung Segmentation Data' or 'Infection Segmentation Data' with "
    "{Train,Val,Test}/{class}/images), class folders of images ({class}/*.png, optionally below Train/Val/Test), "
    "or a manifest or list (.csv, .parquet, .txt)"
)
_MASK_FOLDERS = {"lung masks": "lung", "lung_masks": "lung", "masks": "lung", "infection masks": "infection"}
_NOT_CLASSES = {"images", "masks", "lung masks", "lung_masks", "infection masks"}
_SIDECAR = {
    "patient": ("patient", "patient_id"),
    "group": ("group", "group_id"),
    "source": ("source", "source_repo"),
    "view": ("view",),
    "split": ("split",),
}
_UNKNOWN_WORDS = ("not recorded", "unknown", "unspecified")


def read_manifest(
    path: str | Path,
    *,
    layout: str = "auto",
    columns: str | Mapping[str, str | int] | None = None,
    images: str | Path | None = None,
) -> Manifest:
    """Read a data set's files into a manifest, without opening the images.

    `layout` is one of `auto`, `list`, `covidqu`, `covidx`, `folders`. `columns` and `images` are for a list: see
    `lists.read_list`. Raises UserError where the folder or file is not understood.
    """
    root = Path(path).expanduser().absolute()
    if layout != "auto" and layout not in LAYOUTS:
        raise unknown("layout", layout, ["auto", *LAYOUTS])
    if not root.exists():
        raise UserError(f"{path}: no such file or folder")
    if root.name == "manifest.csv" and columns is None and (beside := _beside(root)) is not None:
        return beside
    for name in [layout] if layout != "auto" else list(LAYOUTS):
        reader = LAYOUTS[name]
        manifest = read_list(root, columns=columns, images=images) if name == "list" else reader(root)
        if manifest is not None:
            return manifest
    inside = [n for n in _folders(root)[:20] if _parts(root / n) or read_folders(root / n)] if root.is_dir() else []
    hint = f"; did you mean {path}/{inside[0]}?" if inside else ""
    raise UserError(f"{path}: not a data set that is understood: {EXPECTED}; found {what_is_there(root)}{hint}")


def _beside(side_car: Path) -> Manifest | None:
    """The COVID-QU-Ex data set that a side-car manifest stands in: its rows list an image once for each part."""
    own = "sample_id" in side_car.open(errors="replace").readline()
    return None if own else read_covidqu(side_car.parent)


def what_is_there(folder: Path) -> str:
    """A folder's content in a few words, for an error message."""
    if not folder.is_dir():
        return f"a file of type '{folder.suffix}'"
    names = sorted(f"{e.name}/" if e.is_dir() else e.name for e in os.scandir(folder) if not e.name.startswith("."))
    if not names:
        return "an empty folder"
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _folders(folder: str | Path) -> list[str]:
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != ".")


def _files(folder: str | Path) -> list[str]:
    """The image files in a folder, told by their names; where none is, the DICOM files, told by their content."""
    names = os.listdir(folder)
    images = [n for n in names if n[n.rfind(".") :].lower() in SUFFIXES and n[0] != "."]
    # DICOM files often have no suffix, or a number's.
    return sorted(images or [n for n in names if is_dicom(f"{folder}/{n}")])


class _Masks:
    """The mask files of a folder, found by an image's file name, else by its name without the suffix."""

    def __init__(self, folder: str, relative: str) -> None:
        names = _files(folder)
        self.paths = {n: f"{relative}/{n}" for n in names}
        self.stems = {os.path.splitext(n)[0]: f"{relative}/{n}" for n in names}

    def get(self, name: str) -> str | None:
        return self.paths.get(name) or self.stems.get(os.path.splitext(name)[0])


# COVID-QU-Ex ---------------------------------------------------------------------------------------------------------


def _class_folders(folder: Path, names: list[str] | None = None) -> list[str]:
    return [c for c in (_folders(folder) if names is None else names) if (folder / c / "images").is_dir()]


def _splits_of_part(folder: Path) -> list[tuple[str, Path]]:
    """The (split, folder) pairs of one part; the folder itself may be a split, or have none."""
    names = _folders(folder)
    splits = [(s, folder / n) for n in names if (s := split_name(n)) and _class_folders(folder / n)]
    if splits or not _class_folders(folder, names):
        return splits
    return [(split_name(folder.name) or NO_SPLIT, folder)]


def _parts(root: Path) -> list[Path]:
    """The folders that hold Train/Val/Test: the given one, or those one or two levels below it."""
    if not root.is_dir():
        return []
    level = [root]
    for _ in range(3):
        parts = [f for f in level if _splits_of_part(f)]
        if parts:
            return parts
        level = [f / n for f in level for n in _folders(f)[:50] if f == root or "data" in n.lower()]
    return []


def _part_records(part: Path, root: Path) -> Iterator[Record]:
    """One record an image of a part."""
    for split, split_folder in _splits_of_part(part):
        for name in _class_folders(split_folder):
            folder = split_folder / name
            relative = folder.relative_to(root).as_posix()
            relative = "" if relative == "." else relative + "/"
            masks: dict[str, _Masks] = {
                f"{kind}{MASK_SUFFIX}": _Masks(f"{folder}/{sub}", f"{relative}{sub}")
                for sub in _folders(folder)
                if (kind := _MASK_FOLDERS.get(sub.lower()))
            }
            for file in _files(folder / "images"):
                record: Record = {"class": name, "split": split, "file": file, "path": f"{relative}images/{file}"}
                record |= {column: found.get(file) for column, found in masks.items()}
                record["sample_id"] = f"{split}/{name}/{file}"
                yield record


def read_covidqu(root: Path) -> Manifest | None:
    """COVID-QU-Ex as published: the outer folder, an inner one, or one part alone.

    The infection part repeats images of the lung part: the same class and file name is one sample with the masks of
    both, in the lung part's split. Where the bytes differ, both images are kept.
    """
    lung: list[Record] = []
    infection: list[Record] = []
    parts = _parts(root)
    if not parts:
        return None
    for part in parts:
        records = list(_part_records(part, root))
        (infection if any("infection_mask" in r for r in records) else lung).extend(records)
    notes: list[str] = []
    records = _joined(lung, infection, root, notes)
    _join_side_car(records, root, _home(root), notes, splits=False)
    return from_records(records, root, "covidqu", notes)


def _home(root: Path) -> Path:
    """The folder of the whole data set, given one part or one split of it: the side-car manifest stands there."""
    home = root.parent if split_name(root.name) else root
    while home.name.lower().endswith("segmentation data"):
        home = home.parent
    return home


def _joined(lung: list[Record], infection: list[Record], root: Path, notes: list[str]) -> list[Record]:
    """The samples of both parts, each once. Says in `notes` what disagreed."""
    by_name: dict[tuple[str, str], list[Record]] = {}
    for record in lung:
        by_name.setdefault((record["class"], record["file"]), []).append(record)
    records, other_bytes, other_split, alone = list(lung), 0, 0, 0
    for record in infection:
        twins = by_name.get((record["class"], record["file"]), [])
        twin = next((t for t in twins if t["split"] == record["split"]), twins[0] if twins else None)
        if twin is None:
            alone += bool(lung)
            records.append(record)
        elif not filecmp.cmp(root / twin["path"], root / record["path"], shallow=False):
            other_bytes += 1
            records.append(record | {"sample_id": record["sample_id"] + "#infection"})
        else:
            other_split += twin["split"] != record["split"]
            for column, mask in record.items():
                if column.endswith(MASK_SUFFIX) and not twin.get(column):
                    twin[column] = mask
    if other_split:
        notes.append(f"{other_split} images are in another split in the infection part: the lung part's split is kept")
    if other_bytes:
        notes.append(f"{other_bytes} images of the infection part differ from the lung part's of that name: both kept")
    if alone:
        notes.append(f"{alone} images are in the infection part only")
    return records


# Class folders -------------------------------------------------------------------------------------------------------


def read_folders(root: Path) -> Manifest | None:
    """Class folders of images, optionally below Train/Val/Test; masks in `masks/<kind>/<class>/` beside them."""
    if not root.is_dir():
        return None
    splits = [(s, n + "/") for n in _folders(root) if (s := split_name(n))]
    records: list[Record] = []
    for split, prefix in splits or [(split_name(root.name) or NO_SPLIT, "")]:
        masks_at = next((m for m in (f"{prefix}masks", "masks") if (root / m).is_dir()), None)
        kinds = _folders(root / masks_at) if masks_at else []
        for name in _folders(root / prefix):
            files = [] if name.lower() in _NOT_CLASSES else _files(f"{root}/{prefix}{name}")
            if not files:
                continue
            masks = {
                f"{kind}{MASK_SUFFIX}": _Masks(f"{root}/{masks_at}/{kind}/{name}", f"{masks_at}/{kind}/{name}")
                for kind in kinds
                if (root / str(masks_at) / kind / name).is_dir()
            }
            ids = f"{split}/{name}" if splits else name
            for file in files:
                record: Record = {
                    "sample_id": f"{ids}/{file}",
                    "path": f"{prefix}{name}/{file}",
                    "class": name,
                    "split": split,
                }
                for column, found in masks.items():
                    record[column] = found.get(file)
                records.append(record)
    if not records:
        return None
    notes: list[str] = []
    _join_side_car(records, root, root, notes, splits=not splits and split_name(root.name) is None)
    return from_records(records, root, "folders", notes)


# The side-car --------------------------------------------------------------------------------------------------------


def _join_side_car(records: list[Record], root: Path, home: Path, notes: list[str], *, splits: bool) -> None:
    """Add patient, group, source, view (and split, where the folders do not say) from `manifest.csv` in `home`."""
    file = home / "manifest.csv"
    if not file.is_file():
        return
    rows = side_car_rows(file)
    prefix = "" if home == root else root.relative_to(home).as_posix() + "/"
    missing = 0
    for record in records:
        row = rows.get(prefix + record["path"])
        missing += row is None
        for column, value in (row or {}).items():
            if column != "split" or splits:
                record[column] = value
    if missing:
        notes.append(f"{missing} images are not in {file.name}: nothing is known of their patients or sources")


def side_car_rows(file: Path) -> dict[str, Mapping[str, str]]:
    """The known facts of each path in a side-car manifest. Raises UserError where it has no `path` column."""
    import pandas as pd

    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (ValueError, OSError, UnicodeDecodeError) as fault:
        raise UserError(f"{file}: not a readable CSV file ({str(fault).splitlines()[0]})") from None
    if "path" not in table:
        raise UserError(f"{file}: expected a column 'path'; found {', '.join(map(str, table.columns))}")
    found = {ours: next((n for n in theirs if n in table), None) for ours, theirs in _SIDECAR.items()}
    columns = {ours: table[name].tolist() for ours, name in found.items() if name}
    rows: dict[str, Mapping[str, str]] = {}
    for i, path in enumerate(table["path"]):
        values = {ours: v[i].strip() for ours, v in columns.items()}
        known = {k: v for k, v in values.items() if v and not any(w in v.lower() for w in _UNKNOWN_WORDS)}
        rows[path.replace("\\", "/")] = known
    return rows


LAYOUTS: dict[str, Callable[[Path], Manifest | None]] = {
    "list": read_list,
    "covidqu": read_covidqu,
    "covidx": read_covidx,
    "folders": read_folders,
}
