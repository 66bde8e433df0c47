"""Predictions -> metrics: every number in metrics.json comes from a table, and can be computed from it again."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trustcxr import statistics
from trustcxr.statistics import Bootstrap, Floats, interval, share_interval

if TYPE_CHECKING:
    import pandas as pd

CLEAN = "clean"
# What is left to a model that must do without the disease, or without the rest (Maguolo and Nanni 2021).
VIEWS = ("lungs_blacked_out", "lungs_only", "border_only")
MASKING_GAP = 0.10  # FGSM accuracy above PGD accuracy by more than this is an alarm
RISE = 0.02  # accuracy that a stronger attack adds is an alarm from here on


def logits_of(table: "pd.DataFrame") -> Floats:
    """The logits column as an array (N, C)."""
    return np.stack([np.asarray(row, dtype=float) for row in table["logits"]]) if len(table) else np.zeros((0, 0))


def classification(
    logits: Floats, labels: NDArray[np.int64], groups: Any, classes: tuple[str, ...], *, resamples: int = 2000
) -> dict[str, Any]:
    """Accuracy, precision, recall, F1, AUROC (macro and per class), calibration error, confusion, with intervals.

    `logits` (N, C), `labels` (N,). Precision, recall and F1 of a class that is never predicted, or absent, count as 0,
    as in scikit-learn; AUROC is one class against the rest, averaged over the classes that are there, and
    NaN for a class that is not.
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
        **{f"{name}_macro": _macro(values) for name, values in figures.items()},
        "ece": statistics.calibration_error(bootstrap.totals(statistics.calibration_bins(probabilities, labels))),
    }
    document: dict[str, Any] = {}
    for name, values in whole.items():
        ends = share_interval(bootstrap, values) if name == "accuracy" else interval(values)
        document |= {name: float(values[0]), f"{name}_ci": ends}
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


def _macro(values: Floats) -> Floats:
    """Mean over the classes that have a value in the sample itself (row 0): (R + 1, C) -> (R + 1,)."""
    known = np.isfinite(values[0])
    return values[:, known].mean(1) if known.any() else np.full(len(values), np.nan)


def from_predictions(predictions: "pd.DataFrame", classes: tuple[str, ...], *, resamples: int = 2000) -> dict[str, Any]:
    """The parts "clean", "shortcuts" and "attacks" of metrics.json from the predictions of one run and one split."""
    clean = predictions[predictions["attack"] == CLEAN].set_index("sample_id")
    labels = clean["label"].to_numpy(dtype=np.int64)
    document: dict[str, Any] = {
        "clean": classification(logits_of(clean), labels, clean["group"], classes, resamples=resamples),
        "shortcuts": {},
        "attacks": [],
    }
    for view in VIEWS:
        rows = predictions[predictions["attack"] == view]
        if len(rows):
            bootstrap = Bootstrap.over(rows["group"], resamples=resamples)
            means = bootstrap.means(logits_of(rows).argmax(1) == rows["label"].to_numpy())
            ends = share_interval(bootstrap, means)
            document["shortcuts"][view] = {"accuracy": float(means[0]), "accuracy_ci": ends, "n": len(rows)}
    # Success is counted over the images that the model gets right as they are.
    clean_right = clean["label"] == logits_of(clean).argmax(1)
    perturbed = predictions[~predictions["attack"].isin([CLEAN, *VIEWS])]
    keys = [key for key in ("attack", "epsilon", "steps") if key in predictions]
    for _, rows in perturbed.groupby(keys, sort=True):
        attack, epsilon = rows["attack"].iloc[0], float(rows["epsilon"].iloc[0])
        logits, own = logits_of(rows), rows["label"].to_numpy(dtype=np.int64)
        right = logits.argmax(1) == own
        bootstrap = Bootstrap.over(rows["group"], resamples=resamples)
        means = bootstrap.means(right)
        was_right = clean_right.loc[rows["sample_id"]].to_numpy()
        calibration = statistics.calibration_bins(statistics.softmax(logits), own)
        document["attacks"].append(
            {
                "attack": attack,
                "epsilon": epsilon,
                "accuracy": float(means[0]),
                "accuracy_ci": share_interval(bootstrap, means),
                "success_rate": float((~right)[was_right].mean()) if was_right.any() else float("nan"),
                "ece": float(statistics.calibration_error(calibration.sum(0))),
                "n": len(rows),
            }
            | ({"steps": int(rows["steps"].iloc[0])} if "steps" in rows and attack != "fgsm" else {})
        )
    return document


def alarms(document: dict[str, Any]) -> list[dict[str, str]]:
    """What a reader must not miss: masked gradients, and attacks that are too weak to be believed (ANCHORS, trap 7).

    Kinds: "gradient_masking" (FGSM accuracy well above PGD accuracy), "weak_attack" (PGD accuracy above FGSM accuracy),
    "rising_with_epsilon" (accuracy that rises with the radius; the clean images are radius 0).
    """
    sweeps: dict[str, dict[float, float]] = {}
    for row in document["attacks"]:
        name = row["attack"].upper() + (f"-{row['steps']}" if "steps" in row else "")
        sweeps.setdefault(name, {})[row["epsilon"]] = row["accuracy"]
    where = f"{document['clean']['n']} {document.get('split', '')} images".replace("  ", " ")
    found = []
    for name, accuracies in sweeps.items():
        for epsilon, iterated in sorted(accuracies.items()) if name.startswith("PGD") else ():
            single = sweeps.get("FGSM", {}).get(epsilon, float("nan"))
            figures = (
                f"at epsilon {epsilon:g} accuracy is {single:.1%} under FGSM but {iterated:.1%} under {name} ({where})"
            )
            if single - iterated > MASKING_GAP:
                text = f"{figures}: FGSM overstates how robust this model is"
                found.append({"kind": "gradient_masking", "text": text})
            elif iterated - single > RISE:
                text = f"{figures}: a stronger attack cannot help a model, so PGD is failing here"
                found.append({"kind": "weak_attack", "text": text})
    for name, accuracies in sorted(sweeps.items()):
        lowest = (0.0, document["clean"]["accuracy"])
        for epsilon, accuracy in sorted(accuracies.items()):
            if accuracy > lowest[1] + RISE:
                text = (
                    f"accuracy under {name} rises from {lowest[1]:.1%} at epsilon {lowest[0]:g} to {accuracy:.1%} at "
                    f"{epsilon:g}: a larger radius cannot help, so the attack is failing"
                )
                found.append({"kind": "rising_with_epsilon", "text": text})
                break
            lowest = min(lowest, (epsilon, accuracy), key=lambda pair: pair[1])
    return found
