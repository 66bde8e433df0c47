"""What a model is worth at the point where it is used: a threshold, the errors of both kinds, and the curves around it.

Of each class against the rest, or of each finding: sensitivity, specificity and likelihood ratios at a threshold that
is given or was chosen on validation images, ROC and precision-recall, on images as they are and under attack.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from trustcxr import statistics
from trustcxr.evaluation import roc
from trustcxr.registry import ONE_STEP, VIEWS, WORST_CASE, is_linf
from trustcxr.statistics import Bootstrap, Floats, area_interval, interval, is_rare, ratio_interval, share_interval
from trustcxr.storage.prediction_table import CLEAN, logits_of, severities
from trustcxr.storage.schemas import OperatingPoint

if TYPE_CHECKING:
    import pandas as pd

SPECIFICITY = 0.9  # at which sensitivity is read off the ROC curve
CHOSEN = "chosen on validation images (Youden 1950)"
GIVEN = "of the model file"
HIGHEST = "the highest class is the answer"
_ROUNDING = 2.0**-22  # of a probability or logit, as a share
ANSWER, THRESHOLD = "answer", "threshold"  # what an attack was made against


@dataclass(frozen=True)
class Threshold:
    """From which probability on a class or finding is said to be there, and who says so.

    None: where the highest class is the answer.
    """

    value: float | None
    origin: str = HIGHEST

    @property
    def least(self) -> float | None:
        """The least probability that reaches it: of one that was given, less what float32 rounds a probability by."""
        return float(special.expit(cut(self.value))) if self.value and self.origin == GIVEN else self.value


def cut(threshold: float) -> float:
    """The logit from which on a score is above a threshold: below that by what float32 rounds a probability by.

    So a score that is the threshold counts as above it, whichever way both were rounded.
    """
    lower = threshold * (1 - _ROUNDING)
    below = math.log(lower) - math.log1p(-lower)
    return below - _ROUNDING * max(1.0, abs(below))


def chosen(scores: Floats, positive: NDArray[np.bool_]) -> float | None:
    """The threshold of highest sensitivity plus specificity (Youden 1950): halfway to the next lower score.

    Of several as good the middle one. None where only one kind of row is there.
    """
    if positive.all() or not positive.any():
        return None
    values = np.unique(scores)
    above = np.searchsorted(np.sort(scores[positive]), values, "left")
    false = np.searchsorted(np.sort(scores[~positive]), values, "left")
    index = (1 - above / positive.sum()) + false / (~positive).sum()
    best = np.flatnonzero(index >= index.max() - 1e-12)
    place = best[len(best) // 2]
    below = values[place - 1] if place else values[place]
    return float((values[place] + below) / 2)


def probabilities(rows: "pd.DataFrame") -> Floats:
    """The probability of each class in a table of predictions, (N, C)."""
    return statistics.softmax(logits_of(rows))


def choose(
    validation: "pd.DataFrame | None", classes: Sequence[str], given: Sequence[float] | None = None
) -> dict[str, Threshold]:
    """A threshold for each class: as `given` (one for all, or one each), else from predictions on validation images.

    The highest class where there are none of either.
    """
    if given is not None:
        values = given if len(given) > 1 else [*given] * len(classes)
        return {name: Threshold(value, GIVEN) for name, value in zip(classes, values, strict=True)}
    if validation is None or not len(validation):
        return {name: Threshold(None) for name in classes}
    scores, labels = probabilities(validation), validation["label"].to_numpy()
    found = {name: chosen(scores[:, k], labels == k) for k, name in enumerate(classes)}
    return {name: Threshold(None) if value is None else Threshold(value, CHOSEN) for name, value in found.items()}


def of_classes(
    predictions: "pd.DataFrame",
    classes: Sequence[str],
    thresholds: Mapping[str, Threshold],
    *,
    aimed: "pd.DataFrame | None" = None,
    resamples: int = 2000,
) -> list[OperatingPoint]:
    """Each class against the rest, on images as they are and under every attack: rows of `operating_points`.

    Attacks are made against the answer. Under worst-case an image counts with its worst score for the class under any
    attack within the radius, `aimed` among them: predictions under attacks that were made against the thresholds.
    """
    import pandas as pd

    known = predictions if aimed is None else pd.concat([predictions, aimed], ignore_index=True)
    found = []
    for k, name in enumerate(classes):
        judge, threshold = _Judge(name, thresholds[name], resamples), thresholds[name].least
        for condition, rows in conditions(predictions):
            positive = rows["label"].to_numpy() == k
            if condition["attack"] == WORST_CASE:
                scores, said = _worst(_within(known, condition["epsilon"]), rows, k, threshold)
            else:
                scores, said = _said(rows, k, threshold)
            if condition["attack"] != CLEAN:
                whole = condition["attack"] == WORST_CASE and aimed is not None
                condition["target_class"] = THRESHOLD if whole else ANSWER
            found.append(judge.of(condition, rows, scores, said, positive))
    return found


def _said(rows: "pd.DataFrame", k: int, threshold: float | None) -> tuple[Floats, NDArray[np.bool_]]:
    """The probability of class `k` (N,), and whether that class is said to be there (N,)."""
    scores = probabilities(rows)
    return scores[:, k], scores.argmax(1) == k if threshold is None else scores[:, k] >= threshold


def _within(predictions: "pd.DataFrame", epsilon: float) -> "pd.DataFrame":
    """The rows of images as they are and under every attack within an L-infinity radius."""
    rows = predictions[(severities(predictions) == 0) & ~predictions["attack"].isin(VIEWS)]
    return rows[rows["attack"].map(is_linf) & (rows["epsilon"] <= epsilon + 1e-9)]


def _worst(
    within: "pd.DataFrame", rows: "pd.DataFrame", k: int, threshold: float | None
) -> tuple[Floats, NDArray[np.bool_]]:
    """For the images of `rows` what `_said` gives at worst `within` the radius:

    Too low for class `k`, else too high.
    """
    scores, said = _said(within, k, threshold)
    images = within.assign(score=scores, said=said).groupby("sample_id")[["score", "said"]]
    low, high = (ends.loc[rows["sample_id"]] for ends in (images.min(), images.max()))
    positive = rows["label"].to_numpy() == k
    return tuple(np.where(positive, low[name], high[name]) for name in ("score", "said"))  # type: ignore[return-value]


def of_finding(
    predictions: "pd.DataFrame", name: str, threshold: Threshold, *, resamples: int = 2000
) -> list[OperatingPoint]:
    """One finding, from a table whose logits are 0 and how far the finding's own is above its threshold."""
    judge = _Judge(name, threshold, resamples)
    found = []
    for condition, rows in conditions(predictions):
        margins = logits_of(rows)
        scores = margins[:, 1] - margins[:, 0]
        condition |= {} if condition["attack"] == CLEAN else {"target_class": THRESHOLD}
        found.append(judge.of(condition, rows, scores, scores > 0, rows["label"].to_numpy() == 1))
    return found


def conditions(predictions: "pd.DataFrame") -> list[tuple[dict[str, Any], "pd.DataFrame"]]:
    """The images as they are, then under every attack, by sample: what each condition is, and its rows."""
    plain = predictions[(severities(predictions) == 0) & ~predictions["attack"].isin(VIEWS)]
    found = []
    for (attack, epsilon, steps), rows in plain.groupby(["attack", "epsilon", "steps"], sort=True):
        condition = {"attack": str(attack), "epsilon": float(epsilon)}
        condition |= {} if attack in (CLEAN, *ONE_STEP) else {"steps": int(steps)}
        found.append((condition, rows.sort_values("sample_id")))
    return sorted(found, key=lambda pair: pair[0]["attack"] != CLEAN)


class _Judge:
    """One class or finding under several conditions of the same images, whose resamples are made once."""

    def __init__(self, name: str, threshold: Threshold, resamples: int) -> None:
        self.name, self.threshold, self.resamples = name, threshold, resamples
        self._made: dict[tuple[str, int], Bootstrap] = {}

    def of(
        self,
        condition: dict[str, Any],
        rows: "pd.DataFrame",
        scores: Floats,
        said: NDArray[np.bool_],
        positive: NDArray[np.bool_],
    ) -> OperatingPoint:
        """Scores (N,), which of them are called positive (N,), which are (N,): all figures with intervals."""
        groups = rows["group"].to_numpy()
        found: dict[str, Any] = condition | {
            "finding": self.name,
            "threshold": self.threshold.value,
            "origin": self.threshold.origin,
            "n": len(rows),
            "positives": int(positive.sum()),
        }
        rates, rare = {}, False
        for name, kept, right in (("sensitivity", positive, said), ("specificity", ~positive, ~said)):
            bootstrap = self._over(name, groups[kept])
            means = bootstrap.means(right[kept]) if kept.any() else np.full(2, np.nan)
            found[name] = {"value": float(means[0]), "ci": share_interval(bootstrap, means)}
            rates[name] = self._rate("all", groups, kept, right)
            rare = rare or is_rare(float(means[0]), bootstrap.groups_of())
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = {
                "likelihood_positive": rates["sensitivity"] / (1 - rates["specificity"]),
                "likelihood_negative": (1 - rates["sensitivity"]) / rates["specificity"],
            }
        near = _ratio_ends(found) if rare else {}
        for name, values in ratios.items():
            known = _finite(values[0]) is not None
            found[name] = {"value": _finite(values[0]), "ci": near[name] if rare and known else _ends(values)}
        return OperatingPoint.model_validate(found | self._curves(groups, scores, positive))

    def _curves(self, groups: Any, scores: Floats, positive: NDArray[np.bool_]) -> dict[str, Any]:
        bootstrap = self._over("all", groups)
        weights = bootstrap.row_weights()
        made = roc.curves(scores, positive, weights)
        area = statistics.auroc(scores, positive, weights)
        found_there = made.sensitivity[:, roc.FALSE_POSITIVES.index(round(1 - SPECIFICITY, 9))]
        return {
            "at_specificity": SPECIFICITY,
            "auroc": {"value": float(area[0]), "ci": area_interval(bootstrap, area, positive)},
            "average_precision": {"value": float(made.average_precision[0]), "ci": interval(made.average_precision)},
            "sensitivity_at_specificity": {
                "value": float(found_there[0]),
                "ci": share_interval(bootstrap, found_there, of=positive),
            },
            "roc": _curve(roc.FALSE_POSITIVES, made.sensitivity),
            "precision_recall": _curve(roc.RECALLS, made.precision),
        }

    def _rate(self, name: str, groups: Any, kept: NDArray[np.bool_], right: NDArray[np.bool_]) -> Floats:
        totals = self._over(name, groups).totals(np.stack([kept & right, kept], axis=1))
        with np.errstate(invalid="ignore", divide="ignore"):
            return totals[:, 0] / totals[:, 1]

    def _over(self, name: str, groups: Any) -> Bootstrap:
        key = (name, len(groups))  # conditions are of the same images in the same order
        if key not in self._made:
            self._made[key] = Bootstrap.over(groups, resamples=self.resamples)
        return self._made[key]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _ratio_ends(found: dict[str, Any]) -> dict[str, list[float | None]]:
    """Intervals of both likelihood ratios from those of sensitivity and specificity, of which one is near 0 or 1."""
    sensitivity, specificity = (found[name].values() for name in ("sensitivity", "specificity"))
    missed, alarmed = ((1 - share, [1 - high, 1 - low]) for share, (low, high) in (sensitivity, specificity))
    pairs = {"likelihood_positive": (sensitivity, alarmed), "likelihood_negative": (missed, specificity)}
    return {name: [_finite(end) for end in ratio_interval(*one, *other)] for name, (one, other) in pairs.items()}


def _ends(values: Floats) -> list[float | None]:
    """Interval of a ratio, whose upper end may be infinite: None there."""
    rest = np.sort(values[1:][~np.isnan(values[1:])])
    if not len(rest):
        return [None, None]
    tail = (1 - statistics.LEVEL) / 2
    places = int(np.floor(tail * (len(rest) - 1))), int(np.ceil((1 - tail) * (len(rest) - 1)))
    return [_finite(rest[place]) for place in places]


def _curve(along: Sequence[float], values: Floats) -> dict[str, list[float]]:
    ends = [interval(values[:, k]) for k in range(len(along))]
    return {
        "x": list(along),
        "y": [float(v) for v in values[0]],
        "low": [low for low, _ in ends],
        "high": [high for _, high in ends],
    }
