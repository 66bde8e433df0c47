"""Models with one sigmoid a finding: what is known of each image, and each finding as a decision that can be attacked.

A finding is there where its probability reaches its operating point. To an attack that is a network of two classes,
absent and present, whose margin is how far the finding's logit is above the threshold: so every attack turns the
decision in both directions, and there is no second implementation of any.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from trustcxr.audit.formats import OutputSpec
from trustcxr.audit.formats.wrapper import as_states
from trustcxr.errors import UserError, unknown
from trustcxr.evaluation.operating_points import CHOSEN, GIVEN, Threshold, chosen, cut
from trustcxr.registry import VIEWS, WORST_CASE, is_linf
from trustcxr.statistics import Floats

if TYPE_CHECKING:
    import pandas as pd

    from trustcxr.data.dataset import Dataset

STATES = ("absent", "present")
NOTHING = ("normal", "no finding", "none")  # labels of images that have none of the findings
_SAID = {"1": 1.0, "1.0": 1.0, "true": 1.0, "yes": 1.0, "present": 1.0}
_SAID |= {"0": 0.0, "0.0": 0.0, "false": 0.0, "no": 0.0, "absent": 0.0}


def labelled_findings(table: "pd.DataFrame", findings: Sequence[str]) -> Floats:
    """What is known of each image, (N, F): 1 present, 0 absent, NaN not known.

    A column of the data by a finding's name says it, as in CheXpert: 1, 0, and all else (-1, blank) is not known.
    Otherwise the images' class does: the findings of an image, `|` between them as in NIH, or `Normal` or `No Finding`
    for none of them; of findings that no image has nothing is known. Raises UserError for a class that is neither.
    """
    found = np.full((len(table), len(findings)), np.nan)
    columns = {str(name).lower(): name for name in table.columns}
    own = [columns.get(name.lower()) if name.lower() not in ("path", "class") else None for name in findings]
    for k, column in enumerate(own):
        if column is not None:
            found[:, k] = [_SAID.get(str(value).strip().lower(), math.nan) for value in table[column]]
    if all(column is not None for column in own):
        return found
    places = {name.lower(): k for k, name in enumerate(findings)}
    parts = [[part.strip().lower() for part in str(name).split("|")] for name in table["class"]]
    for part in sorted({part for names in parts for part in names}):
        if part not in places and part not in NOTHING and not any(own):
            raise UserError(
                f"{unknown('finding', part, findings)}; say which of the model's findings the images of a class have "
                f"(--label '{part}={findings[0]}'), or that they have none (--label '{part}=Normal')"
            )
    for k, name in enumerate(findings):
        if own[k] is None:
            there = np.array([name.lower() in names for names in parts])
            found[:, k] = there if there.any() else np.nan
    return found


class Decision(nn.Module):
    """Whether a finding is there, as a network of two classes: logits 0 and how far it is above its `cut`."""

    def __init__(self, model: nn.Module, place: int, threshold: float) -> None:
        super().__init__()
        self.model, self.place = model, place
        self.offset = cut(threshold)
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W) in [0, 1] -> logits (B, 2)."""
        return as_states(self.model(images), self.place, self.offset)


class OneFinding:
    """The images of which a finding is known, as a data set of two classes.

    explained: bool (N,), the images that have it, of which maps are made. healthy: bool (N,), those that have nothing.
    """

    def __init__(self, dataset: "Dataset", rows: np.ndarray, labels: np.ndarray) -> None:
        self.whole, self.rows, self.labels = dataset, rows, labels.astype(np.int64)
        self.table = dataset.table.iloc[rows].reset_index(drop=True)
        self.classes, self.size, self.root = STATES, dataset.size, dataset.root
        self.sample_ids, self.groups, self.splits = (
            getattr(dataset, name)[rows] for name in ("sample_ids", "groups", "splits")
        )
        self.explained, self.mask_kinds = self.labels == 1, dataset.mask_kinds
        self.healthy = ~self.explained & self.table["class"].str.strip().str.lower().isin(NOTHING).to_numpy()

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The images at `indices`: uint8 (B, 1, size, size)."""
        return self.whole.batch(self.rows[np.asarray(indices)])

    @property
    def image_sums(self) -> np.ndarray:
        """(N,) array of str: a checksum of each image's pixels."""
        return np.asarray(self.whole.image_sums[self.rows])

    def masks(self, kind: str) -> "_Rows":
        """Masks of a kind, as of the whole data set, of these images:

        (N, size, size), read where they are asked for.
        """
        return _Rows(self.whole.masks(kind), self.rows)

    def has_mask(self, kind: str) -> np.ndarray:
        """bool (N,): whether an image has a readable mask of that kind (which may be empty)."""
        return np.asarray(self.whole.has_mask(kind)[self.rows])


class _Rows:
    """Some rows of an array that is too large to copy."""

    def __init__(self, values: np.ndarray, rows: np.ndarray) -> None:
        self.values, self.rows = values, rows

    def __getitem__(self, places: Any) -> Any:
        return self.values[self.rows[places]]

    def __len__(self) -> int:
        return len(self.rows)


def as_decisions(table: "pd.DataFrame", name: str, place: int, threshold: float, labels: Mapping[str, float]) -> Any:
    """A finding's rows of predictions of all findings: `labels` by sample id, those not known left out.

    Logits become 0 and the margin; sample ids get the finding behind them, since an image has a row for each.
    """
    truth = table["sample_id"].map(labels)
    rows, answers = table[truth.notna()].copy(), truth[truth.notna()].to_numpy().astype(int)
    margins = [float(logits[place]) - cut(threshold) for logits in rows["logits"]]
    pairs: Any = [np.array([0.0, margin], dtype=np.float32) for margin in margins]
    return marked(rows.assign(logits=pairs, label=answers), name, threshold)


def marked(table: "pd.DataFrame", name: str, threshold: float) -> "pd.DataFrame":
    """Rows of one finding: with its name and threshold, what the image has of it, and sample ids of their own."""
    states = [STATES[k] for k in table["label"]]
    images = table["sample_id"].astype(str)
    about = {
        "finding": name,
        "threshold": threshold,
        "image": images,
        "class": states,
        "sample_id": images + "#" + name,
    }
    return table.assign(**about)  # type: ignore[arg-type]


def worst_scores(attacked: "pd.DataFrame") -> "pd.DataFrame":
    """Predictions of one finding whose worst-case rows have the worst margin that any attack within epsilon found.

    An attack that stops once the decision has turned leaves a score just beyond the threshold; what the others drove
    further says how images rank under the worst of them.
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
        least = toward.loc[within.index].groupby(within["sample_id"]).idxmin()
        here = rows[rows["epsilon"] == epsilon]
        for index, sample in zip(here.index, here["sample_id"], strict=True):
            changed.at[index] = attacked["logits"].loc[least[sample]]
    return attacked.assign(logits=changed)


def threshold_of(
    output: OutputSpec,
    place: int,
    validation: tuple[Floats, Floats] | None,
    unchosen: str = "no validation image has an answer",
) -> Threshold:
    """Return a finding's operating point: the model file's, else chosen on validation images, else 0.5.

    `validation`: logits, and what is known of each finding, both (N, F). `unchosen`: why there are none, in words.
    """
    points = output.operating_points
    assert points is not None  # of kind sigmoid
    if output.thresholds:
        return Threshold(points[place], GIVEN)
    if validation is not None:
        logits, truth = (each[np.isfinite(validation[1][:, place]), place] for each in validation)
        value = chosen(1 / (1 + np.exp(-logits)), truth == 1)
        if value is not None and 0 < value < 1:
            return Threshold(value, CHOSEN)
    why = unchosen if validation is None else "validation images do not settle one"
    return Threshold(points[place], f"taken for want of another: the model file has none, and {why}")
