"""One X-ray: classes with probabilities, a heatmap beside it, and whether the answer survives epsilon."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trustcxr import attacks, explain
from trustcxr.attacks import contract
from trustcxr.data.images import grey, reading, squares
from trustcxr.errors import NotFiniteError, UserError
from trustcxr.evaluation.run import Run, load_run
from trustcxr.results.files import replacing
from trustcxr.statistics import softmax

PGD_STEPS = 20


def predict(
    folder: Path, paths: Sequence[Path], *, epsilon: float = 0.02, out: Path | None = None
) -> list[dict[str, Any]]:
    """An answer for each image; one that cannot be read gets an "error" and does not stop the others."""
    attacks.check_epsilon(epsilon)
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"no such image file: {', '.join(missing)}")
    run = load_run(folder)
    answers: list[dict[str, Any]] = []
    for path in paths:
        try:
            film = reading.read_image(path)
        except grey.UnreadableImage as problem:
            answers.append({"image": str(path), "error": str(problem)})
            continue
        place = (out or path.parent) / f"{path.stem}.heatmap.png"
        answers.append({"image": str(path)} | answer(run, film, epsilon=epsilon, heatmap=place))
    return answers


def answer(run: Run, film: np.ndarray, *, epsilon: float, heatmap: Path | None = None) -> dict[str, Any]:
    """What a run says of one film (H, W) uint8; a heatmap PNG of the film's own size is written where asked.

    Raises UserError where the model answers with NaN or infinity.
    """
    pixels = as_input(film, run.size).to(run.device)
    with torch.inference_mode():
        found = run.model(pixels).float()
    try:
        contract.check_finite(found)
    except NotFiniteError as problem:
        raise NotFiniteError(f"{run.name}: {problem}, so it says nothing of this one; train it again") from None
    logits = found.cpu().numpy()
    probabilities, predicted = softmax(logits)[0], int(logits[0].argmax())
    label = torch.tensor([predicted], device=run.device)
    survives = {
        "fgsm": _still(run, attacks.fgsm(run.model, pixels, label, epsilon=epsilon), predicted),
        f"pgd-{PGD_STEPS}": _still(
            run,
            attacks.pgd(run.model, pixels, label, epsilon=epsilon, steps=PGD_STEPS, stop_when_wrong=True),
            predicted,
        ),
    }
    result: dict[str, Any] = {
        "predicted": run.classes[predicted],
        "probabilities": {name: float(p) for name, p in zip(run.classes, probabilities, strict=True)},
        "epsilon": epsilon,
        "survives": survives,
        "run": run.name,
    }
    if heatmap is not None:
        saliency = explain.grad_cam(run.model, pixels, predicted)[0].float().cpu().numpy()
        picture = overlay(film, saliency)
        try:
            with replacing(heatmap) as temporary:
                picture.save(temporary)
        except OSError as problem:
            raise UserError(
                f"{heatmap}: the heatmap cannot be written ({problem.strerror}); choose a folder with --out"
            ) from None
        result["heatmap"] = str(heatmap)
    return result


def as_input(film: np.ndarray, size: int) -> Tensor:
    """A film (H, W) uint8 -> (1, 1, size, size) float in [0, 1], resized as the pixel store does."""
    return torch.from_numpy(np.array(squares.resize_image(film, size))).float().div_(255)[None, None]


def overlay(film: np.ndarray, saliency: np.ndarray, strength: float = 0.45) -> Image.Image:
    """Saliency (h, w) in [0, 1] in the colours of inferno over a film (H, W) uint8, in the film's size."""
    import matplotlib

    height, width = film.shape
    enlarged = Image.fromarray(np.asarray(saliency, dtype=np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    weight = np.clip(np.asarray(enlarged), 0, 1)
    colour = matplotlib.colormaps["inferno"](weight)[..., :3] * 255
    share = strength * np.ones_like(weight)[..., None]
    return Image.fromarray(((1 - share) * film[..., None] + share * colour).round().astype(np.uint8))


def _still(run: Run, images: Tensor, predicted: int) -> bool:
    with torch.inference_mode():
        return int(run.model(images).argmax(1)) == predicted
