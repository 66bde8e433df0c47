"""Explain one image: maps with baselines, the smallest perturbation that flips the prediction, corruptions."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trustcxr import attacks, corruptions
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import Run
from trustcxr.explain import baselines, methods
from trustcxr.explain.probabilities import predict_labels
from trustcxr.registry import CORRUPTIONS, USUAL_ATTACKS, Method

MAPS = ("gradcam", "layercam@-2", "hirescam", "gradcam++", "evidence")  # of these, those that the network has
SPOILT_BY = ("gaussian_noise", "defocus_blur", "contrast", "exposure", "rotation", "letters")
SEVERITY = 3
HIGHEST = 0.3  # the largest perturbation that is tried
_TOWARDS = 10  # steps of FAB toward the border
_STEPS, _ATTEMPTS, _SECONDS = (20, 10, 5, 3), 4, 1.0  # steps of PGD; radii tried; their time limit
FEW_CELLS = 32  # a map of at most so many cells a side is drawn as cells
_CLOSE = 1 / 8  # tolerance of the radius, as a share of FAB's


@dataclass(frozen=True)
class MapBaseline:
    """A baseline map, (H, W) in [0, 1], and its correlation with the method's map (NaN if one is constant)."""

    label: str
    pixels: Tensor
    likeness: float


@dataclass(frozen=True)
class Map:
    """A method's map, (H, W) in [0, 1]; its cells, None for pixels; its baselines."""

    method: str
    pixels: Tensor
    cells: tuple[int, int] | None
    baselines: Sequence[MapBaseline]

    @property
    def drawn(self) -> Tensor:
        """Return the map as it is drawn: see `draw_cells`."""
        return draw_cells(self.pixels, self.cells)


@dataclass(frozen=True)
class Flip:
    """The smallest perturbation found that changes the prediction, an upper bound: image and change, (H, W)."""

    epsilon: float
    image: Tensor
    change: Tensor
    predicted: int
    probability: float
    steps: int


@dataclass(frozen=True)
class Spoilt:
    """The image under a corruption, (H, W) in [0, 1], and its prediction."""

    name: str
    image: Tensor
    predicted: int
    probability: float

    @property
    def about(self) -> str:
        """Return what the corruption is."""
        return CORRUPTIONS[self.name].about


def find_methods(run: Run) -> list[str]:
    """Return the methods that this network supports, Grad-CAM first; each takes a pass."""
    x = torch.full((1, 1, run.size, run.size), 0.5, device=run.device)
    return [name for name in MAPS if _has(run, x, name)]


def _has(run: Run, x: Tensor, name: str) -> bool:
    try:
        methods.maps(run.model, x, 0, [name])
    except UserError:
        return False
    return True


def make_maps(run: Run, pixels: Tensor, predicted: int, names: Sequence[str]) -> list[Map]:
    """Make maps of one image (1, 1, H, W) in [0, 1], each with its baselines."""
    layers = {name: other for name in names if (other := Method.parse(name).baseline)}
    saliency = methods.maps(run.model, pixels, predicted, [*names, *dict.fromkeys(map(str, layers.values()))])
    return [_add_baselines(run, pixels, name, saliency, layers.get(name)) for name in names]


def _add_baselines(run: Run, pixels: Tensor, name: str, saliency: dict[str, Tensor], same_layer: Method | None) -> Map:
    cells = methods.cells(run.model, pixels, name)
    saliency_map, brightness = saliency[name], baselines.brightness_map(pixels, cells or (run.size, run.size))
    less = {"the image's own brightness": brightness}
    if same_layer is not None:
        cam = same_layer.base.startswith("activation")
        label = "the same layer without the answer's gradient" if cam else "what the evidence is read from"
        less[label] = saliency[str(same_layer)]
    compared = [
        MapBaseline(label, other[0], float(baselines.likeness(saliency_map, other))) for label, other in less.items()
    ]
    return Map(name, saliency_map[0].float(), cells, compared)


def draw_cells(saliency: Tensor, cells: tuple[int, int] | None) -> Tensor:
    """Return a map (H, W) of a few cells without the smoothing between them; other maps as they are."""
    if cells is None or max(cells) > FEW_CELLS:
        return saliency
    small = functional.interpolate(saliency[None, None], cells, mode="bilinear", align_corners=False)
    return functional.interpolate(small, saliency.shape, mode="nearest-exact")[0, 0]


def choose_steps(run: Run) -> int:
    """Choose the steps of PGD at each radius by the time that this network takes here."""
    x, label = torch.full((1, 1, run.size, run.size), 0.5, device=run.device), torch.zeros(1, dtype=torch.long)
    label = label.to(run.device)
    attacks.fgsm(run.model, x, label, epsilon=0.01)
    start = time.thread_time()
    attacks.fgsm(run.model, x, label, epsilon=0.01)
    taken = (time.thread_time() - start) * _ATTEMPTS
    return next((steps for steps in _STEPS if steps * taken <= _SECONDS), _STEPS[-1])


def find_flip(
    run: Run, pixels: Tensor, predicted: int, *, steps: int, searched: nn.Module | None = None
) -> Flip | None:
    """Find a small perturbation of an image (1, 1, H, W) that changes its prediction; None if none up to HIGHEST does.

    FAB goes to the border, then PGD tries smaller radii. `searched`: a faster copy of the model, whose result counts if
    it also changes the model's prediction.
    """
    label = torch.tensor([predicted], device=run.device)
    for model in (searched, run.model) if searched is not None else (run.model,):
        start = attacks.fab(model, pixels, label, epsilon=HIGHEST, steps=_TOWARDS)
        close = max(5e-4, _CLOSE * float((start - pixels).abs().max()))
        epsilon, image = attacks.nearest(
            model, pixels, label, attack=USUAL_ATTACKS[1], highest=HIGHEST, tolerance=close, start=start, steps=steps
        )
        ((answer, probabilities),) = predict_labels(run, image)
        if math.isfinite(float(epsilon)) and answer != predicted:
            return Flip(
                float(epsilon), image[0, 0], (image - pixels)[0, 0], answer, float(probabilities[answer]), steps
            )
    return None


def corrupt_image(
    run: Run, pixels: Tensor, names: Sequence[str] = SPOILT_BY, *, severity: int = SEVERITY
) -> list[Spoilt]:
    """Corrupt an image (1, 1, H, W) in each way, and predict."""
    images = torch.cat([corruptions.corrupt(pixels, name, severity, keys=["image"]) for name in names])
    answers = zip(names, images, predict_labels(run, images), strict=True)
    return [Spoilt(name, image[0], answer, float(shares[answer])) for name, image, (answer, shares) in answers]
