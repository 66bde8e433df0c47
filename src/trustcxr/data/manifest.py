"""The one table that all data becomes: a row a sample, with its file, class, split, patient and masks."""

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pandas as pd

from trustcxr.data.tabular import check_distinct_columns, find_columns_like, is_blank, read_table, row_number
from trustcxr.errors import UserError, nearest
from trustcxr.storage.atomic import atomic_write

COLUMNS = ("sample_id", "path", "class", "split", "patient", "group", "lung_mask", "infection_mask", "source", "view")
NO_SPLIT = "All"  # the split of data that come without one
OPTIONAL = ("strict_external",)  # 1 where no image of the same collection can have been trained on, else 0
MAY_BE_UNKNOWN = ("patient", "group", "source", "view")
NEEDED = ("sample_id", "path", "class", "split")
MASK_SUFFIX = "_mask"
USUAL = {  # our word for a column -> what such columns mostly are called
    "path": ("path", "file", "filename", "file_name", "image", "image_path"),
    "class": ("class", "label", "finding", "diagnosis"),
    "split": ("split", "subset"),
    "patient": ("patient", "patient_id"),
    "group": ("group", "group_id"),
    "source": ("source", "source_repo"),
    "view": ("view",),
    "lung_mask": ("lung_mask",),
    "infection_mask": ("infection_mask",),
}
SHARES = {"Train": 0.64, "Val": 0.16, "Test": 0.20}  # of data that come without splits, as COVID-QU-Ex is divided
_SPLITS = {"train": "Train", "training": "Train", "val": "Val", "valid": "Val", "validation": "Val", "dev": "Val"}
_SPLITS |= {"test": "Test", "testing": "Test"}


def split_rank(split: str) -> tuple[int, str]:
    """What splits are sorted by: Train, Val, Test, then others by name."""
    known = list(SHARES)
    return known.index(split) if split in known else len(known), split


def extra_columns(table: pd.DataFrame, taken: Iterable[Any]) -> list[str]:
    """List the columns with a name, other than ours, masks and those that are taken."""
    known = {*COLUMNS, *taken}
    return [c for c in table.columns if isinstance(c, str) and c and c not in known and not c.endswith(MASK_SUFFIX)]


def split_name(name: str) -> str | None:
    """`Train`, `Val` or `Test` for the usual spellings of a split, None for any other word."""
    return _SPLITS.get(name.strip().lower())


@dataclass
class Manifest:
    """What a data set holds.

    `table` has one row a sample, sorted by (split, class, sample_id), columns of objects with None where unknown:
    sample_id (unique), path (relative to `root`, posix), class, split, patient, group (never None: the group given,
    else the patient, else the sample itself), source, view, and one `<kind>_mask` path for each kind of mask
    (lung_mask and infection_mask always); then whatever else the data's own table says of them (sex, age, scanner).
    """

    table: pd.DataFrame
    root: Path
    classes: tuple[str, ...]
    layout: str
    notes: list[str] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)  # what cannot be listed: its path, and why
    file: Path | None = None  # the list or manifest that it was read from
    split_column: str | None = None  # of that file

    @property
    def where(self) -> Path:
        """What a message about these data names: the list, where they were read from one, else their folder."""
        return self.file or self.root

    @property
    def mask_kinds(self) -> tuple[str, ...]:
        """The kinds of mask that at least one sample has."""
        columns = [str(c) for c in self.table.columns if str(c).endswith(MASK_SUFFIX)]
        return tuple(c.removesuffix(MASK_SUFFIX) for c in columns if self.table[c].notna().any())

    @property
    def files(self) -> dict[str, list[str | None]]:
        """The paths of `images`, and of `<kind>_mask` for each kind of mask, one a sample; None for no mask."""
        masks = [kind + MASK_SUFFIX for kind in self.mask_kinds]
        return {"images": self.table["path"].tolist()} | {name: self.table[name].tolist() for name in masks}

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that there are, sorted by name."""
        return tuple(sorted(set(self.table["split"])))

    def write(self, path: str | Path, *, dropped: pd.DataFrame | None = None) -> None:
        """Write the manifest as `.csv` or `.parquet`, its paths relative to the file's own folder.

        `dropped` is rows of the same columns that were left out, with the reason in a column `dropped`: they are kept
        in the file for the reader, and left out when it is read.
        """
        file = Path(path).expanduser().absolute()
        if file.suffix.lower() not in (".csv", ".parquet"):
            raise UserError(f"{path}: a manifest is written as .csv or .parquet")
        table = self.table if dropped is None else pd.concat([self.table, dropped], ignore_index=True)
        table = table.astype(object).where(table.notna(), None)
        start = os.path.relpath(self.root, file.parent)
        for column in ["path", *(c for c in table.columns if str(c).endswith(MASK_SUFFIX))]:
            table[column] = [
                None if p is None else Path(os.path.normpath(f"{start}/{p}")).as_posix() for p in table[column]
            ]
        with atomic_write(file) as part:
            if file.suffix.lower() == ".csv":
                table.to_csv(part, index=False)
            else:
                table.to_parquet(part, index=False)

    @classmethod
    def load(cls, path: str | Path) -> "Manifest":
        """Read a manifest that `write` wrote. Raises UserError."""

        file = Path(path).expanduser().absolute()
        if not file.is_file():
            raise UserError(f"{path}: no such file")
        return from_table(read_table(file), file)

    def alike_classes(self) -> list[dict[str, int]]:
        """Classes that differ only in capitals or blanks, each with its samples, the commonest first."""
        alike: dict[str, dict[str, int]] = {}
        for name, count in self.table["class"].value_counts().sort_index(kind="stable").items():
            alike.setdefault("".join(str(name).split()).casefold(), {})[str(name)] = int(count)
        several = [names for _, names in sorted(alike.items()) if len(names) > 1]
        return [dict(sorted(names.items(), key=lambda item: -item[1])) for names in several]

    def no_split(self, split: str) -> UserError:
        """What to say where a split is asked for that there is not, and what can be done."""
        said = f"{self.where}: no split '{split}'; {nearest(split, self.splits)}there is {', '.join(self.splits)}"
        others = [name for name in self.splits if name not in (*SHARES, NO_SPLIT)]
        if self.file is not None and self.split_column is None:
            by = "" if self.splits == (NO_SPLIT,) else " (what there is comes from its name, or from a list beside it)"
            return UserError(
                f"{said}: the list has no column of splits{by}; add a column 'split' that says {', '.join(SHARES)}, "
                "name the one that it has (--column split=COLUMN), or give the list a name without a split, and it is "
                "divided"
            )
        if split in SHARES and others:
            such = shlex.quote(others[min(list(SHARES).index(split), len(others) - 1)])
            return UserError(
                f"{said}; say which of them it is: --set data.splits.{split.lower()}={such} where it is trained (in a "
                f"recipe under data.splits), --split {such} where it is tested"
            )
        if split in SHARES and self.split_column is not None:
            said += f": no row has it in the column '{self.split_column}'; give it to some images"
        return UserError(said)

    def counts(self) -> dict[str, dict[str, int]]:
        """Samples of each class in each split: {split: {class: n}}."""
        sizes = self.table.groupby(["split", "class"]).size()
        return {s: {c: int(sizes.get((s, c), 0)) for c in self.classes} for s in self.splits}

    def with_labels(self, labels: Mapping[str, str | None], known: Iterable[str] = ()) -> "Manifest":
        """The manifest with its classes renamed, `{"pneumonia": "Non-COVID"}`; None leaves a class out.

        A class that is not a key must already be the name of a target (or of a class in `known`); if not, UserError
        lists every class that is not mapped.
        """
        known = list(known)
        targets = {str(v) for v in labels.values() if v is not None} | set(known)
        unmapped = sorted(set(self.table["class"]) - set(labels) - targets)
        strange = sorted(set(labels) - set(self.table["class"]))
        if unmapped:
            raise UserError(
                f"{self.where}: no label mapping for {', '.join(repr(c) for c in unmapped)} "
                f"(mapped: {', '.join(map(str, labels)) or 'none'}); map each to a class, or leave it out: "
                f"--label '{unmapped[0]}=CLASS' or --label '{unmapped[0]}=', in a recipe CLASS or null"
                + (f"; {', '.join(map(repr, strange))} is no class of these data" if strange else "")
            )
        renamed = self.table["class"].map(lambda c: labels.get(c, c))
        notes = list(self.notes)
        if strange:
            notes.append(f"the label mapping names what is no class of these data: {', '.join(strange)}")
        for name, count in self.table["class"][renamed.isna()].value_counts().items():
            notes.append(f"{count} samples labelled '{name}' were left out by the label mapping")
        table = self.table.assign(**{"class": renamed})[renamed.notna()]
        records: Any = table.to_dict("records")
        return self._again(records, notes)

    def with_splits(self, *, seed: int = 0) -> "Manifest":
        """The manifest divided into Train, Val and Test (SHARES), whatever splits it had.

        Each class is divided alike, and samples of one group stay together: a group that holds several classes goes by
        its commonest. The order in which groups are dealt out comes from their names and the seed alone.
        """
        groups = pd.Series(_whole_patients(self.table["group"].tolist(), self.table["patient"].tolist()))
        commonest = self.table["class"].groupby(groups.to_numpy()).agg(lambda names: names.mode().iloc[0])
        sizes = groups.value_counts()
        place: dict[str, str] = {}
        for _, members in commonest.groupby(commonest):
            order = sorted(members.index, key=lambda name: blake2b(f"{seed}/{name}".encode()).digest())
            total, dealt = int(sizes[order].sum()), 0
            for name in order:
                middle, reached = (dealt + sizes[name] / 2) / total, 0.0
                for split, share in SHARES.items():
                    reached += share
                    if middle < reached or split == "Test":
                        place[name] = split
                        break
                dealt += int(sizes[name])
        records: Any = self.table.assign(split=groups.map(place).to_numpy()).to_dict("records")
        shares = ", ".join(f"{share:.0%} {split}" for split, share in SHARES.items())
        together = "classes alike, groups together" if len(sizes) < len(self.table) else "classes alike"
        note = f"these data have no splits: they were divided by seed {seed} into {shares}, {together}"
        return self._again(records, [*self.notes, note])

    def select(self, keep: Any) -> "Manifest":
        """The manifest with only the rows where `keep` (boolean, one a row) is true."""
        table = self.table[keep].reset_index(drop=True)
        classes = tuple(sorted(set(table["class"])))
        return replace(self, table=table, classes=classes, notes=list(self.notes))

    def _again(self, records: Any, notes: list[str]) -> "Manifest":
        """The manifest with other rows and notes."""
        made = from_records(records, self.root, self.layout, notes, self.file)
        made.passed_over, made.split_column = self.passed_over, self.split_column
        return made


def format_alike_classes(names: Mapping[str, int]) -> str:
    """Classes that are called alike in words: 'COVID-19' (40 images) and 'covid-19' (3 images)."""
    return " and ".join(f"'{name}' ({count:,} image{'' if count == 1 else 's'})" for name, count in names.items())


def from_records(
    records: Iterable[Mapping[str, Any]], root: Path, layout: str, notes: list[str], file: Path | None = None
) -> Manifest:
    """Build a manifest from one mapping a sample, of texts and None; a missing key is None. `file` is their list.

    Raises UserError where there is no sample at all or a sample_id occurs twice.
    """
    rows = sorted(records, key=lambda r: (r["split"], r["class"], r["sample_id"]))
    if not rows:
        raise UserError(f"{file or root}: no image found")
    there: set[str] = set().union(*rows)
    also = [name for name in OPTIONAL if name in there]
    names = [*COLUMNS, *also, *sorted(n for n in there - set(COLUMNS) if n.endswith(MASK_SUFFIX))]
    names += sorted(there - set(names))
    columns: dict[str, list[Any]] = {n: [r.get(n) for r in rows] if n in there else [None] * len(rows) for n in names}
    patients, samples = columns["patient"], columns["sample_id"]
    given = [g or p or s for g, p, s in zip(columns["group"], patients, samples, strict=True)]
    columns["group"] = _whole_patients(given, patients)
    if joined := sum(1 for before, after in zip(given, columns["group"], strict=True) if before != after):
        notes = [*notes, f"{joined} samples are of patients with several groups: the groups of a patient count as one"]
    if len(set(samples)) != len(samples):
        seen: set[str] = set()
        twice = next(s for s in samples if s in seen or seen.add(s))  # type: ignore[func-returns-value]
        raise UserError(f"{file or root}: sample '{twice}' occurs more than once")
    table = pd.DataFrame({n: pd.Series(v, dtype=object) for n, v in columns.items()})
    return Manifest(table, Path(root), tuple(sorted(set(columns["class"]))), layout, notes, file=file)


def _whole_patients(groups: list[str], patients: list[str | None]) -> list[str]:
    """The groups, those of one patient made one, by the name that comes first: a patient is never in two splits."""
    of_patient: dict[str, str] = {}
    leader: dict[str, str] = {}

    def first(group: str) -> str:
        while leader.get(group, group) != group:
            group = leader[group]
        return group

    for group, patient in zip(groups, patients, strict=True):
        if patient is not None:
            one, other = sorted((first(of_patient.setdefault(patient, group)), first(group)))
            leader[other] = one
    return [first(group) for group in groups]


def from_table(table: pd.DataFrame, file: Path) -> Manifest:
    """A manifest from the table of one that was written to `file`. Raises UserError where a column is missing."""
    missing = [c for c in NEEDED if c not in table]
    if missing:
        raise UserError(f"{file}: no manifest: it has no column {', '.join(map(repr, missing))}")
    for name in map(str, table.columns):
        if name in (*COLUMNS, *OPTIONAL, "dropped") or name.endswith(MASK_SUFFIX):
            check_distinct_columns(table, file, find_columns_like(table, name, exactly=True))
    notes = []
    if "dropped" in table:
        out = table["dropped"].map(_known).notna()
        notes += [f"{int(out.sum())} samples are marked as dropped"] if out.any() else []
        table = table[~out].drop(columns="dropped")
    incomplete = table[list(NEEDED)].map(_known).isna().any(axis=1)
    if incomplete.any():
        first = row_number(table, file, int(incomplete.index[incomplete][0]))
        raise UserError(
            f"{file}: {int(incomplete.sum())} rows lack one of {', '.join(NEEDED)}, the first is row {first}: fill in "
            "what is missing, or take the rows out"
        )
    texts = {str(c): [_known(v) for v in table[c]] for c in table.columns}
    texts["split"] = [split_name(str(v)) or v for v in texts["split"]]
    for name in filter(texts.get, MAY_BE_UNKNOWN):
        texts[name] = [None if v is None or is_blank(v) else v for v in texts[name]]
    records = (dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True))
    manifest = from_records(records, file.parent, "manifest", notes, file)
    manifest.split_column = "split"
    return manifest


def _known(value: Any) -> str | None:
    """A value as text, None for the many ways of saying that nothing is known."""
    if value is None or value != value:
        return None
    text = str(value)
    return text if text.strip() else None
