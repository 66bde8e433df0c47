"""How a data set's folder is laid out: each layout turns it into a manifest."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from trustcxr.data.layouts.covidqu import _parts, read_covidqu
from trustcxr.data.layouts.files import _folders
from trustcxr.data.layouts.folders import read_folders
from trustcxr.data.layouts.lists import read_covidx, read_list
from trustcxr.data.manifest import Manifest
from trustcxr.errors import UserError, unknown

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


LAYOUTS: dict[str, Callable[[Path], Manifest | None]] = {
    "list": read_list,
    "covidqu": read_covidqu,
    "covidx": read_covidx,
    "folders": read_folders,
}
