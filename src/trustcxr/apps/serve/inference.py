"""Compute the answers for one image in a worker: prediction, maps, perturbation, corruptions, DICOM objects."""

import base64
import io
import math
import time
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

from trustcxr.apps.dicom import writer as dicom_answers
from trustcxr.apps.serve import api_models
from trustcxr.data.images import dicom_files, greyscale, read
from trustcxr.errors import lookup
from trustcxr.evaluation.trained_run import Run
from trustcxr.explain import counterfactual_view, ood
from trustcxr.explain import predict as one_image
from trustcxr.explain.ood import OodModel
from trustcxr.models import fuse_batchnorm
from trustcxr.report import formatting, terminal
from trustcxr.storage.schemas import ImageAnswer
from trustcxr.version import NOTICE

_LONGEST = 768  # pixels of an image on the page
_MOST_MAGNIFIED = 100.0


@dataclass(frozen=True)
class ServedModel:
    """A loaded run: its name here, map methods, PGD steps, a faster copy of the model, and OOD statistics."""

    name: str
    run: Run
    methods: list[str]
    steps: int
    searched: nn.Module
    ood_model: OodModel | None

    @classmethod
    def prepare(cls, name: str, run: Run) -> "ServedModel":
        """Prepare a run; one pass is made now, so that the first image is as fast as others."""
        ood_model = ood.load(run.folder)
        images = torch.rand(2, 1, run.size, run.size, generator=torch.Generator().manual_seed(0)).to(run.device)
        searched = fuse_batchnorm.make_fused_copy(run.model, images)
        return cls(
            name,
            run,
            counterfactual_view.find_methods(run),
            counterfactual_view.choose_steps(run),
            searched,
            ood_model,
        )


def predict(model: ServedModel, image: one_image.LoadedImage, *, epsilon: float, since: float) -> api_models.Prediction:
    """Return class probabilities, every reason for doubt, and the attacks that the answer survives."""
    answer = one_image.predict_image(model.run, image.pixels, epsilon=epsilon, searched=model.searched)
    _add_doubts(model, image, answer)
    return api_models.Prediction(**_describe(model, answer, since))


def look_at_image(
    model: ServedModel, image: one_image.LoadedImage, *, epsilon: float, since: float
) -> api_models.SeenImage:
    """Return the prediction with the image and its maps: one part of an examination."""
    run = model.run
    answer = one_image.predict_image(run, image.pixels, epsilon=epsilon, searched=model.searched)
    pixels = _as_input(run, image)
    predicted = run.classes.index(answer.predicted)
    height, width = image.pixels.shape
    maps = counterfactual_view.make_maps(run, pixels, predicted, model.methods)
    one_image.add_warnings(answer, run, model.ood_model, image)
    answer.warnings += counterfactual_view.describe_maps(maps, run)
    parts = {
        "width": width,
        "height": height,
        "size": run.size,
        "image": _encode_image(image.pixels),
        "network_image": _encode_grey(pixels[0, 0]),
        "maps": [_map(run, each, image) for each in maps],
    }
    return api_models.SeenImage(**parts, **_describe(model, answer, since))


def changed(model: ServedModel, image: one_image.LoadedImage) -> api_models.Changed:
    """Return the smallest perturbation found, and corruptions: the other part of an examination."""
    run = model.run
    pixels = _as_input(run, image)
    ((predicted, _),) = one_image.predict_labels(run, pixels)
    flip = counterfactual_view.find_flip(run, pixels, predicted, steps=model.steps, searched=model.searched)
    corrupted = counterfactual_view.corrupt_image(run, pixels)
    return api_models.Changed(
        warnings=counterfactual_view.describe_changes(flip, corrupted, predicted, run.classes),
        perturbation=_flip(run, flip),
        tried_up_to=counterfactual_view.HIGHEST,
        corruptions=[_spoilt(run, each, predicted) for each in corrupted],
    )


def heatmap(model: ServedModel, image: one_image.LoadedImage, *, method: str) -> bytes:
    """Return a PNG: the map of the predicted class over the image, with the notice."""
    name = lookup({name: name for name in model.methods}, "saliency method", method)
    run = model.run
    pixels = _as_input(run, image)
    ((predicted, _),) = one_image.predict_labels(run, pixels)
    (saliency,) = counterfactual_view.make_maps(run, pixels, predicted, [name])
    picture = one_image.draw_heatmap(run, image.pixels, saliency, image.pixels.shape)
    info, file = PngInfo(), io.BytesIO()
    info.add_text("TrustCXR", NOTICE)
    picture.save(file, "PNG", pnginfo=info, compress_level=3)
    return file.getvalue()


def as_dicom(model: ServedModel, data: bytes, image: one_image.LoadedImage, *, epsilon: float) -> bytes:
    """Return the answer to a DICOM image as packed DICOM objects. Raises UnreadableImage if there can be none."""
    if (why := dicom_files.reason_not_image(data)) is not None:
        raise greyscale.UnreadableImage(why)
    run = model.run
    answer = one_image.predict_image(run, image.pixels, epsilon=epsilon, searched=model.searched)
    answer.run = model.name
    saliency = _add_doubts(model, image, answer)
    small = Image.fromarray(image.pixels)
    small.thumbnail((dicom_answers.MOST_SIDE, dicom_answers.MOST_SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)
    picture = one_image.draw_heatmap(run, np.asarray(small), saliency, image.pixels.shape)
    try:
        objects = dicom_answers.make_objects(data, answer, picture)
        return dicom_answers.pack_objects([objects.heatmap, objects.finding])
    except dicom_answers.NoDicomAnswer as problem:
        raise greyscale.UnreadableImage(f"no DICOM answer: {problem}") from None


def refusal(model: ServedModel, data: bytes, why: str) -> bytes:
    """Return a packed DICOM report of why an image is not answered. Raises UnreadableImage if there can be none."""
    try:
        return dicom_answers.pack_objects([dicom_answers.make_refusal(data, model.name, why)])
    except dicom_answers.NoDicomAnswer as problem:
        raise greyscale.UnreadableImage(f"no DICOM report: {problem}") from None


def _add_doubts(model: ServedModel, image: one_image.LoadedImage, answer: ImageAnswer) -> counterfactual_view.Map:
    return one_image.add_doubts(answer, model.run, model.ood_model, image, steps=model.steps, searched=model.searched)


def _as_input(run: Run, image: one_image.LoadedImage) -> Tensor:
    return one_image.as_input(image.pixels, run.size, run.resize).to(run.device)


def _describe(model: ServedModel, answer: ImageAnswer, since: float) -> dict[str, object]:
    distance = None
    if model.ood_model is not None and answer.rarer_than is not None:
        distance = api_models.OutOfDistribution(
            rarer_than=answer.rarer_than, accepted=ood.ACCEPTED, validated=len(model.ood_model.scores)
        )
    ranked = sorted(answer.probabilities.items(), key=lambda pair: -pair[1])
    return {
        "run": model.name,
        "predicted": answer.predicted,
        "classes": [api_models.ClassProbability(name=name, probability=p) for name, p in ranked],
        "calibrated": bool(answer.calibrated),
        "calibration": terminal.CALIBRATED if answer.calibrated else terminal.NOT_CALIBRATED,
        "warnings": [*answer.warnings, *([answer.border] if answer.border else [])],
        "ood": distance,
        "epsilon": answer.epsilon,
        "survives": [api_models.Survived(attack=name, survives=survives) for name, survives in answer.survives.items()],
        "seconds": round(time.monotonic() - since, 3),
    }


def _map(run: Run, saliency: counterfactual_view.Map, image: one_image.LoadedImage) -> api_models.SaliencyMap:
    shown = read.to_original(run.size, image.pixels.shape, run.resize)
    measured = run.metrics.saliency.get(saliency.method) if run.metrics else None
    baselines = [
        api_models.BaselineMap(
            label=other.label,
            likeness=round(other.likeness, 3) if math.isfinite(other.likeness) else None,
            png=_encode_heat(counterfactual_view.draw_cells(other.pixels, saliency.cells)[shown]),
        )
        for other in saliency.baselines
    ]
    return api_models.SaliencyMap(
        method=saliency.method,
        label=formatting.method(saliency.method),
        cells=f"{saliency.cells[0]} x {saliency.cells[1]}" if saliency.cells else "",
        verdict=(measured.survives or measured.verdict) if measured else "",
        png=_encode_heat(saliency.drawn[shown]),
        baselines=baselines,
    )


def _flip(run: Run, flip: counterfactual_view.Flip | None) -> api_models.SmallestPerturbation | None:
    if flip is None:
        return None
    difference, factor = _encode_difference(flip.change)
    return api_models.SmallestPerturbation(
        epsilon=flip.epsilon,
        grey_levels=round(255 * flip.epsilon, 2),
        becomes=run.classes[flip.predicted],
        probability=flip.probability,
        steps=flip.steps,
        image=_encode_grey(flip.image),
        difference=difference,
        magnified=round(factor, 1),
    )


def _spoilt(run: Run, corrupted: counterfactual_view.Spoilt, predicted: int) -> api_models.Corrupted:
    return api_models.Corrupted(
        name=corrupted.name,
        label=formatting.corruption(corrupted.name),
        about=corrupted.about,
        severity=counterfactual_view.SEVERITY,
        predicted=run.classes[corrupted.predicted],
        probability=corrupted.probability,
        changed=corrupted.predicted != predicted,
        png=_encode_grey(corrupted.image),
    )


def _encode_grey(pixels: Tensor) -> str:
    """Encode an image (H, W) in [0, 1]."""
    return _encode_png(Image.fromarray(_to_levels(pixels)))


def _encode_image(pixels: np.ndarray) -> str:
    """Encode an image (H, W) uint8, reduced to the size of the page."""
    image = Image.fromarray(pixels)
    image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return _encode_png(image)


def _encode_heat(pixels: Tensor) -> str:
    """Encode a map (H, W) in [0, 1] in the colours of inferno."""
    return _encode_png(Image.fromarray(_inferno()[_to_levels(pixels)]))


def _encode_difference(change: Tensor) -> tuple[str, float]:
    """Encode a change (H, W) around mid-grey, magnified to black or white; also return the factor."""
    largest = float(change.abs().max())
    factor = min(0.5 / largest, _MOST_MAGNIFIED) if largest > 0 else 1.0
    return _encode_grey((0.5 + factor * change).clamp(0, 1)), factor


def _encode_png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=3)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _to_levels(pixels: Tensor) -> np.ndarray:
    return (pixels.detach().float().cpu().numpy().clip(0, 1) * 255).round().astype(np.uint8)


@cache
def _inferno() -> np.ndarray:
    import matplotlib

    return (matplotlib.colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
