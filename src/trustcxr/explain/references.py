"""What a map must be better than before it says anything of the network: the measures of maps that know less.

Chance, a prior for the centre, the lungs, the film's brightness and edges within them, a random map of as many cells,
and the map of the same network with random weights.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trustcxr.catalogue import MEASURES, SALIENCY, Measure, Method
from trustcxr.explain import controls, measures, methods, randomisation
from trustcxr.explain.margins import film_controls

CENTRE = "centre"
DRAWS = (1, 2, 3)  # seeds of the networks with random weights: one network is one draw
CONTROLLED = 128  # images, drawn by seed, on which they are explained
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


def looking(names: Sequence[str]) -> list[str]:
    """The methods whose maps come from the model."""
    return [name for name in names if SALIENCY[Method.parse(name).base].model]


def against_masks(maps: Tensor, masks: Masks, threshold: float | None) -> dict[str, Tensor]:
    """Every measure (B,) of maps (B, H, W) against the masks; NaN where the mask is not there."""
    found = {m.name: measures.of(m)(maps, *_masks_of(m, masks), **_cut(m, masks)) for m in _plain()}
    found["null_map"] = measures.null_map(maps)
    if threshold is not None:
        found |= {m.name: measures.of(m)(maps, *_masks_of(m, masks), threshold) for m in _tuned()}
    return found


def by_chance(maps: Tensor, masks: Masks, threshold: float | None) -> dict[str, Tensor]:
    """What maps that know nothing would have by the same measures."""
    found = {m.name: measures.chance(measures.of(m), maps, *_masks_of(m, masks), **_cut(m, masks)) for m in _plain()}
    if threshold is not None:
        tuned = partial(measures.chance, saliency=maps, threshold=threshold)
        found |= {m.name: tuned(measures.of(m), mask=_masks_of(m, masks)[0]) for m in _tuned()}
    return found


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


def of_the_film(images: Tensor, masks: Masks, thresholds: Mapping[str, float]) -> dict[str, dict[str, Tensor]]:
    """The figures of the centre prior, the lung mask, and the film's brightness and edges within the lungs."""
    centre = controls.centre_prior(*masks.lung.shape[1:]).to(masks.lung.device).expand(masks.lung.shape)
    film = film_controls(images, masks.lung)
    without = ~masks.lung.flatten(1).any(1)
    found = {CENTRE: without_null(against_masks(centre, masks, thresholds.get(CENTRE)))}
    for name, maps, level in (
        ("lung", masks.lung.float(), 0.5),
        ("brightness", film["brightness"], None),
        ("edges", film["edges-in-lungs"], None),
    ):
        values = without_null(against_masks(maps, masks, level))
        found[name] = {key: value.double().masked_fill(without, torch.nan) for key, value in values.items()}
    return found


def without_null(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The measures without the share of null maps, which is not of the masks."""
    return {name: value for name, value in found.items() if name != "null_map"}


class OfCells:
    """What a map of few cells can have at all: the figures of random maps of as many, and those of an oracle."""

    def __init__(self, model: nn.Module, image: Tensor, names: Sequence[str]) -> None:
        self.cells = {name: methods.cells(model, image, name) for name in names}

    def measured(self, images: Tensor, masks: Masks) -> dict[str, dict[str, Tensor]]:
        """By method, for those that are CAMs, the measures of a random map of their cells."""
        known: dict[tuple[int, int], dict[str, Tensor]] = {}
        for cells in self.cells.values():
            if cells is not None and cells not in known:
                maps = controls.random_maps(images, cells)
                known[cells] = without_null(against_masks(maps, masks, None))
        return {name: known[cells] if cells else {} for name, cells in self.cells.items()}

    def ceiling(self, name: str, masks: Masks) -> dict[str, Tensor]:
        """The hit rate of an oracle with the method's cells; empty for what has none."""
        cells = self.cells.get(name)
        return {} if cells is None else {CEILING: measures.pointing_ceiling(masks.infection, cells)}


class OfRandomWeights(NamedTuple):
    """The figures of maps of networks with random weights, mean over DRAWS."""

    rows: np.ndarray
    """(N,): the images, as rows of the data set, ascending."""
    figures: dict[str, dict[str, Tensor]]
    """By method and measure, (N,)."""

    def measured(self, name: str, rows: np.ndarray) -> dict[str, Tensor]:
        """One method's figures of some rows, (B,): NaN for images that were not drawn."""
        place = np.searchsorted(self.rows, rows).clip(max=len(self.rows) - 1)
        drawn, index = torch.from_numpy(self.rows[place] == rows), torch.from_numpy(place)
        found = self.figures.get(name, {})
        return {key: torch.where(drawn, values[index], torch.nan) for key, values in found.items()}


def of_random_weights(
    model: nn.Module,
    rows: np.ndarray,
    batches: Callable[[np.ndarray], Iterator[_Batch]],
    names: Sequence[str],
    thresholds: Mapping[str, float],
) -> OfRandomWeights:
    """Explain at most CONTROLLED of the images with random weights, a lung gate as it is trained: one network a draw.

    `batches`: rows -> images, labels and masks, a batch at a time. A map that is null says nothing and counts for no
    draw: a network without a map is no easier to beat. The maps of the model itself are kept meanwhile, to be compared.
    """
    chosen = np.sort(np.random.default_rng(0).permutation(rows)[:CONTROLLED])
    wanted = looking(names)
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
    return OfRandomWeights(chosen, figures)


def _figures(maps: Tensor, trained: Tensor, masks: Masks, threshold: float | None) -> dict[str, Tensor]:
    found = against_masks(maps, masks, threshold)
    null = found.pop("null_map")
    told = {key: value.double().masked_fill(null, torch.nan).cpu() for key, value in found.items()}
    return told | {SIMILARITY: measures.ssim(trained, maps).cpu()}
