"""Read COVID-QU-Ex as published: parts, splits, classes, with lung and infection masks."""

import filecmp
from collections.abc import Iterator
from pathlib import Path

from trustcxr.data.layouts.listing import Masks, Record, list_files, list_folders
from trustcxr.data.layouts.sidecar import join_side_car
from trustcxr.data.manifest import MASK_SUFFIX, NO_SPLIT, Manifest, from_records, split_name

# Images of COVID-QU-Ex (Tahir et al. 2021, doi:10.34740/kaggle/dsv/3122898), each class over all splits.
PUBLISHED = {
    "COVID-QU-Ex": {"COVID-19": 11956, "Non-COVID": 11263, "Normal": 10701},
    "its infection part": {"COVID-19": 2913, "Non-COVID": 1457, "Normal": 1456},
}
_MASK_FOLDERS = {"lung masks": "lung", "lung_masks": "lung", "masks": "lung", "infection masks": "infection"}


def _class_folders(folder: Path, names: list[str] | None = None) -> list[str]:
    return [c for c in (list_folders(folder) if names is None else names) if (folder / c / "images").is_dir()]


def _splits_of_part(folder: Path) -> list[tuple[str, Path]]:
    """List the (split, folder) pairs of one part; the folder may itself be a split, or have none."""
    names = list_folders(folder)
    splits = [(s, folder / n) for n in names if (s := split_name(n)) and _class_folders(folder / n)]
    if splits or not _class_folders(folder, names):
        return splits
    return [(split_name(folder.name) or NO_SPLIT, folder)]


def list_parts(root: Path) -> list[Path]:
    """List the folders that hold Train/Val/Test: this one, or those one or two levels below it."""
    if not root.is_dir():
        return []
    level = [root]
    for _ in range(3):
        parts = [f for f in level if _splits_of_part(f)]
        if parts:
            return parts
        level = [f / n for f in level for n in list_folders(f)[:50] if f == root or "data" in n.lower()]
    return []


def _part_records(part: Path, root: Path) -> Iterator[Record]:
    for split, split_folder in _splits_of_part(part):
        for name in _class_folders(split_folder):
            folder = split_folder / name
            relative = folder.relative_to(root).as_posix()
            relative = "" if relative == "." else relative + "/"
            masks: dict[str, Masks] = {
                f"{kind}{MASK_SUFFIX}": Masks(f"{folder}/{sub}", f"{relative}{sub}")
                for sub in list_folders(folder)
                if (kind := _MASK_FOLDERS.get(sub.lower()))
            }
            for file in list_files(folder / "images"):
                record: Record = {"class": name, "split": split, "file": file, "path": f"{relative}images/{file}"}
                record |= {column: of_kind.get(file) for column, of_kind in masks.items()}
                record["sample_id"] = f"{split}/{name}/{file}"
                yield record


def read_covidqu(root: Path) -> Manifest | None:
    """Read COVID-QU-Ex from its outer folder, an inner one, or one part alone; None for any other folder.

    The infection part repeats images of the lung part. An image with the same class, name and bytes is one sample with
    both masks, in the lung part's split. If the bytes differ, both images stay.
    """
    lung: list[Record] = []
    infection: list[Record] = []
    parts = list_parts(root)
    if not parts:
        return None
    for part in parts:
        records = list(_part_records(part, root))
        (infection if any("infection_mask" in r for r in records) else lung).extend(records)
    notes: list[str] = []
    records = _joined(lung, infection, root, notes)
    join_side_car(records, root, _home(root), notes, splits=False)
    return from_records(records, root, "covidqu", notes)


def _home(root: Path) -> Path:
    """Return the folder of the whole data set, which has the side-car manifest, from one of a part or split."""
    home = root.parent if split_name(root.name) and _class_folders(root) else root
    while home.name.lower().endswith("segmentation data"):
        home = home.parent
    return home


def _joined(lung: list[Record], infection: list[Record], root: Path, notes: list[str]) -> list[Record]:
    """Join the samples of both parts, each once; note differences."""
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
