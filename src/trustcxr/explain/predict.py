"""Predict single images: probabilities, a heatmap, warnings, and if the prediction survives an attack."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trustcxr import attacks, explain
from trustcxr.data.images import dicom_files, generated, greyscale, plausibility
from trustcxr.data.images import read as reading
from trustcxr.data.images import resize as squares
from trustcxr.errors import CannotWrite
from trustcxr.evaluation.trained_run import Run, load_run
from trustcxr.explain import heatmap_io, ood
from trustcxr.explain.ood import Familiarity
from trustcxr.registry import USUAL_ATTACKS
from trustcxr.statistics import softmax
from trustcxr.storage.atomic import atomic_write
from trustcxr.storage.os_errors import Source, check_present, check_writable, escaped, is_full, reason
from trustcxr.storage.schemas import ImageAnswer

PGD_STEPS = 20
BORDER = 0.2  # closer probabilities of the first two classes are a decision border
_FULL = "no heatmap: not looked at, since the disk is full"


def predict(
    folder: Path, paths: Sequence[Path], *, epsilon: float = 0.02, out: Path | None = None
) -> list[ImageAnswer]:
    """Predict each image; an unreadable image, or a heatmap that cannot be written, gives an "error" for that image.

    After a full disk every further image has an "error". Heatmaps of this package are "left_out". No heatmap overwrites
    one of another image or run, or any other file.
    """
    attacks.check_epsilon(epsilon)
    check_present(paths)
    run, familiarity = load_run(folder), ood.load(folder)
    heatmaps = heatmap_io.choose_paths(paths, out, run.folder)
    answers: list[ImageAnswer] = []
    full = False
    for path, heatmap in heatmaps.items():
        if full:
            answers.append(ImageAnswer(image=str(path), error=_FULL))
            continue
        try:
            answers.append(_of_file(run, familiarity, path, heatmap, epsilon))
        except CannotWrite as problem:
            answers.append(ImageAnswer(image=str(path), error=f"no heatmap: {_refused(heatmap, problem)}"))
            full = is_full(problem)
    return answers


def _refused(heatmap: Path, problem: CannotWrite) -> str:
    if problem.number is None or is_full(problem):
        return str(problem)
    return f"{escaped(str(heatmap))}: cannot be written: {reason(problem.number)}; choose --out"


def _of_file(run: Run, familiarity: Familiarity | None, path: Path, heatmap: Path, epsilon: float) -> ImageAnswer:
    if (reason_left_out := describe_own_output(path)) is not None:
        return ImageAnswer(image=str(path), left_out=reason_left_out)
    try:
        image = read_source(path)
    except greyscale.UnreadableImage as problem:
        return ImageAnswer(image=str(path), error=str(problem))
    check_writable(heatmap)
    result = predict_image(run, image.pixels, epsilon=epsilon, heatmap=heatmap, source=path)
    result.image = str(path)
    add_warnings(result, run, familiarity, image)
    return result


@dataclass(frozen=True)
class LoadedImage:
    """One image: pixels (H, W) uint8, and the colourfulness of its file in grey levels."""

    pixels: np.ndarray
    colour: float = 0.0


def read_source(source: Source) -> LoadedImage:
    """Load an image from a file or its content; raise UnreadableImage, without the file's name, if it is none."""
    if (why := describe_own_output(source) or plausibility.find_wrong_kind(source)) is not None:
        raise greyscale.UnreadableImage(why)
    return LoadedImage(reading.read_image(source), plausibility.measure_colour(source))


def describe_own_output(source: Source) -> str | None:
    """Return what a file, or its content, is if this package wrote it; else None."""
    if generated.read_source(source) is not None:
        return generated.HEATMAP_REASON
    return dicom_files.RESULT_REASON if reading.is_dicom(source) and dicom_files.is_own_result(source) else None


def add_warnings(result: ImageAnswer, run: Run, familiarity: Familiarity | None, image: LoadedImage) -> None:
    """Add warnings to a prediction: no chest image, unlike the training images, poor quality, near the border."""
    result.warnings = list(plausibility.find_doubts(plausibility.make_thumbnail(image.pixels), image.colour).values())
    if familiarity is not None:
        pixels = as_input(image.pixels, run.size, run.resize)
        score = float(familiarity.score(run, pixels))
        result.rarer_than = familiarity.rarer_than(score)
        unlike = ood.describe_outlier(familiarity, score)
        result.warnings += [*([unlike] if unlike else []), *ood.describe_quality(familiarity, pixels)]
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


def predict_image(
    run: Run,
    image: np.ndarray,
    *,
    epsilon: float,
    heatmap: Path | None = None,
    source: Path | None = None,
    searched: nn.Module | None = None,
) -> ImageAnswer:
    """Predict one image (H, W) uint8, and write a heatmap PNG of its size to `heatmap`, if given.

    Probabilities are scaled by the run's temperature, if it has one ("calibrated"). `searched`: a faster copy of the
    model for PGD, whose results the model confirms.
    """
    pixels = as_input(image, run.size, run.resize).to(run.device)
    ((predicted, probabilities),) = predict_labels(run, pixels)
    label = torch.tensor([predicted], device=run.device)
    single, climb = USUAL_ATTACKS
    survives = {
        single: _still(run, attacks.fgsm(run.model, pixels, label, epsilon=epsilon), predicted),
        f"{climb}-{PGD_STEPS}": _survives_climb(run, searched or run.model, pixels, label, epsilon),
    }
    result = ImageAnswer(
        predicted=run.classes[predicted],
        probabilities={name: float(p) for name, p in zip(run.classes, probabilities, strict=True)},
        calibrated=temperature(run) is not None,
        epsilon=epsilon,
        survives=survives,
        run=run.name,
    )
    if heatmap is not None:
        saliency = explain.grad_cam(run.model, pixels, predicted)[0].float().cpu().numpy()
        picture = heatmap_io.overlay(image, saliency[squares.to_original(run.size, image.shape, run.resize)])
        heatmap_io.write_notice(picture)
        with atomic_write(heatmap) as temporary:
            picture.save(temporary, pnginfo=heatmap_io.make_metadata(source or heatmap, run.folder), compress_level=1)
        result.heatmap = str(heatmap)
    return result


def _survives_climb(run: Run, searched: nn.Module, pixels: Tensor, label: Tensor, epsilon: float) -> bool:
    """Return True if the prediction stays under PGD, which attacks the model itself if the copy's result fails."""
    climb, predicted = partial(attacks.pgd, epsilon=epsilon, steps=PGD_STEPS, stop_when_wrong=True), int(label)
    adversarial = climb(searched, pixels, label)
    if searched is not run.model and _still(run, adversarial, predicted):
        with torch.inference_mode():
            claimed = int(searched(adversarial).argmax()) != predicted
        adversarial = climb(run.model, pixels, label) if claimed else adversarial
    return _still(run, adversarial, predicted)


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


def as_input(image: np.ndarray, size: int, resize: str = "squeeze") -> Tensor:
    """Convert an image (H, W) uint8 to (1, 1, size, size) float in [0, 1], resized as in the cache."""
    return torch.from_numpy(np.array(squares.resize_image(image, size, resize))).float().div_(255)[None, None]


def _still(run: Run, images: Tensor, predicted: int) -> bool:
    with torch.inference_mode():
        return int(run.model(images).argmax(1)) == predicted
