"""A table of scores in a model's place: for a system that nobody may touch."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trustcxr.errors import UserError
from trustcxr.models.adapters.adapted import TINY
from trustcxr.models.adapters.declaration import OutputSpec
from trustcxr.results.files import read_table

if TYPE_CHECKING:
    import pandas as pd

_KEYS = ("sample_id", "id", "image", "path", "file", "filename")


def read_scores(path: Path, given: OutputSpec) -> "pd.DataFrame":
    """The logits of each image of a table, by `sample_id`: columns sample_id and logits, (C,) float32 a row.

    The table has a column of the images' ids (sample_id, id, image, path or file) and one for each class, of the
    declared kind. Raises UserError for a column that is missing, an id that is there twice, or a score that is none.
    """
    import pandas as pd

    table = read_table(path)
    lowered = {str(c).lower(): c for c in table.columns}
    key = next((lowered[k] for k in _KEYS if k in lowered), None)
    if key is None:
        raise UserError(f"{path}: no column of the images' ids; name it sample_id (there is {_listed(table)})")
    if missing := [name for name in given.classes if name not in table.columns]:
        raise UserError(f"{path}: no column '{missing[0]}' for that class; there is {_listed(table)}")
    if not len(table):
        raise UserError(f"{path}: no row, so no image has a score")
    ids = table[key].astype(str)
    if ids.duplicated().any():
        raise UserError(f"{path}: {ids[ids.duplicated()].iloc[0]} is there twice in column {key}")
    try:
        scores = table[list(given.classes)].to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{path}: a score in {', '.join(given.classes)} is not a number") from None
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores).all(1))[0])
        raise UserError(f"{path}: the score of {ids.iloc[row]} is missing; leave the row out")
    return pd.DataFrame({"sample_id": ids, "logits": list(_logits(scores, given, path).astype(np.float32))})


def _logits(scores: np.ndarray, given: OutputSpec, path: Path) -> np.ndarray:
    if given.kind == "logits":
        return scores
    if scores.min() < 0 or scores.max() > 1:
        ends = f"{scores.min():g} to {scores.max():g}"
        raise UserError(f"{path}: scores from {ends} are no {given.kind}: declare output.kind: logits")
    if given.kind == "sigmoid":
        inside = scores.clip(1e-12, 1 - 1e-12)
        return np.log(inside) - np.log1p(-inside)
    sums = scores.sum(1)
    if np.abs(sums - 1).max() > 0.02:
        raise UserError(f"{path}: probabilities of an image sum to {sums[np.abs(sums - 1).argmax()]:.3g}, not to 1")
    return np.log(scores.clip(TINY))


def _listed(table: "pd.DataFrame") -> str:
    return ", ".join(str(c) for c in table.columns[:12]) + (", ..." if len(table.columns) > 12 else "")
