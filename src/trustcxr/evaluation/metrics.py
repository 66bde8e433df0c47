"""Compute metrics from predictions: every number in metrics.json can be computed from a table again.

Models with one sigmoid per finding have the columns `finding` and `threshold`; an image without a label for a finding
has no row of it. Their metrics are of each finding alone, then the mean: pooled over findings, an AUROC, F1 or balanced
accuracy belongs to none of them, since thresholds and prevalence differ.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from trustcxr import statistics
from trustcxr.errors import NotFiniteError
from trustcxr.evaluation import calibration
from trustcxr.evaluation.operating_points import conditions, cut
from trustcxr.registry import GROUPINGS, LUNGS_HIDDEN, STOCHASTIC_DRAWS, VIEWS
from trustcxr.statistics import Bootstrap, Bootstraps, Floats, area_interval, mean_share_interval, share_interval
from trustcxr.storage import schemas
from trustcxr.storage.prediction_table import CLEAN, RIGHT_SHARE, clean_answers, logits_of, right
from trustcxr.storage.schemas import Accuracy, Classification, RunDocument, Share

if TYPE_CHECKING:
    import pandas as pd

Rows = NDArray[np.bool_]
Measure = Callable[[Rows, Bootstrap], Floats]
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
    figures = _from_confusion(confusion) | {"auroc": _areas(probabilities, labels, bootstrap, len(classes))}
    bins = bootstrap.totals(calibration.calibration_bins(probabilities, labels))
    result = _classified(bootstrap, figures, bins, cells, classes)
    result.constant_answer = float(np.bincount(labels).max() / len(labels)) if len(labels) else None
    return result


def classify_findings(clean: "pd.DataFrame", states: tuple[str, ...], *, resamples: int = 2000) -> Classification:
    """Return `classification` of decisions on findings: accuracy over all decisions, else means over findings."""
    logits, labels = logits_of(clean), clean["label"].to_numpy(dtype=np.int64)
    _check_numbers(logits)
    bootstrap = Bootstrap.over(clean["group"], resamples=resamples)
    cells = _cells(logits, labels, len(states))

    def figures(rows: Rows, part: Bootstrap) -> Floats:
        measured = _from_confusion(part.totals(cells[rows]))
        return np.stack([measured[name] for name in _OF_CLASSES], axis=1)

    means = mean_over_findings(clean, bootstrap, figures, (len(_OF_CLASSES), len(states)))
    area = macro_auroc(clean, bootstrap, len(states))  # the same of both states
    figures_of_all = dict(zip(_OF_CLASSES, np.moveaxis(means, 1, 0), strict=True))
    figures_of_all |= {"accuracy": bootstrap.means(right(clean)), "auroc": np.stack([area, area], axis=1)}
    findings = len(has_both_labels(clean))
    bins = calibration_totals(clean, bootstrap)
    result = _classified(bootstrap, figures_of_all, bins, cells, states, several=findings != 1)
    result.constant_answer, result.findings = constant_answer(clean), findings
    return result


_OF_CLASSES = ("precision", "recall", "f1")


def _classified(
    bootstrap: Bootstrap,
    figures: dict[str, Floats],
    bins: Floats,
    cells: Floats,
    classes: tuple[str, ...],
    *,
    several: bool = False,
) -> Classification:
    """Return the document, with intervals, from figures (R + 1,) or per class (R + 1, C), means of `several` findings.

    `bins` (R + 1, bins, 3) are those of the calibration; `cells` (N, C, C) as in `_cells`.
    """
    true, predicted = cells.sum(2) > 0, cells.sum(1) > 0
    shares = {"recall": true, "precision": predicted}
    per_class = {
        label: schemas.ClassResult(
            **{name: share(bootstrap, figures[name][:, k], of[:, k]) for name, of in shares.items()},
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
    return Classification(
        accuracy=share(bootstrap, figures["accuracy"]),
        balanced_accuracy=recall,
        recall_macro=recall,
        **means,
        ece=_calibration_error(bins, bootstrap),
        ece_plug_in=float(calibration.calibration_error(bins[0])),
        n=len(cells),
        groups=int(bootstrap.weights.shape[1]),
        confusion=cells.sum(0).astype(int).tolist(),
        per_class=per_class,
    )


def _cells(logits: Floats, labels: NDArray[np.int64], count: int) -> Floats:
    """Mark the class and the answer of each row: (N, C, C)."""
    cells = np.zeros((len(labels), count, count))
    cells[np.arange(len(labels)), labels, logits.argmax(1)] = 1
    return cells


def _areas(probabilities: Floats, labels: NDArray[np.int64], bootstrap: Bootstrap, count: int) -> Floats:
    """Return the area under the ROC curve of each class against the rest, (R + 1, C)."""
    weights = bootstrap.row_weights()
    return np.stack([statistics.auroc(probabilities[:, k], labels == k, weights) for k in range(count)], axis=1)


def _area(bootstrap: Bootstrap, areas: Floats, positive: Rows, several: bool) -> Share:
    """Return an area with its interval, by resampling if it is the mean of `several` findings."""
    return _figure(areas) if several else Share(value=float(areas[0]), ci=area_interval(bootstrap, areas, positive))


def _f1(bootstrap: Bootstrap, values: Floats, either: Rows, several: bool) -> Share:
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
    return Share(value=float(values[0]), ci=statistics.interval(values))


def share(bootstrap: Bootstrap, means: Floats, of: Rows | None = None) -> Share:
    """Return a share of the rows, or `of` some, (R + 1,) in the sample and its resamples, with its interval."""
    return Share(value=float(means[0]), ci=share_interval(bootstrap, means, of=of))


def _mean_share(bootstrap: Bootstrap, shares: Floats, of: Rows) -> Share:
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
    corrupted = predictions["severity"].fillna(0) > 0
    if has_findings(clean):
        overall = classify_findings(clean, classes, resamples=resamples)
    else:
        labels = clean["label"].to_numpy(dtype=np.int64)
        overall = classification(logits_of(clean), labels, clean["group"], classes, resamples=resamples)
    document = RunDocument(
        clean=overall,
        by_source=by_column(clean, "source", samples),
        by_group={name: by_column(clean, name, samples) for name in GROUPINGS if clean.get(name) is not None},
        shortcuts={
            view: accuracy(rows, samples) for view in VIEWS if len(rows := predictions[predictions["attack"] == view])
        },
        attacks=[
            _attack(condition, rows, shown, samples)
            for condition, rows in conditions(predictions)
            if condition["attack"] != CLEAN
        ],
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


def _input_gradients(clean: "pd.DataFrame") -> schemas.InputGradients | None:
    """Count the correct images with a measured gradient, and the share with a vanishing one."""
    if "gradient" not in clean:
        return None
    sizes = clean.loc[right(clean), "gradient"].dropna().to_numpy(dtype=float)
    vanishing = (sizes < VANISHING) | ~np.isfinite(sizes)
    return schemas.InputGradients(n=len(sizes), vanishing=float(vanishing.mean())) if len(sizes) else None


def accuracy(rows: "pd.DataFrame", samples: Bootstraps) -> Accuracy:
    """Return accuracy, balanced accuracy, accuracy of a constant answer and n of the rows of one condition."""
    bootstrap = samples.over(rows["group"])
    return Accuracy(
        accuracy=share(bootstrap, bootstrap.means(right(rows))),
        balanced_accuracy=balanced(bootstrap, rows, right(rows)),
        n=len(rows),
        constant_answer=constant_answer(rows),
    )


def constant_answer(rows: "pd.DataFrame") -> float:
    """Return the accuracy of always giving the commonest answer, to each finding; NaN without rows."""
    labels = rows["label"].to_numpy(dtype=np.int64)
    return sum(int(np.bincount(labels[part]).max()) for part in _parts(rows)) / len(rows) if len(rows) else np.nan


def balanced(bootstrap: Bootstrap, rows: "pd.DataFrame", is_right: NDArray[Any]) -> Share:
    """Return the mean over the classes, or over findings and their two states, of the share `is_right` (N,)."""
    labels = rows["label"].to_numpy(dtype=np.int64)
    of_state = labels[:, None] == (np.arange(2) if has_findings(rows) else np.unique(labels))
    hits = of_state * is_right[:, None]

    def recall(part: Rows, among: Bootstrap) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(among.totals(hits[part]) / among.totals(of_state[part]))

    return _mean_share(bootstrap, mean_over_findings(rows, bootstrap, recall, of_state.shape[1:]), of_state)


def macro_auroc(rows: "pd.DataFrame", bootstrap: Bootstrap, count: int) -> Floats:
    """Return the mean area under the ROC curve, of `count` classes against the rest or of findings, (R + 1,)."""
    labels = rows["label"].to_numpy(dtype=np.int64)
    if not has_findings(rows):
        return _macro(_areas(statistics.softmax(logits_of(rows)), labels, bootstrap, count))
    scores = _margins(rows)

    def area(part: Rows, among: Bootstrap) -> Floats:
        return statistics.auroc(scores[part], labels[part] == 1, among.row_weights())

    return mean_over_findings(rows, bootstrap, area)


def calibration_totals(rows: "pd.DataFrame", bootstrap: Bootstrap) -> Floats:
    """Return the summed bins (R + 1, bins, 3) of the calibration error; of findings, those of all, with its mean.

    They are of the probability as the model states it, regardless of thresholds.
    """
    if not has_findings(rows):
        return bootstrap.totals(calibration.calibration_bins(statistics.softmax(logits_of(rows)), rows["label"]))
    cuts = {value: cut(value) for value in rows["threshold"].unique()}
    present = special.expit(_margins(rows) + rows["threshold"].map(cuts).to_numpy(dtype=float))
    shares = calibration.calibration_bins(np.stack([1 - present, present], axis=1), rows["label"])
    parts = []
    for part in _parts(rows):
        sums = bootstrap.select(part).totals(shares[part])
        counts = sums[..., 2].sum(-1)[:, None, None]
        # A resample without an image of which this finding is known says of it what the sample does.
        weighed = np.divide(sums, counts, out=np.broadcast_to(sums[0] / counts[0], sums.shape).copy(), where=counts > 0)
        parts.append(weighed[:, sums[0, :, 2] > 0])
    return np.concatenate(parts, axis=1)


def _attack(
    condition: dict[str, Any], rows: "pd.DataFrame", shown: "pd.DataFrame", samples: Bootstraps
) -> schemas.AttackResult:
    """Return the figures of one attack at one epsilon; its success rate is over images that are correct without it."""
    is_right, was_right = right(rows), shown["right"].loc[rows["sample_id"]].to_numpy()
    bootstrap = samples.over(rows["group"])
    totals = calibration_totals(rows, bootstrap)
    plain, broken = accuracy(rows, samples), bootstrap.means(np.where(was_right, ~is_right, np.nan))
    result = schemas.AttackResult(
        **condition,
        accuracy=plain.accuracy,
        balanced_accuracy=plain.balanced_accuracy,
        success_rate=share(bootstrap, broken, was_right),
        ece=_calibration_error(totals, bootstrap),
        ece_plug_in=float(calibration.calibration_error(totals[0])),
        n=len(rows),
    )
    if len(rows) < len(shown):
        result.clean, result.constant_answer = share(bootstrap, bootstrap.means(was_right)), plain.constant_answer
        result.clean_balanced_accuracy = balanced(bootstrap, rows, was_right)
    if (drawn := _draws(rows, samples)) is not None:
        result.draws = drawn
    _add_details(result, rows, was_right)
    return result


def _draws(rows: "pd.DataFrame", samples: Bootstraps) -> schemas.Draws | None:
    """Return the mean and the all-draws accuracy of a random model; None for another."""
    if RIGHT_SHARE not in rows or not len(rows) or rows[RIGHT_SHARE].isna().any():
        return None
    bootstrap, shares = samples.over(rows["group"]), rows[RIGHT_SHARE].to_numpy(dtype=float)
    one, each = (share(bootstrap, bootstrap.means(values)) for values in (shares, shares == 1))
    return schemas.Draws(count=STOCHASTIC_DRAWS, one=one, each=each)


def _add_details(result: schemas.AttackResult, rows: "pd.DataFrame", was_right: Rows) -> None:
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
) -> tuple[list[schemas.CorruptionResult], schemas.CorruptionsMean]:
    """Return accuracy and flips (answers unlike the clean one) for each corruption, and their mean over all."""
    before = shown["answer"].loc[rows["sample_id"]].to_numpy()
    table = rows.assign(right=right(rows), flipped=logits_of(rows).argmax(1) != before)
    results = []
    # Names in the order in which they were tested, which is the registry's.
    for (name, _), part in table.groupby(["attack", "severity"], sort=False):
        bootstrap = samples.over(part["group"])
        figures = {key: share(bootstrap, bootstrap.means(part[column])) for key, column in _MEANS.items()}
        severity = int(part["severity"].iloc[0])
        results.append(schemas.CorruptionResult(corruption=name, severity=severity, n=len(part), **figures))
    firsts = [name for name in ("group", "label", "finding") if name in table]
    columns = {"right": "mean", "flipped": "mean"} | dict.fromkeys(firsts, "first")
    means = table.groupby("sample_id", sort=False).agg(columns)
    bootstrap = samples.over(means["group"])
    both = {name: share(bootstrap, bootstrap.means(means[column])) for name, column in _MEANS.items()}
    both["balanced_accuracy"] = balanced(bootstrap, means, means["right"].to_numpy())
    mean = schemas.CorruptionsMean(**both, n=len(means), conditions=len(results))
    if len(means) < len(shown):
        was_right = shown["right"].loc[means.index].to_numpy()
        mean.clean = share(bootstrap, bootstrap.means(was_right))
        mean.clean_balanced_accuracy = balanced(bootstrap, means, was_right)
        mean.constant_answer = constant_answer(means)
    return results, mean


_MEANS = {"accuracy": "right", "flip_rate": "flipped"}


def by_column(clean: "pd.DataFrame", column: str, samples: Bootstraps) -> dict[str, Accuracy]:
    """Return `accuracy` of the rows with each value of a column; empty unless it divides the rows."""
    if column not in clean or clean[column].fillna("").nunique() < 2:
        return {}
    return {str(name) or "unknown": accuracy(rows, samples) for name, rows in clean.groupby(clean[column].fillna(""))}


def has_findings(table: "pd.DataFrame") -> bool:
    """Return whether the table holds decisions on findings."""
    return "finding" in table and len(table) > 0


def _parts(table: "pd.DataFrame") -> list[Rows]:
    """Return the rows of each finding, (N,); all rows if the table has none."""
    names = table["finding"].to_numpy(dtype=str) if has_findings(table) else np.zeros(len(table))
    return [names == name for name in np.unique(names)]


def has_both_labels(table: "pd.DataFrame") -> list[Rows]:
    """Return the rows of each finding that is present in some images and absent in others; others allow counts only."""
    labels = table["label"].to_numpy()
    return [rows for rows in _parts(table) if not has_findings(table) or len(np.unique(labels[rows])) > 1]


def mean_over_findings(
    table: "pd.DataFrame", bootstrap: Bootstrap, measure: Measure, shape: tuple[int, ...] = ()
) -> Floats:
    """Average `measure` over the rows of each finding, (R + 1, *shape); NaN without findings.

    All findings share the resamples of patients. A finding with one label only in a resample is left out there: with
    rare findings, hardly any resample has all of them.
    """
    parts = [measure(rows, bootstrap.select(rows)) for rows in has_both_labels(table)]
    values = np.array(parts) if parts else np.full((1, len(bootstrap.weights), *shape), np.nan)
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(finite, values, 0.0).sum(0) / finite.sum(0))


def _margins(table: "pd.DataFrame") -> Floats:
    """Return each score minus its finding's threshold, as a logit, (N,)."""
    logits = logits_of(table)
    return np.asarray(logits[:, 1] - logits[:, 0])
