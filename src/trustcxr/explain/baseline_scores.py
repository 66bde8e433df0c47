"""Score saliency maps and their baselines against masks: a map that beats no baseline says nothing of the network.

Baselines: chance, a prior for the centre, the lungs, brightness and edges within them, the mean lesion mask of training
images, a random map of as many cells, and the map of the same network with random weights.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from trustcxr.explain import baselines, measures, methods, randomisation
from trustcxr.registry import MEASURES, RANDOMISED, REFERENCES, SALIENCY, SHARP, Measure, Method
from trustcxr.statistics import LEVEL

CENTRE = "centre"
DRAWS = (1, 2, 3, 4, 5)  # seeds of the networks with random weights: one network is one draw
CONTROLLED = 128  # images, drawn by seed, that are explained with random weights
NOISE = "noise"
SPREAD = "randomised_spread"  # column: how far the mean of one more draw may lie from that of the draws (95 %)
# The baselines that are also compared rank-matched, with the values of the map itself.
SHARPENED = tuple(name + SHARP for name in REFERENCES if name not in ("chance", RANDOMISED))
SIMILARITY = "random_network_ssim"  # SSIM with the map of the network with random weights
CEILING = "pointing_ceiling"  # hit rate of an oracle that picks the best of a map's cells
_CUTS = ("", "lung")  # fields of a measure: the whole image, or this mask

Grid = tuple[int, int]
Cells = Mapping[str, Grid | None]  # of each method's map, None for pixels
Batch = tuple[Tensor, Tensor, "Masks"]  # images, labels, masks


@dataclass(frozen=True)
class Masks:
    """Masks of a batch, (B, H, W) bool; all False for an image without one."""

    infection: Tensor
    lung: Tensor

    @property
    def lesion(self) -> Tensor:
        """Return the share of the lungs that the infection covers, (B,); NaN without a lung or an infection."""
        lung, both = (m.flatten(1).sum(1).double() for m in (self.lung, self.lung & self.infection))
        share = both / lung
        return share.masked_fill(~self.infection.flatten(1).any(1), torch.nan)


def select_model_methods(names: Sequence[str]) -> list[str]:
    """Return the methods whose maps depend on the model."""
    return [name for name in names if SALIENCY[Method.parse(name).base].model]


def score_maps(maps: Tensor, masks: Masks, threshold: float | None) -> dict[str, Tensor]:
    """Return every measure (B,) of maps (B, H, W) against the masks; NaN without a mask.

    `threshold`: of the maps, for the measures that take one; None leaves these out.
    """
    scores = {m.name: _score(m, maps, masks, None) for m in _measures(None)} | {"null_map": measures.null_map(maps)}
    return scores | {m.name: _score(m, maps, masks, threshold) for m in _measures(threshold) if m.tuned}


def score_chance(maps: Tensor, masks: Masks, threshold: float | None) -> dict[str, Tensor]:
    """Return the same measures of maps without any knowledge, by `measures.chance`."""
    return {m.name: _score(m, maps, masks, threshold, chance=True) for m in _measures(threshold)}


def _measures(threshold: float | None) -> list[Measure]:
    return [m for m in MEASURES.values() if m.function and not (m.tuned and threshold is None)]


def _score(measure: Measure, maps: Tensor, masks: Masks, threshold: float | None, *, chance: bool = False) -> Tensor:
    function, mask = measures.measure_function(measure), getattr(masks, str(measure.mask))
    options = {"within": getattr(masks, measure.within)} if measure.within else {}
    if measure.tuned:
        options["threshold"] = threshold
    return measures.chance(function, maps, mask, **options) if chance else function(maps, mask, **options)


def sort_values(maps: Tensor, masks: Masks) -> dict[str, Tensor]:
    """Return the values of maps (B, H, W) in ascending order, in the whole image and in the lungs alone."""
    finite = torch.where(maps.flatten(1).isfinite().all(1).view(-1, 1, 1), maps, 0.0)
    return {cut: _cut(finite, cut, masks).flatten(1).sort(dim=1).values for cut in _CUTS}


class RankMatched:
    """A baseline that takes the values of another map: a share of energy depends on how sharp a map is."""

    def __init__(self, maps: Tensor, masks: Masks) -> None:
        self.masks = masks
        self.orders = {cut: measures.Order(_cut(maps, cut, masks)) for cut in _CUTS}

    def score(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the measures (B,) that are a share of energy."""
        scores = {}
        for measure in _measures(None):
            if measures.measure_function(measure) is measures.energy_inside:
                cut = measure.within or ""
                maps = self.orders[cut].filled(values[cut]).clamp(min=0)
                scores[measure.name] = _score(measure, maps, self.masks, None)
        return scores


def _cut(maps: Tensor, cut: str, masks: Masks) -> Tensor:
    """Set maps (B, H, W) to -1 outside a mask, so that pixels there have no order."""
    return torch.where(getattr(masks, cut), maps, -1.0) if cut else maps


class BatchBaselines:
    """Scores of the baseline maps of one batch: those of `baselines.image_baselines`, and a random map of each grid.

    `cells`: the grid of each method's map, None for pixels. `mean_mask` (H, W): the mean lesion mask of training.
    """

    def __init__(
        self, images: Tensor, masks: Masks, thresholds: Mapping[str, float], cells: Cells, mean_mask: Tensor | None
    ) -> None:
        self.masks, self.cells = masks, cells
        maps: dict[str | Grid, Tensor] = dict(baselines.image_baselines(images, masks.lung, mean_mask).items())
        maps |= {
            grid: baselines.random_saliency(None, images, cells=grid)
            for grid in set(cells.values())
            if grid is not None
        }
        levels = {CENTRE: thresholds.get(CENTRE), "lung": 0.5}
        self.scores = {
            key: self._leave_out(key, score_maps(baseline, masks, levels.get(str(key))))
            for key, baseline in maps.items()
        }
        self.matched = {key: RankMatched(baseline, masks) for key, baseline in maps.items()}

    def compare(self, name: str, values: Mapping[str, Tensor] | None = None) -> dict[str, dict[str, Tensor]]:
        """Return by baseline and measure, (B,), what a method's maps are compared with.

        `values` are those of the method's maps, for the baselines rank-matched to them.
        """
        keys: dict[str, str | Grid] = {key: key for key in self.scores if isinstance(key, str)}
        if (grid := self.cells.get(name)) is not None:
            keys[NOISE] = grid
        plain = {baseline: self.scores[key] for baseline, key in keys.items()}
        if values is None:
            return plain
        sharp = {key + SHARP: self._leave_out(at, self.matched[at].score(values)) for key, at in keys.items()}
        return plain | sharp

    def _leave_out(self, key: str | Grid, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the scores, without the null maps, and with NaN without a lung mask, if the baseline needs one."""
        scores.pop("null_map", None)
        if key == CENTRE or not isinstance(key, str):
            return scores
        without = ~self.masks.lung.flatten(1).any(1)
        return {name: value.double().masked_fill(without, torch.nan) for name, value in scores.items()}


class RandomWeightsBaseline(NamedTuple):
    """Scores of maps of networks with random weights, mean over DRAWS."""

    rows: np.ndarray  # (N,): the images, as rows of the data set, ascending
    figures: dict[str, dict[str, Tensor]]  # by method and measure, (N,)
    spread: dict[str, dict[str, float]]  # the same: `spread_of_draws` of the draws' means over the images

    def select(self, name: str, rows: np.ndarray) -> dict[str, dict[str, Tensor]]:
        """Return one method's scores of some rows and their spread, (B,): NaN for images that were not drawn."""
        positions = np.searchsorted(self.rows, rows).clip(max=len(self.rows) - 1)
        drawn, index = torch.from_numpy(self.rows[positions] == rows), torch.from_numpy(positions)
        scores = {key: torch.where(drawn, v[index], torch.nan) for key, v in self.figures.get(name, {}).items()}
        compared = {key: v for key, v in scores.items() if key != SIMILARITY}
        spread = {key: torch.where(v.isnan(), torch.nan, self.spread[name][key]) for key, v in compared.items()}
        return {RANDOMISED: scores, SPREAD: spread}


def spread_of_draws(means: Sequence[float]) -> float:
    """Return how far the mean of one more draw may lie from that of these, with 95 % confidence (Student's t).

    A draw without a mean (NaN: all its maps are null) does not count. NaN if fewer than two count.
    """
    finite = np.array([mean for mean in means if not np.isnan(mean)])
    if len(finite) < 2:
        return float("nan")
    factor = stats.t.ppf((1 + LEVEL) / 2, len(finite) - 1) * (1 + 1 / len(finite)) ** 0.5
    return float(factor * finite.std(ddof=1))


def make_random_baseline(
    model: nn.Module,
    rows: np.ndarray,
    batches: Callable[[np.ndarray], Iterator[Batch]],
    names: Sequence[str],
    thresholds: Mapping[str, float],
) -> RandomWeightsBaseline:
    """Explain at most CONTROLLED of the images with random weights, the lung gate as trained: one network a draw.

    `batches`: rows -> images, labels and masks, a batch at a time. A null map counts for no draw.
    """
    chosen = np.sort(np.random.default_rng(0).permutation(rows)[:CONTROLLED])
    wanted = select_model_methods(names)
    trained = [methods.maps(model, images, labels, wanted) for images, labels, _ in batches(chosen)] if wanted else []
    draws: list[dict[str, dict[str, Tensor]]] = []
    for seed in DRAWS if wanted else ():
        network = randomisation.random_network(model, seed=seed)
        parts = []
        for (images, labels, masks), before in zip(batches(chosen), trained, strict=True):
            maps = methods.maps(network, images, labels, wanted)
            parts.append({name: _figures(maps[name], before[name], masks, thresholds.get(name)) for name in wanted})
        draws.append({n: {key: torch.cat([part[n][key] for part in parts]) for key in parts[0][n]} for n in wanted})
    figures = {
        name: {key: torch.stack([draw[name][key] for draw in draws]).nanmean(0) for key in draws[0][name]}
        for name in wanted
    }
    spread = {
        name: {key: spread_of_draws([float(draw[name][key].nanmean()) for draw in draws]) for key in scores}
        for name, scores in figures.items()
    }
    return RandomWeightsBaseline(chosen, figures, spread)


def _figures(maps: Tensor, trained: Tensor, masks: Masks, threshold: float | None) -> dict[str, Tensor]:
    scores = score_maps(maps, masks, threshold)
    null = scores.pop("null_map")
    masked = {key: value.double().masked_fill(null, torch.nan).cpu() for key, value in scores.items()}
    return masked | {SIMILARITY: measures.ssim(trained, maps).cpu()}
