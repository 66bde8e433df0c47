"""Join the data sets that a run trains on; refuse an image that one trains on and another holds out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trustcxr.console import log, plural
from trustcxr.data import load_dataset, read_manifest
from trustcxr.data.checks.duplicates import find_duplicates
from trustcxr.data.checks.scan import scan
from trustcxr.data.dataset import Dataset, JoinedDataset, hash_training_data
from trustcxr.data.manifest import NO_SPLIT, Manifest
from trustcxr.errors import UserError
from trustcxr.recipes.run_recipe import AddedData, DataRecipe
from trustcxr.runs.test_data import report_skipped

_COMPARED: set[tuple[object, ...]] = set()  # data sets of this process without a shared image, for the runs of a study


def add_data(train: Dataset, recipe: DataRecipe) -> Dataset | JoinedDataset:
    """Return the training images with those of the added data sets; `train` itself if there are none."""
    if not recipe.add:
        return train
    parts = [train]
    for added in recipe.add:
        manifest = read_added(added, train.root)
        if any(manifest.where.samefile(other.where) for other in parts):
            raise UserError(f"data.add: {added.path} is a data set of this training already. Leave it out")
        options: dict[str, Any] = {"labels": added.labels, "resize": recipe.resize, "classes": train.classes}
        part = load_dataset(manifest, added.split, recipe.size, every=True, **options)
        report_skipped(part)
        parts.append(part)
    joined = JoinedDataset(*parts, shares=recipe.shares)
    counts = (f"{len(p):,} of {p.root.name} ({s:.0%})" for p, s in zip(parts, recipe.shares, strict=True))
    joined.notes.append(f"training images, and their share of each class that is drawn: {', '.join(counts)}")
    log(joined.notes[-1])
    return joined


def read_added(added: AddedData, root: Path) -> Manifest:
    """Read the manifest of an added data set; `root`: the folder of the first one."""
    neighbour = root.parent / added.path
    manifest = read_manifest(neighbour if neighbour.exists() else added.path, **added.listing())
    if strange := sorted(set(added.leave_out) - set(manifest.table["sample_id"])):
        raise UserError(f"data.add: {added.path} has no sample {strange[0]}. Correct leave_out")
    return manifest.select(~manifest.table["sample_id"].isin(added.leave_out))


def check_added(joined: Dataset | JoinedDataset, recipe: DataRecipe, *, refit: bool) -> None:
    """Raise UserError if an image of one data set is in the validation or test images of another."""
    if not isinstance(joined, JoinedDataset):
        return
    first = (recipe.splits.train, recipe.splits.val) if refit else (recipe.splits.train,)
    used = (first, *((added.split,) for added in recipe.add))
    content = (*map(hash_training_data, joined.parts), used)
    if content not in _COMPARED:
        check_overlap(joined.parts, used)
        _COMPARED.add(content)


def check_overlap(data: Sequence[Dataset], used: Sequence[Sequence[str]]) -> None:
    """Raise UserError if an image that one data set trains on is in a split of another that it does not train on.

    `used`: for each data set, its split to train on, then those that a refit adds. Thumbnails are compared, as in the
    data check.
    """
    rows = pd.concat([_roles(number, one, used[number]) for number, one in enumerate(data)], ignore_index=True)
    counts = {role: rows[rows[role]].groupby("set").size() for role in ("trains", "held")}
    matters = [
        (rows["set"] == number) & rows[role]
        for number in range(len(data))
        for role, other in (("trains", "held"), ("held", "trains"))
        if (counts[other].index != number).any()
    ]
    rows = rows[np.any(matters, axis=0)].reset_index(drop=True) if matters else rows[:0]
    if rows.empty:
        return
    log(f"comparing {len(rows):,} images of {len(data)} data sets: none may train in one and be held out in another")
    parts = [rows[rows["set"] == number].reset_index(drop=True) for number in range(len(data))]
    scans = [scan(Manifest(part, one.root, one.classes, one.layout)) for one, part in zip(data, parts, strict=True)]
    digests = [digest for part in scans for digest in part.files["pixels"]]
    thumbs, trimmed = (np.concatenate([getattr(part, name)[:] for part in scans]) for name in ("thumbs", "trimmed"))
    pairs = find_duplicates(digests, thumbs, trimmed)[["first", "second"]].to_numpy()
    ends = np.concatenate([pairs, pairs[:, ::-1]])
    first, second = (rows.iloc[column].reset_index(drop=True) for column in ends.T)
    shared = np.flatnonzero((first["set"] != second["set"]) & first["trains"] & second["held"])
    if len(shared):
        one, other = data[first["set"][shared[0]]], data[second["set"][shared[0]]]
        here = shared[(first["set"] == first["set"][shared[0]]).to_numpy()[shared]]
        names, twins = first.loc[here, "sample_id"].unique(), second.loc[here, "sample_id"]
        raise UserError(
            f"{one.where}: holds {plural(len(names), 'image')} to train on that {other.where} validates or tests on, "
            f"such as {names[0]} (there {twins.iloc[0]}). Add leave_out: [{', '.join(names)}]"
        )


def _roles(number: int, data: Dataset, used: Sequence[str]) -> pd.DataFrame:
    """Return the rows of all splits, with columns set, trains and held."""
    split = data.all_splits["split"]
    held_out = ~split.isin([used[0], NO_SPLIT])
    return data.all_splits.assign(set=number, trains=split.isin(used), held=held_out)
