"""Read patients, sources and other columns from a `manifest.csv` in the folder of the images."""

from collections.abc import Mapping
from pathlib import Path

from trustcxr.data.layouts.listing import Record
from trustcxr.data.manifest import NO_SPLIT, USUAL, extra_columns, format_unsplit, split_name
from trustcxr.data.tabular import check_distinct_columns, find_columns_like, has_unknown_word, is_blank, read_table
from trustcxr.errors import UserError

_SIDECAR = {word: USUAL[word] for word in ("patient", "group", "source", "view")}
_SIDECAR |= {word: (word,) for word in ("strict_external", "split")}


def join_side_car(records: list[Record], root: Path, home: Path, notes: list[str], *, splits: bool) -> None:
    """Add the columns of `manifest.csv` in `home` to records; `split` only if `splits`."""
    file = home / "manifest.csv"
    if not file.is_file():
        return
    rows = _read_side_car(file)
    prefix = "" if home == root else root.relative_to(home).as_posix() + "/"
    missing = 0
    for record in records:
        row = rows.get(prefix + record["path"])
        missing += row is None
        for column, value in (row or {}).items():
            if column != "split" or splits:
                record[column] = value
    if missing:
        notes.append(f"{missing} images are not in {file.name}: their patients and sources are unknown")
    unsplit = [record["path"] for record in records if record["split"] == NO_SPLIT] if splits else []
    if 0 < len(unsplit) < len(records):
        notes.append(format_unsplit(f"{len(unsplit)} images", file.name, min(unsplit)))


def _read_side_car(file: Path) -> dict[str, Mapping[str, str]]:
    """Read the known values of each path. Raises UserError if there is no column `path`."""
    table = read_table(file)
    if "path" not in table:
        raise UserError(f"{file}: no column 'path' among {', '.join(map(str, table.columns))}. Add it")
    mapping = {word: next((n for n in names if n in table), None) for word, names in _SIDECAR.items()}
    for name in filter(None, ("path", *mapping.values())):
        check_distinct_columns(table, file, find_columns_like(table, name, exactly=True))
    columns = {word: table[name].tolist() for word, name in mapping.items() if name}
    taken = [name for names in _SIDECAR.values() for name in names]
    columns |= {name: table[name].tolist() for name in extra_columns(table, taken)}
    rows: dict[str, Mapping[str, str]] = {}
    for i, path in enumerate(table["path"]):
        values = {word: v[i].strip() for word, v in columns.items()}
        values = {k: v for k, v in values.items() if v and not (is_blank(v) if k in _SIDECAR else has_unknown_word(v))}
        if split := values.get("split"):
            values["split"] = split_name(split) or split
        before = rows.setdefault(path.replace("\\", "/"), values)
        for column in [c for c in columns if before.get(c) != values.get(c)]:
            raise UserError(f"{file}: {path} is listed twice, with two values of {column}. Remove one row")
    return rows
