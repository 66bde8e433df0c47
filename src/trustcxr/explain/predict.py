"""One X-ray: classes with probabilities, a heatmap beside it, and whether the answer survives epsilon."""

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
BORDER = 0.2  # two classes whose probabilities are nearer than that are told as a border
_FULL = "no heatmap: not looked at, since the disk is full"


def predict(
    folder: Path, paths: Sequence[Path], *, epsilon: float = 0.02, out: Path | None = None
) -> list[ImageAnswer]:
    """An answer for each image; one that cannot be read, or its heatmap not be written, gets an "error".

    That does not stop the others. A full disk does: each of them gets an "error" that says so.

    A heatmap that was written here before is no image: it gets "left_out" and no answer. No heatmap takes the place of
    another image's or run's, or of a file that is not ours.
    """
    attacks.check_epsilon(epsilon)
    check_present(paths)
    run, known = load_run(folder), ood.load(folder)
    places = heatmap_io.places(paths, out, run.folder)
    found: list[ImageAnswer] = []
    full = False
    for path, heatmap in places.items():
        if full:
            found.append(ImageAnswer(image=str(path), error=_FULL))
            continue
        try:
            found.append(_of_file(run, known, path, heatmap, epsilon))
        except CannotWrite as problem:
            found.append(ImageAnswer(image=str(path), error=f"no heatmap: {_refused(heatmap, problem)}"))
            full = is_full(problem)
    return found


def _refused(heatmap: Path, problem: CannotWrite) -> str:
    if problem.number is None or is_full(problem):
        return str(problem)
    return f"{escaped(str(heatmap))}: cannot be written: {reason(problem.number)}; choose --out"


def _of_file(run: Run, known: Familiarity | None, path: Path, heatmap: Path, epsilon: float) -> ImageAnswer:
    if (said := is_own_output(path)) is not None:
        return ImageAnswer(image=str(path), left_out=said)
    try:
        image = read_source(path)
    except greyscale.UnreadableImage as problem:
        return ImageAnswer(image=str(path), error=str(problem))
    check_writable(heatmap)
    found = answer(run, image.pixels, epsilon=epsilon, heatmap=heatmap, source=path)
    found.image = str(path)
    doubt(found, run, known, image)
    return found


@dataclass(frozen=True)
class LoadedImage:
    """One image as it is read: pixels (H, W) uint8, and how coloured its file is, in grey levels."""

    pixels: np.ndarray
    colour: float = 0.0


def read_source(source: Source) -> LoadedImage:
    """An image from a file or its content. UnreadableImage, without the file's name, where it is none."""
    if (why := is_own_output(source) or plausibility.find_wrong_kind(source)) is not None:
        raise greyscale.UnreadableImage(why)
    return LoadedImage(reading.read_image(source), plausibility.measure_colour(source))


def is_own_output(source: Source) -> str | None:
    """What a file, or its content, is where it is an answer of ours, whatever it is called; None for all else."""
    if generated.read_source(source) is not None:
        return generated.HEATMAP_REASON
    return dicom_files.RESULT_REASON if reading.is_dicom(source) and dicom_files.is_own_result(source) else None


def doubt(found: ImageAnswer, run: Run, known: Familiarity | None, image: LoadedImage) -> None:
    """Say in an answer what speaks against it: no chest image, unlike the training images, poor, near the border.

    `known`: what the run's training images are like; None where that was not fitted.
    """
    found.warnings = list(plausibility.find_doubts(plausibility.make_thumbnail(image.pixels), image.colour).values())
    if known is not None:
        pixels = as_input(image.pixels, run.size, run.resize)
        score = float(known.score(run, pixels))
        found.rarer_than = known.rarer_than(score)
        unlike = ood.unlike(known, score)
        found.warnings += [*([unlike] if unlike else []), *ood.poor(known, pixels)]
    if min(image.pixels.shape) < run.size:
        height, width = image.pixels.shape
        found.warnings.append(f"poor quality: {width} x {height} pixels, fewer than the network's {run.size}")
    found.border = _border(found.probabilities)


def _border(probabilities: dict[str, float]) -> str | None:
    ranked = sorted(probabilities.items(), key=lambda pair: -pair[1])[:2]
    if len(ranked) < 2 or ranked[0][1] - ranked[1][1] >= BORDER:
        return None
    (first, likely), (second, nearly) = ranked
    return f"near the decision border: {first} {likely:.1%}, {second} {nearly:.1%}"


def answer(
    run: Run,
    image: np.ndarray,
    *,
    epsilon: float,
    heatmap: Path | None = None,
    source: Path | None = None,
    searched: nn.Module | None = None,
) -> ImageAnswer:
    """What a run says of one image (H, W) uint8; a heatmap PNG of the image's own size is written where asked.

    Probabilities are scaled by the run's temperature where its validation images gave it one ("calibrated").
    `searched`: a faster copy of the run's model for PGD to search on; what it claims is asked of the model itself.
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
            picture.save(temporary, pnginfo=heatmap_io.mark(source or heatmap, run.folder), compress_level=1)
        result.heatmap = str(heatmap)
    return result


def _survives_climb(run: Run, searched: nn.Module, pixels: Tensor, label: Tensor, epsilon: float) -> bool:
    """Whether the answer stays under PGD, which searches the model itself where another's claim does not hold."""
    climb, predicted = partial(attacks.pgd, epsilon=epsilon, steps=PGD_STEPS, stop_when_wrong=True), int(label)
    found = climb(searched, pixels, label)
    if searched is not run.model and _still(run, found, predicted):
        with torch.inference_mode():
            claimed = int(searched(found).argmax()) != predicted
        found = climb(run.model, pixels, label) if claimed else found
    return _still(run, found, predicted)


def predict_labels(run: Run, images: Tensor) -> list[tuple[int, np.ndarray]]:
    """Return the class of each image (B, 1, H, W) and its probabilities (C,), scaled by the run's temperature."""
    with torch.inference_mode():
        logits = run.model(images).float().cpu().numpy()
    probabilities = softmax(logits / (temperature(run) or 1.0))
    return [(int(row.argmax()), shares) for row, shares in zip(logits, probabilities, strict=True)]


def temperature(run: Run) -> float | None:
    """The temperature that the run's validation images gave (Guo et al. 2017); None where none was fitted."""
    fitted = run.metrics.calibration if run.metrics else None
    found = fitted.temperature if fitted else None
    return found if found is not None and found > 0 else None


def as_input(image: np.ndarray, size: int, resize: str = "squeeze") -> Tensor:
    """An image (H, W) uint8 -> (1, 1, size, size) float in [0, 1], resized as the pixel store does."""
    return torch.from_numpy(np.array(squares.resize_image(image, size, resize))).float().div_(255)[None, None]


def _still(run: Run, images: Tensor, predicted: int) -> bool:
    with torch.inference_mode():
        return int(run.model(images).argmax(1)) == predicted
