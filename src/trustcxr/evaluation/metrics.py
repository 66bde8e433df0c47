"""Predictions -> metrics: every number in metrics.json comes from a table, and can be computed from it again."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trustcxr import statistics
from trustcxr.catalogue import GROUPINGS, LUNGS_HIDDEN, ONE_STEP, VIEWS
from trustcxr.evaluation import calibration
from trustcxr.results.tables import CLEAN, clean_answers, logits_of, right, severities
from trustcxr.statistics import Bootstrap, Bootstraps, Floats, interval, share_interval

if TYPE_CHECKING:
    import pandas as pd

VANISHING = 1e-12  # of the cross-entropy, at its steepest pixel: a confident network's is still far above this


def classification(
    logits: Floats, labels: NDArray[np.int64], groups: Any, classes: tuple[str, ...], *, resamples: int = 2000
) -> dict[str, Any]:
    """Accuracy, precision, recall, F1, AUROC (macro and per class), calibration error, confusion, with intervals.

    `logits` (N, C), `labels` (N,). Precision and F1 of a class that is there and never predicted, or predicted and not
    there, count as 0, as in scikit-learn. Of a class that is not there recall and AUROC (one class against the rest)
    are not defined, nor precision and F1 where it is not predicted either: NaN, and left out of the mean of classes. A
    resample in which a class of the sample was not drawn says nothing of that mean.
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
        "balanced_accuracy": _macro(figures["recall"]),
        **{f"{name}_macro": _macro(values) for name, values in figures.items()},
    }
    document: dict[str, Any] = {}
    for name, values in whole.items():
        ends = share_interval(bootstrap, values) if name == "accuracy" else interval(values)
        document |= {name: float(values[0]), f"{name}_ci": ends}
    bins = bootstrap.totals(calibration.calibration_bins(probabilities, labels))
    document["ece"], document["ece_ci"] = calibration.debiased_error(bins)
    document |= {
        "ece_plug_in": float(calibration.calibration_error(bins[0])),
        "constant_answer": constant_answer(labels),
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
        "precision": np.divide(hit, said, out=np.where(true > 0, 0.0, np.nan), where=said > 0),
        "recall": np.divide(hit, true, out=np.full_like(hit, np.nan), where=true > 0),
        "f1": np.divide(2 * hit, true + said, out=np.full_like(hit, np.nan), where=true + said > 0),
    }


def _macro(values: Floats) -> Floats:
    """Mean over the classes that have a value in the sample itself (row 0): (R + 1, C) -> (R + 1,)."""
    known = np.isfinite(values[0])
    return values[:, known].mean(1) if known.any() else np.full(len(values), np.nan)


def from_predictions(predictions: "pd.DataFrame", classes: tuple[str, ...], *, resamples: int = 2000) -> dict[str, Any]:
    """All of metrics.json that comes from the predictions of one run and one split.

    Parts: "clean", "by_source" (where the images come from several), "by_group" (the same by every column that divides
    them), "shortcuts" (the views) and "without_lungs" (of the views that hide the lungs the one with the highest
    accuracy, which is the worst for whoever claims that the lungs are needed), "attacks",
    "input_gradients" (where any was measured), "corruptions" and "corruptions_mean".
    """
    samples = Bootstraps(resamples=resamples)
    clean, shown = predictions[predictions["attack"] == CLEAN], clean_answers(predictions)
    labels = clean["label"].to_numpy(dtype=np.int64)
    corrupted = severities(predictions) > 0
    attacked = ~corrupted & ~predictions["attack"].isin([CLEAN, *VIEWS])
    keys = [key for key in ("attack", "epsilon", "steps") if key in predictions]
    views = {view: predictions[predictions["attack"] == view] for view in VIEWS}
    shortcuts = {view: accuracy(rows, samples) for view, rows in views.items() if len(rows)}
    hidden = [shortcuts[view] | {"view": view} for view in LUNGS_HIDDEN if view in shortcuts]
    return {
        "clean": classification(logits_of(clean), labels, clean["group"], classes, resamples=resamples),
        "by_source": by_column(clean, "source", samples),
        "by_group": {name: by_column(clean, name, samples) for name in GROUPINGS if clean.get(name) is not None},
        "shortcuts": shortcuts,
        **({"without_lungs": max(hidden, key=lambda part: part["accuracy"])} if hidden else {}),
        "attacks": [_attack(rows, shown, samples) for _, rows in predictions[attacked].groupby(keys, sort=True)],
        **_input_gradients(clean),
        **_corruptions(predictions[corrupted], shown, samples),
    }


def _input_gradients(clean: "pd.DataFrame") -> dict[str, Any]:
    """On how many of the images answered right the gradient was measured, and the share where it is as good as none."""
    if "gradient" not in clean:
        return {}
    sizes = clean.loc[right(clean), "gradient"].dropna().to_numpy(dtype=float)
    gone = (sizes < VANISHING) | ~np.isfinite(sizes)
    return {"input_gradients": {"n": len(sizes), "vanishing": float(gone.mean())}} if len(sizes) else {}


def accuracy(rows: "pd.DataFrame", samples: Bootstraps) -> dict[str, Any]:
    """Of the rows of one condition: accuracy and balanced_accuracy, each with _ci, constant_answer and n."""
    bootstrap, labels = samples.over(rows["group"]), rows["label"].to_numpy(dtype=np.int64)
    of_class = labels[:, None] == np.unique(labels)
    hits, sizes = (bootstrap.totals(of_class & kept) for kept in (right(rows)[:, None], True))
    with np.errstate(invalid="ignore", divide="ignore"):
        balanced = (hits / sizes).mean(axis=1)  # NaN in a resample that lacks a class
    found = _share("accuracy", right(rows), bootstrap)
    found |= {"balanced_accuracy": float(balanced[0]), "balanced_accuracy_ci": interval(balanced)}
    return found | {"constant_answer": constant_answer(labels), "n": len(rows)}


def constant_answer(labels: NDArray[np.int64]) -> float:
    """The accuracy of always giving the commonest class of labels (N,); NaN without any."""
    return float(np.bincount(labels).max() / len(labels)) if len(labels) else float("nan")


def _share(name: str, values: Any, bootstrap: Bootstrap) -> dict[str, Any]:
    means = bootstrap.means(values)
    return {name: float(means[0]), f"{name}_ci": share_interval(bootstrap, means)}


def _attack(rows: "pd.DataFrame", shown: "pd.DataFrame", samples: Bootstraps) -> dict[str, Any]:
    """One attack at one epsilon. Its success is counted over the images that the model gets right as they are."""
    attack, own = rows["attack"].iloc[0], right(rows)
    was_right = shown["right"].loc[rows["sample_id"]].to_numpy()
    bins = calibration.calibration_bins(statistics.softmax(logits_of(rows)), rows["label"].to_numpy())
    totals = samples.over(rows["group"]).totals(bins)
    found = accuracy(rows, samples)
    return {
        "attack": attack,
        "epsilon": float(rows["epsilon"].iloc[0]),
        **{key: found[key] for key in ("accuracy", "accuracy_ci", "balanced_accuracy", "balanced_accuracy_ci")},
        "success_rate": float((~own)[was_right].mean()) if was_right.any() else float("nan"),
        "ece": calibration.debiased_error(totals)[0],
        "ece_plug_in": float(calibration.calibration_error(totals[0])),
        "n": len(rows),
        **_how_found(rows, was_right),
    } | ({"steps": int(rows["steps"].iloc[0])} if "steps" in rows and attack not in ONE_STEP else {})


def _how_found(rows: "pd.DataFrame", was_right: NDArray[np.bool_]) -> dict[str, Any]:
    """`unmoved`: the share of the images answered right that the attack left as they were; `broken_by`: worst-case's.

    Nothing of tables from before these were kept.
    """
    found: dict[str, Any] = {}
    if "moved" in rows and rows["moved"].notna().any() and was_right.any():
        found["unmoved"] = float((rows["moved"].to_numpy(dtype=float)[was_right] == 0).mean())
    if "broken_by" in rows and (names := rows["broken_by"].fillna(""))[names != ""].any():
        found["broken_by"] = {str(name): int(count) for name, count in names[names != ""].value_counts().items()}
    return found


def _corruptions(rows: "pd.DataFrame", shown: "pd.DataFrame", samples: Bootstraps) -> dict[str, Any]:
    """ "corruptions": accuracy and flips, answers that are not those of the clean image, for each and severity.

    "corruptions_mean": the same, averaged over all corruptions and severities within each image, so that its interval
    is one over images.
    """
    if not len(rows):
        return {"corruptions": []}
    before = shown["answer"].loc[rows["sample_id"]].to_numpy()
    table = rows.assign(right=right(rows), flipped=logits_of(rows).argmax(1) != before)
    found = []
    # Names in the order in which they were tested, which is the registry's.
    for (name, _), part in table.groupby(["attack", "severity"], sort=False):
        bootstrap = samples.over(part["group"])
        document: dict[str, Any] = {"corruption": name, "severity": int(part["severity"].iloc[0])}
        document |= _share("accuracy", part["right"], bootstrap)
        found.append(document | {"flip_rate": float(part["flipped"].mean()), "n": len(part)})
    means = table.groupby("sample_id", sort=False).agg({"right": "mean", "flipped": "mean", "group": "first"})
    bootstrap = samples.over(means["group"])
    mean = _share("accuracy", means["right"], bootstrap) | _share("flip_rate", means["flipped"], bootstrap)
    return {"corruptions": found, "corruptions_mean": mean | {"n": len(means), "conditions": len(found)}}


def by_column(clean: "pd.DataFrame", column: str, samples: Bootstraps) -> dict[str, Any]:
    """`accuracy` of the rows with each value of a column, apart; empty where it does not divide the rows."""
    if column not in clean or clean[column].fillna("").nunique() < 2:
        return {}
    return {str(name) or "unknown": accuracy(rows, samples) for name, rows in clean.groupby(clean[column].fillna(""))}


def drop_from_internal(
    internal: "pd.DataFrame", external: "pd.DataFrame", *, resamples: int = 2000
) -> list[dict[str, Any]]:
    """What accuracy is lost from the run's own test images to others, clean and under each attack that both have.

    The samples are different images, so each is resampled by itself; the interval is that of the difference.
    """
    ours, theirs = Bootstraps(resamples=resamples, seed=0), Bootstraps(resamples=resamples, seed=1)
    found = []
    for key, (here, there) in _in_both(internal, external).items():
        within, outside = ours.over(here["group"]).means(right(here)), theirs.over(there["group"]).means(right(there))
        attack, epsilon, steps = key
        found.append(
            {"attack": attack, "epsilon": epsilon}
            | ({"steps": steps} if attack not in (CLEAN, *ONE_STEP) else {})
            | {
                "internal": float(within[0]),
                "external": float(outside[0]),
                "drop": float(within[0] - outside[0]),
                "drop_ci": interval(within - outside),
                "n_internal": len(here),
                "n_external": len(there),
            }
        )
    return found


def _in_both(first: "pd.DataFrame", second: "pd.DataFrame") -> dict[tuple[str, float, int], Any]:
    """The rows of both tables under the same attack, epsilon and steps; clean first."""
    parts = []
    for table in (first, second):
        kept = table[(severities(table) == 0) & ~table["attack"].isin(VIEWS)]
        parts.append({(str(a), float(e), int(s)): r for (a, e, s), r in kept.groupby(["attack", "epsilon", "steps"])})
    shared = sorted(set(parts[0]) & set(parts[1]), key=lambda key: (key[0] != CLEAN, key))
    return {key: (parts[0][key], parts[1][key]) for key in shared}
