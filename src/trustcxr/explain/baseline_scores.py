"""What a map must be better than before it says anything of the network: the measures of maps that know less.

Chance, a prior for the centre, the lungs, the image's brightness and edges within them, the mean lesion mask of the
training images, a random map of as many cells, and the map of the same network with random weights.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trustcxr.explain import baselines, measures, methods, randomisation
from trustcxr.registry import MEASURES, RANDOMISED, REFERENCES, SALIENCY, SHARP, Measure, Method

CENTRE = "centre"
DRAWS = (1, 2, 3, 4, 5)  # seeds of the networks with random weights: one network is one draw
CONTROLLED = 128  # images, drawn by seed, on which they are explained
NOISE = "noise"
SPREAD = "randomised_spread"  # column: how far the draws' means lie from one another, one standard deviation
# The references that are also compared as sharp as the map.
SHARPENED = tuple(name + SHARP for name in REFERENCES if name not in ("chance", RANDOMISED))
SIMILARITY = "random_network_ssim"  # how like the map of the network with random weights is
CEILING = "pointing_ceiling"  # the hit rate of an oracle that picks the best of a map's cells

_Batch = tuple[Tensor, Tensor, "Masks"]


@dataclass(frozen=True)
class Masks:
    """Masks of a batch, (B, H, W) bool; all False where there is none."""

    infection: Tensor
    lung: Tensor

    @property
    def lesion(self) -> Tensor:
        """The share of the lungs that the infection covers, (B,); NaN without a lung or an infection."""
        lung, both = (m.flatten(1).sum(1).double() for m in (self.lung, self.lung & self.infection))
        share = both / lung
        return share.masked_fill(~self.infection.flatten(1).any(1), torch.nan)


def select_model_methods(names: Sequence[str]) -> list[str]:
    """The methods whose maps come from the model."""
    return [name for name in names if SALIENCY[Method.parse(name).base].model]


def score_maps(maps: Tensor, masks: Masks, threshold: float | None) -> dict[str, Tensor]:
    """Every measure (B,) of maps (B, H, W) against the masks; NaN where the mask is not there."""
    scores = {m.name: measures.measure_function(m)(maps, *_masks_of(m, masks), **_cut(m, masks)) for m in _plain()}
    scores["null_map"] = measures.null_map(maps)
    if threshold is not None:
        scores |= {m.name: measures.measure_function(m)(maps, *_masks_of(m, masks), threshold) for m in _tuned()}
    return scores


def score_chance(maps: Tensor, masks: Masks, threshold: float | None) -> dict[str, Tensor]:
    """What maps that know nothing would have by the same measures."""
    scores = {
        m.name: measures.chance(measures.measure_function(m), maps, *_masks_of(m, masks), **_cut(m, masks))
        for m in _plain()
    }
    if threshold is not None:
        tuned = partial(measures.chance, saliency=maps, threshold=threshold)
        scores |= {m.name: tuned(measures.measure_function(m), mask=_masks_of(m, masks)[0]) for m in _tuned()}
    return scores


def _plain() -> list[Measure]:
    return [m for m in MEASURES.values() if m.function and not m.tuned]


def _tuned() -> list[Measure]:
    """The measures that take the threshold that validation chose."""
    return [m for m in MEASURES.values() if m.function and m.tuned]


def _masks_of(measure: Measure, masks: Masks) -> tuple[Tensor]:
    return (getattr(masks, str(measure.mask)),)


def _cut(measure: Measure, masks: Masks) -> dict[str, Tensor]:
    """The mask that map and mask are cut to, where the measure says one."""
    return {"within": getattr(masks, measure.within)} if measure.within else {}


class ImageBaselines:
    """The figures of the centre prior, the lung mask, and the image's brightness (smoothed) and edges in the lungs.

    Of `mean_mask` (H, W), the lesion masks of training images averaged, too, where it is known.
    """

    def __init__(
        self, images: Tensor, masks: Masks, thresholds: Mapping[str, float], mean_mask: Tensor | None = None
    ) -> None:
        self.masks = masks
        maps = baselines.image_baselines(images, masks.lung, mean_mask)
        levels = {CENTRE: thresholds.get(CENTRE), "lung": 0.5}
        self.figures = {
            name: self._told(name, without_null(score_maps(baseline, masks, levels.get(name))))
            for name, baseline in maps.items()
        }
        self.sharp = {name: AsSharp(baseline, masks) for name, baseline in maps.items()}

    def as_sharp(self, values: "Values") -> dict[str, dict[str, Tensor]]:
        """By reference and measure, (B,): the references, and these as sharp as the map of those values."""
        sharp = {name + SHARP: self._told(name, baseline.energies(values)) for name, baseline in self.sharp.items()}
        return self.figures | sharp

    def _told(self, name: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Without those that are of the lungs, of images that have no lung mask."""
        if name == CENTRE:
            return dict(values)
        without = ~self.masks.lung.flatten(1).any(1)
        return {key: value.double().masked_fill(without, torch.nan) for key, value in values.items()}


class Values:
    """The values of maps (B, H, W) in ascending order, in all of the image and in the lungs alone; none where null."""

    def __init__(self, maps: Tensor, masks: Masks) -> None:
        finite = torch.where(maps.flatten(1).isfinite().all(1).view(-1, 1, 1), maps, 0.0)
        cuts = {cut: measures.cut_to(finite, _mask(cut, masks)) for cut in _CUTS}
        self.ascending = {cut: maps.flatten(1).sort(dim=1).values for cut, maps in cuts.items()}


class AsSharp:
    """A reference with the values of another map: a share of energy hangs on how sharp a map is."""

    def __init__(self, maps: Tensor, masks: Masks) -> None:
        self.masks = masks
        self.orders = {cut: measures.Order(measures.cut_to(maps, _mask(cut, masks))) for cut in _CUTS}

    def energies(self, values: Values) -> dict[str, Tensor]:
        """The measures (B,) that are a share of energy."""
        scores = {}
        for measure in (m for m in _plain() if measures.measure_function(m) is measures.energy_inside):
            sharp = self.orders[measure.within or ""].filled(values.ascending[measure.within or ""]).clamp(min=0)
            mask = _masks_of(measure, self.masks)
            scores[measure.name] = measures.energy_inside(sharp, *mask, **_cut(measure, self.masks))
        return scores


_CUTS = ("", "lung")  # all of the image, or what lies in this mask


def _mask(cut: str, masks: Masks) -> Tensor | None:
    return getattr(masks, cut) if cut else None


def without_null(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """The measures without the share of null maps, which is not of the masks."""
    return {name: value for name, value in scores.items() if name != "null_map"}


class CellBaseline:
    """What a map of few cells can have at all: the figures of random maps of as many, and those of an oracle."""

    def __init__(self, model: nn.Module, image: Tensor, names: Sequence[str]) -> None:
        self.cells = {name: methods.cells(model, image, name) for name in names}

    def drawn(self, images: Tensor, masks: Masks) -> "RandomMaps":
        """Random maps of these images, for each grid of cells."""
        random_maps = {
            cells: baselines.random_maps(images, cells) for cells in set(self.cells.values()) if cells is not None
        }
        figures = {cells: without_null(score_maps(maps, masks, None)) for cells, maps in random_maps.items()}
        return RandomMaps(self.cells, figures, {cells: AsSharp(maps, masks) for cells, maps in random_maps.items()})

    def ceiling(self, name: str, masks: Masks) -> dict[str, Tensor]:
        """The hit rate of an oracle with the method's cells; empty for what has none."""
        cells = self.cells.get(name)
        return {} if cells is None else {CEILING: measures.pointing_ceiling(masks.infection, cells)}


class RandomMaps(NamedTuple):
    """Random maps of a batch, by their cells: their figures, and what they have as sharp as another map."""

    cells: dict[str, tuple[int, int] | None]
    figures: dict[tuple[int, int], dict[str, Tensor]]
    sharp: dict[tuple[int, int], AsSharp]

    def plain(self, name: str) -> dict[str, dict[str, Tensor]]:
        """What a random map of as many cells has as a method's; nothing of what is no CAM."""
        cells = self.cells.get(name)
        return {} if cells is None else {NOISE: self.figures[cells]}

    def as_sharp(self, name: str, values: Values) -> dict[str, dict[str, Tensor]]:
        """The same, and what it has as sharp as the map of those values."""
        cells = self.cells.get(name)
        return {} if cells is None else self.plain(name) | {NOISE + SHARP: self.sharp[cells].energies(values)}


class RandomWeightsBaseline(NamedTuple):
    """The figures of maps of networks with random weights, mean over DRAWS."""

    rows: np.ndarray
    """(N,): the images, as rows of the data set, ascending."""
    figures: dict[str, dict[str, Tensor]]
    """By method and measure, (N,)."""
    spread: dict[str, dict[str, float]]
    """By method and measure, the standard deviation between the draws of their means over the images."""

    def measured(self, name: str, rows: np.ndarray) -> dict[str, Tensor]:
        """One method's figures of some rows, (B,): NaN for images that were not drawn."""
        positions = np.searchsorted(self.rows, rows).clip(max=len(self.rows) - 1)
        drawn, index = torch.from_numpy(self.rows[positions] == rows), torch.from_numpy(positions)
        scores = self.figures.get(name, {})
        return {key: torch.where(drawn, values[index], torch.nan) for key, values in scores.items()}

    def spread_of(self, name: str, figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The spread between draws beside each of these figures of a method, (B,): NaN where they are."""
        scores = self.spread.get(name, {})
        return {key: torch.where(values.isnan(), torch.nan, scores[key]) for key, values in figures.items()}


def make_random_baseline(
    model: nn.Module,
    rows: np.ndarray,
    batches: Callable[[np.ndarray], Iterator[_Batch]],
    names: Sequence[str],
    thresholds: Mapping[str, float],
) -> RandomWeightsBaseline:
    """Explain at most CONTROLLED of the images with random weights, a lung gate as it is trained: one network a draw.

    `batches`: rows -> images, labels and masks, a batch at a time. A map that is null says nothing and counts for no
    draw: a network without a map is no easier to beat. The maps of the model itself are kept meanwhile, to be compared.
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
        name: {key: float(torch.stack([draw[name][key].nanmean() for draw in draws]).std()) for key in scores}
        for name, scores in figures.items()
    }
    return RandomWeightsBaseline(chosen, figures, spread)


def _figures(maps: Tensor, trained: Tensor, masks: Masks, threshold: float | None) -> dict[str, Tensor]:
    scores = score_maps(maps, masks, threshold)
    null = scores.pop("null_map")
    masked = {key: value.double().masked_fill(null, torch.nan).cpu() for key, value in scores.items()}
    return masked | {SIMILARITY: measures.ssim(trained, maps).cpu()}
