"""Measure calibration: expected calibration error, temperature, log loss, clean and under attack."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from trustcxr import statistics
from trustcxr.evaluation.operating_points import conditions
from trustcxr.statistics import LEVEL, Bootstrap, Bootstraps, Floats
from trustcxr.storage import prediction_table
from trustcxr.storage.schemas import Bin, Calibrated, Calibration, Share

if TYPE_CHECKING:
    import pandas as pd

BINS = 15  # of the calibration error


def describe(
    predictions: "pd.DataFrame", validation: "pd.DataFrame", *, resamples: int = 2000, refit: bool = False
) -> Calibration:
    """Return "calibration" of metrics.json, from the predictions of one run on its test and validation images.

    The temperature is fitted on clean validation images (Guo et al. 2017), and applied to the test images, clean and
    under each attack: calibration error as it is (`ece`) and scaled, log loss, confidence, and the bins of the
    reliability diagram (DeGroot and Fienberg 1983). It stays empty without validation images, or if the run was `refit`
    on them.
    """
    fitted = validation[validation["attack"] == prediction_table.CLEAN]
    temperature = (
        None if refit or fitted.empty else fit_temperature(prediction_table.logits_of(fitted), fitted["label"])
    )
    samples = Bootstraps(resamples=resamples)
    (first, clean), *attacked = conditions(predictions)
    if first["attack"] != prediction_table.CLEAN:
        raise ValueError("calibration: no predictions of unperturbed images")
    return Calibration(
        temperature=temperature,
        split="+".join(sorted(set(fitted["split"]))),
        n=len(fitted),
        clean=_condition(clean, temperature, samples),
        attacks=[_condition(rows, temperature, samples, **condition) for condition, rows in attacked],
    )


def _condition(rows: "pd.DataFrame", temperature: float | None, samples: Bootstraps, **about: Any) -> Calibrated:
    logits, labels = prediction_table.logits_of(rows), rows["label"].to_numpy(dtype=np.int64)
    bootstrap = samples.over(rows["group"])
    figures = _figures(logits, labels, bootstrap)
    if temperature is not None:
        scaled = _figures(logits / temperature, labels, bootstrap)
        figures |= {f"{name}_scaled": value for name, value in scaled.items()}
    return Calibrated(accuracy=Share(value=prediction_table.right(rows).mean()), n=len(rows), **about, **figures)


def _figures(logits: Floats, labels: NDArray[np.int64], bootstrap: Bootstrap) -> dict[str, Any]:
    probabilities = statistics.softmax(logits)
    totals = bootstrap.totals(calibration_bins(probabilities, labels))
    error, ends = debiased_error(totals)
    return {
        "ece": Share(value=error, ci=tuple(ends)),
        "ece_plug_in": float(calibration_error(totals[0])),
        "log_loss": Share(value=log_loss(logits, labels).mean()),
        "confidence": Share(value=probabilities.max(1).mean()),
        "bins": [Bin(confidence=c / n, accuracy=right / n, n=int(n)) for c, right, n in totals[0] if n],
    }


def calibration_bins(probabilities: ArrayLike, labels: ArrayLike, bins: int = BINS) -> Floats:
    """Return each row's share of each bin's (confidence, correctness, count): (N, bins, 3)."""
    rows = np.asarray(probabilities, dtype=float)
    confidence = rows.max(axis=1)
    right = rows.argmax(axis=1) == np.asarray(labels)
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    shares = np.zeros((len(rows), bins, 3))
    shares[np.arange(len(rows)), index] = np.stack([confidence, right, np.ones(len(rows))], axis=1)
    return shares


def calibration_error(totals: ArrayLike) -> Floats:
    """Return the expected calibration error (Naeini et al. 2015) from summed bins (..., bins, 3): (...).

    Chance alone makes it positive, more so with few rows in a bin. `debiased_error` removes that.
    """
    sums = np.asarray(totals, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.abs(sums[..., 0] - sums[..., 1]).sum(-1) / sums[..., 2].sum(-1)


def debiased_error(resampled: ArrayLike, level: float = LEVEL) -> tuple[float, list[float]]:
    """Return the calibration error without chance, and its interval [low, high], from bins (R + 1, bins, 3).

    Row 0 is the sample, the others are resamples (`Bootstrap.totals`): they show how a bin's gap between confidence and
    accuracy varies by chance. For each assumed size of the true gaps, the sample's error has a distribution. The
    estimate is the size at which the sample's error is the median; the interval has all sizes at which it is not
    extreme (Neyman 1937). So the estimate always lies in the interval. Gaps have the proportions observed. The ends
    also try proportions of the chance variation (a small error spread thinly), and the wider result counts. NaN without
    rows.
    """
    sums = np.asarray(resampled, dtype=float)
    counts = sums[..., 2].sum(-1, keepdims=True)
    if not counts[0, 0]:
        return float("nan"), [float("nan")] * 2
    gaps = (sums[..., 1] - sums[..., 0]) / np.maximum(counts, 1)
    chance, signs = gaps[1:] - gaps[0], np.where(gaps[0] < 0, -1.0, 1.0)
    sizes = np.abs(gaps[0])
    tail = (1 - level) / 2
    ends = [
        _sizes(sizes.sum(), signs * _shares(shape), chance, [0.5, 1 - tail, tail])
        for shape in (sizes, chance.std(axis=0))
    ]
    (estimate, low, high), (_, other_low, other_high) = ends
    return estimate, [min(low, other_low), max(high, other_high)]


_SIZES = np.concatenate([[0.0], np.geomspace(1e-3, 1, 60)])


def _shares(sizes: Floats) -> Floats:
    return sizes / sizes.sum() if sizes.sum() > 0 else np.full_like(sizes, 1 / len(sizes))


def _sizes(error: float, shape: Floats, chance: Floats, levels: list[float]) -> list[float]:
    """Return for each quantile the size of gaps in this shape at which the errors' distribution has `error` there."""
    errors = np.abs(_SIZES[:, None, None] * shape + chance).sum(2)  # (sizes, R)
    quantiles = np.quantile(errors, levels, axis=1).T
    rising = np.maximum.accumulate(quantiles, axis=0)
    return [0.0 if error <= column[0] else float(np.interp(error, column, _SIZES)) for column in rising.T]


def log_loss(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Return the negative log-likelihood of each row, (N,), from logits (N, C) and labels (N,)."""
    rows, classes = np.asarray(logits, dtype=float), np.asarray(labels, dtype=int)
    return special.logsumexp(rows, axis=1) - rows[np.arange(len(rows)), classes]


TEMPERATURES = (0.05, 20.0)  # a fit beyond these has diverged: all correct, or nothing learned


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the divisor of logits (N, C) that makes the labels (N,) likeliest (Guo et al. 2017).

    Predictions stay; only confidence changes. Within TEMPERATURES; NaN without rows.
    """
    rows = np.asarray(logits, dtype=float)
    if not len(rows):
        return float("nan")
    # Convex in 1 / T: there is one minimum.
    fit = optimize.minimize_scalar(
        lambda log: float(log_loss(rows / np.exp(log), labels).mean()),
        bounds=tuple(np.log(TEMPERATURES)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(fit.x))
