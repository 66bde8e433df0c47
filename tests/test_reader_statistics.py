"""Preference and agreement: published examples, other libraries, and panels of readers whose skill is known."""

from itertools import permutations

import numpy as np
import pytest
from scipy import integrate, optimize, special, stats

from trustcxr.apps.reader import reader_results
from trustcxr.apps.reader.reader_results import fleiss_kappa, krippendorff_alpha
from trustcxr.statistics import Bootstrap, interval

NAN = float("nan")
# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example C: four observers, twelve units.
KRIPPENDORFF = np.array([
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]).T  # fmt: skip
BINARY = np.array([[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]], float).T  # example A
# Fleiss 1971's layout, the worked example of ten subjects, fourteen raters and five categories: kappa 0.210.
FLEISS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


@pytest.mark.parametrize(
    ("ratings", "level", "published"),
    [(KRIPPENDORFF, "nominal", 0.743), (KRIPPENDORFF, "ordinal", 0.815), (BINARY, "nominal", 0.095)],
)
def test_alpha_is_the_published_one(ratings: np.ndarray, level: reader_results.Level, published: float) -> None:
    assert krippendorff_alpha(ratings, level)[0] == pytest.approx(published, abs=5e-4)


def test_nominal_alpha_is_that_of_its_definition_pair_by_pair() -> None:
    for ratings in (BINARY, np.random.default_rng(2).integers(0, 4, (15, 3)).astype(float)):
        within = [a != b for row in ratings for a, b in permutations(row, 2)]
        among = [a != b for a, b in permutations(ratings.ravel(), 2)]
        expected = 1 - float(np.mean(within)) / float(np.mean(among))
        assert krippendorff_alpha(ratings)[0] == pytest.approx(expected, abs=1e-12)


def test_kappa_is_that_of_the_worked_example_and_of_statsmodels() -> None:
    ratings = np.array([np.repeat(np.arange(5), row) for row in FLEISS], float)
    assert fleiss_kappa(ratings)[0] == pytest.approx(0.210, abs=5e-4)
    rater = pytest.importorskip("statsmodels.stats.inter_rater")
    draw = np.random.default_rng(0)
    for _ in range(5):
        drawn = draw.integers(0, 3, (20, 4)).astype(float)
        table = rater.aggregate_raters(drawn.astype(int))[0]
        assert fleiss_kappa(drawn)[0] == pytest.approx(rater.fleiss_kappa(table), abs=1e-12)
        gap = np.vstack([drawn, [[0, 1, NAN, 2]]])
        assert fleiss_kappa(gap)[0] == pytest.approx(fleiss_kappa(drawn)[0])


def test_a_resample_is_as_if_its_images_had_been_read_so_often() -> None:
    weights = np.array([[2, 0, 1, 1, 1, 3, 1, 1, 1, 1, 0, 1]])
    repeated = np.repeat(KRIPPENDORFF, weights[0], axis=0)
    for level in ("nominal", "ordinal"):
        weighted = krippendorff_alpha(KRIPPENDORFF, level, weights)
        assert weighted[0] == pytest.approx(krippendorff_alpha(repeated, level)[0])
    whole = KRIPPENDORFF[:9, 1:]
    repeated = np.repeat(whole, weights[0, :9], axis=0)
    assert fleiss_kappa(whole, weights[:, :9])[0] == pytest.approx(fleiss_kappa(repeated)[0])


@pytest.mark.filterwarnings("error")
def test_where_all_say_the_same_or_share_no_image_or_are_one_there_is_nothing_to_agree_on() -> None:
    for ratings in (np.ones((5, 3)), np.full((5, 3), NAN), np.array([[1, NAN], [2, NAN]]), np.array([[1], [2]])):
        assert np.isnan(fleiss_kappa(ratings)[0])
        assert np.isnan(krippendorff_alpha(ratings)[0])


def test_bradley_terry_has_the_likelihood_s_maximum() -> None:
    """Against scipy's optimiser on the logarithm of the likelihood, with the same half wins added."""
    won = np.random.default_rng(1).integers(1, 20, (3, 3)).astype(float)
    np.fill_diagonal(won, 0)
    padded = won + reader_results.HALF_A_WIN * (1 - np.eye(3))

    def loss(theta: np.ndarray) -> float:
        return float((padded * np.logaddexp(0, theta[None, :] - theta[:, None])).sum())

    best = optimize.minimize(loss, np.zeros(3), tol=1e-10).x
    found = reader_results.bradley_terry(won[None])[0]
    assert found == pytest.approx(best - best.mean(), abs=1e-4)
    assert np.isfinite(reader_results.bradley_terry(np.array([[[0.0, 9], [0, 0]]]))).all()


def test_level_ranks_are_half_a_win_each_and_missing_ones_none() -> None:
    won = reader_results.count_wins([[[1, 1, 2], [NAN, NAN, NAN]], [[1, NAN, 2], [3, 2, 1]]])
    assert won[0].tolist() == [[0, 0.5, 1], [0.5, 0, 1], [0, 0, 0]]
    assert won[1].tolist() == [[0, 0, 1], [1, 0, 0], [1, 1, 0]]


def panel(draw: np.random.Generator, strengths: np.ndarray, images: int, readers: int, spread: float) -> np.ndarray:
    """Ranks (F, R, A) by Plackett and Luce, that is by Gumbel's noise; what an image adds to an arm, all see alike."""
    worth = strengths + spread * draw.normal(size=(images, 1, len(strengths)))
    heard = worth + draw.gumbel(size=(images, readers, len(strengths)))
    return np.argsort(np.argsort(-heard, axis=2), axis=2) + 1.0


def marginal(gap: float, spread: float) -> float:
    """How probably the better of two arms is preferred on an image drawn at random."""
    scale = spread * np.sqrt(2)
    return integrate.quad(lambda z: stats.norm.pdf(z) * special.expit(gap + scale * z), -8, 8)[0]


def test_a_panel_s_strengths_are_found() -> None:
    truth = np.array([0.8, 0.0, -0.8])
    ranks = panel(np.random.default_rng(0), truth, 600, 3, 0.0)
    found = reader_results.compute_strengths(ranks, np.arange(600), resamples=200)
    assert [s.log_strength for s in found] == pytest.approx(truth, abs=0.12)
    (first, _, last) = reader_results.compare_pairs(ranks, np.arange(600), resamples=200)
    assert first.preferred == pytest.approx(marginal(0.8, 0), abs=0.03)
    assert first.p_value < 1e-3
    assert (last.first, last.second, last.images) == (1, 2, 600)


def test_a_pair_is_of_the_images_on_which_both_were_ranked_and_no_surer_for_others() -> None:
    ranks = np.full((30, 1, 2), NAN)
    ranks[:3, 0] = [1, 2]
    whole = reader_results.compute_strengths(ranks, np.arange(30), resamples=200)[0]
    (pair,) = reader_results.compare_pairs(ranks, np.arange(30), resamples=200)
    assert whole.preferred_ci == pytest.approx(pair.preferred_ci, abs=1e-9)
    ranks = np.full((4, 1, 3), NAN)
    ranks[:, 0, 0], ranks[:, 0, 1], ranks[0, 0, 2] = 1, 2, 3
    found = reader_results.compare_pairs(ranks, np.arange(4), resamples=50)
    assert {(pair.first, pair.second): pair.images for pair in found} == {(0, 1): 4, (0, 2): 1, (1, 2): 1}
    wide, narrow = (np.subtract(*pair.preferred_ci) for pair in found[1::-1])
    assert wide < narrow < 0, "one image says less"


@pytest.mark.full
@pytest.mark.parametrize(("gap", "spread"), [(0.0, 1.0), (0.7, 1.0), (0.7, 0.0)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(gap: float, spread: float) -> None:
    """Two arms, 40 images, 3 readers who see an image alike: an interval over judgements is too short."""
    draw, truth, panels = np.random.default_rng(7), marginal(gap, spread), 400
    held = held_by_judgements = 0
    for _ in range(panels):
        ranks = panel(draw, np.array([gap / 2, -gap / 2]), 40, 3, spread)
        (pair,) = reader_results.compare_pairs(ranks, np.arange(40), resamples=300, seed=int(draw.integers(1 << 30)))
        held += pair.preferred_ci[0] <= truth <= pair.preferred_ci[1]
        flat = (ranks[..., 0] < ranks[..., 1]).mean()
        half = 1.96 * np.sqrt(flat * (1 - flat) / 120)
        held_by_judgements += abs(flat - truth) <= half
    assert 0.91 <= held / panels <= 0.98
    if spread:
        assert held_by_judgements / panels < held / panels - 0.03


@pytest.mark.full
def test_intervals_of_agreement_hold_the_truth() -> None:
    """Readers who say the truth with a known probability, else anything: kappa is that probability squared."""
    draw, known, held, panels = np.random.default_rng(3), 0.7, 0, 300
    for _ in range(panels):
        truth = draw.integers(0, 3, (40, 1))
        said = np.where(draw.random((40, 3)) < known, truth, draw.integers(0, 3, (40, 3))).astype(float)
        bootstrap = Bootstrap.over(np.arange(40), resamples=300, seed=int(draw.integers(1 << 30)))
        low, high = interval(krippendorff_alpha(said, "nominal", bootstrap.row_weights()))
        held += low <= known**2 <= high
    assert 0.89 <= held / panels <= 0.98
