"""By how much a map beats every map that knows nothing of the model: paired, with intervals over groups.

A map that lies on the disease says little where the film's brightness lies there too. So each figure stands beside
chance, a prior for the centre, the lungs, the film's brightness within them, its edges, the mean mask of the training
films, and the network's own activation without its gradient; and only what is left over the best of them counts. Where
a measure hangs on how sharp a map is, a control also stands there as sharp as the map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import gaussian_blur

from trustcxr.explain import controls, measures
from trustcxr.statistics import Bootstrap, interval

CHANCE = "chance"
MEASURES = ("hit_rate", "infection_energy", "infection_given_lung")
_BLUR = 0.03  # of the side: the standard deviation of the smoothed brightness


def film_controls(images: Tensor, lung: Tensor, mean_mask: Tensor | None = None) -> dict[str, Tensor]:
    """Maps (B, H, W), not negative, that look at the film, at its lungs or at nothing; none looks at a model.

    images (B, 1, H, W) in [0, 1]; lung (B, H, W) bool; `mean_mask` (H, W): the lesion masks of training, averaged.
    Brightness is the film's within the lungs, plain, smoothed, and above the darkest of the lungs.
    """
    inside = lung.to(images.dtype)
    bright = images[:, 0] * inside
    darkest = torch.where(lung, images[:, 0], torch.inf).amin((1, 2), keepdim=True)
    sigma = _BLUR * images.shape[-1]
    size = 2 * round(3 * sigma) + 1
    blurred = gaussian_blur(bright[:, None], [size, size], [sigma, sigma])[:, 0]
    found = {
        "centre": controls.centre_prior(*images.shape[-2:]).to(images).expand_as(bright),
        "lung": inside,
        "brightness": bright,
        "brightness-smooth": blurred * inside,
        "brightness-above-darkest": ((images[:, 0] - darkest) * inside).clamp(min=0).nan_to_num(posinf=0.0),
        "edges": edges(images),
        "edges-in-lungs": edges(images) * inside,
    }
    if mean_mask is not None:
        found |= {
            "mean-mask": mean_mask.to(images).expand_as(bright),
            "mean-mask-in-lungs": mean_mask.to(images) * inside,
        }
    return found


def edges(images: Tensor) -> Tensor:
    """How steep the film is at each pixel, (B, H, W): the length of Sobel's gradient, in [0, 1]."""
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(images) / 8
    kernels = torch.stack([across, across.T])[:, None]
    slope = functional.conv2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), kernels)
    return slope.square().sum(1).sqrt()


def mean_mask(masks: np.ndarray) -> Tensor:
    """Lesion masks (N, H, W) of 0 and 1, averaged over those that are not empty: (H, W) in [0, 1]."""
    some = masks[masks.reshape(len(masks), -1).any(1)]
    return torch.from_numpy(some.mean(0) if len(some) else np.zeros(masks.shape[1:])).float()


@dataclass(frozen=True)
class Lesions:
    """The masks that maps are held against: lesion, lung (B, H, W) bool."""

    lesion: Tensor
    lung: Tensor


def measured(maps: Tensor, masks: Lesions, *, as_sharp_as: Tensor | None = None) -> dict[str, np.ndarray]:
    """The measures (B,) of maps (B, H, W); NaN without a lesion.

    `as_sharp_as`: of a control the map (B, H, W) that it stands beside, whose values it takes by rank: else the sharper
    of two maps has the higher share of its energy inside, though they lie at the same place.
    """
    whole = inside = maps
    if as_sharp_as is not None:
        whole = measures.with_values_of(maps, as_sharp_as)
        inside = measures.with_values_of(maps, as_sharp_as, within=masks.lung)
    found = {
        "hit_rate": measures.pointing_hit(maps, masks.lesion),
        "infection_energy": measures.energy_inside(whole, masks.lesion),
        "infection_given_lung": measures.energy_inside(inside, masks.lesion, within=masks.lung),
    }
    return {name: values.cpu().numpy() for name, values in found.items()}


def beside(controls: Mapping[str, Tensor], masks: Lesions, maps: Tensor) -> dict[str, dict[str, np.ndarray]]:
    """The measures (B,) of controls (B, H, W), as they are, and as sharp as `maps` where a measure hangs on that."""
    found = {}
    for name, control in controls.items():
        found[name] = measured(control, masks)
        found[f"{name}, as sharp"] = measured(control, masks, as_sharp_as=maps)
    return found


def by_chance(masks: Lesions) -> dict[str, np.ndarray]:
    """The measures (B,) of an even map: the lesion's share of the film, or of the lungs."""
    some = torch.where(masks.lesion.flatten(1).any(1), 1.0, torch.nan).double()
    of_film = masks.lesion.flatten(1).double().mean(1) * some
    of_lung = (masks.lesion & masks.lung).flatten(1).sum(1) / masks.lung.flatten(1).sum(1).clamp(min=1) * some
    shares = {"hit_rate": of_film, "infection_energy": of_film, "infection_given_lung": of_lung}
    return {name: values.cpu().numpy() for name, values in shares.items()}


def margins(
    of_map: Mapping[str, np.ndarray],
    of_controls: Mapping[str, Mapping[str, np.ndarray]],
    groups: Sequence[str] | np.ndarray,
    *,
    resamples: int = 2000,
) -> pd.DataFrame:
    """The map less each control on the same films: a row a measure and control.

    Columns: measure, control, value, beside (the control's), difference, low, high (95 % over groups), films. `value`
    and `beside` are over the films where both are known.
    """
    bootstrap = Bootstrap.over(groups, resamples=resamples)
    rows = []
    for control, by_measure in of_controls.items():
        for measure, beside in by_measure.items():
            difference = of_map[measure] - beside
            known = np.isfinite(difference)
            means = bootstrap.means(difference)
            low, high = interval(means)
            rows.append(
                {
                    "measure": measure,
                    "control": control,
                    "value": float(of_map[measure][known].mean()) if known.any() else float("nan"),
                    "beside": float(beside[known].mean()) if known.any() else float("nan"),
                    "difference": float(means[0]),
                    "low": low,
                    "high": high,
                    "films": int(known.sum()),
                }
            )
    return pd.DataFrame(rows)


def least(table: pd.DataFrame, measure: str) -> pd.Series:
    """The row of `margins` with the smallest difference: what the map has over the control that comes closest."""
    return table[table["measure"] == measure].sort_values("difference").iloc[0]
