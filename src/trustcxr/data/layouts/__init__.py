"""How a data set's folder is laid out: each layout turns it into a manifest."""

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from trustcxr import registry
from trustcxr.data import remote
from trustcxr.data.layouts.covidqu import _parts, read_covidqu
from trustcxr.data.layouts.csv_lists import PUBLISHED, read_list
from trustcxr.data.layouts.folders import read_folders
from trustcxr.data.layouts.listing import _folders, record_skipped
from trustcxr.data.manifest import Manifest
from trustcxr.errors import UserError, unknown
from trustcxr.storage.os_errors import escaped, file_kind, open_regular

EXPECTED = (
    "expected COVID-QU-Ex ('Lung Segmentation Data' or 'Infection Segmentation Data' with "
    "{Train,Val,Test}/{class}/images), class folders of images ({class}/*.png, optionally below Train/Val/Test), "
    "or a manifest or list (.csv, .parquet, .txt)"
)


def read_manifest(
    path: str | Path,
    *,
    layout: str = "auto",
    columns: str | Mapping[str, str | int] | None = None,
    images: str | Path | None = None,
) -> Manifest:
    """Read a data set's files into a manifest, without opening the images.

    `path` is a folder, a list, or an address that fsspec knows, whose images are then brought here once (data.remote).
    `layout` is one of `auto`, `list`, `covidqu`, `covidx`, `folders` (the catalogue's). `columns` and `images` are for
    a list: see `lists.read_list`. Raises UserError where the folder or file is not understood.
    """
    root = _root(path)
    if layout != "auto" and layout not in LAYOUTS:
        raise unknown("layout", layout, ["auto", *LAYOUTS])
    if isinstance(columns, str) and columns not in PUBLISHED:
        raise unknown("list", columns, PUBLISHED)
    with record_skipped() as passed_over:
        manifest = _read(root, layout, columns, images)
    if manifest is not None:
        if (columns is not None or images is not None) and manifest.layout not in ("list", "manifest"):
            manifest.notes.append("columns and a folder of images are for a list, which these images are not")
        manifest.passed_over = passed_over
        if passed_over:
            first, why = next(iter(passed_over.items()))
            several = f"{len(passed_over)} files or folders were passed over, such as"
            manifest.notes.append(f"{several if len(passed_over) > 1 else 'passed over:'} {first}: {why}")
        return manifest
    inside = [n for n in _folders(root)[:20] if _parts(root / n) or read_folders(root / n)] if root.is_dir() else []
    hint = f"; did you mean {path}/{inside[0]}?" if inside else ""
    raise UserError(f"{path}: not a data set that is understood: {EXPECTED}; found {describe_folder(root)}{hint}")


def _root(path: str | Path) -> Path:
    """The folder or file itself. UserError where there is none, or it is neither."""
    if not str(path):
        raise UserError("no data named: give a folder of X-rays or a list")
    remote.check_exists(path)
    try:
        root = remote.fetch(path).expanduser().absolute()
        mode = root.stat().st_mode
    except (OSError, ValueError, RuntimeError) as fault:
        why = getattr(fault, "strerror", None) or str(fault)
        raise UserError(
            f"{escaped(str(path))[:200]}: cannot be read: {why}; give a folder of X-rays or a list"
        ) from None
    if not stat.S_ISDIR(mode) and (what := file_kind(mode)) is not None:
        raise UserError(f"{path}: {what}: give a folder of X-rays or a list")
    return root


def _read(
    root: Path, layout: str, columns: str | Mapping[str, str | int] | None, images: str | Path | None
) -> Manifest | None:
    """The manifest by the first layout that fits; None where none does."""
    if root.name == "manifest.csv" and columns is None and (beside := _beside(root)) is not None:
        return beside
    for name in [layout] if layout != "auto" else list(LAYOUTS):
        reader = LAYOUTS[name]
        manifest = read_list(root, columns=columns, images=images) if name == "list" else reader(root)
        if manifest is not None:
            return manifest
    return None


def _beside(side_car: Path) -> Manifest | None:
    """The COVID-QU-Ex data set that a side-car manifest stands in: its rows list an image once for each part."""
    with open_regular(side_car) as file:
        own = b"sample_id" in file.readline(1 << 16)
    return None if own else read_covidqu(side_car.parent)


def describe_folder(folder: Path) -> str:
    """A folder's content in a few words, for an error message."""
    if not folder.is_dir():
        return f"a file of type '{folder.suffix}'"
    folders = set(_folders(folder))
    try:
        names = sorted(f"{n}/" if n in folders else n for n in os.listdir(folder) if not n.startswith("."))
    except OSError as fault:
        return f"a folder that cannot be looked into ({(fault.strerror or str(fault)).lower()})"
    if not names:
        return "an empty folder"
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


LAYOUTS: dict[str, Callable[[Path], Manifest | None]] = {
    name: registry.load_function("data.layouts", entry.function) for name, entry in registry.LAYOUTS.items()
}
