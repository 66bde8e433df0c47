"""Read folders of images: COVID-QU-Ex as published, and class folders with or without splits and masks."""

import filecmp
from collections.abc import Iterable, Iterator
from pathlib import Path

from trustcxr.data.layouts.listing import Columns, Masks, Record, list_files, list_folders, read_side_car
from trustcxr.data.manifest import MASK_SUFFIX, NO_SPLIT, Manifest, from_records, split_name

# Images of COVID-QU-Ex (Tahir et al. 2021, doi:10.34740/kaggle/dsv/3122898), each class over all splits.
PUBLISHED = {
    "COVID-QU-Ex": {"COVID-19": 11956, "Non-COVID": 11263, "Normal": 10701},
    "its infection part": {"COVID-19": 2913, "Non-COVID": 1457, "Normal": 1456},
}
Counts = dict[str, tuple[int, int]]  # class -> images here and published
_MASK_FOLDERS = {"lung masks": "lung", "lung_masks": "lung", "masks": "lung", "infection masks": "infection"}
_NOT_CLASSES = {"images", "masks", "lung masks", "lung_masks", "infection masks"}


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


def _mask_kinds(part: Path) -> set[str]:
    classes = [
        split_folder / name for _, split_folder in _splits_of_part(part) for name in _class_folders(split_folder)
    ]
    return {kind for folder in classes for sub in list_folders(folder) if (kind := _MASK_FOLDERS.get(sub.lower()))}


def _part_records(part: Path, root: Path) -> Iterator[Record]:
    for split, split_folder in _splits_of_part(part):
        for name in _class_folders(split_folder):
            folder = (split_folder / name).relative_to(root)
            masks = {
                kind: (folder / sub).as_posix()
                for sub in list_folders(root / folder)
                if (kind := _MASK_FOLDERS.get(sub.lower()))
            }
            yield from _class_records(root, (folder / "images").as_posix(), masks, f"{split}/{name}", split, name)


def _class_records(
    root: Path, folder: str, masks: dict[str, str], prefix: str, split: str, class_name: str
) -> Iterator[Record]:
    """Yield a record for each image of a folder; `masks` are the folders of each kind, `prefix` that of sample ids."""
    of_kind = {f"{kind}{MASK_SUFFIX}": Masks(root, path) for kind, path in masks.items()}
    for file in list_files(root / folder):
        record = {"sample_id": f"{prefix}/{file}", "path": f"{folder}/{file}", "class": class_name, "split": split}
        yield record | {column: found.get(file) for column, found in of_kind.items()}


def read_covidqu(root: Path) -> Manifest | None:
    """Read COVID-QU-Ex from its outer folder, an inner one, or one part alone; None for any other folder.

    The infection part repeats images of the lung part. An image with the same class, name and bytes is one sample with
    both masks, in the lung part's split. If the bytes differ, both images stay.
    """
    parts = list_parts(root)
    if not parts:
        return None
    infection = [part for part in parts if "infection" in _mask_kinds(part)]
    lung = [record for part in parts if part not in infection for record in _part_records(part, root)]
    notes: list[str] = []
    records = _joined(lung, (record for part in infection for record in _part_records(part, root)), root, notes)
    columns: Columns = {"file": [_file_name(record) for record in records]}
    columns |= read_side_car(records, root, _home(root), notes, splits=False)
    return from_records(records, root, "covidqu", notes, columns=columns)


def compare_with_published(manifest: Manifest) -> dict[str, Counts]:
    """Count the images of each part of COVID-QU-Ex, here and as published."""
    table = manifest.table
    parts = (table["class"], table["class"][table["infection_mask"].notna()])
    return {
        part: {name: (int((classes == name).sum()), count) for name, count in published.items()}
        for (part, published), classes in zip(PUBLISHED.items(), parts, strict=True)
    }


def _home(root: Path) -> Path:
    """Return the folder of the whole data set, which has the side-car manifest, from one of a part or split."""
    home = root.parent if split_name(root.name) and _class_folders(root) else root
    while home.name.lower().endswith("segmentation data"):
        home = home.parent
    return home


def _joined(lung: list[Record], infection: Iterable[Record], root: Path, notes: list[str]) -> list[Record]:
    """Join the samples of both parts, each once; note differences."""
    by_name: dict[tuple[str, str], list[Record]] = {}
    for record in lung:
        by_name.setdefault((record["class"], _file_name(record)), []).append(record)
    records, other_bytes, other_split, alone = list(lung), 0, 0, 0
    for record in infection:
        twins = by_name.get((record["class"], _file_name(record)), [])
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


def _file_name(record: Record) -> str:
    return str(record["path"]).rpartition("/")[2]


def read_folders(root: Path) -> Manifest | None:
    """Read class folders of images, optionally below Train/Val/Test; masks are in `masks/<kind>/<class>/`."""
    if not root.is_dir():
        return None
    splits = [(s, n + "/") for n in list_folders(root) if (s := split_name(n))]
    records: list[Record] = []
    for split, prefix in splits or [(split_name(root.name) or NO_SPLIT, "")]:
        masks_at = next((m for m in (f"{prefix}masks", "masks") if (root / m).is_dir()), None)
        kinds = list_folders(root / masks_at) if masks_at else []
        for name in list_folders(root / prefix):
            if name.lower() in _NOT_CLASSES:
                continue
            paths = {kind: f"{masks_at}/{kind}/{name}" for kind in kinds}
            masks = {kind: path for kind, path in paths.items() if (root / path).is_dir()}
            ids = f"{split}/{name}" if splits else name
            records += _class_records(root, f"{prefix}{name}", masks, ids, split, name)
    if not records:
        return None
    notes: list[str] = []
    others = [n for n in list_folders(root) if not split_name(n) and n.lower() not in _NOT_CLASSES]
    if splits and (ignored := [n for n in others if _has_classes(root / n)]):
        notes.append(f"folders of images without the name of a split are left out: {', '.join(ignored)}")
    columns = read_side_car(records, root, root, notes, splits=not splits and split_name(root.name) is None)
    return from_records(records, root, "folders", notes, columns=columns)


def _has_classes(folder: Path) -> bool:
    return any(list_files(f"{folder}/{name}") for name in list_folders(folder) if name.lower() not in _NOT_CLASSES)
