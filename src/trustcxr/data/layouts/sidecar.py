"""A table beside the images: patients, sources, masks."""

from collections.abc import Mapping
from pathlib import Path

from trustcxr.data.layouts.listing import Record
from trustcxr.data.manifest import NO_SPLIT, USUAL, extra_columns, split_name
from trustcxr.data.tabular import check_distinct_columns, find_columns_like, has_unknown_word, is_blank, read_table
from trustcxr.errors import UserError

_SIDECAR = {word: USUAL[word] for word in ("patient", "group", "source", "view")}
_SIDECAR |= {word: (word,) for word in ("strict_external", "split")}


def _join_side_car(records: list[Record], root: Path, home: Path, notes: list[str], *, splits: bool) -> None:
    """Add patient, group, source, view (and split, where the folders do not say) from `manifest.csv` in `home`.

    And every other column of it, by its own name.
    """
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
    undivided = [record["path"] for record in records if record["split"] == NO_SPLIT] if splits else []
    if 0 < len(undivided) < len(records):
        notes.append(
            f"{len(undivided)} images have no split in {file.name} where others have one, and are in a split "
            f"'{NO_SPLIT}' of their own, which is not trained on; the first is {min(undivided)}"
        )


def side_car_rows(file: Path) -> dict[str, Mapping[str, str]]:
    """The known facts of each path in a side-car manifest. Raises UserError where it has no `path` column."""
    table = read_table(file)
    if "path" not in table:
        raise UserError(f"{file}: expected a column 'path'; found {', '.join(map(str, table.columns))}")
    found = {ours: next((n for n in theirs if n in table), None) for ours, theirs in _SIDECAR.items()}
    for name in filter(None, ("path", *found.values())):
        check_distinct_columns(table, file, find_columns_like(table, name, exactly=True))
    columns = {ours: table[name].tolist() for ours, name in found.items() if name}
    taken = [name for names in _SIDECAR.values() for name in names]
    columns |= {name: table[name].tolist() for name in extra_columns(table, taken)}
    rows: dict[str, Mapping[str, str]] = {}
    for i, path in enumerate(table["path"]):
        values = {ours: v[i].strip() for ours, v in columns.items()}
        known = {k: v for k, v in values.items() if v and not (is_blank(v) if k in _SIDECAR else has_unknown_word(v))}
        if split := known.get("split"):
            known["split"] = split_name(split) or split
        place = path.replace("\\", "/")
        before = rows.get(place, known)
        for column in [c for c in columns if before.get(c) != known.get(c)]:
            raise UserError(f"{file}: {path} stands there twice, with another {column} each time")
        rows[place] = known
    return rows
