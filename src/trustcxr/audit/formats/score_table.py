"""Read a table of scores, for a model that is not available itself."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trustcxr.audit.formats.model_file import OutputSpec
from trustcxr.audit.formats.wrapper import TINY
from trustcxr.errors import UserError
from trustcxr.storage.atomic import read_table

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("sample_id", "id", "image", "path", "file", "filename")
_ROUNDED = 0.02  # tolerance of the sum of an image's probabilities


def read_scores(path: Path, output: OutputSpec) -> "tuple[pd.DataFrame, tuple[str, ...]]":
    """Read a table of columns sample_id and logits, (C,) float32 a row, and notes on scores that contradict `output`.

    The file has a column of image ids (one of KEYS) and one for each class, `X` or, as `trustcxr predict` writes it,
    `probability X`. Scores declared as logits that look like probabilities are converted. Raises UserError for a
    missing column, a repeated id, or a score that is no number.
    """
    import pandas as pd

    table = read_table(path, text=KEYS).rename(columns=lambda name: str(name).removeprefix("probability "))
    lowered = {str(c).lower(): c for c in table.columns}
    key = next((lowered[k] for k in KEYS if k in lowered), None)
    listed = ", ".join(str(c) for c in table.columns[:12]) + (", ..." if len(table.columns) > 12 else "")
    if key is None:
        raise UserError(f"{path}: no column of the images' ids; name it sample_id (there is {listed})")
    if missing := [name for name in output.classes if name not in table.columns]:
        raise UserError(f"{path}: no column '{missing[0]}' for that class; there is {listed}")
    if twice := [name for name in output.classes if list(table.columns).count(name) > 1]:
        raise UserError(f"{path}: two columns of the class '{twice[0]}', one with 'probability' before it; remove one")
    if not len(table):
        raise UserError(f"{path}: no row, so no image has a score")
    ids = table[key].astype(str)
    if ids.duplicated().any():
        raise UserError(f"{path}: {ids[ids.duplicated()].iloc[0]} is there twice in column {key}")
    try:
        scores = table[list(output.classes)].to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{path}: a score in {', '.join(output.classes)} is not a number") from None
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores).all(1))[0])
        raise UserError(f"{path}: the score of {ids.iloc[row]} is missing. Give one, or leave the row out")
    logits = _logits(scores, output, path).astype(np.float32)
    return pd.DataFrame({"sample_id": ids, "logits": list(logits)}), _contradictions(scores, output)


def _contradictions(scores: np.ndarray, output: OutputSpec) -> tuple[str, ...]:
    """Return a note if the scores look like another kind than declared."""
    if output.kind == "logits" and _are_probabilities(scores):
        text = "its scores sum to 1 for each image, so they were taken as probabilities and not as logits"
        return (f"{text}: write output.kind: probabilities",)
    if output.kind == "logits" and scores.min() >= 0 and scores.max() <= 1:
        return ("its scores all lie in [0, 1], which logits seldom do, and were taken as logits: see output.kind",)
    if output.kind == "sigmoid" and _are_probabilities(scores):
        text = "its scores sum to 1 for each image, as those of classes do, and were taken as one sigmoid a finding"
        return (f"{text}: see output.kind",)
    return ()


def _are_probabilities(scores: np.ndarray) -> bool:
    """Return whether the scores (N, C) of every image lie in [0, 1] and sum to 1."""
    inside = scores.shape[1] > 1 and scores.min() >= 0 and scores.max() <= 1
    return bool(inside and np.abs(scores.sum(1) - 1).max() <= _ROUNDED)


def _logits(scores: np.ndarray, output: OutputSpec, path: Path) -> np.ndarray:
    if output.kind == "logits":
        return np.log(scores.clip(TINY)) if _are_probabilities(scores) else scores
    if scores.min() < 0 or scores.max() > 1:
        ends = f"{scores.min():g} to {scores.max():g}"
        raise UserError(f"{path}: scores from {ends} are no {output.kind}: declare output.kind: logits")
    if output.kind == "sigmoid":
        inside = scores.clip(1e-12, 1 - 1e-12)
        return np.log(inside) - np.log1p(-inside)
    sums = scores.sum(1)
    if np.abs(sums - 1).max() > _ROUNDED:
        raise UserError(f"{path}: probabilities of an image sum to {sums[np.abs(sums - 1).argmax()]:.3g}, not to 1")
    return np.log(scores.clip(TINY))
