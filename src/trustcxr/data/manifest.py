"""Define the manifest: a table with the file, class, split, patient and masks of each sample."""

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from trustcxr.errors import UserError, suggest_nearest
from trustcxr.storage.atomic import write_table

COLUMNS = ("sample_id", "path", "class", "split", "patient", "group", "lung_mask", "infection_mask", "source", "view")
NO_SPLIT = "All"  # the split of data without splits
OPTIONAL = ("strict_external",)  # 1 if no image of the same collection can be in training data, else 0
MAY_BE_UNKNOWN = ("patient", "group", "source", "view")
NEEDED = ("sample_id", "path", "class", "split")
MASK_SUFFIX = "_mask"
USUAL = {  # our word for a column -> its usual names
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
SHARES = {"Train": 0.64, "Val": 0.16, "Test": 0.20}  # of data without splits, as in COVID-QU-Ex
_SPLITS = {"train": "Train", "training": "Train", "val": "Val", "valid": "Val", "validation": "Val", "dev": "Val"}
_SPLITS |= {"test": "Test", "testing": "Test"}


def split_rank(split: str) -> tuple[int, str]:
    """Return the sorting key of a split: Train, Val, Test, then others by name."""
    usual = list(SHARES)
    return usual.index(split) if split in usual else len(usual), split


def extra_columns(table: pd.DataFrame, taken: Iterable[Any]) -> list[str]:
    """List the named columns other than ours, masks and those in `taken`."""
    used = {*COLUMNS, *taken}
    return [c for c in table.columns if isinstance(c, str) and c and c not in used and not c.endswith(MASK_SUFFIX)]


def format_unsplit(count: str, file: str, first: str) -> str:
    """Format the note about images without a split in a file that has splits."""
    return (
        f"{count} have no split in {file}, where others have one: they are in the split '{NO_SPLIT}', which is not "
        f"trained on; the first is {first}"
    )


def split_name(name: str) -> str | None:
    """Return `Train`, `Val` or `Test` for a usual spelling of a split, None for any other word."""
    return _SPLITS.get(name.strip().lower())


@dataclass
class Manifest:
    """The samples of a data set.

    `table` has one row for each sample, sorted by (split, class, sample_id), of objects with None if unknown. Columns:
    sample_id (unique), path (relative to `root`, posix), class, split, patient, source, view; group (by default the
    patient, else the sample); `<kind>_mask` paths (lung_mask and infection_mask always); then other columns of the
    data's table (sex, age, scanner).
    """

    table: pd.DataFrame
    root: Path
    classes: tuple[str, ...]
    layout: str
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # path that cannot be listed -> reason
    file: Path | None = None  # the list or manifest, if any
    split_column: str | None = None  # of that file

    @property
    def where(self) -> Path:
        """Return the path for messages: the list or manifest, else the folder."""
        return self.file or self.root

    @property
    def mask_kinds(self) -> tuple[str, ...]:
        """Return the kinds of mask that at least one sample has."""
        columns = [str(c) for c in self.table.columns if str(c).endswith(MASK_SUFFIX)]
        return tuple(c.removesuffix(MASK_SUFFIX) for c in columns if self.table[c].notna().any())

    @property
    def files(self) -> dict[str, list[str | None]]:
        """Return the paths of `images` and of each `<kind>_mask`, one for each sample; None for no mask."""
        masks = [kind + MASK_SUFFIX for kind in self.mask_kinds]
        return {"images": self.table["path"].tolist()} | {name: self.table[name].tolist() for name in masks}

    @property
    def splits(self) -> tuple[str, ...]:
        """Return the splits, sorted by name."""
        return tuple(sorted(set(self.table["split"])))

    def write(self, path: str | Path, *, dropped: pd.DataFrame | None = None) -> None:
        """Write the manifest as `.csv` or `.parquet`, its paths relative to the file's own folder.

        `dropped`: excluded rows of the same columns, with the reason in a column `dropped`. They are written for the
        reader's information; `read_manifest` leaves them out.
        """
        file = Path(path).expanduser().absolute()
        if file.suffix.lower() not in (".csv", ".parquet"):
            raise UserError(f"{path}: a manifest is a .csv or .parquet file. Change the suffix")
        table = self.table if dropped is None else pd.concat([self.table, dropped], ignore_index=True)
        table = table.astype(object).where(table.notna(), None)
        start = os.path.relpath(self.root.resolve(), file.parent.resolve())  # `..` of a link leads elsewhere
        for column in ["path", *(c for c in table.columns if str(c).endswith(MASK_SUFFIX))]:
            table[column] = [None if p is None else _join_path(start, p) for p in table[column]]
        write_table(file, table)

    def similar_classes(self) -> list[dict[str, int]]:
        """Group classes that differ only in capitals or blanks: name -> samples, the most common first."""
        similar: dict[str, dict[str, int]] = {}
        for name, count in self.table["class"].value_counts().sort_index(kind="stable").items():
            similar.setdefault("".join(str(name).split()).casefold(), {})[str(name)] = int(count)
        several = [names for _, names in sorted(similar.items()) if len(names) > 1]
        return [dict(sorted(names.items(), key=lambda item: -item[1])) for names in several]

    def missing_split(self, split: str) -> UserError:
        """Return the error for a split that does not exist, with the remedy."""
        there = f"{suggest_nearest(split, self.splits)}there is {', '.join(self.splits)}"
        message = f"{self.where}: no split '{split}'; {there}"
        others = [name for name in self.splits if name not in (*SHARES, NO_SPLIT)]
        if self.file is not None and self.split_column is None:
            source = "" if self.splits == (NO_SPLIT,) else " (its splits come from its name or from another list)"
            return UserError(
                f"{message}: the list has no column of splits{source}. Add a column 'split' with {', '.join(SHARES)}, "
                "name the column (--column split=COLUMN), or remove the split from the list's name to have it divided"
            )
        if split in SHARES and others:
            other = shlex.quote(others[min(list(SHARES).index(split), len(others) - 1)])
            test = f"to test on it, --split {other} (in Python split={other!r})"
            if len(self.splits) == 1:
                return UserError(f"{message}: {test}; to train on these images, divide them first")
            train = f"to train on it, --set data.splits.{split.lower()}={other} (in a recipe, under data.splits)"
            return UserError(f"{message}. Choose one of them: {train}; {test}")
        if split in SHARES and self.split_column is not None:
            message += f": no row has it in the column '{self.split_column}'. Give it to some images"
        return UserError(message)

    def counts(self) -> dict[str, dict[str, int]]:
        """Count the samples of each class in each split: {split: {class: n}}."""
        sizes = self.table.groupby(["split", "class"]).size()
        return {s: {c: int(sizes.get((s, c), 0)) for c in self.classes} for s in self.splits}

    def with_labels(self, labels: Mapping[str, str | None], classes: Iterable[str] = ()) -> "Manifest":
        """Rename classes, as by `{"pneumonia": "Non-COVID"}`; None leaves a class out.

        Raises UserError if a class is neither a key nor a target nor in `classes`.
        """
        targets = {str(v) for v in labels.values() if v is not None} | set(classes)
        unmapped = sorted(set(self.table["class"]) - set(labels) - targets)
        strange = sorted(set(labels) - set(self.table["class"]))
        if unmapped:
            raise UserError(
                f"{self.where}: no label mapping for {', '.join(repr(c) for c in unmapped)} "
                f"(mapped: {', '.join(map(str, labels)) or 'none'}). Map each to a class, or leave it out: "
                f"--label '{unmapped[0]}=CLASS' or --label '{unmapped[0]}=', in a recipe CLASS or null"
                + (f"; {', '.join(map(repr, strange))} is no class of these data" if strange else "")
            )
        renamed = self.table["class"].map(lambda c: labels.get(c, c))
        notes = list(self.notes)
        if strange:
            notes.append(f"the label mapping names classes that these data lack: {', '.join(strange)}")
        for name, count in self.table["class"][renamed.isna()].value_counts().items():
            notes.append(f"{count} samples labelled '{name}' are left out by the label mapping")
        return self._rebuild(self.table.assign(**{"class": renamed})[renamed.notna()], notes)

    def with_splits(self, *, seed: int = 0) -> "Manifest":
        """Divide the samples into Train, Val and Test (SHARES), stratified by class, with whole groups.

        A group of several classes counts as its most common class. The result depends on the groups' names and the
        seed alone.
        """
        groups = pd.Series(_whole_patients(self.table["group"].tolist(), self.table["patient"].tolist()))
        most_common = self.table["class"].groupby(groups.to_numpy()).agg(lambda names: names.mode().iloc[0])
        sizes = groups.value_counts()
        splits: dict[str, str] = {}
        split_names, borders = list(SHARES), np.cumsum(list(SHARES.values()))[:-1]
        for _, members in most_common.groupby(most_common):
            order = sorted(members.index, key=lambda name: blake2b(f"{seed}/{name}".encode()).digest())
            counts = sizes[order].to_numpy()
            middles = (counts.cumsum() - counts / 2) / counts.sum()
            numbers = np.searchsorted(borders, middles, side="right")
            splits |= {name: split_names[number] for name, number in zip(order, numbers, strict=True)}
        shares = ", ".join(f"{share:.0%} {split}" for split, share in SHARES.items())
        how = "stratified by class" + (", groups together" if len(sizes) < len(self.table) else "")
        note = f"these data have no splits: they are divided by seed {seed} into {shares}, {how}"
        return self._rebuild(self.table.assign(split=groups.map(splits).to_numpy()), [*self.notes, note])

    def select(self, keep: Any) -> "Manifest":
        """Return a manifest of the rows with `keep` (boolean, one for each row)."""
        table = self.table[keep].reset_index(drop=True)
        classes = tuple(sorted(set(table["class"])))
        return replace(self, table=table, classes=classes, notes=list(self.notes))

    def _rebuild(self, table: pd.DataFrame, notes: list[str]) -> "Manifest":
        records: Any = table.to_dict("records")
        manifest = from_records(records, self.root, self.layout, notes, self.file)
        return replace(manifest, skipped=self.skipped, split_column=self.split_column)


def _join_path(start: str, path: str) -> str:
    """Join two relative paths without `..`, unless it follows a folder that may be a link."""
    joined = f"{start}/{path}"
    return Path(joined if "/../" in path.lstrip("./") else os.path.normpath(joined)).as_posix()


def format_similar_classes(names: Mapping[str, int]) -> str:
    """Format similar classes: 'COVID-19' (40 images) and 'covid-19' (3 images)."""
    return " and ".join(f"'{name}' ({count:,} image{'' if count == 1 else 's'})" for name, count in names.items())


def from_records(
    records: Iterable[Mapping[str, Any]],
    root: Path,
    layout: str,
    notes: list[str],
    file: Path | None = None,
    columns: Mapping[str, Sequence[str | None]] = MappingProxyType({}),
) -> Manifest:
    """Build a manifest from a mapping for each sample, of texts and None; a missing key is None. `file`: their list.

    `columns`: further columns, with a value for each record. Raises UserError if there is no sample or a sample_id
    occurs twice.
    """
    unsorted = list(records)
    if not unsorted:
        raise UserError(f"{file or root}: no image found. Check the path and the layout")
    order = sorted(range(len(unsorted)), key=lambda n: [unsorted[n][name] for name in ("split", "class", "sample_id")])
    rows = [unsorted[n] for n in order]
    given: set[str] = set(columns).union(*rows)
    optional = [name for name in OPTIONAL if name in given]
    names = [*COLUMNS, *optional, *sorted(n for n in given - set(COLUMNS) if n.endswith(MASK_SUFFIX))]
    names += sorted(given - set(names))
    values: dict[str, list[Any]] = {
        n: [columns[n][i] for i in order] if n in columns else [r.get(n) for r in rows] for n in names
    }
    patients = values["patient"]
    groups = [g or p or s for g, p, s in zip(values["group"], patients, values["sample_id"], strict=True)]
    values["group"] = _whole_patients(groups, patients)
    if joined := sum(1 for before, after in zip(groups, values["group"], strict=True) if before != after):
        notes = [*notes, f"{joined} samples are of patients with several groups: the groups of a patient count as one"]
    table = pd.DataFrame({n: pd.Series(v, dtype=object) for n, v in values.items()})
    for twice in table["sample_id"][table["sample_id"].duplicated()]:
        raise UserError(f"{file or root}: sample '{twice}' occurs more than once. Remove or rename one")
    return Manifest(table, Path(root), tuple(sorted(set(values["class"]))), layout, notes, file=file)


def _whole_patients(groups: list[str], patients: list[str | None]) -> list[str]:
    """Merge the groups of each patient under their first name, so that no patient is in two splits."""
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
