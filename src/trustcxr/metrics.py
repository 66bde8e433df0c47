"""Predictions -> metrics: every number in metrics.json comes from a table, and can be computed from it again."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trustcxr import statistics
from trustcxr.statistics import Bootstrap, Floats, interval

if TYPE_CHECKING:
    import pandas as pd

CLEAN = "clean"
MASKING_GAP = 0.10  # FGSM accuracy above PGD accuracy by more than this is an alarm


def logits_of(table: "pd.DataFrame") -> Floats:
    """The logits column as an array (N, C)."""
    return np.stack([np.asarray(row, dtype=float) for row in table["logits"]]) if len(table) else np.zeros((0, 0))


def classification(
    logits: Floats, labels: NDArray[np.int64], groups: Any, classes: tuple[str, ...], *, resamples: int = 2000
) -> dict[str, Any]:
    """Accuracy, precision, recall, F1, AUROC (macro and per class), calibration error, confusion, with intervals.

    `logits` (N, C), `labels` (N,). Precision, recall and F1 of a class that is never predicted, or absent, count as 0,
    as in scikit-learn; AUROC is one class against the rest, averaged over the classes.
    """
    count = len(classes)
    bootstrap = Bootstrap.over(groups, resamples=resamples)
    predicted = logits.argmax(1)
    cells = np.zeros((len(labels), count, count))
    cells[np.arange(len(labels)), labels, predicted] = 1
    confusion = bootstrap.totals(cells)  # (R + 1, true, predicted)
    figures = _from_confusion(confusion)
    probabilities = statistics.softmax(logits)
    weights = bootstrap.row_weights()
    areas = np.stack([statistics.auroc(probabilities[:, k], labels == k, weights) for k in range(count)], axis=1)
    figures["auroc"] = areas
    whole = {
        "accuracy": figures.pop("accuracy"),
        **{f"{name}_macro": values.mean(1) for name, values in figures.items()},
        "ece": statistics.calibration_error(bootstrap.totals(statistics.calibration_bins(probabilities, labels))),
    }
    document: dict[str, Any] = {}
    for name, values in whole.items():
        document |= {name: float(values[0]), f"{name}_ci": interval(values)}
    document |= {
        "n": len(labels),
        "groups": int(bootstrap.weights.shape[1]),
        "confusion": confusion[0].astype(int).tolist(),
    }
    document["per_class"] = {
        label: {
            **{name: float(values[0, k]) for name, values in figures.items()},
            **{f"{name}_ci": interval(values[:, k]) for name, values in figures.items()},
            "n": int((labels == k).sum()),
        }
        for k, label in enumerate(classes)
    }
    return document


def _from_confusion(confusion: Floats) -> dict[str, Floats]:
    hit, true, said = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(2), confusion.sum(1)
    total = confusion.sum((1, 2))
    return {
        "accuracy": np.divide(hit.sum(1), total, out=np.zeros_like(total), where=total > 0),
        "precision": np.divide(hit, said, out=np.zeros_like(hit), where=said > 0),
        "recall": np.divide(hit, true, out=np.zeros_like(hit), where=true > 0),
        "f1": np.divide(2 * hit, true + said, out=np.zeros_like(hit), where=true + said > 0),
    }


def from_predictions(predictions: "pd.DataFrame", classes: tuple[str, ...], *, resamples: int = 2000) -> dict[str, Any]:
    """The parts "clean" and "attacks" of metrics.json from the predictions of one run and one split."""
    clean = predictions[predictions["attack"] == CLEAN].set_index("sample_id")
    labels = clean["label"].to_numpy(dtype=np.int64)
    document: dict[str, Any] = {
        "clean": classification(logits_of(clean), labels, clean["group"], classes, resamples=resamples),
        "attacks": [],
    }
    # An image that the model gets wrong as it is counts as broken under every attack.
    clean_right = clean["label"] == logits_of(clean).argmax(1)
    perturbed = predictions[predictions["attack"] != CLEAN]
    for key, rows in perturbed.groupby(["attack", "epsilon"], sort=True):
        attack, epsilon = key  # type: ignore[misc]
        logits, own = logits_of(rows), rows["label"].to_numpy(dtype=np.int64)
        right = logits.argmax(1) == own
        bootstrap = Bootstrap.over(rows["group"], resamples=resamples)
        means = bootstrap.means(right)
        was_right = clean_right.loc[rows["sample_id"]].to_numpy()
        calibration = statistics.calibration_bins(statistics.softmax(logits), own)
        document["attacks"].append(
            {
                "attack": attack,
                "epsilon": float(epsilon),
                "accuracy": float(means[0]),
                "accuracy_ci": interval(means),
                "success_rate": float((~right)[was_right].mean()) if was_right.any() else float("nan"),
                "ece": float(statistics.calibration_error(calibration.sum(0))),
                "n": len(rows),
            }
            | ({"steps": int(rows["steps"].iloc[0])} if "steps" in rows and attack != "fgsm" else {})
        )
    return document


def alarms(document: dict[str, Any]) -> list[dict[str, str]]:
    """What a reader must not miss: masked gradients, and robust accuracy that rises with epsilon (ANCHORS, trap 7)."""
    found = []
    by_attack: dict[str, dict[float, float]] = {}
    for row in document["attacks"]:
        by_attack.setdefault(row["attack"], {})[row["epsilon"]] = row["accuracy"]
    steps = next((row["steps"] for row in document["attacks"] if row["attack"] == "pgd"), None)
    n, split = document["clean"]["n"], document.get("split", "")
    for epsilon, single in sorted(by_attack.get("fgsm", {}).items()):
        iterated = by_attack.get("pgd", {}).get(epsilon)
        if iterated is not None and single - iterated > MASKING_GAP:
            found.append(
                {
                    "kind": "gradient_masking",
                    "text": f"at epsilon {epsilon:g} accuracy is {single:.1%} under FGSM but {iterated:.1%} "
                    f"under PGD-{steps} ({n} {split + ' ' if split else ''}images): FGSM overstates how robust this model is",
                }
            )
    for attack, accuracies in sorted(by_attack.items()):
        radii = sorted(accuracies)
        rises = [(a, b) for a, b in pairwise(radii) if accuracies[b] > accuracies[a] + 0.02]
        if rises:
            small, large = rises[0]
            found.append(
                {
                    "kind": "rising_with_epsilon",
                    "text": f"accuracy under {attack.upper()} rises from {accuracies[small]:.1%} at epsilon "
                    f"{small:g} to {accuracies[large]:.1%} at {large:g}: a larger radius cannot help, so the attack is failing",
                }
            )
    return found
