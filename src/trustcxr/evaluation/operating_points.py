"""Measure each class or finding at its threshold: both kinds of errors, likelihood ratios, ROC and PR curves.

Thresholds come from the model file or from validation images. All figures are of clean images and under attack.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from trustcxr import statistics
from trustcxr.registry import VIEWS, WORST_CASE, is_linf
from trustcxr.statistics import Bootstrap, Floats, area_interval, interval, is_rare, ratio_interval, share_interval
from trustcxr.storage.prediction_table import CLEAN, efforts_of, logits_of
from trustcxr.storage.schemas import OperatingPoint, Share

if TYPE_CHECKING:
    import pandas as pd

SPECIFICITY = 0.9  # at which sensitivity is read off the ROC curve
CHOSEN = "chosen on validation images (Youden 1950)"
GIVEN = "of the model file"
HIGHEST = "the highest class is the answer"
FALSE_POSITIVES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the ROC curve
RECALLS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)  # of the precision-recall curve
_CHUNK = 64  # resamples at a time
_ROUNDING = 2.0**-22  # relative, of a probability or logit
ANSWER, THRESHOLD = "answer", "threshold"  # targets of an attack


@dataclass(frozen=True)
class Threshold:
    """Least probability at which a class or finding counts as present, and its origin; None: the highest class."""

    value: float | None
    origin: str = HIGHEST

    @property
    def least(self) -> float | None:
        """Least probability that reaches it; a threshold of the model file allows for rounding in float32."""
        return float(special.expit(cut(self.value))) if self.value and self.origin == GIVEN else self.value


def cut(threshold: float) -> float:
    """Return the logit of a threshold, lowered by what float32 rounds, so that a score equal to it counts as above.

    A threshold of 0, which saturated probabilities give, has the logit of the smallest float.
    """
    lower = max(threshold * (1 - _ROUNDING), sys.float_info.min)
    below = math.log(lower) - math.log1p(-lower)
    return below - _ROUNDING * max(1.0, abs(below))


def chosen(scores: Floats, positive: NDArray[np.bool_]) -> float | None:
    """Return the threshold of highest sensitivity plus specificity (Youden 1950), halfway to the next lower score.

    Ties give the middle one; None if all rows are positive, or none.
    """
    if positive.all() or not positive.any():
        return None
    values = np.unique(scores)
    above = np.searchsorted(np.sort(scores[positive]), values, "left")
    false = np.searchsorted(np.sort(scores[~positive]), values, "left")
    index = (1 - above / positive.sum()) + false / (~positive).sum()
    best = np.flatnonzero(index >= index.max() - 1e-12)
    row = best[len(best) // 2]
    below = values[row - 1] if row else values[row]
    return float((values[row] + below) / 2)


def probabilities(rows: "pd.DataFrame") -> Floats:
    """Return the probability of each class in a table of predictions, (N, C)."""
    return statistics.softmax(logits_of(rows))


def choose(
    validation: "pd.DataFrame | None", classes: Sequence[str], stated: Sequence[float] | None = None
) -> dict[str, Threshold]:
    """Return a threshold for each class: `stated` (one for all, or one each), else chosen on validation predictions."""
    if stated is not None:
        values = stated if len(stated) > 1 else [*stated] * len(classes)
        return {name: Threshold(value, GIVEN) for name, value in zip(classes, values, strict=True)}
    best: dict[str, float | None] = dict.fromkeys(classes)
    if validation is not None and len(validation):
        scores, labels = probabilities(validation), validation["label"].to_numpy()
        best = {name: chosen(scores[:, k], labels == k) for k, name in enumerate(classes)}
    return {name: Threshold(None) if value is None else Threshold(value, CHOSEN) for name, value in best.items()}


def measure_classes(
    predictions: "pd.DataFrame",
    classes: Sequence[str],
    thresholds: Mapping[str, Threshold],
    *,
    aimed: "pd.DataFrame | None" = None,
    resamples: int = 2000,
) -> list[OperatingPoint]:
    """Return `operating_points` of each class against the rest, on clean images and under every attack.

    Under worst-case, an image counts with its worst score for the class under any attack within the radius, also
    `aimed`: predictions under attacks on the thresholds.
    """
    import pandas as pd

    attempts = predictions if aimed is None else pd.concat([predictions, aimed], ignore_index=True)
    points = []
    for k, name in enumerate(classes):
        point, threshold = _PointMeasure(name, thresholds[name], resamples), thresholds[name].least
        for condition, part in conditions(predictions):
            rows = part.sort_values("sample_id")
            positive = rows["label"].to_numpy() == k
            if condition["attack"] == WORST_CASE:
                scores, called = _worst(attempts, condition["epsilon"], rows, k, threshold)
            else:
                scores, called = _called(rows, k, threshold)
            if condition["attack"] != CLEAN:
                whole = condition["attack"] == WORST_CASE and aimed is not None
                condition["aimed_at"] = THRESHOLD if whole else ANSWER
            points.append(point.measure(condition, rows, scores, called, positive))
    return points


def _called(rows: "pd.DataFrame", k: int, threshold: float | None) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the probability of class `k` (N,), and whether it is called present (N,)."""
    scores = probabilities(rows)
    return scores[:, k], scores.argmax(1) == k if threshold is None else scores[:, k] >= threshold


def _worst(
    attempts: "pd.DataFrame", epsilon: float, rows: "pd.DataFrame", k: int, threshold: float | None
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return `_called` of the images of `rows` at worst within the radius: lowest for class `k`, else highest."""
    within = _plain(attempts)
    within = within[within["attack"].map(is_linf) & (within["epsilon"] <= epsilon + 1e-9)]
    scores, called = _called(within, k, threshold)
    images = within.assign(score=scores, called=called).groupby("sample_id")[["score", "called"]]
    low, high = (ends.loc[rows["sample_id"]] for ends in (images.min(), images.max()))
    positive = rows["label"].to_numpy() == k
    return tuple(np.where(positive, low[name], high[name]) for name in ("score", "called"))  # type: ignore[return-value]


def measure_finding(
    predictions: "pd.DataFrame", name: str, threshold: Threshold, *, resamples: int = 2000
) -> list[OperatingPoint]:
    """Return `operating_points` of one finding, from logits of 0 and of its score minus the threshold."""
    point = _PointMeasure(name, threshold, resamples)
    points = []
    for condition, part in conditions(predictions):
        rows = part.sort_values("sample_id")
        margins = logits_of(rows)
        scores = margins[:, 1] - margins[:, 0]
        condition |= {} if condition["attack"] == CLEAN else {"aimed_at": THRESHOLD}
        points.append(point.measure(condition, rows, scores, scores > 0, rows["label"].to_numpy() == 1))
    return points


def conditions(predictions: "pd.DataFrame") -> list[tuple[dict[str, Any], "pd.DataFrame"]]:
    """Return the conditions of clean images, then of every attack, as `Attacked` states them, each with its rows."""
    parts = [
        ({"attack": str(attack), "epsilon": float(rows["epsilon"].iloc[0]), **efforts_of(rows)}, rows)
        for (attack, *_), rows in _plain(predictions).groupby(["attack", "epsilon", "steps"], sort=True)
    ]
    return sorted(parts, key=lambda pair: pair[0]["attack"] != CLEAN)


def _plain(predictions: "pd.DataFrame") -> "pd.DataFrame":
    """Return the rows of images that are clean or attacked, neither corrupted nor masked."""
    return predictions[(predictions["severity"].fillna(0) == 0) & ~predictions["attack"].isin(VIEWS)]


class _PointMeasure:
    """Measure one class or finding under several conditions of the same images, with cached resamples."""

    def __init__(self, name: str, threshold: Threshold, resamples: int) -> None:
        self.name, self.threshold, self.resamples = name, threshold, resamples
        self._bootstraps: dict[tuple[str, int], Bootstrap] = {}

    def measure(
        self,
        condition: dict[str, object],
        rows: "pd.DataFrame",
        scores: Floats,
        called: NDArray[np.bool_],
        positive: NDArray[np.bool_],
    ) -> OperatingPoint:
        """Return all figures with intervals, from scores (N,), rows called positive (N,), and positive rows (N,)."""
        groups = rows["group"].to_numpy()
        figures: dict[str, Any] = condition | {"finding": self.name, "n": len(rows), "positives": int(positive.sum())}
        figures |= {"threshold": self.threshold.value, "origin": self.threshold.origin}
        rates, rare = {}, False
        for name, selected, right in (("sensitivity", positive, called), ("specificity", ~positive, ~called)):
            bootstrap = self._over(name, groups[selected])
            means = bootstrap.means(right[selected]) if selected.any() else np.full(2, np.nan)
            figures[name] = Share(value=means[0], ci=share_interval(bootstrap, means))
            totals = self._over("all", groups).totals(np.stack([selected & right, selected], axis=1))
            with np.errstate(invalid="ignore", divide="ignore"):
                rates[name] = totals[:, 0] / totals[:, 1]
            rare = rare or is_rare(float(means[0]), bootstrap.count_groups())
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = {
                "likelihood_positive": rates["sensitivity"] / (1 - rates["specificity"]),
                "likelihood_negative": (1 - rates["sensitivity"]) / rates["specificity"],
            }
        near = _ratio_ends(figures) if rare and positive.any() and not positive.all() else {}
        for name, values in ratios.items():
            ends = near[name] if near and np.isfinite(values[0]) else _ends(values)
            figures[name] = Share(value=values[0], ci=ends)  # an infinite end becomes None
        return OperatingPoint.model_validate(figures | self._curves(groups, scores, positive))

    def _curves(self, groups: Any, scores: Floats, positive: NDArray[np.bool_]) -> dict[str, Any]:
        bootstrap = self._over("all", groups)
        weights = bootstrap.row_weights()
        curves = roc_curves(scores, positive, weights)
        area = statistics.auroc(scores, positive, weights)
        sensitivity = curves.sensitivity[:, FALSE_POSITIVES.index(round(1 - SPECIFICITY, 9))]
        ends, precision = share_interval(bootstrap, sensitivity, of=positive), curves.average_precision
        return {
            "at_specificity": SPECIFICITY,
            "auroc": Share(value=area[0], ci=area_interval(bootstrap, area, positive)),
            "average_precision": Share(value=precision[0], ci=interval(precision)),
            "sensitivity_at_specificity": Share(value=sensitivity[0], ci=ends),
            "roc": _curve(FALSE_POSITIVES, curves.sensitivity),
            "precision_recall": _curve(RECALLS, curves.precision),
        }

    def _over(self, name: str, groups: Any) -> Bootstrap:
        key = (name, len(groups))  # all conditions have the same images in the same order
        if key not in self._bootstraps:
            self._bootstraps[key] = Bootstrap.over(groups, resamples=self.resamples)
        return self._bootstraps[key]


def _ratio_ends(figures: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return intervals of both likelihood ratios, from those of sensitivity and specificity."""
    sensitivity, specificity = ((figures[name].value, figures[name].ci) for name in ("sensitivity", "specificity"))
    missed, alarmed = ((1 - share, [1 - high, 1 - low]) for share, (low, high) in (sensitivity, specificity))
    pairs = {"likelihood_positive": (sensitivity, alarmed), "likelihood_negative": (missed, specificity)}
    return {name: ratio_interval(*one, *other) for name, (one, other) in pairs.items()}


def _ends(values: Floats) -> tuple[float, float]:
    """Return the interval of a ratio, which may be infinite."""
    rest = np.sort(values[1:][~np.isnan(values[1:])])
    if not len(rest):
        return np.nan, np.nan
    tail = (1 - statistics.LEVEL) / 2
    return rest[int(np.floor(tail * (len(rest) - 1)))], rest[int(np.ceil((1 - tail) * (len(rest) - 1)))]


def _curve(along: Sequence[float], values: Floats) -> dict[str, Sequence[float]]:
    low, high = zip(*(interval(values[:, k]) for k in range(len(along))), strict=True)
    return {"x": along, "y": values[0].tolist(), "low": low, "high": high}


@dataclass(frozen=True)
class Curves:
    """In each resample: `sensitivity` (R, len(FALSE_POSITIVES)), `precision` (R, len(RECALLS)), `average_precision`."""

    sensitivity: Floats
    precision: Floats
    average_precision: Floats


def roc_curves(scores: ArrayLike, positive: ArrayLike, weights: ArrayLike) -> Curves:
    """Return the curves of `scores` (N,) against `positive` (N,) bool, with row `weights` (R, N).

    Sensitivity is the highest of any threshold with at most that share of false positives. Precision is that of the
    highest threshold that reaches the recall. Nothing is interpolated. Average precision sums precision over steps of
    recall, as in scikit-learn. NaN if a resample has only positive rows, or none.
    """
    score, is_positive, weight = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool), np.asarray(weights)
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True)) if len(score) else np.zeros(0, np.intp)
    parts = [
        _chunk(weight[first : first + _CHUNK][:, order].astype(float), is_positive[order], ends)
        for first in range(0, len(weight), _CHUNK)
    ]
    return Curves(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _chunk(weights: Floats, positive: NDArray[np.bool_], ends: NDArray[np.intp]) -> tuple[Floats, Floats, Floats]:
    none = np.zeros((len(weights), 1))
    hits, alarms = (np.cumsum(weights * counted, axis=1)[:, ends] for counted in (positive, ~positive))
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.hstack([none, hits / hits[:, -1:]]) if len(ends) else none * np.nan
        false = np.hstack([none, alarms / alarms[:, -1:]]) if len(ends) else none * np.nan
        precision = np.hstack([none + 1, hits / (hits + alarms)]) if len(ends) else none * np.nan
    average = np.nansum(np.diff(recall, axis=1) * precision[:, 1:], axis=1)
    average[~np.isfinite(recall[:, -1]) | ~np.isfinite(false[:, -1])] = np.nan
    sensitivity = np.full((len(weights), len(FALSE_POSITIVES)), np.nan)
    precise = np.full((len(weights), len(RECALLS)), np.nan)
    for row in np.flatnonzero(np.isfinite(recall[:, -1]) & np.isfinite(false[:, -1])):
        sensitivity[row] = recall[row][np.searchsorted(false[row], np.array(FALSE_POSITIVES) + 1e-12, "right") - 1]
        precise[row] = precision[row][np.searchsorted(recall[row], np.array(RECALLS) - 1e-12, "left")]
    return sensitivity, precise, average
