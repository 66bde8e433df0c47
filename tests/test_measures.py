"""Measures of saliency: by hand, against scikit-image, scikit-learn and SciPy, and on the traps of others."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from skimage.filters import threshold_otsu
from sklearn.metrics import average_precision_score, jaccard_score, roc_auc_score
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from trustcxr import registry
from trustcxr.errors import UserError
from trustcxr.explain import measures, random_map

# 2 x 3 maps that can be worked out by hand.
MAP = torch.tensor([[[0.0, 0.2, 1.0], [0.4, 0.4, 0.0]]])
MASK = torch.tensor([[[0, 1, 1], [0, 1, 0]]])
AGAINST_MASK = list(dict.fromkeys(measures.measure_function(m) for m in registry.MEASURES.values() if m.function))
AGAINST_MASK.remove(measures.iou)


@pytest.fixture
def maps() -> Tensor:
    return random_map(6, 24, 32, seed=5)


@pytest.fixture
def masks() -> Tensor:
    """Blobs, as lesions are, of about a tenth to a half of the area."""
    return (random_map(6, 24, 32, seed=6) > torch.linspace(0.45, 0.8, 6)[:, None, None]).to(torch.uint8)


def test_energy_within_counts_only_what_lies_inside_the_second_mask() -> None:
    lung = torch.tensor([[[1, 1, 0], [1, 1, 1]]])
    assert measures.energy_inside(MAP, MASK, within=lung).item() == pytest.approx(0.6 / 1.0)
    assert measures.chance("energy_inside", MAP, MASK, within=lung).item() == pytest.approx(2 / 5)
    elsewhere = torch.tensor([[[1, 0, 0], [0, 0, 0]]])
    assert measures.energy_inside(MAP, MASK, within=elsewhere).isnan().item()  # no infection there
    assert measures.chance("energy_inside", MAP, MASK, within=elsewhere).isnan().item()
    dark = torch.tensor([[[0, 0, 0], [0, 0, 1]]])
    assert measures.energy_inside(MAP, dark, within=dark).item() == 0  # infection, and no saliency, there


TWO = torch.tensor([[[0, 0, 1], [0, 1, 0]]])
SHARED = torch.tensor([[[0.0, 1.0, 1.0], [0.4, 0.4, 0.0]]])
CORNER = torch.tensor([[[1, 0], [0, 0]]])
BY_HAND = {
    "energy is the share inside": (measures.energy_inside, MAP, MASK, [1.6 / 2.0]),
    "energy of a fainter map": (measures.energy_inside, MAP / 10, MASK, [1.6 / 2.0]),
    "a hit": (measures.pointing_hit, MAP, MASK, [1]),
    "no hit": (measures.pointing_hit, MAP, 1 - MASK, [0]),
    "all of a shared maximum": (measures.pointing_hit, SHARED, torch.tensor([[[0, 1, 1], [0, 0, 0]]]), [1]),
    "half of a shared maximum": (measures.pointing_hit, SHARED, torch.tensor([[[0, 1, 0], [1, 1, 1]]]), [0.5]),
    "shared but for rounding": (measures.pointing_hit, torch.tensor([[[1.0, 1 - 6e-8], [0.2, 0.0]]]), CORNER, [0.5]),
    "nearly shared": (measures.pointing_hit, torch.tensor([[[1.0, 0.999], [0.2, 0.0]]]), CORNER, [1]),
    "iou above 0.3": (partial(measures.iou, threshold=0.3), MAP, MASK, [2 / 4]),
    "iou above 0.4": (partial(measures.iou, threshold=0.4), MAP, MASK, [1 / 3]),
    "iou above one each": (
        partial(measures.iou, threshold=torch.tensor([0.3, 0.1])),
        MAP.expand(2, 2, 3),
        MASK.expand(2, 2, 3),
        [2 / 4, 3 / 4],
    ),
    "rank accuracy": (measures.rank_accuracy, MAP, MASK, [2 / 3]),
    "rank accuracy with a tie": (measures.rank_accuracy, MAP, TWO, [1.5 / 2]),
    "iou at the mask's area": (measures.iou_at_mask_area, MAP, MASK, [2 / 4]),
    "iou at the mask's area with a tie": (measures.iou_at_mask_area, MAP, TWO, [1.5 / 2.5]),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_measures_are_those_worked_out_by_hand(case: str) -> None:
    measure, saliency, mask, wanted = BY_HAND[case]
    exact = measure is measures.pointing_hit
    assert measure(saliency, mask).tolist() == (wanted if exact else pytest.approx(wanted))


def test_chance_is_the_share_of_the_area_and_for_iou_that_of_as_many_random_pixels() -> None:
    for name in ("energy_inside", "pointing_hit", "rank_accuracy", "average_precision"):
        assert measures.chance(name, MAP, MASK).item() == pytest.approx(3 / 6)
    assert measures.chance("pixel_auroc", MAP, MASK).item() == 0.5
    assert measures.chance("iou", MAP, MASK, threshold=0.5).item() == pytest.approx(0.5 / (1 + 3 - 0.5))
    assert measures.chance(measures.iou_at_mask_area, MAP, MASK).item() == pytest.approx(1.5 / (3 + 3 - 1.5))
    level = measures.otsu_threshold(MAP).item()
    above = int((level < MAP).sum())
    assert measures.chance(measures.iou_otsu, MAP, MASK).item() == pytest.approx((above / 2) / (above + 3 - above / 2))
    lung = torch.tensor([[[1, 1, 0], [1, 1, 1]]])  # two of the mask's pixels, and two of the three above 0.3
    within = measures.chance("iou", MAP, MASK, threshold=0.3, within=lung).item()
    assert within == pytest.approx((2 * 2 / 5) / (2 + 2 - 2 * 2 / 5))
    with pytest.raises(UserError, match="needs its threshold"):
        measures.chance("iou", MAP, MASK)


def test_random_maps_score_chance(masks: Tensor) -> None:
    count = 1500
    saliency = torch.rand((count, 24, 32), generator=torch.Generator().manual_seed(0))
    mask = masks[2:3].expand_as(saliency)
    for measure in AGAINST_MASK:
        value = measure(saliency, mask)
        wanted = measures.chance(measure, saliency, mask).mean().item()
        error = max(value.std().item() / count**0.5, 1e-9)
        # The expected ratio is not quite the ratio of expectations (iou), nor is precision linear: 1 % for that.
        assert abs(value.mean().item() - wanted) < 4 * error + 0.01 * wanted, measure.__name__


def test_otsu_threshold_and_iou_are_those_of_scikit_image(maps: Tensor, masks: Tensor) -> None:
    powers = [maps.double().clamp(0, 1) ** power for power in (1, 3, 0.3)]
    for saliency in (*powers, *((maps.double() * levels).round() / levels for levels in (1, 2, 5, 255))):
        theirs = [threshold_otsu(m) for m in saliency.numpy()]
        np.testing.assert_allclose(measures.otsu_threshold(saliency).numpy(), theirs, rtol=0, atol=1e-12)
        for i, value in enumerate(measures.iou_otsu(saliency, masks)):
            wanted = jaccard_score(masks[i].numpy().ravel(), saliency[i].numpy().ravel() > theirs[i])
            assert value.item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("levels", [0, 7])
def test_auroc_and_average_precision_are_those_of_scikit_learn(levels: int, maps: Tensor, masks: Tensor) -> None:
    saliency = (maps * levels).round() / levels if levels else maps  # with ties, and without
    for i in range(len(maps)):
        truth, score = masks[i].numpy().ravel(), saliency[i].numpy().ravel()
        assert measures.pixel_auroc(saliency, masks)[i].item() == pytest.approx(roc_auc_score(truth, score), abs=1e-9)
        wanted = average_precision_score(truth, score)
        assert measures.average_precision(saliency, masks)[i].item() == pytest.approx(wanted, abs=1e-9)


def test_rank_correlation_is_that_of_scipy_and_ssim_that_of_torchmetrics(maps: Tensor) -> None:
    a, b = maps[:3], ((maps[3:] + maps[:3]) * 3).round() / 6  # with ties
    ranks = [spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    np.testing.assert_allclose(measures.rank_correlation(a, b).numpy(), ranks, atol=1e-9)
    b = (maps[:3] * 0.6 + maps[3:] * 0.4).clamp(0, 1)
    pair = (a[:, None].double(), b[:, None].double())
    wanted = structural_similarity_index_measure(*pair, data_range=1.0, reduction="none")
    torch.testing.assert_close(measures.ssim(a, b), wanted.flatten(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("measure", AGAINST_MASK, ids=lambda measure: measure.__name__)
def test_any_value_but_0_is_inside_and_none_is_nan(measure: Callable[..., Tensor], maps: Tensor, masks: Tensor) -> None:
    for other in (masks.bool(), masks * 255, masks.float()):
        assert torch.equal(measure(maps, other), measure(maps, masks))
    masks[1] = 0
    for value in (measure(maps, masks), measures.chance(measure, maps, masks), measures.iou(maps, masks, 0.5)):
        assert value.isnan().tolist() == [False, True, False, False, False, False]
    assert measure(torch.rand(0, 8, 8), torch.ones(0, 8, 8)).shape == (0,)


@pytest.mark.parametrize("name", ["energy_inside", "pointing_hit", "iou_otsu", "iou_at_mask_area", "rank_accuracy"])
@pytest.mark.parametrize("value", [0.0, 0.4, 1.0, float("nan"), float("inf")])
def test_a_null_map_is_a_miss_and_is_counted(value: float, name: str, maps: Tensor) -> None:
    maps[2] = value
    maps[3, 0, 0] = float("nan")
    everything = torch.ones_like(maps)
    everything[:, 0, 0] = 0
    scores = getattr(measures, name)(maps, everything)
    assert scores[2:4].tolist() == [0, 0]
    assert (scores[[0, 1, 4, 5]] > 0).all()
    assert measures.null_map(maps).tolist() == [False, False, True, True, False, False]


def test_a_null_map_is_at_chance_and_a_full_mask_leaves_auroc_undefined(maps: Tensor, masks: Tensor) -> None:
    nothing, full = torch.zeros(masks.shape), torch.ones_like(maps)
    assert measures.pixel_auroc(nothing, masks).tolist() == [0.5] * 6
    chance = measures.chance("average_precision", nothing, masks)
    torch.testing.assert_close(measures.average_precision(nothing, masks), chance)
    assert measures.pixel_auroc(maps, full).isnan().all()
    assert measures.chance("pixel_auroc", maps, full).isnan().all()
    assert measures.energy_inside(maps, full).tolist() == pytest.approx([1.0] * 6)


def test_null_maps_are_not_called_stable(maps: Tensor) -> None:
    gone, before = maps.clone(), maps.clone()
    gone[:3] = before[0] = 0
    for measure in (measures.rank_correlation, measures.top_tenth_overlap, measures.ssim):
        value = measure(before, gone)
        assert value.isnan().tolist() == [True, False, False, False, False, False]
        assert (value[1:3] < 0.5).all()
        assert value[3:].tolist() == pytest.approx([1, 1, 1])
    assert measures.rank_correlation(before, gone)[1:3].tolist() == [0, 0]
    assert measures.top_tenth_overlap(gone, before)[1:3].tolist() == [0, 0]


def test_overlap_of_the_top_tenth_by_hand() -> None:
    a = torch.arange(40.0).reshape(1, 5, 8) / 39  # the top tenth is pixels 36 to 39
    b = a.clone()
    b[0, 4, 4] = 0.0  # pixel 36 makes room for pixel 35
    assert measures.top_tenth_overlap(a, b).item() == 3 / 4
    assert measures.top_tenth_overlap(a, 1 - a).item() == 0
    b[0, 0, 0] = b[0, 4, 3]  # pixel 0 ties with pixel 35 for the last place
    assert measures.top_tenth_overlap(b, b).item() == 1, "a map with ties is like itself"
    c = b.clone()
    c[0, 0, 0] = 0.0
    assert measures.top_tenth_overlap(b, c).item() == 3.5 / 4


def test_shapes_and_ranges_that_do_not_fit_are_named(maps: Tensor, masks: Tensor) -> None:
    for call, words in (
        (lambda: measures.energy_inside(maps, masks[:, :12]), r"masks \(6, 12, 32\) do not fit .* by nearest"),
        (lambda: measures.energy_inside(maps[0], masks[0]), r"must be \(B, H, W\)"),
        (lambda: measures.energy_inside(maps * 255, masks), r"must lie in \[0, 1\]; it reaches from"),
        (lambda: measures.energy_inside(maps - 0.5, masks), r"must lie in \[0, 1\]"),
        (lambda: measures.ssim(maps, maps[:3]), "different shapes"),
        (lambda: measures.ssim(maps[:, :8], maps[:, :8]), "at least 11 pixels"),
        (lambda: measures.chance("energy_insid", maps, masks), "did you mean energy_inside"),
        (lambda: measures.chance(measures.ssim, maps, masks), "unknown measure 'ssim'"),
    ):
        with pytest.raises(UserError, match=words):
            call()
