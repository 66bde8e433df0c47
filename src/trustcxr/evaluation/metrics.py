"""Predictions -> metrics: every number in metrics.json comes from a table, and can be computed from it again."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trustcxr import statistics
from trustcxr.errors import NotFiniteError
from trustcxr.evaluation import calibration, each_finding
from trustcxr.registry import GROUPINGS, LUNGS_HIDDEN, ONE_STEP, STOCHASTIC_DRAWS, VIEWS
from trustcxr.statistics import (
    Bootstrap,
    Bootstraps,
    Floats,
    area_interval,
    interval,
    mean_share_interval,
    share_interval,
)
from trustcxr.storage.prediction_table import CLEAN, RIGHT_SHARE, clean_answers, logits_of, right, severities
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

VANISHING = 1e-12  # of the cross-entropy, at its steepest pixel: a confident network's is still far above this


def classification(
    logits: Floats, labels: NDArray[np.int64], groups: Any, classes: tuple[str, ...], *, resamples: int = 2000
) -> Classification:
    """Accuracy, precision, recall, F1, AUROC (macro and per class), calibration error, confusion, with intervals.

    `logits` (N, C), `labels` (N,). Precision and F1 of a class that is there and never predicted, or predicted and not
    there, count as 0, as in scikit-learn. Of a class that is not there recall and AUROC (one class against the rest)
    are not defined, nor precision and F1 where it is not predicted either: NaN, and left out of the mean of classes. A
    resample in which a class of the sample was not drawn says nothing of that mean. Accuracy, recall, precision,
    balanced accuracy and the AUROC of a class near 0 or 1 have the score interval, the others that of the resamples.
    Raises NotFiniteError where a logit is NaN, which argmax would call the answer.
    """
    _check_numbers(logits)
    bootstrap = Bootstrap.over(groups, resamples=resamples)
    cells, probabilities = _cells(logits, labels, len(classes)), statistics.softmax(logits)
    confusion = bootstrap.totals(cells)  # (R + 1, true, predicted)
    told = _Told(
        confusion[0],
        _from_confusion(confusion) | {"auroc": _areas(probabilities, labels, bootstrap, len(classes))},
        bootstrap.totals(calibration.calibration_bins(probabilities, labels)),
        constant_answer(labels),
    )
    return _classified(bootstrap, told, cells, classes)


def of_findings(clean: "pd.DataFrame", states: tuple[str, ...], *, resamples: int = 2000) -> Classification:
    """The same of decisions on findings, absent or present: accuracy of all of them, all else the mean over findings.

    Of each finding by itself it is as above. Counts, and `confusion`, are of all decisions.
    """
    logits, labels = logits_of(clean), clean["label"].to_numpy(dtype=np.int64)
    _check_numbers(logits)
    bootstrap = Bootstrap.over(clean["group"], resamples=resamples)
    cells = _cells(logits, labels, len(states))

    def figures(rows: NDArray[np.bool_], part: Bootstrap) -> Floats:
        found = _from_confusion(part.totals(cells[rows]))
        return np.stack([found[name] for name in _OF_CLASSES], axis=1)

    means = each_finding.mean_over_findings(clean, bootstrap, figures, (len(_OF_CLASSES), len(states)))
    area = each_finding.auroc(clean, bootstrap)  # the same of both states
    told = _Told(
        cells.sum(0),
        dict(zip(_OF_CLASSES, np.moveaxis(means, 1, 0), strict=True))
        | {"accuracy": bootstrap.means(right(clean)), "auroc": np.stack([area, area], axis=1)},
        each_finding.calibration_totals(clean, bootstrap),
        each_finding.constant_answer(clean),
        len(each_finding.has_both_labels(clean)),
    )
    return _classified(bootstrap, told, cells, states)


_OF_CLASSES = ("precision", "recall", "f1")


@dataclass(frozen=True)
class _Told:
    """What is counted and measured: figures (R + 1,) or of each class (R + 1, C); of how many `findings` the means."""

    confusion: Floats
    figures: dict[str, Floats]
    bins: Floats
    constant: float
    findings: int | None = None


def _classified(bootstrap: Bootstrap, told: _Told, cells: Floats, classes: tuple[str, ...]) -> Classification:
    """The document, with intervals; `cells` (N, C, C): of each row its class and its answer."""
    figures, true, said = dict(told.figures), cells.sum(2) > 0, cells.sum(1) > 0
    areas = figures["auroc"]
    shares = {"recall": true, "precision": said}
    found = Classification(
        accuracy=_share(bootstrap, figures.pop("accuracy")),
        balanced_accuracy=_mean_share(bootstrap, figures["recall"], true),
        **{f"{name}_macro": _figure(_macro(values)) for name, values in figures.items()},
        ece=_calibration_error(told.bins),
        ece_plug_in=float(calibration.calibration_error(told.bins[0])),
        constant_answer=told.constant,
        n=len(cells),
        groups=int(bootstrap.weights.shape[1]),
        confusion=told.confusion.astype(int).tolist(),
        per_class={
            label: ClassResult(
                **{name: _share(bootstrap, figures[name][:, k], of[:, k]) for name, of in shares.items()},
                f1=_figure(figures["f1"][:, k]),
                auroc=_area(bootstrap, areas[:, k], true[:, k], told.findings),
                n=int(true[:, k].sum()),
            )
            for k, label in enumerate(classes)
        },
    )
    if told.findings is not None:
        found.findings = told.findings
    return found


def _cells(logits: Floats, labels: NDArray[np.int64], count: int) -> Floats:
    """Of each row its class and its answer, (N, C, C)."""
    cells = np.zeros((len(labels), count, count))
    cells[np.arange(len(labels)), labels, logits.argmax(1)] = 1
    return cells


def _areas(probabilities: Floats, labels: NDArray[np.int64], bootstrap: Bootstrap, count: int) -> Floats:
    """The area under the ROC curve of each class against the rest, (R + 1, C)."""
    weights = bootstrap.row_weights()
    return np.stack([statistics.auroc(probabilities[:, k], labels == k, weights) for k in range(count)], axis=1)


def _area(bootstrap: Bootstrap, areas: Floats, positive: NDArray[np.bool_], findings: int | None) -> Share:
    """One area with its interval; the mean of several `findings` has that of resamples alone."""
    several = findings is not None and findings != 1
    return _figure(areas) if several else Share(value=float(areas[0]), ci=area_interval(bootstrap, areas, positive))


def _check_numbers(logits: Floats) -> None:
    if lost := int(np.isnan(logits).any(1).sum()):
        raise NotFiniteError(f"{lost} of {len(logits)} rows of the predictions hold NaN; evaluate the run again")


def _figure(values: Floats) -> Share:
    """Values (R + 1,) of the sample and its resamples as a figure with its interval."""
    return Share(value=float(values[0]), ci=interval(values))


def _share(bootstrap: Bootstrap, means: Floats, of: NDArray[np.bool_] | None = None) -> Share:
    """A share of the rows, or `of` some, (R + 1,), with its interval, which may be near 0 or 1."""
    return Share(value=float(means[0]), ci=share_interval(bootstrap, means, of=of))


def _mean_share(bootstrap: Bootstrap, shares: Floats, of: NDArray[np.bool_]) -> Share:
    """The mean of shares (R + 1, C), each of its own rows (N, C), with its interval."""
    return Share(value=float(_macro(shares)[0]), ci=mean_share_interval(bootstrap, shares, of))


def _calibration_error(bins: Floats) -> Share:
    error, ends = calibration.debiased_error(bins)
    return Share(value=error, ci=ends)


def _from_confusion(confusion: Floats) -> dict[str, Floats]:
    hit, true, said = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(2), confusion.sum(1)
    total = confusion.sum((1, 2))
    return {
        "accuracy": np.divide(hit.sum(1), total, out=np.full_like(total, np.nan), where=total > 0),
        "precision": np.divide(hit, said, out=np.where(true > 0, 0.0, np.nan), where=said > 0),
        "recall": np.divide(hit, true, out=np.full_like(hit, np.nan), where=true > 0),
        "f1": np.divide(2 * hit, true + said, out=np.full_like(hit, np.nan), where=true + said > 0),
    }


def _macro(values: Floats) -> Floats:
    """Mean over the classes that have a value in the sample itself (row 0): (R + 1, C) -> (R + 1,)."""
    known = np.isfinite(values[0])
    return values[:, known].mean(1) if known.any() else np.full(len(values), np.nan)


def from_predictions(predictions: "pd.DataFrame", classes: tuple[str, ...], *, resamples: int = 2000) -> RunDocument:
    """All of metrics.json that comes from the predictions of one run and one split, and nothing else.

    Parts: "clean", "by_source" (where the images come from several), "by_group" (the same by every column that divides
    them), "shortcuts" (the views) and "without_lungs" (of the views that hide the lungs the one with the highest
    accuracy, which is the worst for whoever claims that the lungs are needed), "attacks",
    "input_gradients" (where any was measured), "corruptions" and "corruptions_mean".
    Raises NotFiniteError where a logit is NaN.
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
    if each_finding.are_in(clean):
        return of_findings(clean, classes, resamples=resamples)
    labels = clean["label"].to_numpy(dtype=np.int64)
    return classification(logits_of(clean), labels, clean["group"], classes, resamples=resamples)


def _input_gradients(clean: "pd.DataFrame") -> InputGradients | None:
    """On how many of the images answered right the gradient was measured, and the share where it is as good as none."""
    if "gradient" not in clean:
        return None
    sizes = clean.loc[right(clean), "gradient"].dropna().to_numpy(dtype=float)
    gone = (sizes < VANISHING) | ~np.isfinite(sizes)
    return InputGradients(n=len(sizes), vanishing=float(gone.mean())) if len(sizes) else None


def accuracy(rows: "pd.DataFrame", samples: Bootstraps) -> Accuracy:
    """Of the rows of one condition: accuracy and balanced accuracy with their intervals, constant answer and n."""
    bootstrap, labels = samples.over(rows["group"]), rows["label"].to_numpy(dtype=np.int64)
    findings = each_finding.are_in(rows)
    return Accuracy(
        accuracy=_share(bootstrap, bootstrap.means(right(rows))),
        balanced_accuracy=_balanced_of_findings(bootstrap, rows)
        if findings
        else balanced(bootstrap, right(rows), labels),
        n=len(rows),
        constant_answer=each_finding.constant_answer(rows) if findings else constant_answer(labels),
    )


def _balanced_of_findings(bootstrap: Bootstrap, rows: "pd.DataFrame") -> Share:
    """The mean over findings of the balanced accuracy of each."""
    of_state = rows["label"].to_numpy()[:, None] == np.arange(2)
    hits = of_state & right(rows)[:, None]

    def recall(part: NDArray[np.bool_], among: Bootstrap) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(among.totals(hits[part]) / among.totals(of_state[part]))

    return _mean_share(bootstrap, each_finding.mean_over_findings(rows, bootstrap, recall, (2,)), of_state)


def macro_auroc(rows: "pd.DataFrame", bootstrap: Bootstrap, count: int) -> Floats:
    """The mean area under the ROC curve, of `count` classes against the rest or of the findings, (R + 1,)."""
    if each_finding.are_in(rows):
        return each_finding.auroc(rows, bootstrap)
    scores, labels = statistics.softmax(logits_of(rows)), rows["label"].to_numpy(dtype=np.int64)
    return _macro(_areas(scores, labels, bootstrap, count))


def calibration_totals(rows: "pd.DataFrame", bootstrap: Bootstrap) -> Floats:
    """Summed bins (R + 1, bins, 3) of the calibration error."""
    if each_finding.are_in(rows):
        return each_finding.calibration_totals(rows, bootstrap)
    shares = calibration.calibration_bins(statistics.softmax(logits_of(rows)), rows["label"].to_numpy())
    return bootstrap.totals(shares)


def balanced(bootstrap: Bootstrap, rows: NDArray[np.bool_], labels: NDArray[np.int64]) -> Share:
    """The mean over the classes of labels (N,) of the share of rows (N,), with its interval."""
    of_class = labels[:, None] == np.unique(labels)
    hits, sizes = (bootstrap.totals(of_class & kept) for kept in (rows[:, None], True))
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = hits / sizes  # NaN in a resample that lacks a class
    return _mean_share(bootstrap, shares, of_class)


def constant_answer(labels: NDArray[np.int64]) -> float:
    """The accuracy of always giving the commonest class of labels (N,); NaN without any."""
    return float(np.bincount(labels).max() / len(labels)) if len(labels) else float("nan")


def _attack(rows: "pd.DataFrame", shown: "pd.DataFrame", samples: Bootstraps) -> AttackResult:
    """One attack at one epsilon. Its success is counted over the images that the model gets right as they are."""
    attack, own = str(rows["attack"].iloc[0]), right(rows)
    was_right = shown["right"].loc[rows["sample_id"]].to_numpy()
    bootstrap = samples.over(rows["group"])
    totals = calibration_totals(rows, bootstrap)
    found, broken = accuracy(rows, samples), bootstrap.means(np.where(was_right, ~own, np.nan))
    result = AttackResult(
        attack=attack,
        epsilon=float(rows["epsilon"].iloc[0]),
        accuracy=found.accuracy,
        balanced_accuracy=found.balanced_accuracy,
        success_rate=_share(bootstrap, broken, was_right),
        ece=_calibration_error(totals),
        ece_plug_in=float(calibration.calibration_error(totals[0])),
        n=len(rows),
    )
    if "steps" in rows and attack not in ONE_STEP:
        result.steps = int(rows["steps"].iloc[0])
    if (drawn := _draws(rows, samples)) is not None:
        result.draws = drawn
    _add_how_found(result, rows, was_right)
    return result


def _draws(rows: "pd.DataFrame", samples: Bootstraps) -> Draws | None:
    """Of a model that answers at random, what one answer is worth and how often each is right; else None."""
    if RIGHT_SHARE not in rows or not len(rows) or rows[RIGHT_SHARE].isna().any():
        return None
    bootstrap, shares = samples.over(rows["group"]), rows[RIGHT_SHARE].to_numpy(dtype=float)
    one, each = (_share(bootstrap, bootstrap.means(values)) for values in (shares, shares == 1))
    return Draws(count=STOCHASTIC_DRAWS, one=one, each=each)


def _add_how_found(result: AttackResult, rows: "pd.DataFrame", was_right: NDArray[np.bool_]) -> None:
    """`unmoved`: the share of the images answered right that the attack left as they were; `broken_by`: worst-case's.

    `surrogate`: the run that transfer's images were made on. Nothing of tables from before these were kept.
    """
    if "moved" in rows and rows["moved"].notna().any() and was_right.any():
        result.unmoved = float((rows["moved"].to_numpy(dtype=float)[was_right] == 0).mean())
    if "broken_by" in rows and (names := rows["broken_by"].fillna(""))[names != ""].any():
        result.broken_by = {str(name): int(count) for name, count in names[names != ""].value_counts().items()}
    if "surrogate" in rows and rows["surrogate"].notna().any():
        result.surrogate = " and ".join(dict.fromkeys(map(str, rows["surrogate"].dropna())))


def _corruptions(
    rows: "pd.DataFrame", shown: "pd.DataFrame", samples: Bootstraps
) -> tuple[list[CorruptionResult], CorruptionsMean]:
    """Accuracy and flips, answers that are not those of the clean image, for each corruption and severity.

    And their mean over all corruptions and severities within each image, so that its interval is one over images.
    """
    before = shown["answer"].loc[rows["sample_id"]].to_numpy()
    table = rows.assign(right=right(rows), flipped=logits_of(rows).argmax(1) != before)
    found = []
    # Names in the order in which they were tested, which is the registry's.
    for (name, _), part in table.groupby(["attack", "severity"], sort=False):
        bootstrap = samples.over(part["group"])
        found.append(
            CorruptionResult(
                corruption=name,
                severity=int(part["severity"].iloc[0]),
                accuracy=_share(bootstrap, bootstrap.means(part["right"])),
                flip_rate=_share(bootstrap, bootstrap.means(part["flipped"])),
                n=len(part),
            )
        )
    means = table.groupby("sample_id", sort=False).agg({"right": "mean", "flipped": "mean", "group": "first"})
    bootstrap = samples.over(means["group"])
    both = {name: _share(bootstrap, bootstrap.means(means[column])) for name, column in _MEANS.items()}
    return found, CorruptionsMean(**both, n=len(means), conditions=len(found))


_MEANS = {"accuracy": "right", "flip_rate": "flipped"}


def by_column(clean: "pd.DataFrame", column: str, samples: Bootstraps) -> dict[str, Accuracy]:
    """`accuracy` of the rows with each value of a column, apart; empty where it does not divide the rows."""
    if column not in clean or clean[column].fillna("").nunique() < 2:
        return {}
    return {str(name) or "unknown": accuracy(rows, samples) for name, rows in clean.groupby(clean[column].fillna(""))}
