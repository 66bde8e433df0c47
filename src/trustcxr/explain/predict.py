"""Predict single images: probabilities, a heatmap, reasons for doubt, and if the prediction survives an attack."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from trustcxr import attacks
from trustcxr.data.images import dicom_files, greyscale, plausibility
from trustcxr.data.images import read as reading
from trustcxr.errors import CannotWrite
from trustcxr.evaluation.trained_run import Run, load_run
from trustcxr.explain import counterfactual_view, heatmap_io, ood
from trustcxr.explain.counterfactual_view import predict_labels, temperature
from trustcxr.explain.ood import OodModel
from trustcxr.registry import USUAL_ATTACKS
from trustcxr.storage.atomic import atomic_write
from trustcxr.storage.os_errors import Source, check_present, check_writable, escaped, is_full, reason
from trustcxr.storage.schemas import ImageAnswer

OUT = Path("trustcxr-out")
PGD_STEPS = 20
_STEPS = 10  # of PGD at each radius of the search for the smallest change
NOT_FITTED = "similarity to the training images is not known. Fit it: trustcxr fit-ood RUN --data PATH"
BORDER = 0.2  # closer probabilities of the first two classes are a decision border
_FULL = "no heatmap: not looked at, since the disk is full"


def predict(
    folder: Path, paths: Sequence[Path], *, epsilon: float = 0.02, out: Path = OUT, anyway: bool = False
) -> list[ImageAnswer]:
    """Predict each image; one that is unreadable, or whose heatmap cannot be written, has an "error".

    After a full disk, all others have one too. "left_out" are heatmaps of this package and, unless `anyway`, images
    that are no upright frontal chest radiographs. No other file, and no heatmap of another image or run, is
    overwritten.
    """
    attacks.check_epsilon(epsilon)
    check_present(paths)
    run, ood_model = load_run(folder), ood.load(folder)
    heatmaps = heatmap_io.choose_paths(paths, out, run.folder)
    answers: list[ImageAnswer] = []
    for path, heatmap in heatmaps.items():
        try:
            answers.append(_of_file(run, ood_model, path, heatmap, epsilon, anyway=anyway))
        except CannotWrite as problem:
            answers.append(ImageAnswer(image=str(path), error=f"no heatmap: {_refused(heatmap, problem)}"))
            if is_full(problem):
                break
    return answers + [ImageAnswer(image=str(path), error=_FULL) for path in list(heatmaps)[len(answers) :]]


def _refused(heatmap: Path, problem: CannotWrite) -> str:
    if problem.number is None or is_full(problem):
        return str(problem)
    return f"{escaped(str(heatmap))}: cannot be written: {reason(problem.number)}; choose --out"


def _of_file(
    run: Run, ood_model: OodModel | None, path: Path, heatmap: Path, epsilon: float, *, anyway: bool
) -> ImageAnswer:
    if (reason_left_out := describe_own_output(path)) is not None:
        return ImageAnswer(image=str(path), left_out=reason_left_out)
    try:
        image = read_source(path, anyway=anyway)
    except NoChestImage as problem:
        return ImageAnswer(image=str(path), left_out=f"{problem}. For a class: --anyway")
    except greyscale.UnreadableImage as problem:
        return ImageAnswer(image=str(path), error=str(problem))
    check_writable(heatmap)
    result = predict_image(run, image.pixels, epsilon=epsilon)
    result.image = str(path)
    saliency = add_doubts(result, run, ood_model, image, steps=_STEPS)
    picture = draw_heatmap(run, image.pixels, saliency, image.pixels.shape)
    with atomic_write(heatmap) as temporary:
        picture.save(temporary, pnginfo=heatmap_io.make_metadata(path, run.folder), compress_level=1)
    result.heatmap = str(heatmap)
    return result


class NoChestImage(greyscale.UnreadableImage):
    """An image that is no upright frontal chest radiograph."""


@dataclass(frozen=True)
class LoadedImage:
    """One image: pixels (H, W) uint8, and reasons for doubt from its pixels, its colour and its DICOM header."""

    pixels: np.ndarray
    doubts: tuple[str, ...] = ()


def read_source(source: Source, *, anyway: bool = False) -> LoadedImage:
    """Load an image from a file or its content; raise UnreadableImage, without the file's name, if it is none.

    Raises NoChestImage if it is no upright frontal chest radiograph, unless `anyway`.
    """
    if (why := describe_own_output(source) or plausibility.find_wrong_kind(source)) is not None:
        raise greyscale.UnreadableImage(why)
    pixels = reading.read_image(source)
    thumb, colour = plausibility.make_thumbnail(pixels), plausibility.measure_colour(source)
    (doubts,) = plausibility.find_doubts(thumb[None], [colour])
    refusals = [f"no upright frontal chest radiograph: {why}" for why in doubts.values()]
    if refusals and not anyway:
        raise NoChestImage(refusals[0])
    age = dicom_files.read_age(source) if reading.is_dicom(source) else None
    return LoadedImage(
        pixels, (*refusals, *([counterfactual_view.CHILD] if age is not None and age < dicom_files.ADULT else []))
    )


def describe_own_output(source: Source) -> str | None:
    """Return what a file, or its content, is if this package wrote it; else None."""
    if reading.read_texts(source):
        return reading.HEATMAP_REASON
    return dicom_files.RESULT_REASON if reading.is_dicom(source) and dicom_files.is_own_result(source) else None


def add_doubts(
    result: ImageAnswer,
    run: Run,
    ood_model: OodModel | None,
    image: LoadedImage,
    *,
    steps: int,
    searched: nn.Module | None = None,
) -> counterfactual_view.Map:
    """Add every reason for doubt, and the smallest change that flips the prediction. Returns the map that is shown.

    steps, searched: of the search for that change, as for `counterfactual_view.find_flip`.
    """
    pixels = as_input(image.pixels, run.size, run.resize).to(run.device)
    predicted = run.classes.index(result.predicted)
    (saliency,) = counterfactual_view.make_maps(run, pixels, predicted, [counterfactual_view.choose_shown(run)])
    result.method = saliency.method
    add_warnings(result, run, ood_model, image)
    result.warnings += counterfactual_view.describe_maps([saliency], run)
    flip = counterfactual_view.find_flip(run, pixels, predicted, steps=steps, searched=searched)
    result.smallest_change = flip.epsilon if flip else None
    corrupted = counterfactual_view.corrupt_image(run, pixels)
    result.warnings += counterfactual_view.describe_changes(flip, corrupted, predicted, run.classes)
    return saliency


def add_warnings(result: ImageAnswer, run: Run, ood_model: OodModel | None, image: LoadedImage) -> None:
    """Add what speaks against the image: no chest image, a child, unlike the training images, poor quality."""
    result.warnings = list(image.doubts)
    if ood_model is None:
        result.warnings.append(NOT_FITTED)
    else:
        pixels = as_input(image.pixels, run.size, run.resize)
        score = float(ood_model.score(run, pixels))
        result.rarer_than = ood_model.rarer_than(score)
        unlike = ood.describe_outlier(ood_model, score)
        result.warnings += [*([unlike] if unlike else []), *ood.describe_quality(ood_model, pixels)]
    if min(image.pixels.shape) < run.size:
        height, width = image.pixels.shape
        result.warnings.append(f"poor quality: {width} x {height} pixels, fewer than the network's {run.size}")
    result.border = _border(result.probabilities)


def _border(probabilities: dict[str, float]) -> str | None:
    ranked = sorted(probabilities.items(), key=lambda pair: -pair[1])[:2]
    if len(ranked) < 2 or ranked[0][1] - ranked[1][1] >= BORDER:
        return None
    (first, likely), (second, nearly) = ranked
    return f"near the decision border: {first} {likely:.1%}, {second} {nearly:.1%}"


def predict_image(run: Run, image: np.ndarray, *, epsilon: float, searched: nn.Module | None = None) -> ImageAnswer:
    """Predict one image (H, W) uint8, with probabilities scaled by the run's temperature, if it has one ("calibrated").

    `searched`: a faster copy of the model for PGD, whose results the model confirms.
    """
    pixels = as_input(image, run.size, run.resize).to(run.device)
    ((predicted, probabilities),) = predict_labels(run, pixels)
    label = torch.tensor([predicted], device=run.device)
    single, climb = USUAL_ATTACKS
    survives = {
        single: _still(run, attacks.fgsm(run.model, pixels, label, epsilon=epsilon), predicted),
        f"{climb}-{PGD_STEPS}": _survives_climb(run, searched or run.model, pixels, label, epsilon),
    }
    return ImageAnswer(
        predicted=run.classes[predicted],
        probabilities={name: float(p) for name, p in zip(run.classes, probabilities, strict=True)},
        calibrated=temperature(run) is not None,
        epsilon=epsilon,
        survives=survives,
        run=run.name,
    )


def draw_heatmap(run: Run, image: np.ndarray, saliency: counterfactual_view.Map, shape: tuple[int, ...]) -> Image.Image:
    """Draw a map and the notice over an image (H, W) uint8. shape: of the image before it was reduced."""
    on_image = reading.to_original(run.size, shape, run.resize)
    cells = saliency.cells is not None and saliency.drawn is not saliency.pixels
    picture = heatmap_io.overlay(image, saliency.drawn.cpu().numpy()[on_image], smooth=not cells)
    heatmap_io.write_notice(picture)
    return picture


def _survives_climb(run: Run, searched: nn.Module, pixels: Tensor, label: Tensor, epsilon: float) -> bool:
    """Return True if the prediction stays under PGD, which attacks the model itself if the copy's result fails."""
    climb, predicted = partial(attacks.pgd, epsilon=epsilon, steps=PGD_STEPS, stop_when_wrong=True), int(label)
    adversarial = climb(searched, pixels, label)
    if searched is not run.model and _still(run, adversarial, predicted):
        with torch.inference_mode():
            claimed = int(searched(adversarial).argmax()) != predicted
        adversarial = climb(run.model, pixels, label) if claimed else adversarial
    return _still(run, adversarial, predicted)


def as_input(image: np.ndarray, size: int, resize: str = "squeeze") -> Tensor:
    """Convert an image (H, W) uint8 to (1, 1, size, size) float in [0, 1], resized as in the cache."""
    return torch.from_numpy(np.array(reading.resize_image(image, size, resize))).float().div_(255)[None, None]


def _still(run: Run, images: Tensor, predicted: int) -> bool:
    with torch.inference_mode():
        return int(run.model(images).argmax(1)) == predicted
