"""Read class folders of images, with or without folders of splits above them."""

from pathlib import Path

from trustcxr.data.layouts.listing import Masks, Record, list_files, list_folders
from trustcxr.data.layouts.sidecar import join_side_car
from trustcxr.data.manifest import MASK_SUFFIX, NO_SPLIT, Manifest, from_records, split_name

_NOT_CLASSES = {"images", "masks", "lung masks", "lung_masks", "infection masks"}


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
            files = [] if name.lower() in _NOT_CLASSES else list_files(f"{root}/{prefix}{name}")
            if not files:
                continue
            masks = {
                f"{kind}{MASK_SUFFIX}": Masks(f"{root}/{masks_at}/{kind}/{name}", f"{masks_at}/{kind}/{name}")
                for kind in kinds
                if (root / str(masks_at) / kind / name).is_dir()
            }
            ids = f"{split}/{name}" if splits else name
            for file in files:
                record: Record = {"sample_id": f"{ids}/{file}", "path": f"{prefix}{name}/{file}"}
                record |= {"class": name, "split": split}
                records.append(record | {column: of_kind.get(file) for column, of_kind in masks.items()})
    if not records:
        return None
    notes: list[str] = []
    others = [n for n in list_folders(root) if not split_name(n) and n.lower() not in _NOT_CLASSES]
    if splits and (ignored := [n for n in others if _has_classes(root / n)]):
        notes.append(f"folders of images without the name of a split are left out: {', '.join(ignored)}")
    join_side_car(records, root, root, notes, splits=not splits and split_name(root.name) is None)
    return from_records(records, root, "folders", notes)


def _has_classes(folder: Path) -> bool:
    return any(list_files(f"{folder}/{name}") for name in list_folders(folder) if name.lower() not in _NOT_CLASSES)
