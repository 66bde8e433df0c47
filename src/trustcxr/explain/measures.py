"""Measure saliency against masks, and against other saliency: a figure for each image of a batch.

Saliency is (B, H, W) in [0, 1]; masks are (B, H, W), 0 outside; results are (B,), float64. An empty mask gives NaN. A
null map (constant, or not finite) scores 0. `chance` is the score of a map without knowledge.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from trustcxr import registry
from trustcxr.errors import UserError, unknown

_FLAT = 1e-6  # a map with smaller differences is null
_OTSU_BINS = 256
_SSIM_WINDOW, _SSIM_SIGMA = 11, 1.5


def null_map(saliency: Tensor) -> Tensor:
    """Return True for each map (B, H, W) that is constant or not finite: (B,), bool.

    >>> import torch, trustcxr as tx
    >>> tx.explain.measures.null_map(torch.stack([torch.eye(2), torch.ones(2, 2)]))
    tensor([False,  True])
    """
    return _flat(_maps(saliency))


def energy_inside(saliency: Tensor, mask: Tensor, *, within: Tensor | None = None) -> Tensor:
    """Return the share of the saliency inside the mask, [0, 1]: the energy-based pointing game.

    Wang et al. 2020 (Score-CAM); relevance mass accuracy in Arras et al. 2022. `within`: a second mask, to which map
    and mask are cut. Masks that do not meet give NaN; no saliency inside `within` is a miss.

    >>> import torch, trustcxr as tx
    >>> saliency, mask = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]]), torch.tensor([[[0, 1], [0, 1]]])
    >>> tx.explain.measures.energy_inside(saliency, mask)
    tensor([0.7500], dtype=torch.float64)
    """
    maps, inside = _pair(saliency, mask)
    field = torch.ones_like(inside) if within is None else _pair(saliency, within)[1]
    inside = inside & field
    total = (maps * field).sum(dim=1).clamp(min=torch.finfo(maps.dtype).tiny)
    return _scored((maps * inside).sum(dim=1) / total, maps, inside)


class Order:
    """The order of the pixels of maps (B, H, W), to be filled with the values of other maps; ties share.

    Energy inside a mask depends on how sharp a map is. With the same values only the order of the pixels differs.
    """

    def __init__(self, maps: Tensor) -> None:
        self.shape = maps.shape
        ascending, pixels = maps.flatten(1).sort(dim=1)
        level = (ascending.diff(dim=1) != 0).cumsum(1)
        self.level = functional.pad(level, (1, 0))  # of the pixels in ascending order
        self.of_pixel = torch.empty_like(self.level).scatter_(1, pixels, self.level)
        self.count = torch.zeros(self.level.shape, dtype=torch.float64, device=maps.device)
        self.count.scatter_add_(1, self.level, torch.ones_like(self.count))

    def filled(self, ascending: Tensor) -> Tensor:
        """Return maps (B, H, W), float64, with these values (B, H W), sorted from the lowest."""
        values = ascending.double()
        means = torch.zeros_like(values).scatter_add_(1, self.level, values) / self.count.clamp(min=1)
        return means.gather(1, self.of_pixel).view(self.shape)


def pointing_hit(saliency: Tensor, mask: Tensor) -> Tensor:
    """Return 1 if the maximum of the map lies inside the mask, else 0: the pointing game, Zhang et al. 2018.

    If several pixels share the maximum, it is the share of them inside. No tolerance, 15 pixels in that paper: the
    masks are large.

    >>> import torch, trustcxr as tx
    >>> saliency, mask = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]]), torch.tensor([[[0, 1], [0, 1]]])
    >>> tx.explain.measures.pointing_hit(saliency, mask)
    tensor([1.], dtype=torch.float64)
    """
    maps, inside = _pair(saliency, mask)
    at_peak = maps >= maps.amax(dim=1, keepdim=True) - _FLAT
    return _scored((inside & at_peak).sum(dim=1).double() / at_peak.sum(dim=1), maps, inside)


def pointing_ceiling(mask: Tensor, cells: tuple[int, int]) -> Tensor:
    """Return the pointing game of an oracle that picks the best of rows x columns cells, [0, 1].

    An upsampled map is flat around its maximum at the border: there the hit is the share of the flat inside the mask.

    >>> import torch, trustcxr as tx
    >>> tx.explain.measures.pointing_ceiling(torch.ones(1, 4, 4), (2, 2))
    tensor([1.], dtype=torch.float64)
    """
    inside = (mask != 0).double()
    down, across = (_peaks(n, side).to(inside.device) for n, side in zip(cells, mask.shape[1:], strict=True))
    hits = torch.einsum("ih,bhw,jw->bij", down, inside, across).flatten(1).amax(1)
    return hits.masked_fill(~inside.flatten(1).any(1), torch.nan)


def _peaks(cells: int, pixels: int) -> Tensor:
    """Return where along a side a map peaks with its maximum in each cell: (cells, pixels), rows sum to 1."""
    lines = functional.interpolate(torch.eye(cells)[:, None], (pixels,), mode="linear", align_corners=False)[:, 0]
    highest = lines.amax(1, keepdim=True)
    peaks = ((lines >= highest - _FLAT) & (highest > 0)).double()
    return peaks / peaks.sum(1, keepdim=True).clamp(min=1)


def iou(saliency: Tensor, mask: Tensor, threshold: float | Tensor) -> Tensor:
    """Return the intersection over union, [0, 1], of the mask and the pixels above `threshold` (one, or (B,)).

    >>> import torch, trustcxr as tx
    >>> saliency, mask = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]]), torch.tensor([[[0, 1], [0, 1]]])
    >>> tx.explain.measures.iou(saliency, mask, 0.6)
    tensor([0.5000], dtype=torch.float64)
    """
    maps, inside = _pair(saliency, mask)
    on = _above(saliency, threshold)
    union = (on | inside).sum(dim=1).double().clamp(min=1)
    return _scored((on & inside).sum(dim=1) / union, maps, inside)


def iou_otsu(saliency: Tensor, mask: Tensor) -> Tensor:
    """Return the intersection over union, [0, 1], at each map's threshold by Otsu 1979 (as Saporta et al. 2022).

    >>> import torch, trustcxr as tx
    >>> saliency, mask = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]]), torch.tensor([[[0, 1], [0, 1]]])
    >>> tx.explain.measures.iou_otsu(saliency, mask)
    tensor([0.6667], dtype=torch.float64)
    """
    return iou(saliency, mask, otsu_threshold(saliency))


def iou_at_mask_area(saliency: Tensor, mask: Tensor) -> Tensor:
    """Intersection over union of the mask and as many of the most salient pixels as the mask has, [0, 1].

    No threshold to choose, and a map is not punished for being wide. Pixels that tie for the last places count in part,
    as if those places were drawn among them.

    >>> import torch, trustcxr as tx
    >>> saliency, mask = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]]), torch.tensor([[[0, 1], [0, 1]]])
    >>> tx.explain.measures.iou_at_mask_area(saliency, mask)
    tensor([0.6000], dtype=torch.float64)
    """
    share = rank_accuracy(saliency, mask)
    return share / (2 - share)


def rank_accuracy(saliency: Tensor, mask: Tensor) -> Tensor:
    """Return the share of the M most salient pixels that lie inside a mask of M pixels, [0, 1].

    Relevance rank accuracy, Arras et al. 2022. Ties as in `iou_at_mask_area`.

    >>> import torch, trustcxr as tx
    >>> saliency, mask = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]]), torch.tensor([[[0, 1], [0, 1]]])
    >>> tx.explain.measures.rank_accuracy(saliency, mask)
    tensor([0.7500], dtype=torch.float64)
    """
    maps, inside = _pair(saliency, mask)
    area = inside.sum(dim=1)
    share = (_top(maps, area) * inside).sum(dim=1) / area.clamp(min=1)
    return _scored(share, maps, inside)


def pixel_auroc(saliency: Tensor, mask: Tensor) -> Tensor:
    """Return the area under the ROC curve of saliency as a classifier of pixels, [0, 1]; NaN for an empty or full mask.

    Ties count half (Hanley and McNeil 1982). A null map has 0.5.

    >>> import torch, trustcxr as tx
    >>> saliency, mask = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]]), torch.tensor([[[0, 1], [0, 1]]])
    >>> tx.explain.measures.pixel_auroc(saliency, mask)
    tensor([0.8750], dtype=torch.float64)
    """
    maps, inside = _pair(saliency, mask)
    positive = inside.sum(dim=1).to(maps.dtype)
    negative = maps.shape[1] - positive
    ranks = (_average_ranks(maps) * inside).sum(dim=1)
    area = (ranks - positive * (positive + 1) / 2) / (positive * negative).clamp(min=1)
    return area.masked_fill((positive == 0) | (negative == 0), torch.nan)


def average_precision(saliency: Tensor, mask: Tensor) -> Tensor:
    """Return the average precision of saliency as a classifier of pixels, [0, 1]; a null map has the mask's share.

    >>> import torch, trustcxr as tx
    >>> saliency, mask = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]]), torch.tensor([[[0, 1], [0, 1]]])
    >>> tx.explain.measures.average_precision(saliency, mask)
    tensor([0.8333], dtype=torch.float64)
    """
    maps, inside = _pair(saliency, mask)
    order = maps.sort(dim=1)
    # For each pixel: how many are at least as salient, and how many of those lie inside.
    first = torch.searchsorted(order.values, maps.contiguous())
    below = functional.pad(inside.gather(1, order.indices).to(maps.dtype).cumsum(dim=1), (1, 0)).gather(1, first)
    positive = inside.sum(dim=1, keepdim=True)
    precision = (positive - below) / (maps.shape[1] - first)
    value = (precision * inside).sum(dim=1) / positive[:, 0].clamp(min=1)
    return value.masked_fill(~inside.any(dim=1), torch.nan)


def measure_function(entry: registry.Measure) -> Callable[..., Tensor]:
    """Return the function of a measure of the registry."""
    return registry.load_function("explain", str(entry.function))


# By the function's name: measures that differ in mask or field share it.
_CHANCE = {measure_function(m).__name__: m.chance for m in registry.MEASURES.values() if m.function}


def chance(
    measure: str | Callable[..., Tensor],
    saliency: Tensor,
    mask: Tensor,
    *,
    within: Tensor | None = None,
    threshold: float | Tensor | None = None,
) -> Tensor:
    """Return the expected score (B,) of a map without knowledge, by this measure (its name or function).

    For energy, the pointing game, rank accuracy and average precision: the mask's share of the area (of `within`). For
    an IoU: that of K random pixels, K being as many as are on in this map. `threshold` is that of `iou`. NaN for an
    empty mask. Compare also with `centre_prior` and the lung mask.

    >>> import torch, trustcxr as tx
    >>> saliency, mask = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]]), torch.tensor([[[0, 1], [0, 1]]])
    >>> tx.explain.measures.chance("energy_inside", saliency, mask)
    tensor([0.5000], dtype=torch.float64)
    """
    name = getattr(measure, "__name__", str(measure))
    if name not in _CHANCE:
        raise unknown("measure", name, _CHANCE)
    inside = _pair(saliency, mask)[1]
    field = torch.ones_like(inside) if within is None else _pair(saliency, within)[1]
    inside = inside & field
    area, pixels = inside.sum(dim=1).double(), field.sum(dim=1).clamp(min=1)
    share = area / pixels
    if _CHANCE[name] == "half":
        share = torch.full_like(share, 0.5).masked_fill(area == pixels, torch.nan)
    elif _CHANCE[name] == "pixels":
        on = area
        if name != "iou_at_mask_area":
            level = otsu_threshold(saliency) if name == "iou_otsu" else threshold
            if level is None:
                raise UserError("the chance of iou needs its threshold")
            on = (_above(saliency, level) & field).sum(dim=1)
        both = on * area / pixels
        share = both / (on + area - both).clamp(min=1)
    return share.masked_fill(area == 0, torch.nan)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the structural similarity of two maps, [-1, 1] (Wang et al. 2004: a Gaussian window of 11, sigma 1.5).

    The mean over a window at every pixel, mirrored at the border. NaN if both maps are null.
    """
    first, second = _same_shape(a, b)
    if min(a.shape[1:]) < _SSIM_WINDOW:
        raise UserError(f"SSIM needs maps of at least {_SSIM_WINDOW} pixels a side; got {tuple(a.shape[1:])}")
    one, other = (m.reshape(a.shape).float() for m in (first, second))
    mean_one, mean_other, square_one, square_other, product = (
        _windows(m) for m in (one, other, one * one, other * other, one * other)
    )
    means = mean_one * mean_other
    spread_one, spread_other, both = square_one - mean_one**2, square_other - mean_other**2, product - means
    light, contrast = 0.01**2, 0.03**2  # the paper's constants, for a range of 1
    above = (2 * means + light) * (2 * both + contrast)
    below = (mean_one**2 + mean_other**2 + light) * (spread_one + spread_other + contrast)
    value = (above / below).double().mean(dim=(1, 2))
    return value.masked_fill(_flat(first) & _flat(second), torch.nan)


def _windows(maps: Tensor) -> Tensor:
    """Return Gaussian-weighted means (B, H, W) of the window at every pixel."""
    reach = _SSIM_WINDOW // 2
    offset = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    weights = torch.exp(-((offset / _SSIM_SIGMA) ** 2) / 2)
    weights = weights / weights.sum()
    mirrored = functional.pad(maps[:, None], [reach] * 4, mode="reflect")
    down = functional.conv2d(mirrored, weights[None, None, :, None])
    return functional.conv2d(down, weights[None, None, None, :])[:, 0]


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Spearman's rank correlation of two maps, [-1, 1]; 0 if one is null, NaN if both are."""
    first, second = _same_shape(a, b)
    ranks = [_average_ranks(m) for m in (first, second)]
    one, other = (r - r.mean(dim=1, keepdim=True) for r in ranks)
    scale = (one.norm(dim=1) * other.norm(dim=1)).clamp(min=1)
    return _compared((one * other).sum(dim=1) / scale, first, second)


def top_tenth_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return the share of one map's most salient tenth that is in the other's too, [0, 1] (Ghorbani et al. 2019).

    Chance is 0.1. Ties as in `iou_at_mask_area`; null maps as in `rank_correlation`.
    """
    first, second = _same_shape(a, b)
    tenth = torch.full(first.shape[:1], max(round(first.shape[1] / 10), 1), device=first.device)
    both = torch.minimum(_top(first, tenth), _top(second, tenth)).sum(dim=1) / tenth
    return _compared(both, first, second)


def otsu_threshold(saliency: Tensor) -> Tensor:
    """Return Otsu's threshold of each map (B, H, W) over 256 bins, as scikit-image computes it: (B,), float64."""
    maps = _maps(saliency)
    low, high = maps.amin(dim=1, keepdim=True), maps.amax(dim=1, keepdim=True)
    edges = low + (high - low) * torch.linspace(0, 1, _OTSU_BINS + 1, dtype=maps.dtype, device=maps.device)
    centres = (edges[:, 1:] + edges[:, :-1]) / 2
    bins = (torch.searchsorted(edges, maps.contiguous(), right=True) - 1).clamp(0, _OTSU_BINS - 1)
    counts = torch.zeros_like(centres).scatter_add_(1, bins, torch.ones_like(maps))
    lower, lower_sum = counts.cumsum(dim=1), (counts * centres).cumsum(dim=1)
    upper, upper_sum = lower[:, -1:] - lower, lower_sum[:, -1:] - lower_sum
    # How far apart the two sides' means are, weighted by their sizes.
    gap = lower_sum / lower.clamp(min=1) - upper_sum / upper.clamp(min=1)
    best = (lower * upper * gap**2).argmax(dim=1, keepdim=True)
    return centres.gather(1, best)[:, 0]


def _maps(saliency: Tensor) -> Tensor:
    """Flatten (B, H, W) to (B, H W), float64; a map that is not finite becomes all zeros, a null map."""
    if saliency.ndim != 3:
        raise UserError(f"saliency must be (B, H, W) in [0, 1]; got {tuple(saliency.shape)}")
    maps = saliency.detach().double().flatten(1)
    maps = torch.where(maps.isfinite().all(dim=1, keepdim=True), maps, 0.0)
    if maps.numel() and (maps.min() < -_FLAT or maps.max() > 1 + _FLAT):
        raise UserError(f"saliency must lie in [0, 1]; it reaches from {maps.min():.3g} to {maps.max():.3g}")
    return maps


def _pair(saliency: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    if mask.shape != saliency.shape:
        raise UserError(f"masks {tuple(mask.shape)} do not fit maps {tuple(saliency.shape)}: resize them by nearest")
    return _maps(saliency), (mask != 0).flatten(1).to(saliency.device)


def _same_shape(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape:
        raise UserError(f"maps of different shapes cannot be compared: {tuple(a.shape)} and {tuple(b.shape)}")
    return _maps(a), _maps(b)


def _above(saliency: Tensor, threshold: float | Tensor) -> Tensor:
    # A plain number is meant in the precision of the map: 0.4 is not above 0.4.
    level = threshold if isinstance(threshold, Tensor) else torch.tensor(threshold, dtype=saliency.dtype)
    return _maps(saliency) > level.to(saliency.device, torch.float64).reshape(-1, 1)


def _flat(maps: Tensor) -> Tensor:
    return maps.amax(dim=1) - maps.amin(dim=1) <= _FLAT


def _scored(value: Tensor, maps: Tensor, inside: Tensor) -> Tensor:
    return value.to(maps.dtype).masked_fill(_flat(maps), 0.0).masked_fill(~inside.any(dim=1), torch.nan)


def _compared(value: Tensor, first: Tensor, second: Tensor) -> Tensor:
    one, other = _flat(first), _flat(second)
    return value.masked_fill(one | other, 0.0).masked_fill(one & other, torch.nan)


def _average_ranks(maps: Tensor) -> Tensor:
    """Return ranks from 1 within each row; ties share the mean of their ranks."""
    ranks = torch.arange(1, maps.shape[1] + 1, device=maps.device).expand_as(maps)
    return Order(maps).filled(ranks)


def _top(maps: Tensor, count: Tensor) -> Tensor:
    """Return the membership, 0 to 1, of each pixel in the `count` most salient ones; ties share."""
    ranked = maps.topk(int(count.max().clamp(min=1)) if len(count) else 1, dim=1).values
    last = ranked.gather(1, (count.long()[:, None] - 1).clamp(min=0))
    above, tied = maps > last, maps == last
    remaining = count[:, None] - above.sum(dim=1, keepdim=True)
    return above + tied * (remaining / tied.sum(dim=1, keepdim=True).to(maps.dtype))
