"""Compute metrics from predictions: every number in metrics.json can be computed from a table again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trustcxr import statistics
from trustcxr.errors import NotFiniteError
from trustcxr.evaluation import calibration, multilabel_metrics
from trustcxr.registry import GROUPINGS, LUNGS_HIDDEN, STOCHASTIC_DRAWS, VIEWS
from trustcxr.statistics import (
    Bootstrap,
    Bootstraps,
    Floats,
    area_interval,
    interval,
    mean_share_interval,
    share_interval,
)
from trustcxr.storage.prediction_table import (
    CLEAN,
    RIGHT_SHARE,
    clean_answers,
    efforts_of,
    logits_of,
    right,
    severities,
)
from trustcxr.storage.schemas import (
    Accuracy,
    AttackResult,
    Classification,
    ClassResult,
    CorruptionResult,
    CorruptionsMean,
    Draws,
    InputGradients,
    RunDocument,
    Share,
)

if TYPE_CHECKING:
    import pandas as pd

VANISHING = 1e-12  # largest gradient of an image that counts as vanishing; a confident network is far above it


def classification(
    logits: Floats, labels: NDArray[np.int64], groups: Any, classes: tuple[str, ...], *, resamples: int = 2000
) -> Classification:
    """Return accuracy, precision, recall, F1, AUROC (macro, per class), calibration error, confusion, with intervals.

    `logits` (N, C), `labels` (N,). Precision and F1 of a class that is present but never predicted, or the reverse, are
    0, as in scikit-learn. Recall and AUROC of an absent class are NaN and left out of the macro mean; so are its
    precision and F1 if it is never predicted. Shares near 0 or 1 have the score interval, other figures that of the
    resamples. Raises NotFiniteError for a NaN logit, which argmax would choose.
    """
    _check_numbers(logits)
    bootstrap = Bootstrap.over(groups, resamples=resamples)
    cells, probabilities = _cells(logits, labels, len(classes)), statistics.softmax(logits)
    confusion = bootstrap.totals(cells)  # (R + 1, true, predicted)
    figures = _Measured(
        confusion[0],
        _from_confusion(confusion) | {"auroc": _areas(probabilities, labels, bootstrap, len(classes))},
        bootstrap.totals(calibration.calibration_bins(probabilities, labels)),
        constant_answer(labels),
    )
    return _classified(bootstrap, figures, cells, classes)


def classify_findings(clean: "pd.DataFrame", states: tuple[str, ...], *, resamples: int = 2000) -> Classification:
    """Return `classification` of decisions on findings: accuracy over all decisions, else means over findings."""
    logits, labels = logits_of(clean), clean["label"].to_numpy(dtype=np.int64)
    _check_numbers(logits)
    bootstrap = Bootstrap.over(clean["group"], resamples=resamples)
    cells = _cells(logits, labels, len(states))

    def figures(rows: NDArray[np.bool_], part: Bootstrap) -> Floats:
        measured = _from_confusion(part.totals(cells[rows]))
        return np.stack([measured[name] for name in _OF_CLASSES], axis=1)

    means = multilabel_metrics.mean_over_findings(clean, bootstrap, figures, (len(_OF_CLASSES), len(states)))
    area = multilabel_metrics.auroc(clean, bootstrap)  # the same of both states
    figures_of_all = _Measured(
        cells.sum(0),
        dict(zip(_OF_CLASSES, np.moveaxis(means, 1, 0), strict=True))
        | {"accuracy": bootstrap.means(right(clean)), "auroc": np.stack([area, area], axis=1)},
        multilabel_metrics.calibration_totals(clean, bootstrap),
        multilabel_metrics.constant_answer(clean),
        len(multilabel_metrics.has_both_labels(clean)),
    )
    return _classified(bootstrap, figures_of_all, cells, states)


_OF_CLASSES = ("precision", "recall", "f1")


@dataclass(frozen=True)
class _Measured:
    """Counts and figures, (R + 1,) or per class (R + 1, C); `findings`: how many the means are over."""

    confusion: Floats
    figures: dict[str, Floats]
    bins: Floats
    constant: float
    findings: int | None = None


def _classified(bootstrap: Bootstrap, counted: _Measured, cells: Floats, classes: tuple[str, ...]) -> Classification:
    """Return the document, with intervals; `cells` (N, C, C) as in `_cells`."""
    figures, true, predicted = dict(counted.figures), cells.sum(2) > 0, cells.sum(1) > 0
    shares = {"recall": true, "precision": predicted}
    several = counted.findings is not None and counted.findings != 1
    per_class = {
        label: ClassResult(
            **{name: _share(bootstrap, figures[name][:, k], of[:, k]) for name, of in shares.items()},
            f1=_f1(bootstrap, figures["f1"][:, k], (true | predicted)[:, k], several),
            auroc=_area(bootstrap, figures["auroc"][:, k], true[:, k], several),
            n=int(true[:, k].sum()),
        )
        for k, label in enumerate(classes)
    }
    recall = _mean_share(bootstrap, figures["recall"], true)
    means = {
        f"{name}_macro": _mean(figures[name], [getattr(one, name) for one in per_class.values()])
        for name in ("precision", "f1", "auroc")
    }
    result = Classification(
        accuracy=_share(bootstrap, figures["accuracy"]),
        balanced_accuracy=recall,
        recall_macro=recall,
        **means,
        ece=_calibration_error(counted.bins, bootstrap),
        ece_plug_in=float(calibration.calibration_error(counted.bins[0])),
        constant_answer=counted.constant,
        n=len(cells),
        groups=int(bootstrap.weights.shape[1]),
        confusion=counted.confusion.astype(int).tolist(),
        per_class=per_class,
    )
    if counted.findings is not None:
        result.findings = counted.findings
    return result


def _cells(logits: Floats, labels: NDArray[np.int64], count: int) -> Floats:
    """Mark the class and the answer of each row: (N, C, C)."""
    cells = np.zeros((len(labels), count, count))
    cells[np.arange(len(labels)), labels, logits.argmax(1)] = 1
    return cells


def _areas(probabilities: Floats, labels: NDArray[np.int64], bootstrap: Bootstrap, count: int) -> Floats:
    """Return the area under the ROC curve of each class against the rest, (R + 1, C)."""
    weights = bootstrap.row_weights()
    return np.stack([statistics.auroc(probabilities[:, k], labels == k, weights) for k in range(count)], axis=1)


def _area(bootstrap: Bootstrap, areas: Floats, positive: NDArray[np.bool_], several: bool) -> Share:
    """Return one area with its interval, by resampling if it is the mean of `several` findings."""
    return _figure(areas) if several else Share(value=float(areas[0]), ci=area_interval(bootstrap, areas, positive))


def _f1(bootstrap: Bootstrap, values: Floats, either: NDArray[np.bool_], several: bool) -> Share:
    """Return one class's F1 with its interval, by resampling if it is the mean of `several` findings.

    F1 is 2 J / (1 + J), where J is the share of hits among the rows `either` (N,) of or answered as the class.
    """
    if several:
        return _figure(values)
    ends = share_interval(bootstrap, values / (2 - values), of=either)
    return Share(value=float(values[0]), ci=[2 * end / (1 + end) for end in ends])


def _mean(values: Floats, classes: Sequence[Share]) -> Share:
    """Return the mean of figures (R + 1, C) of the `classes` with its interval.

    If all resamples are equal, as without an error, its ends are the means of the classes' ends.
    """
    mean = _figure(_macro(values))
    if mean.interval is None or mean.interval[0] < mean.interval[1]:
        return mean
    ends = np.mean([one.interval for one in classes if one.interval is not None], axis=0)
    return Share(value=mean.value, ci=(float(ends[0]), float(ends[1])))


def _check_numbers(logits: Floats) -> None:
    if lost := int(np.isnan(logits).any(1).sum()):
        raise NotFiniteError(f"{lost} of {len(logits)} rows of the predictions hold NaN. Evaluate the run again")


def _figure(values: Floats) -> Share:
    """Return values (R + 1,) of the sample and its resamples as a figure with its interval."""
    return Share(value=float(values[0]), ci=interval(values))


def _share(bootstrap: Bootstrap, means: Floats, of: NDArray[np.bool_] | None = None) -> Share:
    """Return a share of the rows, or `of` some, (R + 1,), with its interval."""
    return Share(value=float(means[0]), ci=share_interval(bootstrap, means, of=of))


def _mean_share(bootstrap: Bootstrap, shares: Floats, of: NDArray[np.bool_]) -> Share:
    """Return the mean of shares (R + 1, C), each of its rows `of` (N, C), with its interval."""
    return Share(value=float(_macro(shares)[0]), ci=mean_share_interval(bootstrap, shares, of))


def _calibration_error(bins: Floats, bootstrap: Bootstrap) -> Share:
    """Return the calibration error with its interval, which one group does not have."""
    error, ends = calibration.debiased_error(bins)
    return Share(value=error, ci=ends if bootstrap.count_groups() > 1 else None)


def _from_confusion(confusion: Floats) -> dict[str, Floats]:
    hit, true, predicted = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(2), confusion.sum(1)
    total = confusion.sum((1, 2))
    return {
        "accuracy": np.divide(hit.sum(1), total, out=np.full_like(total, np.nan), where=total > 0),
        "precision": np.divide(hit, predicted, out=np.where(true > 0, 0.0, np.nan), where=predicted > 0),
        "recall": np.divide(hit, true, out=np.full_like(hit, np.nan), where=true > 0),
        "f1": np.divide(2 * hit, true + predicted, out=np.full_like(hit, np.nan), where=true + predicted > 0),
    }


def _macro(values: Floats) -> Floats:
    """Average over the classes with a value in the sample (row 0): (R + 1, C) -> (R + 1,)."""
    finite = np.isfinite(values[0])
    return values[:, finite].mean(1) if finite.any() else np.full(len(values), np.nan)


def from_predictions(predictions: "pd.DataFrame", classes: tuple[str, ...], *, resamples: int = 2000) -> RunDocument:
    """Return all of metrics.json that comes from the predictions of one run and one split.

    `without_lungs` is the view of hidden lungs with the highest accuracy. Raises NotFiniteError for a NaN logit.
    """
    _check_numbers(logits_of(predictions))
    samples = Bootstraps(resamples=resamples)
    clean, shown = predictions[predictions["attack"] == CLEAN], clean_answers(predictions)
    corrupted = severities(predictions) > 0
    attacked = ~corrupted & ~predictions["attack"].isin([CLEAN, *VIEWS])
    keys = [key for key in ("attack", "epsilon", "steps") if key in predictions]
    views = {view: predictions[predictions["attack"] == view] for view in VIEWS}
    document = RunDocument(
        clean=_clean(clean, classes, resamples),
        by_source=by_column(clean, "source", samples),
        by_group={name: by_column(clean, name, samples) for name in GROUPINGS if clean.get(name) is not None},
        shortcuts={view: accuracy(rows, samples) for view, rows in views.items() if len(rows)},
        attacks=[_attack(rows, shown, samples) for _, rows in predictions[attacked].groupby(keys, sort=True)],
        corruptions=[],
    )
    if (drawn := _draws(clean, samples)) is not None:
        document.clean.draws = drawn
    hidden = {view: document.shortcuts[view] for view in LUNGS_HIDDEN if view in document.shortcuts}
    if hidden:
        worst = max(hidden, key=lambda view: hidden[view].accuracy.value or 0.0)
        document.without_lungs = hidden[worst].model_copy(update={"view": worst})
    if (gradients := _input_gradients(clean)) is not None:
        document.input_gradients = gradients
    if corrupted.any():
        document.corruptions, document.corruptions_mean = _corruptions(predictions[corrupted], shown, samples)
    return document


def _clean(clean: "pd.DataFrame", classes: tuple[str, ...], resamples: int) -> Classification:
    if multilabel_metrics.has_findings(clean):
        return classify_findings(clean, classes, resamples=resamples)
    labels = clean["label"].to_numpy(dtype=np.int64)
    return classification(logits_of(clean), labels, clean["group"], classes, resamples=resamples)


def _input_gradients(clean: "pd.DataFrame") -> InputGradients | None:
    """Count the correct images with a measured gradient, and the share with a vanishing one."""
    if "gradient" not in clean:
        return None
    sizes = clean.loc[right(clean), "gradient"].dropna().to_numpy(dtype=float)
    vanishing = (sizes < VANISHING) | ~np.isfinite(sizes)
    return InputGradients(n=len(sizes), vanishing=float(vanishing.mean())) if len(sizes) else None


def accuracy(rows: "pd.DataFrame", samples: Bootstraps) -> Accuracy:
    """Return accuracy, balanced accuracy, accuracy of a constant answer and n of the rows of one condition."""
    bootstrap = samples.over(rows["group"])
    return Accuracy(
        accuracy=_share(bootstrap, bootstrap.means(right(rows))),
        balanced_accuracy=_balanced_of(bootstrap, rows, right(rows)),
        n=len(rows),
        constant_answer=_constant_of(rows),
    )


def _constant_of(rows: "pd.DataFrame") -> float:
    """Return the accuracy of the commonest class of the rows, or of the commonest answer to each finding."""
    if multilabel_metrics.has_findings(rows):
        return multilabel_metrics.constant_answer(rows)
    return constant_answer(rows["label"].to_numpy(dtype=np.int64))


def _balanced_of(bootstrap: Bootstrap, rows: "pd.DataFrame", is_right: NDArray[Any]) -> Share:
    """Return the mean over the classes, or over findings and their two states, of the share `is_right` (N,)."""
    if not multilabel_metrics.has_findings(rows):
        return balanced(bootstrap, is_right, rows["label"].to_numpy(dtype=np.int64))
    of_state = rows["label"].to_numpy()[:, None] == np.arange(2)
    hits = of_state * is_right[:, None]

    def recall(part: NDArray[np.bool_], among: Bootstrap) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(among.totals(hits[part]) / among.totals(of_state[part]))

    return _mean_share(bootstrap, multilabel_metrics.mean_over_findings(rows, bootstrap, recall, (2,)), of_state)


def macro_auroc(rows: "pd.DataFrame", bootstrap: Bootstrap, count: int) -> Floats:
    """Return the mean area under the ROC curve, of `count` classes against the rest or of findings, (R + 1,)."""
    if multilabel_metrics.has_findings(rows):
        return multilabel_metrics.auroc(rows, bootstrap)
    scores, labels = statistics.softmax(logits_of(rows)), rows["label"].to_numpy(dtype=np.int64)
    return _macro(_areas(scores, labels, bootstrap, count))


def calibration_totals(rows: "pd.DataFrame", bootstrap: Bootstrap) -> Floats:
    """Return the summed bins (R + 1, bins, 3) of the calibration error."""
    if multilabel_metrics.has_findings(rows):
        return multilabel_metrics.calibration_totals(rows, bootstrap)
    shares = calibration.calibration_bins(statistics.softmax(logits_of(rows)), rows["label"].to_numpy())
    return bootstrap.totals(shares)


def balanced(bootstrap: Bootstrap, rows: NDArray[Any], labels: NDArray[np.int64]) -> Share:
    """Return the mean over the classes of labels (N,) of the share of rows (N,), with its interval."""
    of_class = labels[:, None] == np.unique(labels)
    hits, sizes = (bootstrap.totals(of_class * counted) for counted in (rows[:, None], True))
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = hits / sizes  # NaN in a resample that lacks a class
    return _mean_share(bootstrap, shares, of_class)


def constant_answer(labels: NDArray[np.int64]) -> float:
    """Return the accuracy of always predicting the commonest class of labels (N,); NaN without any."""
    return float(np.bincount(labels).max() / len(labels)) if len(labels) else float("nan")


def _attack(rows: "pd.DataFrame", shown: "pd.DataFrame", samples: Bootstraps) -> AttackResult:
    """Return the figures of one attack at one epsilon; its success rate is over images that are correct without it."""
    attack, is_right = str(rows["attack"].iloc[0]), right(rows)
    was_right = shown["right"].loc[rows["sample_id"]].to_numpy()
    bootstrap = samples.over(rows["group"])
    totals = calibration_totals(rows, bootstrap)
    plain, broken = accuracy(rows, samples), bootstrap.means(np.where(was_right, ~is_right, np.nan))
    result = AttackResult(
        attack=attack,
        epsilon=float(rows["epsilon"].iloc[0]),
        accuracy=plain.accuracy,
        balanced_accuracy=plain.balanced_accuracy,
        success_rate=_share(bootstrap, broken, was_right),
        ece=_calibration_error(totals, bootstrap),
        ece_plug_in=float(calibration.calibration_error(totals[0])),
        n=len(rows),
    )
    if len(rows) < len(shown):
        result.clean, result.constant_answer = _share(bootstrap, bootstrap.means(was_right)), plain.constant_answer
        result.clean_balanced_accuracy = _balanced_of(bootstrap, rows, was_right)
    for name, count in efforts_of(rows).items():
        setattr(result, name, count)
    if (drawn := _draws(rows, samples)) is not None:
        result.draws = drawn
    _add_details(result, rows, was_right)
    return result


def _draws(rows: "pd.DataFrame", samples: Bootstraps) -> Draws | None:
    """Return the mean and the all-draws accuracy of a random model; None for another."""
    if RIGHT_SHARE not in rows or not len(rows) or rows[RIGHT_SHARE].isna().any():
        return None
    bootstrap, shares = samples.over(rows["group"]), rows[RIGHT_SHARE].to_numpy(dtype=float)
    one, each = (_share(bootstrap, bootstrap.means(values)) for values in (shares, shares == 1))
    return Draws(count=STOCHASTIC_DRAWS, one=one, each=each)


def _add_details(result: AttackResult, rows: "pd.DataFrame", was_right: NDArray[np.bool_]) -> None:
    """Add `unmoved` (share of correct images that the attack left unchanged), `broken_by`, and `surrogate`."""
    if "moved" in rows and rows["moved"].notna().any() and was_right.any():
        result.unmoved = float((rows["moved"].to_numpy(dtype=float)[was_right] == 0).mean())
    if "rounded" in rows and rows["rounded"].notna().all():
        result.rounded = bool(rows["rounded"].any())
    if "broken_by" in rows and (names := rows["broken_by"].fillna(""))[names != ""].any():
        result.broken_by = {str(name): int(count) for name, count in names[names != ""].value_counts().items()}
    if "surrogate" in rows and rows["surrogate"].notna().any():
        result.surrogate = " and ".join(dict.fromkeys(map(str, rows["surrogate"].dropna())))


def _corruptions(
    rows: "pd.DataFrame", shown: "pd.DataFrame", samples: Bootstraps
) -> tuple[list[CorruptionResult], CorruptionsMean]:
    """Return accuracy and flips (answers unlike the clean one) for each corruption, and their mean over all."""
    before = shown["answer"].loc[rows["sample_id"]].to_numpy()
    table = rows.assign(right=right(rows), flipped=logits_of(rows).argmax(1) != before)
    results = []
    # Names in the order in which they were tested, which is the registry's.
    for (name, _), part in table.groupby(["attack", "severity"], sort=False):
        bootstrap = samples.over(part["group"])
        results.append(
            CorruptionResult(
                corruption=name,
                severity=int(part["severity"].iloc[0]),
                accuracy=_share(bootstrap, bootstrap.means(part["right"])),
                flip_rate=_share(bootstrap, bootstrap.means(part["flipped"])),
                n=len(part),
            )
        )
    firsts = [name for name in ("group", "label", "finding") if name in table]
    columns = {"right": "mean", "flipped": "mean"} | dict.fromkeys(firsts, "first")
    means = table.groupby("sample_id", sort=False).agg(columns)
    bootstrap = samples.over(means["group"])
    both = {name: _share(bootstrap, bootstrap.means(means[column])) for name, column in _MEANS.items()}
    both["balanced_accuracy"] = _balanced_of(bootstrap, means, means["right"].to_numpy())
    mean = CorruptionsMean(**both, n=len(means), conditions=len(results))
    if len(means) < len(shown):
        was_right = shown["right"].loc[means.index].to_numpy()
        mean.clean = _share(bootstrap, bootstrap.means(was_right))
        mean.clean_balanced_accuracy = _balanced_of(bootstrap, means, was_right)
        mean.constant_answer = _constant_of(means)
    return results, mean


_MEANS = {"accuracy": "right", "flip_rate": "flipped"}


def by_column(clean: "pd.DataFrame", column: str, samples: Bootstraps) -> dict[str, Accuracy]:
    """Return `accuracy` of the rows with each value of a column; empty unless it divides the rows."""
    if column not in clean or clean[column].fillna("").nunique() < 2:
        return {}
    return {str(name) or "unknown": accuracy(rows, samples) for name, rows in clean.groupby(clean[column].fillna(""))}
