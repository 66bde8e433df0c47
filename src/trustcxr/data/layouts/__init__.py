"""Read a data set's folder or list into a manifest, by the first layout that fits."""

from collections.abc import Callable, Mapping
from pathlib import Path

from trustcxr import registry
from trustcxr.data import remote
from trustcxr.data.layouts.csv_lists import PUBLISHED, read_list
from trustcxr.data.layouts.folders import list_parts, read_covidqu, read_folders
from trustcxr.data.layouts.listing import list_folders, record_skipped
from trustcxr.data.manifest import Manifest
from trustcxr.errors import UserError, unknown
from trustcxr.storage.os_errors import open_regular

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

    `path`: a folder, a list, or an fsspec address, which is copied into the cache once. `layout`: `auto` or one of
    registry.LAYOUTS. `columns` and `images` describe a list, as in `read_list`. Raises UserError if no layout fits.

    >>> import tempfile, trustcxr as tx
    >>> folder = tempfile.mkdtemp()
    >>> images = tx.data.phantom.write(folder + "/images", {"Test": 2}, size=32)
    >>> len(tx.data.read_manifest(images).table)
    6
    """
    remote.check_exists(path)
    root = remote.fetch(path).expanduser().absolute()
    if layout != "auto" and layout not in LAYOUTS:
        raise unknown("layout", layout, ["auto", *LAYOUTS])
    if isinstance(columns, str) and columns not in PUBLISHED:
        raise unknown("list", columns, PUBLISHED)
    with record_skipped() as skipped:
        manifest = _read_side_car(root) if root.name == "manifest.csv" and columns is None else None
        for name in [layout] if layout != "auto" else LAYOUTS:
            how = {"columns": columns, "images": images} if name == "list" else {}
            manifest = manifest or LAYOUTS[name](root, **how)
    if manifest is not None:
        if (columns is not None or images is not None) and manifest.layout not in ("list", "manifest"):
            manifest.notes.append("columns and a folder of images are ignored: these images are not a list")
        manifest.skipped = skipped
        if skipped:
            first, reason = next(iter(skipped.items()))
            several = f"{len(skipped)} files or folders are skipped, such as"
            manifest.notes.append(f"{several if len(skipped) > 1 else 'skipped:'} {first}: {reason}")
        return manifest
    inside = [n for n in list_folders(root)[:20] if list_parts(root / n) or read_folders(root / n)]
    hint = f"; did you mean {path}/{inside[0]}?" if inside else ""
    raise UserError(f"{path}: not a data set: {EXPECTED}; found {describe_folder(root)}{hint}")


def _read_side_car(side_car: Path) -> Manifest | None:
    """Read the COVID-QU-Ex data set of a side-car manifest, which lists an image once for each part."""
    with open_regular(side_car) as file:
        is_manifest = b"sample_id" in file.readline(1 << 16)
    return None if is_manifest else read_covidqu(side_car.parent)


def describe_folder(folder: Path) -> str:
    """Describe a folder's content in a few words, for an error message."""
    if not folder.is_dir():
        return f"a file of type '{folder.suffix}'"
    try:
        names = sorted(f"{p.name}/" if p.is_dir() else p.name for p in folder.iterdir() if p.name[0] != ".")
    except OSError as fault:
        return f"a folder that cannot be opened ({(fault.strerror or str(fault)).lower()})"
    if not names:
        return "an empty folder"
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


LAYOUTS: dict[str, Callable[..., Manifest | None]] = {
    name: registry.load_function("data.layouts", entry.function) for name, entry in registry.LAYOUTS.items()
}
