"""Intervals, tests, calibration and ROC areas against SciPy, scikit-learn and torchmetrics."""

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats import proportion

from trustcxr import statistics
from trustcxr.evaluation import calibration
from trustcxr.statistics import Bootstrap, auroc, interval, paired, softmax


def mean_interval(values: Any, groups: Any, *, resamples: int = 2000, seed: int = 0) -> tuple[float, list[float]]:
    means = Bootstrap.over(groups, resamples=resamples, seed=seed).means(values)
    return float(means[0]), interval(means)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_resamples_are_of_whole_groups_and_row_zero_is_the_sample_itself() -> None:
    bootstrap = Bootstrap.over(["p2", "p1", "p2", "p3"], resamples=50)
    assert np.array_equal(bootstrap.member, [1, 0, 1, 2])
    assert bootstrap.weights.shape == (51, 3)
    assert np.all(bootstrap.weights[0] == 1)
    assert np.all(bootstrap.weights.sum(1) == 3)
    assert not np.all(Bootstrap.over(np.arange(30), resamples=20).weights[1:] == 1, axis=1).any()
    values, again = np.array([1.0, 3.0, 10.0, 100.0]), bootstrap.weights[:, [1, 0, 1, 2]]
    assert np.array_equal(bootstrap.row_weights(), again)
    assert bootstrap.totals(values) == pytest.approx((again * values).sum(1))
    assert bootstrap.means(values) == pytest.approx((again * values).sum(1) / again.sum(1))
    assert (bootstrap.means(values)[0], bootstrap.totals(values)[0]) == (values.mean(), values.sum())


@pytest.mark.parametrize("kind", ["share", "skewed"])
def test_interval_agrees_with_scipy(kind: str, random: np.random.Generator) -> None:
    values = (random.random(300) < 0.8).astype(float) if kind == "share" else random.exponential(size=300)
    ours = mean_interval(values, np.arange(300), resamples=4000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert ours[0] == pytest.approx(values.mean())
    width = theirs.high - theirs.low
    assert ours[1] == pytest.approx([theirs.low, theirs.high], abs=0.1 * width)


def test_unknown_values_are_left_out() -> None:
    values = np.array([0.0, 1.0, np.nan, 1.0, np.nan])
    mean, (low, high) = mean_interval(values, np.arange(5))
    assert mean == pytest.approx(2 / 3)
    assert 0 <= low <= mean <= high <= 1
    # A whole group without a value: resamples of it alone have none, and do not count.
    assert mean_interval([np.nan, 0.5], ["a", "b"]) == (0.5, [0.5, 0.5])
    for nothing in ([], [np.nan, np.nan]):
        mean, limits = mean_interval(nothing, np.arange(len(nothing)))
        assert np.isnan([mean, *limits]).all()


def test_interval_leaves_out_row_zero() -> None:
    assert interval([1000.0, *np.linspace(0, 1, 101)]) == pytest.approx([0.025, 0.975])
    assert interval([1000.0, *np.linspace(0, 1, 101)], level=0.5) == pytest.approx([0.25, 0.75])


def test_softmax_agrees_with_torch_and_does_not_overflow(random: np.random.Generator) -> None:
    logits = np.vstack([random.normal(size=(5, 3)), [[1e4, 0.0, -1e4]]])
    assert np.allclose(softmax(logits), torch.tensor(logits).softmax(1).numpy())


def test_calibration_error_of_known_cases() -> None:
    def error(probabilities: Any, labels: list[int]) -> float:
        bins = calibration.calibration_bins(np.array(probabilities), labels)
        return float(calibration.calibration_error(bins.sum(0)))

    assert error([[1.0, 0.0]] * 4, [0] * 4) == 0
    assert error([[1.0, 0.0]] * 4, [1] * 4) == 1
    assert np.isnan(calibration.calibration_error(np.zeros((15, 3))))
    # Two bins whose errors would cancel without the absolute value.
    assert error([[0.9, 0.1], [0.6, 0.4]], [1, 0]) == pytest.approx((0.9 + 0.4) / 2)


@pytest.mark.parametrize("decimals", [8, 1], ids=["no ties", "many ties"])
def test_auroc_agrees_with_scikit_learn_in_every_resample(decimals: int, random: np.random.Generator) -> None:
    positive = random.random(150) < 0.4
    scores = np.round(random.random(150) * 0.7 + 0.3 * positive, decimals)
    weights = Bootstrap.over(np.arange(150), resamples=150).row_weights()
    ours = auroc(scores, positive, weights)
    theirs = [roc_auc_score(positive, scores, sample_weight=weight) for weight in weights]
    assert np.allclose(ours, theirs, atol=1e-9)


def test_auroc_of_one_class_alone_is_unknown() -> None:
    assert np.isnan(auroc([0.1, 0.2], [True, True], np.ones((1, 2)))).all()
    assert np.isnan(auroc([], [], np.ones((3, 0)))).all()
    assert np.isnan(auroc([0.1, 0.2], [True, False], [[2, 0]])).all()
    assert auroc([0.5, 0.5], [True, False], np.ones((1, 2)))[0] == 0.5


def test_mcnemar_is_exact() -> None:
    first = np.array([1] * 30 + [0] * 12 + [1] * 3 + [0] * 5, dtype=float)
    second = np.array([1] * 30 + [1] * 12 + [0] * 3 + [0] * 5, dtype=float)
    result = paired(first, second, np.arange(50))
    assert result.p_value == pytest.approx(stats.binomtest(3, 12 + 3).pvalue)  # of those that were lost or gained
    assert (result.first, result.second, result.improved, result.n) == (33 / 50, 42 / 50, 12 / 50, 50)
    assert result.difference == pytest.approx(9 / 50)
    assert result.difference_ci[0] > 0


def all_sums(sizes: np.ndarray) -> np.ndarray:
    """The sums of these numbers under all signs."""
    return np.array(list(itertools.product((-1, 1), repeat=len(sizes)))) @ sizes


@pytest.mark.parametrize("kind", ["figures", "whole numbers"])
def test_few_groups_are_flipped_in_every_way(kind: str, random: np.random.Generator) -> None:
    """By hand, over all signs: the sums of groups change theirs together."""
    count, difference = (7, random.normal(0.3, 1, 21)) if kind == "figures" else (12, random.integers(-1, 2, 60))
    sums = difference.reshape(count, -1).sum(1)
    by_hand = np.mean(np.abs(all_sums(sums)) >= abs(sums.sum()) - 1e-9)
    groups = np.repeat(np.arange(count), len(difference) // count)
    assert paired(np.zeros(len(difference)), difference, groups).p_value == pytest.approx(by_hand)
    theirs = stats.permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert theirs.pvalue == pytest.approx(by_hand)


def test_many_groups_are_flipped_at_random_and_always_the_same(random: np.random.Generator) -> None:
    difference = random.normal(0.2, 1, 80)
    found = paired(np.zeros(80), difference, np.arange(80)).p_value
    assert found == paired(np.zeros(80), difference, np.arange(80)).p_value
    assert found == pytest.approx(float(stats.ttest_1samp(difference, 0).pvalue), abs=0.02)
    assert paired(np.zeros(80), difference + 5, np.arange(80)).p_value == pytest.approx(0.5**79)


def test_a_small_p_value_is_that_of_all_signs_to_a_few_percent(random: np.random.Generator) -> None:
    ratios = []
    while len(ratios) < 12:
        count = int(random.integers(16, 27))
        sums = random.exponential(1, count) * np.where(random.random(count) < 0.93, 1, -1)
        first, second = all_sums(sums[: count // 2]), np.sort(all_sums(sums[count // 2 :]))
        least = abs(sums.sum()) * (1 - 1e-9)
        exact = 2 * float((len(second) - np.searchsorted(second, least - first)).sum()) / 2**count
        if exact < 2e-4:
            ratios.append(statistics.sign_flip(sums, np.arange(count)) / exact)
    np.testing.assert_allclose(ratios, 1, atol=0.15)


def test_an_effect_in_every_image_is_found_among_two_thousand_comparisons(random: np.random.Generator) -> None:
    found = paired(np.zeros(24), random.uniform(0.01, 0.03, 24), np.arange(24))
    assert found.p_value == found.p_least == 0.5**23
    corrected = statistics.holm([found.p_value, *random.random(1999)])
    assert corrected[0] < 0.05
    few = paired(np.zeros(16), random.uniform(0.01, 0.03, 16), np.arange(16))
    assert few.p_least * 2000 > 0.05, "16 images cannot settle one of 2,000 comparisons, whatever they show"


@pytest.mark.full
def test_two_thousand_comparisons_alarm_falsely_in_one_study_of_twenty() -> None:
    """Only rows with |z| > 3.4 can have a p-value below 0.05 / 2,000 (4.2); the others are not tested."""
    random, images, trials, alarms = np.random.default_rng(5), 60, 3000, 0
    for _ in range(trials):
        rows = random.normal(0, 1, (2000, images)).astype(np.float32)
        z = np.abs(rows.sum(1)) / np.sqrt(np.square(rows).sum(1))
        p_values = np.ones(2000)
        for k in np.flatnonzero(z > 3.4):
            p_values[k] = statistics.sign_flip(rows[k].astype(float), np.arange(images))
        alarms += bool(statistics.holm(p_values).min() < 0.05)
    assert 0.04 <= alarms / trials <= 0.06


@pytest.mark.parametrize("known", [[1.0, 0.5, 0.25], [1.0, 1.0, -1.0]])
def test_a_difference_that_is_not_known_proves_nothing(known: list[float]) -> None:
    nan = float("nan")
    assert statistics.sign_flip([nan, *known, nan], [0, 0, 1, 2, 3]) == statistics.sign_flip(known, [0, 1, 2])
    assert np.isnan(statistics.sign_flip([nan, nan], [0, 1]))


@pytest.mark.parametrize("kind", ["right or wrong", "energy"])
def test_false_alarms_are_one_in_twenty_with_ten_images_a_patient(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is better; a patient's images go the same way. McNemar's and Wilcoxon's tests alarm far more often."""
    monkeypatch.setattr(statistics, "FLIPS", 1999)
    random, patients = np.random.default_rng(0), np.repeat(np.arange(40), 10)
    alarms, trials = 0, 1200
    for _ in range(trials):
        leaning = np.repeat(random.normal(0, 1, 40), 10)
        if kind == "energy":
            alarms += statistics.sign_flip(leaning + random.normal(0, 1, 400), patients) <= 0.05
        else:
            first, second = random.random((2, 400)) < special.expit(np.stack([leaning, -leaning]))
            alarms += statistics.sign_flip(second.astype(float) - first, patients) <= 0.05
    assert 0.035 <= alarms / trials <= 0.065


def test_same_figures_are_no_difference_and_pairs_with_an_unknown_half_are_left_out(
    random: np.random.Generator,
) -> None:
    for values in (random.random(20), (random.random(20) > 0.5).astype(float)):
        result = paired(values, values, np.arange(20))
        assert (result.difference, result.p_value, result.difference_ci) == (0, 1, [0, 0])
    result = paired([1, np.nan, 0, 0.5], [0.5, 1, np.nan, 1], ["a", "b", "c", "d"])
    assert (result.n, result.first, result.second, result.difference) == (2, 0.75, 0.75, 0)
    nothing = paired([np.nan], [1.0], ["a"])
    assert nothing.n == 0
    assert np.isnan([nothing.difference, nothing.p_value, *nothing.difference_ci]).all()
    assert np.isnan(paired([1, 0], [0, 0], [1, 1]).difference_ci).all(), "of one group there are no resamples"
    assert paired([1, 0], [0, 0], [1, 2]).difference_ci == [-1, 0]


def test_groups_widen_the_interval_of_a_difference(random: np.random.Generator) -> None:
    change = np.repeat(random.normal(0.1, 0.3, 30), 8)
    before = np.repeat(random.random(30), 8)
    alone = paired(before, before + change, np.arange(240)).difference_ci
    together = paired(before, before + change, np.repeat(np.arange(30), 8)).difference_ci
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])


@pytest.mark.slow
def test_statistics_and_results_need_no_torch() -> None:
    modules = "trustcxr.statistics, trustcxr.storage.atomic, trustcxr.evaluation.metrics"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def share(hits: int, count: int = 120, per_group: int = 1) -> list[float]:
    bootstrap = Bootstrap.over(np.arange(count) // per_group, resamples=2000)
    return statistics.share_interval(bootstrap, bootstrap.means(np.arange(count) < hits))


def test_a_share_of_none_or_all_has_an_interval_too() -> None:
    """0 of 300: the score interval; groups count once."""
    low, high = share(0, 300)
    assert low == 0
    assert high == pytest.approx(stats.binomtest(0, 300).proportion_ci(method="wilson").high)
    assert share(300, 300) == pytest.approx([1 - high, 1])
    assert share(0, 300, 2)[1] == pytest.approx(stats.binomtest(0, 150).proportion_ci(method="wilson").high)
    bootstrap = Bootstrap.over(np.arange(300), resamples=100)
    some = bootstrap.means(np.arange(300) < 30)
    assert statistics.share_interval(bootstrap, some) == interval(some)
    values = np.r_[np.zeros(20), np.full(280, np.nan)]  # groups without a value do not count
    ends = statistics.share_interval(bootstrap, bootstrap.means(values), of=np.isfinite(values))
    assert ends == pytest.approx([0, stats.binomtest(0, 20).proportion_ci(method="wilson").high])
    assert bootstrap.count_groups() == 300
    assert Bootstrap.over(np.arange(300) // 3, resamples=1).count_groups(np.isfinite(values)) == 7


def test_intervals_of_rare_shares_cover_the_truth() -> None:
    covered = []
    for trial in range(300):
        right = np.random.default_rng(trial).random(120) < 0.02
        bootstrap = Bootstrap.over(np.arange(120), resamples=200, seed=trial)
        low, high = statistics.share_interval(bootstrap, bootstrap.means(right))
        covered.append(low <= 0.02 <= high)
    assert 0.9 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize(("first", "second"), [((0, 20), (5, 40)), ((3, 20), (5, 40)), ((19, 20), (36, 40))])
def test_a_ratio_of_shares_has_nearly_statsmodels_interval(first: tuple[int, int], second: tuple[int, int]) -> None:
    own = [(hits / count, statistics.wilson(hits / count, count)) for hits, count in (first, second)]
    found = statistics.ratio_interval(*own[0], *own[1])
    wanted = proportion.confint_proportions_2indep(*first, *second, compare="ratio", method="score")
    assert found == pytest.approx(list(wanted), rel=0.12, abs=0.01)


def test_a_ratio_to_what_may_be_nothing_has_no_limit() -> None:
    some, none = (0.5, statistics.wilson(0.5, 20)), (0.0, statistics.wilson(0.0, 20))
    ratio = statistics.ratio_interval
    assert 1 < ratio(*some, *none)[0] < ratio(*some, *none)[1] == np.inf
    assert ratio(*none, *none) == [0, np.inf]
    assert ratio(*none, *some)[0] == 0 < 0.2 < ratio(*none, *some)[1] < 1


def area(scores: Any, positive: Any, groups: Any = None, resamples: int = 300) -> tuple[float, list[float]]:
    bootstrap = Bootstrap.over(np.arange(len(scores)) if groups is None else groups, resamples=resamples)
    areas = auroc(scores, positive, bootstrap.row_weights())
    return float(areas[0]), statistics.area_interval(bootstrap, areas, positive)


def test_an_area_of_none_or_all_has_an_interval_too() -> None:
    """Four images against eight that all lie higher: the end is where z standard errors reach the area of 1."""
    positive = np.arange(12) >= 8
    found, (low, high) = area(np.arange(12), positive)
    assert (found, high) == (1, 1)
    q1, q2 = low / (2 - low), 2 * low**2 / (1 + low)  # Hanley and McNeil 1982; their counts less one as a mean, 5
    variance = (low * (1 - low) + 5 * (q1 - low**2) + 5 * (q2 - low**2)) / 32
    assert 1 - low == pytest.approx(stats.norm.ppf(0.975) * np.sqrt(variance), rel=1e-6)
    assert 0.4 < low < 0.8
    assert area(-np.arange(12), positive) == (0, pytest.approx([0, 1 - low], abs=1e-6))
    fewer = [area(np.arange(3 * n), np.arange(3 * n) >= 2 * n)[1][0] for n in (2, 4, 8, 40)]
    assert fewer == sorted(fewer)


def test_an_area_far_from_both_ends_has_the_bootstraps_interval(random: np.random.Generator) -> None:
    positive = np.arange(120) < 40
    scores = random.normal(size=120) + positive
    areas = auroc(scores, positive, Bootstrap.over(np.arange(120), resamples=300).row_weights())
    assert area(scores, positive) == (areas[0], interval(areas))
    assert np.isnan(area(scores, np.zeros(120, bool))[1]).all()


def test_images_of_one_patient_make_no_area_surer() -> None:
    """Each image five times: as many patients, the same end."""
    for beside in (0, 1):  # one negative image above the positive ones, too: there the resamples say how much varies
        scores = np.r_[np.arange(12), np.full(beside, 20)]
        positive = (np.arange(12 + beside) >= 8) & (scores < 20)
        _, once = area(scores, positive, resamples=2000)
        five = np.repeat(np.arange(len(scores)), 5)
        _, often = area(scores[five], positive[five], five, resamples=2000)
        assert often == pytest.approx(once)


def test_an_area_that_hangs_on_one_patient_is_less_sure_than_patients_are_many() -> None:
    """Thirty of 39 images with a finding are of one patient of ten: without that one the area is 1."""
    scores = np.r_[np.arange(20), np.full(9, 100), np.full(30, 4.5)]
    groups = np.r_[np.arange(29), np.full(30, 29)]
    found, (low, high) = area(scores, np.arange(59) >= 20, groups, resamples=2000)
    assert found == pytest.approx((9 + 30 * 0.25) / 39)
    assert low < 0.2
    assert high > 0.8


@pytest.mark.parametrize("truth", [0.95, 0.995])
def test_intervals_of_areas_near_one_cover_the_truth(truth: float) -> None:
    """Ten images against twenty, where the resamples alone hold it too seldom."""
    positive = np.arange(30) < 10
    held, bootstrap = [], Bootstrap.over(np.arange(30), resamples=200)
    for trial in range(200):
        scores = np.random.default_rng(trial).normal(size=30) + np.sqrt(2) * stats.norm.ppf(truth) * positive
        areas = auroc(scores, positive, bootstrap.row_weights())
        both = interval(areas), statistics.area_interval(bootstrap, areas, positive)
        held.append([low <= truth <= high for low, high in both])
    resampled, ours = np.mean(held, axis=0)
    assert resampled < 0.9
    assert ours >= 0.93


def test_the_mean_of_shares_has_the_bootstraps_interval_unless_one_is_rare() -> None:
    bootstrap = Bootstrap.over(np.arange(240), resamples=500)
    of = np.arange(240)[:, None] // 120 == np.arange(2)
    right = np.random.default_rng(0).random(240) < 0.7

    def shares() -> np.ndarray:
        return bootstrap.totals(of & right[:, None]) / bootstrap.totals(of)

    common = statistics.mean_share_interval(bootstrap, shares(), of)
    assert common == interval(shares().mean(1))
    right[:120] = True  # by the bootstrap this class would be sure
    low, high = statistics.mean_share_interval(bootstrap, shares(), of)
    assert [low, high] == pytest.approx(statistics.wilson(shares().mean(1)[0], 120 * 2))
    thirds = Bootstrap.over(np.arange(30), resamples=50)
    alike = np.full((51, 3), 1.0)
    alike[1::2] = np.nextafter(1.0, 0.0)  # means of three that are all right, but for rounding
    rows = np.arange(30)[:, None] // 10 == np.arange(3)
    assert statistics.mean_share_interval(thirds, alike, rows) == pytest.approx(statistics.wilson(1.0, 30))
    undefined = np.column_stack([shares(), np.full(501, np.nan)])
    wider = np.column_stack([of, np.zeros(240, bool)])
    assert statistics.mean_share_interval(bootstrap, undefined, wider) == [low, high]


def test_a_probability_is_said_in_as_many_digits_as_tell_it_from_one() -> None:
    values = {0.5: "0.5", 0.12345: "0.123", 0.999999: "0.999999", 0.9996: "0.9996", 1 - 1e-12: "0.999999999999"}
    for value, said in (values | {1e-7: "1e-07", 0.0: "0", 1.0: "1"}).items():
        assert statistics.format_probability(value) == said
