"""Thresholds, errors of both kinds and curves, against scikit-learn and by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sklearn

from trustcxr.evaluation import operating_points
from trustcxr.evaluation.operating_points import CHOSEN, Threshold
from trustcxr.statistics import Bootstrap


def sample(count: int = 240, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    positive = random.random(count) < 0.4
    scores = np.round(random.normal(positive * 1.2, 1.0), 1)
    return scores, positive, np.repeat(np.arange(count // 2), 2)


def test_curves_are_those_of_scikit_learn_in_every_resample() -> None:
    scores, positive, groups = sample()
    weights = Bootstrap.over(groups, resamples=5).row_weights()
    found = operating_points.roc_curves(scores, positive, weights)
    for row, weight in enumerate(weights):
        expected = sklearn.average_precision_score(positive, scores, sample_weight=weight)
        assert found.average_precision[row] == pytest.approx(expected)
        false, true, _ = sklearn.roc_curve(positive, scores, sample_weight=weight, drop_intermediate=False)
        highest = [true[false <= x + 1e-12].max() for x in operating_points.FALSE_POSITIVES]
        assert found.sensitivity[row] == pytest.approx(np.array(highest))
        precision, recall, _ = sklearn.precision_recall_curve(positive, scores, sample_weight=weight)
        # scikit-learn's rows run from the lowest threshold to the highest.
        first = [precision[:-1][recall[:-1] >= x - 1e-12][-1] for x in operating_points.RECALLS]
        assert found.precision[row] == pytest.approx(np.array(first))


def test_a_resample_of_one_kind_of_row_has_no_curve() -> None:
    found = operating_points.roc_curves([0.1, 0.9], [True, False], np.array([[1, 1], [1, 0], [0, 1]]))
    assert np.isfinite(found.sensitivity[0]).all()
    assert np.isnan(found.sensitivity[1:]).all()
    assert np.isnan(found.average_precision).tolist() == [False, True, True]


def test_the_threshold_has_the_highest_youden_index() -> None:
    scores, positive, _ = sample()
    value = operating_points.chosen(scores, positive)
    usual = np.unique(scores)
    index = {t: (scores[positive] >= t).mean() + (scores[~positive] < t).mean() for t in (value, *usual)}
    assert index[value] == pytest.approx(max(index[t] for t in usual))
    assert operating_points.chosen(scores, np.ones(len(scores), bool)) is None
    assert operating_points.chosen(np.array([0.2, 0.4, 0.8]), np.array([False, False, True])) == pytest.approx(0.6)


def predictions(scores: np.ndarray, positive: np.ndarray, groups: np.ndarray, attack: str = "clean") -> pd.DataFrame:
    names, logits = [f"image{i:04d}" for i in range(len(scores))], [np.array([0.0, s]) for s in scores]
    rows = {"sample_id": names, "group": groups, "label": positive.astype(int), "attack": attack, "severity": 0}
    attacked = attack != "clean"
    return pd.DataFrame(rows | {"epsilon": 0.02 * attacked, "steps": 20 * attacked, "logits": logits})


def test_errors_of_both_kinds_at_a_threshold_by_hand() -> None:
    scores, positive, groups = sample()
    both = pd.concat([predictions(scores, positive, groups), predictions(scores - 1, positive, groups, "pgd")])
    given = {"absent": Threshold(None), "there": Threshold(0.6, "of the model file")}
    points = operating_points.measure_classes(both, ("absent", "there"), given, resamples=200)
    rows = [point.plain() for point in points]
    clean, attacked = (next(r for r in rows if (r["finding"], r["attack"]) == ("there", a)) for a in ("clean", "pgd"))
    for row, seen in ((clean, scores), (attacked, scores - 1)):
        said = 1 / (1 + np.exp(-seen)) >= 0.6
        sensitivity, specificity = said[positive].mean(), (~said[~positive]).mean()
        assert row["sensitivity"]["value"] == pytest.approx(sensitivity)
        assert row["specificity"]["value"] == pytest.approx(specificity)
        assert row["likelihood_positive"]["value"] == pytest.approx(sensitivity / (1 - specificity))
        assert row["likelihood_negative"]["value"] == pytest.approx((1 - sensitivity) / specificity)
        for name in ("sensitivity", "specificity", "likelihood_positive", "likelihood_negative", "auroc"):
            low, high = row[name]["ci"]
            assert low <= row[name]["value"] <= high
    assert clean["auroc"]["value"] == pytest.approx(sklearn.roc_auc_score(positive, scores))
    assert (attacked["steps"], clean["positives"], clean["n"]) == (20, positive.sum(), len(positive))
    assert attacked["sensitivity"]["value"] < clean["sensitivity"]["value"]
    highest = next(r for r in rows if (r["finding"], r["attack"]) == ("absent", "clean"))
    assert highest["threshold"] is None
    assert highest["sensitivity"]["value"] == pytest.approx((scores[~positive] <= 0).mean())


def test_a_ratio_without_limit_is_no_number() -> None:
    scores, positive = np.array([0.1] * 20 + [0.9] * 20), np.array([False] * 20 + [True] * 20)
    table = predictions(scores * 4 - 2, positive, np.arange(40))
    row = operating_points.measure_finding(table, "a", Threshold(0.5), resamples=200)[0].plain()
    for name in ("sensitivity", "specificity", "auroc", "sensitivity_at_specificity"):
        assert row[name]["value"] == 1
        assert 0.8 < row[name]["ci"][0] < 1 == row[name]["ci"][1], "twenty images against twenty are not all images"
    assert (row["likelihood_positive"]["value"], row["likelihood_positive"]["ci"]) == (None, [None, None])
    assert row["likelihood_negative"]["value"] == 0
    low, high = row["likelihood_negative"]["ci"]
    assert low == 0 < 0.05 < high < 0.3, "none of twenty missed is not none of all"


def test_thresholds_come_from_validation_images_where_there_are_any() -> None:
    scores, positive, groups = sample()
    held = predictions(scores, positive, groups)
    found = operating_points.choose(held, ("absent", "there"))
    assert found["there"].origin == CHOSEN
    assert found["there"].value == pytest.approx(operating_points.chosen(1 / (1 + np.exp(-scores)), positive))
    assert operating_points.choose(None, ("absent", "there"))["there"].value is None
    one_kind = held[held["label"] == 1]
    assert operating_points.choose(one_kind, ("absent", "there"))["there"].value is None


def test_the_logit_of_any_threshold_is_a_number() -> None:
    assert operating_points.cut(0.5) == pytest.approx(0, abs=1e-5)
    assert -800 < operating_points.cut(0.0) < operating_points.cut(1e-6) < operating_points.cut(1 - 1e-6)
