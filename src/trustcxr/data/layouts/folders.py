"""A folder a class, with or without splits above it."""

from pathlib import Path

from trustcxr.data.layouts.listing import Record, _files, _folders, _Masks
from trustcxr.data.layouts.sidecar import _join_side_car
from trustcxr.data.manifest import MASK_SUFFIX, NO_SPLIT, Manifest, from_records, split_name

_NOT_CLASSES = {"images", "masks", "lung masks", "lung_masks", "infection masks"}


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
    if beside := [
        n
        for n in _folders(root)
        if splits and not split_name(n) and n.lower() not in _NOT_CLASSES and _has_classes(root / n)
    ]:
        notes.append(f"folders of images that no split is called like were left out: {', '.join(beside)}")
    _join_side_car(records, root, root, notes, splits=not splits and split_name(root.name) is None)
    return from_records(records, root, "folders", notes)


def _has_classes(folder: Path) -> bool:
    return any(_files(f"{folder}/{name}") for name in _folders(folder) if name.lower() not in _NOT_CLASSES)
