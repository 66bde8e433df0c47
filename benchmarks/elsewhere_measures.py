"""Measure answers on the images of `benchmarks.elsewhere_trials`, and describe them beside the baseline's."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.elsewhere_ways import Standardise
from trustcxr import attacks
from trustcxr.statistics import Bootstrap, interval

CLASSES = ("COVID-19", "Non-COVID", "Normal")
BATCH, EPSILON, STEPS = 128, 0.02, 20


def withstand(model: nn.Module, images: Tensor, labels: Tensor, right: Tensor) -> Tensor:
    """Return which of the images that are right remain so under PGD, (B,) bool."""
    rows, right = right.nonzero()[:, 0], right.clone()
    if len(rows):
        options: dict[str, Any] = {"epsilon": EPSILON, "steps": STEPS, "stop_when_wrong": True}
        adversarial = attacks.pgd(model, images[rows], labels[rows], **options)
        with torch.no_grad():
            right[rows] = model(adversarial).argmax(1) == labels[rows]
    return right


def measure(model: nn.Module, pixels: Tensor, labels: Tensor, standard: Standardise | None) -> pd.DataFrame:
    """Return for each image: answer; score of Non-COVID; right when clean, attacked, and attacked after the mapping."""
    parts = []
    for x, y in zip(pixels.split(BATCH), labels.split(BATCH), strict=True):
        whole = model if standard is None else nn.Sequential(standard, model)
        with torch.no_grad():
            logits = whole(x)
            answer, score = logits.argmax(1), logits.softmax(1)[:, CLASSES.index("Non-COVID")]
            mapped = x if standard is None else standard(x)
        clean = answer == y
        after = attacked = withstand(model, mapped, y, clean)
        if standard is not None:
            attacked = clean
            for standard.gradient in ("slope", "identity"):
                attacked = withstand(whole, x, y, attacked)
        columns = {"answer": answer, "score": score, "clean": clean, "attacked": attacked, "after": after}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def describe_recall(name: str, rows: pd.DataFrame, baseline: pd.DataFrame | None) -> str:
    """Return a mean over the classes of `rows`, clean and attacked, with the paired difference from the baseline."""
    bootstrap, text = Bootstrap.over(rows["group"]), []
    for key in ("clean", "attacked"):
        values = rows[key].astype(float)
        figures = [values] if baseline is None else [values, values - baseline.loc[rows.index, key].astype(float)]
        chosen = [rows["class"] == c for c in CLASSES if (rows["class"] == c).any()]
        means = [np.mean([bootstrap.select(c).means(f[c]) for c in chosen], axis=0) for f in figures]
        text.append(f"{key} {100 * means[0][0]:.1f}")
        if baseline is not None:
            text[-1] += " ({:+.1f} [{:+.1f}, {:+.1f}])".format(*(100 * np.array([means[1][0], *interval(means[1])])))
    return f"{name} {', '.join(text)}"


def describe_auc(name: str, rows: pd.DataFrame, baseline: pd.DataFrame | None) -> str:
    """Return the area under the ROC curve of the score (clean), with the paired difference from the baseline."""
    weights = Bootstrap.over(rows["group"]).row_weights()
    area = measure_auc(weights, rows)
    text = f"{name} {area[0]:.3f}"
    if baseline is not None:
        change = area - measure_auc(weights, baseline.loc[rows.index])
        text += " ({:+.3f} [{:+.3f}, {:+.3f}])".format(change[0], *interval(change))
    return text


def measure_auc(weights: np.ndarray, rows: pd.DataFrame) -> np.ndarray:
    """Return the area under the ROC curve of Non-COVID in each resample, by the weights (R, N) of rows; no ties."""
    order = np.argsort(rows["score"].to_numpy())
    positive = (rows["class"] == "Non-COVID").to_numpy()[order]
    drawn = weights[:, order].astype(float)
    below = np.cumsum(drawn * ~positive, axis=1)
    return (drawn * positive * below).sum(1) / ((drawn * positive).sum(1) * below[:, -1])
