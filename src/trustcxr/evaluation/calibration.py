"""Can the stated probability be believed, and does it still hold under attack?"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from trustcxr import catalogue, statistics
from trustcxr.results import tables
from trustcxr.statistics import Bootstrap, Bootstraps, Floats, interval

if TYPE_CHECKING:
    import pandas as pd

BINS = 15  # of the calibration error


def describe(predictions: "pd.DataFrame", validation: "pd.DataFrame", *, resamples: int = 2000) -> dict[str, Any]:
    """The part "calibration" of metrics.json, from the predictions of one run on its test and validation images.

    A temperature is fitted on the unperturbed validation images (Guo et al. 2017) and then applied to the test images,
    "clean" and under each of "attacks": the calibration error as it is (`ece`) and so scaled (`ece_scaled`), log loss,
    mean confidence, and the bins of the reliability diagram (DeGroot and Fienberg 1983).
    """
    fitted = validation[validation["attack"] == tables.CLEAN]
    temperature = fit_temperature(tables.logits_of(fitted), fitted["label"])
    samples = Bootstraps(resamples=resamples)
    plain = predictions[(tables.severities(predictions) == 0) & ~predictions["attack"].isin(catalogue.VIEWS)]
    clean = plain["attack"] == tables.CLEAN
    return {
        "temperature": temperature,
        "split": "+".join(sorted(set(fitted["split"]))),
        "n": len(fitted),
        "clean": _condition(plain[clean], temperature, samples),
        "attacks": [
            {"attack": attack, "epsilon": float(epsilon)}
            | ({"steps": int(steps)} if attack not in catalogue.ONE_STEP else {})
            | _condition(rows, temperature, samples)
            for (attack, epsilon, steps), rows in plain[~clean].groupby(["attack", "epsilon", "steps"])
        ],
    }


def _condition(rows: "pd.DataFrame", temperature: float, samples: Bootstraps) -> dict[str, Any]:
    logits, labels = tables.logits_of(rows), rows["label"].to_numpy(dtype=np.int64)
    bootstrap = samples.over(rows["group"])
    found: dict[str, Any] = {"accuracy": float(tables.right(rows).mean())}
    for ending, scaled in (("", logits), ("_scaled", logits / temperature)):
        found |= _figures(scaled, labels, bootstrap, ending)
    return found | {"n": len(rows)}


def _figures(logits: Floats, labels: Any, bootstrap: Bootstrap, ending: str) -> dict[str, Any]:
    probabilities = statistics.softmax(logits)
    totals = bootstrap.totals(calibration_bins(probabilities, labels))
    errors = calibration_error(totals)
    return {
        f"ece{ending}": float(errors[0]),
        f"ece{ending}_ci": interval(errors),
        f"log_loss{ending}": float(log_loss(logits, labels).mean()),
        f"confidence{ending}": float(probabilities.max(1).mean()),
        f"bins{ending}": [
            {"confidence": float(confidence / count), "accuracy": float(correct / count), "n": int(count)}
            for confidence, correct, count in totals[0]
            if count
        ],
    }


def calibration_bins(probabilities: ArrayLike, labels: ArrayLike, bins: int = BINS) -> Floats:
    """For each row (N) its share of each bin's (confidence, correctness, count): (N, bins, 3)."""
    rows = np.asarray(probabilities, dtype=float)
    confidence = rows.max(axis=1)
    right = rows.argmax(axis=1) == np.asarray(labels)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    shares = np.zeros((len(rows), bins, 3))
    shares[np.arange(len(rows)), place] = np.stack([confidence, right, np.ones(len(rows))], axis=1)
    return shares


def calibration_error(totals: ArrayLike) -> Floats:
    """Expected calibration error (Naeini et al. 2015) from summed bins (..., bins, 3): (...)."""
    sums = np.asarray(totals, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.abs(sums[..., 0] - sums[..., 1]).sum(-1) / sums[..., 2].sum(-1)


def log_loss(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Negative log-likelihood of each row, (N,), from logits (N, C) and labels (N,)."""
    rows, places = np.asarray(logits, dtype=float), np.asarray(labels, dtype=int)
    return special.logsumexp(rows, axis=1) - rows[np.arange(len(rows)), places]


TEMPERATURES = (0.05, 20.0)  # beyond these a fit has run away: all right, or nothing learned


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The number by which to divide logits (N, C) so that the labels (N,) are likeliest (Guo et al. 2017).

    Answers and accuracy stay as they are; only the confidence changes. Within TEMPERATURES; NaN without rows.
    """
    rows = np.asarray(logits, dtype=float)
    if not len(rows):
        return float("nan")
    # Convex in 1 / T, so the one minimum is found.
    found = optimize.minimize_scalar(
        lambda log: float(log_loss(rows / np.exp(log), labels).mean()),
        bounds=tuple(np.log(TEMPERATURES)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(found.x))
