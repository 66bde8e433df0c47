"""Explain one image: maps with baselines, the smallest perturbation that flips the prediction, corruptions, doubts."""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trustcxr import attacks, corruptions
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import Run
from trustcxr.explain import baselines, methods
from trustcxr.explain.cam import check_evidence
from trustcxr.models.feature_maps import stage_names
from trustcxr.registry import CORRUPTIONS, USUAL_ATTACKS, Method
from trustcxr.statistics import softmax

MAPS = ("gradcam", "layercam@-2", "hirescam", "gradcam++", "evidence")  # of these, those that the network has
SPOILT_BY = ("gaussian_noise", "defocus_blur", "contrast", "exposure", "rotation", "letters")
SEVERITY = 3
HIGHEST = 0.3  # the largest perturbation that is tried
_TOWARDS = 10  # steps of FAB toward the border
_STEPS, _ATTEMPTS, _SECONDS = (20, 10, 5, 3), 4, 1.0  # steps of PGD; radii tried; their time limit
FEW_CELLS = 32  # a map of at most so many cells a side is drawn as cells
CHILD = "the patient is a child, and it is not known that the network was trained on images of children"
SMALL = 0.005  # a smaller change than this must not flip an answer
ALIKE = 0.9  # correlation from which a map shows no more than its baseline map
_CLOSE = 1 / 8  # tolerance of the radius, as a share of FAB's


class MapBaseline(NamedTuple):
    """A baseline map, (H, W) in [0, 1], and its correlation with the method's map (NaN if one is constant)."""

    label: str
    pixels: Tensor
    likeness: float


class Map(NamedTuple):
    """A method's map, (H, W) in [0, 1]; its cells, None for pixels; its baselines."""

    method: str
    pixels: Tensor
    cells: tuple[int, int] | None
    baselines: Sequence[MapBaseline]

    @property
    def drawn(self) -> Tensor:
        """Return the map as it is drawn: see `draw_cells`."""
        return draw_cells(self.pixels, self.cells)


class Flip(NamedTuple):
    """The smallest perturbation found that changes the prediction, an upper bound: image and change, (H, W)."""

    epsilon: float
    image: Tensor
    change: Tensor
    predicted: int
    probability: float
    steps: int


class Spoilt(NamedTuple):
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
    names = []
    for name in MAPS:
        with suppress(UserError):
            methods.maps(run.model, _grey_image(run), 0, [name])
            names.append(name)
    return names


def _grey_image(run: Run) -> Tensor:
    return torch.full((1, 1, run.size, run.size), 0.5, device=run.device)


def choose_shown(run: Run) -> str:
    """Return the method of the heatmap: evidence, the exact reason, of a network that has it, else Grad-CAM."""
    with suppress(UserError):
        check_evidence(run.model)
        return "evidence"
    return "gradcam"


def make_maps(run: Run, pixels: Tensor, predicted: int, names: Sequence[str]) -> list[Map]:
    """Make maps of one image (1, 1, H, W) in [0, 1], each with its baselines.

    A CAM whose map would have one cell, which shows nothing, is made at the last stage with more.
    """
    names = [_finer(run, pixels, name) for name in names]
    layers = {name: other for name in names if (other := Method.parse(name).baseline)}
    saliency = methods.maps(run.model, pixels, predicted, [*names, *dict.fromkeys(map(str, layers.values()))])
    return [_add_baselines(run, pixels, name, saliency, layers.get(name)) for name in names]


def _finer(run: Run, pixels: Tensor, name: str) -> str:
    """Return a CAM at the last stage whose map has more than one cell; other methods as they are."""
    if name not in methods.COMBINE:  # a layer is named, or the method reads none
        return name
    stages = (name, *(f"{name}@{number}" for number in range(-2, -len(stage_names(run.model)) - 1, -1)))
    return next((stage for stage in stages if methods.cells(run.model, pixels, stage) != (1, 1)), name)


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
    x, label = _grey_image(run), torch.zeros(1, dtype=torch.long, device=run.device)
    attacks.fgsm(run.model, x, label, epsilon=0.01)
    start = time.thread_time()
    attacks.fgsm(run.model, x, label, epsilon=0.01)
    taken = (time.thread_time() - start) * _ATTEMPTS
    return next((steps for steps in _STEPS if steps * taken <= _SECONDS), _STEPS[-1])


def find_flip(
    run: Run, pixels: Tensor, predicted: int, *, steps: int, searched: nn.Module | None = None
) -> Flip | None:
    """Find a small perturbation of an image (1, 1, H, W) that changes its prediction; None if none up to HIGHEST does.

    FAB goes to the border, then PGD tries smaller radii. `searched`: a faster copy of the model to try first.
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


def corrupt_image(run: Run, pixels: Tensor) -> list[Spoilt]:
    """Corrupt an image (1, 1, H, W) in each way of SPOILT_BY, and predict."""
    images = torch.cat([corruptions.corrupt(pixels, name, SEVERITY, keys=["image"]) for name in SPOILT_BY])
    answers = zip(SPOILT_BY, images, predict_labels(run, images), strict=True)
    return [Spoilt(name, image[0], answer, float(shares[answer])) for name, image, (answer, shares) in answers]


def predict_labels(run: Run, images: Tensor) -> list[tuple[int, np.ndarray]]:
    """Return the class of each image (B, 1, H, W) and its probabilities (C,), scaled by the run's temperature."""
    with torch.inference_mode():
        logits = run.model(images).float().cpu().numpy()
    probabilities = softmax(logits / (temperature(run) or 1.0))
    return [(int(row.argmax()), shares) for row, shares in zip(logits, probabilities, strict=True)]


def temperature(run: Run) -> float | None:
    """Return the run's temperature (Guo et al. 2017); None if it has none."""
    fitted = run.metrics.calibration if run.metrics else None
    value = fitted.temperature if fitted else None
    return value if value is not None and value > 0 else None


def describe_maps(maps: Sequence[Map], run: Run) -> list[str]:
    """Return why maps are no better than their baseline maps, for this image or for the run's test images.

    The first map must have been measured on the test images; of others it is told if they were.
    """
    measured = run.metrics.saliency if run.metrics else {}
    labels: dict[str, list[str]] = {}  # reason -> methods
    for saliency in maps:
        part = measured.get(saliency.method)
        reasons = [_compare(each.likeness, each.label) for each in saliency.baselines]
        if part is not None and (part.survives or not part.shows):
            reasons.append(part.survives or part.verdict)
        for text in dict.fromkeys(filter(None, reasons)):
            labels.setdefault(text, []).append(Method.parse(saliency.method).label)
    texts = [f"{', '.join(names)}: {text}" for text, names in labels.items()]
    first = measured.get(maps[0].method)
    if first is None or not (first.survives or first.verdict):
        advice = "Measure them: trustcxr explain RUN --data PATH"
        texts.append(f"it is not known that the maps of this run are better than baseline maps. {advice}")
    return texts


def _compare(likeness: float, label: str) -> str:
    if not math.isfinite(likeness):
        return "the map is even, so it shows nothing"
    return f"the map shows no more than {label} (correlation {likeness:.2f})" if likeness >= ALIKE else ""


def describe_changes(
    flip: Flip | None, corrupted: Sequence[Spoilt], predicted: int, classes: Sequence[str]
) -> list[str]:
    """Return why the answer is not stable: a small change flips it, or noise and other corruptions do."""
    texts = []
    if flip is None:
        texts.append(f"no change up to {HIGHEST:g} flips the answer: the attack may have failed, so nothing is known")
    elif flip.epsilon < SMALL:
        levels = f"{255 * flip.epsilon:.1f} grey levels of 255"
        texts.append(f"a change of at most {levels} (epsilon {flip.epsilon:.4f}) flips it to {classes[flip.predicted]}")
    if changed := [CORRUPTIONS[each.name].label for each in corrupted if each.predicted != predicted]:
        texts.append(f"it changes under {', '.join(changed)} (severity {SEVERITY} of 5)")
    return texts
