"""Load the measures (`measures.yaml`), with their direction, chance level and limits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from trustcxr.registry.base import by_name


@dataclass(frozen=True)
class Measure:
    """A measure of a saliency map; without a function, of predictions or of several maps.

    `better`: the better direction, or None. `function` takes maps (B, H, W) and masks of kind `mask`, both cut to the
    mask `within`. `chance`: score of an uninformative map: the mask's share of the area, a half, or as many random
    pixels. `tuned`: uses the threshold chosen on validation. `about`: description if there is no function; `beware`:
    what it does not mean.
    """

    name: str
    label: str
    better: Literal["higher", "lower"] | None = "higher"
    function: str | None = None
    mask: Literal["infection", "lung"] | None = None
    within: Literal["infection", "lung"] | None = None
    chance: Literal["share", "half", "pixels"] = "share"
    tuned: bool = False
    compared: bool = True
    charted: bool = False
    paper: str = ""
    about: str = ""
    beware: str = ""


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is a hundred times faster
_ENTRIES = yaml.load(Path(__file__).with_name("measures.yaml").read_text(encoding="utf-8"), Loader=_LOADER)
MEASURES = by_name(*(Measure(**entry) for entry in _ENTRIES))
HIT_RATE = "pointing_hit_rate"  # withheld if the map has too few cells to hit
ONE_CELL = "1 x 1"  # cells of a constant map, which has no figures
NO_MAP = "no map: what is read has one cell, so that it is the same everywhere; an earlier layer has more"
NULL_MAPS = "null_map_rate"  # share of constant maps: the only figure of a map of one cell
# A map shows something by these measures, in this order.
HEADLINE_MEASURES = (HIT_RATE, "infection_energy", "infection_energy_given_lung")
AGAINST_MASKS = tuple(m.name for m in MEASURES.values() if m.function)
HIGHER_IS_BETTER = tuple(m.name for m in MEASURES.values() if m.compared and m.better == "higher")
LOWER_IS_BETTER = tuple(m.name for m in MEASURES.values() if m.compared and m.better == "lower")


def direction(measure: str) -> int:
    """Return 1 if more of a measure is better, -1 if less is, 0 if neither."""
    entry = MEASURES.get(measure) or MEASURES.get(measure.removesuffix(" accuracy"))
    return 1 if entry is None else {"higher": 1, "lower": -1, None: 0}[entry.better]
