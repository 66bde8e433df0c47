"""Handle models with one sigmoid a finding: labels, and each finding as a decision to attack.

A finding is present if its probability reaches its operating point. Attacks see a network of two classes, absent and
present, with the logit above the threshold as margin. So every attack works on findings in both directions.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from trustcxr.audit.formats import OutputSpec
from trustcxr.audit.formats.wrapper import as_states
from trustcxr.errors import UserError, unknown
from trustcxr.evaluation.operating_points import CHOSEN, GIVEN, Threshold, chosen, cut
from trustcxr.registry import VIEWS, WORST_CASE, is_linf
from trustcxr.statistics import Floats

STATES = ("absent", "present")
NOTHING = ("normal", "no finding", "none")  # labels of images that have none of the findings
_NO_FINDINGS = ("path", "class")  # columns of every list
_STATES = {"1": 1.0, "1.0": 1.0, "true": 1.0, "yes": 1.0, "present": 1.0}
_STATES |= {"0": 0.0, "0.0": 0.0, "false": 0.0, "no": 0.0, "absent": 0.0}


def labelled_findings(table: pd.DataFrame, findings: Sequence[str]) -> Floats:
    """Return the labels of each image, (N, F): 1 present, 0 absent, NaN unknown.

    They come from a column with the finding's name, as in CheXpert: 1, 0, and anything else (-1, blank) is unknown.
    Without one they come from the class: findings separated by `|` as in NIH, or `Normal` or `No Finding`. A finding
    that no image has is unknown. Raises UserError for a class that is no finding.
    """
    labels = np.full((len(table), len(findings)), np.nan)
    columns = {str(name).lower(): name for name in table.columns if str(name).lower() not in _NO_FINDINGS}
    named = [columns.get(name.lower()) for name in findings]
    classes = table["class"] if None in named else ()
    parts = [[part.strip().lower() for part in str(name).split("|")] for name in classes]
    strange = sorted({part for names in parts for part in names} - {name.lower() for name in findings} - {*NOTHING})
    if strange and not any(named):
        raise UserError(
            f"{unknown('finding', strange[0], findings)}; say which of the model's findings the images of a class have "
            f"(--label '{strange[0]}={findings[0]}'), or that they have none (--label '{strange[0]}=Normal')"
        )
    for k, (name, column) in enumerate(zip(findings, named, strict=True)):
        if column is not None:
            labels[:, k] = [_STATES.get(str(value).strip().lower(), math.nan) for value in table[column]]
        elif any(present := [name.lower() in names for names in parts]):
            labels[:, k] = present
    return labels


class Decision(nn.Module):
    """A finding as a network of two classes: logits 0 and the finding's margin above its threshold."""

    def __init__(self, model: nn.Module, index: int, threshold: float) -> None:
        super().__init__()
        self.model, self.index = model, index
        self.offset = cut(threshold)
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 2) of images (B, 1, H, W) in [0, 1]."""
        return as_states(self.model(images), self.index, self.offset)


def as_decisions(table: pd.DataFrame, name: str, index: int, threshold: float, labels: Mapping[str, float]) -> Any:
    """Return one finding's rows of predictions, logits 0 and its margin, with `labels` by sample id, without NaN."""
    rows = table.assign(label=table["sample_id"].map(labels)).dropna(subset="label")
    pairs: Any = [np.array([0.0, float(row[index]) - cut(threshold)], dtype=np.float32) for row in rows["logits"]]
    return add_finding(rows.assign(logits=pairs, label=rows["label"].astype(int)), name, threshold)


def add_finding(table: pd.DataFrame, name: str, threshold: float) -> pd.DataFrame:
    """Add the columns of one finding: name, threshold, image, state, and sample ids that include the finding."""
    states, images = [STATES[k] for k in table["label"]], table["sample_id"].astype(str)
    table = table.assign(finding=name, threshold=threshold, image=images)
    return table.assign(**{"class": states, "sample_id": images + "#" + name})  # type: ignore[arg-type]


def worst_scores(attacked: pd.DataFrame) -> pd.DataFrame:
    """Give the worst-case rows of one finding the worst margin under any attack within epsilon.

    An attack that stops once the decision has changed leaves a score just beyond the threshold, which would flatter the
    ranking of images.
    """
    rows = attacked[(attacked["attack"] == WORST_CASE).to_numpy()]
    if not len(rows):
        return attacked
    margin = attacked["logits"].map(lambda pair: float(pair[1]) - float(pair[0]))
    toward = margin.where(attacked["label"] == 1, -margin)
    linf = attacked["attack"].map(is_linf) & ~attacked["attack"].isin(VIEWS) & (attacked.get("severity", 0) == 0)
    changed = attacked["logits"].copy()
    for epsilon in rows["epsilon"].unique():
        within = attacked[linf & (attacked["epsilon"] <= epsilon + 1e-9)]
        worst = toward.loc[within.index].groupby(within["sample_id"]).idxmin()
        targets = rows[rows["epsilon"] == epsilon]
        for index, sample in zip(targets.index, targets["sample_id"], strict=True):
            changed.at[index] = attacked["logits"].loc[worst[sample]]
    return attacked.assign(logits=changed)


def threshold_of(
    output: OutputSpec, index: int, validation: tuple[Floats, Floats] | None, unchosen: str = ""
) -> Threshold:
    """Return a finding's operating point: the model file's, else chosen on validation images, else 0.5.

    `validation`: logits and labels of the findings, both (N, F). `unchosen`: why there are none.
    """
    points = output.operating_points
    assert points is not None  # of kind sigmoid
    if output.thresholds:
        return Threshold(points[index], GIVEN)
    if validation is not None:
        logits, truth = (each[np.isfinite(validation[1][:, index]), index] for each in validation)
        value = chosen(1 / (1 + np.exp(-logits)), truth == 1)
        if value is not None and 0 < value < 1:
            return Threshold(value, CHOSEN)
    why = unchosen if validation is None else "validation images do not settle one"
    return Threshold(points[index], f"taken for want of another: the model file has none, and {why}")
