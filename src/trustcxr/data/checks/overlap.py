"""Refuse data sets that train together if an image of one is held out in another."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from trustcxr.console import log, plural
from trustcxr.data.checks.duplicates import find_duplicates
from trustcxr.data.checks.scan import scan
from trustcxr.data.manifest import NO_SPLIT, Manifest
from trustcxr.errors import UserError

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset


def check_overlap(data: Sequence["Dataset"], used: Sequence[Sequence[str]]) -> None:
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
    scans = [scan(_manifest(one, rows[rows["set"] == number])) for number, one in enumerate(data)]
    digests = [digest for part in scans for digest in part.files["pixels"]]
    thumbs, trimmed = (np.concatenate([getattr(part, name) for part in scans]) for name in ("thumbs", "trimmed"))
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


def _roles(number: int, data: "Dataset", used: Sequence[str]) -> pd.DataFrame:
    """Return the rows of all splits, with columns set, trains and held."""
    split = data.all_splits["split"]
    held_out = ~split.isin([used[0], NO_SPLIT])
    return data.all_splits.assign(set=number, trains=split.isin(used), held=held_out)


def _manifest(data: "Dataset", rows: pd.DataFrame) -> Manifest:
    return Manifest(rows.reset_index(drop=True), data.root, data.classes, data.layout)
