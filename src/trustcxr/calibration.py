"""Can the stated probability be believed, and does it still hold under attack?"""

from typing import TYPE_CHECKING, Any

import numpy as np

from trustcxr import metrics, statistics
from trustcxr.statistics import Bootstrap, Bootstraps, Floats, interval

if TYPE_CHECKING:
    import pandas as pd


def describe(predictions: "pd.DataFrame", validation: "pd.DataFrame", *, resamples: int = 2000) -> dict[str, Any]:
    """The part "calibration" of metrics.json, from the predictions of one run on its test and validation images.

    A temperature is fitted on the unperturbed validation images (Guo et al. 2017) and then applied to the test images,
    "clean" and under each of "attacks": the calibration error as it is (`ece`) and so scaled (`ece_scaled`), log loss,
    mean confidence, and the bins of the reliability diagram (DeGroot and Fienberg 1983).
    """
    fitted = validation[validation["attack"] == metrics.CLEAN]
    temperature = statistics.fit_temperature(metrics.logits_of(fitted), fitted["label"])
    samples = Bootstraps(resamples=resamples)
    plain = predictions[(metrics.severities(predictions) == 0) & ~predictions["attack"].isin(metrics.VIEWS)]
    clean = plain["attack"] == metrics.CLEAN
    return {
        "temperature": temperature,
        "split": "+".join(sorted(set(fitted["split"]))),
        "n": len(fitted),
        "clean": _condition(plain[clean], temperature, samples),
        "attacks": [
            {"attack": attack, "epsilon": float(epsilon)}
            | ({"steps": int(steps)} if attack not in metrics.ONE_STEP else {})
            | _condition(rows, temperature, samples)
            for (attack, epsilon, steps), rows in plain[~clean].groupby(["attack", "epsilon", "steps"])
        ],
    }


def _condition(rows: "pd.DataFrame", temperature: float, samples: Bootstraps) -> dict[str, Any]:
    logits, labels = metrics.logits_of(rows), rows["label"].to_numpy(dtype=np.int64)
    bootstrap = samples.over(rows["group"])
    found: dict[str, Any] = {"accuracy": float(metrics.right(rows).mean())}
    for ending, scaled in (("", logits), ("_scaled", logits / temperature)):
        found |= _figures(scaled, labels, bootstrap, ending)
    return found | {"n": len(rows)}


def _figures(logits: Floats, labels: Any, bootstrap: Bootstrap, ending: str) -> dict[str, Any]:
    probabilities = statistics.softmax(logits)
    totals = bootstrap.totals(statistics.calibration_bins(probabilities, labels))
    errors = statistics.calibration_error(totals)
    return {
        f"ece{ending}": float(errors[0]),
        f"ece{ending}_ci": interval(errors),
        f"log_loss{ending}": float(statistics.log_loss(logits, labels).mean()),
        f"confidence{ending}": float(probabilities.max(1).mean()),
        f"bins{ending}": [
            {"confidence": float(confidence / count), "accuracy": float(correct / count), "n": int(count)}
            for confidence, correct, count in totals[0]
            if count
        ],
    }
