"""What is done with one image in a worker: the answers of `predict`, and a closer look."""

import io
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

from trustcxr import explain
from trustcxr.apps.dicom import writer as dicom_answers
from trustcxr.apps.serve import api_models, png
from trustcxr.data.images import dicom_files, greyscale, resize
from trustcxr.errors import lookup
from trustcxr.evaluation.trained_run import Run
from trustcxr.explain import counterfactual_view, heatmap_io, ood
from trustcxr.explain import predict as one_image
from trustcxr.explain.ood import Familiarity
from trustcxr.models import fuse_batchnorm
from trustcxr.report import formatting, terminal
from trustcxr.storage.schemas import ImageAnswer
from trustcxr.version import NOTICE

UNKNOWN = "not known whether it is like the training images: trustcxr familiarity RUN --data PATH fits that"


@dataclass(frozen=True)
class ServedModel:
    """A run that is ready to answer: what it is called here, its maps, the steps of its climbs, and a faster copy of
    its model to search on.
    """

    name: str
    run: Run
    methods: list[str]
    steps: int
    searched: nn.Module
    known: Familiarity | None

    @classmethod
    def of(cls, name: str, run: Run) -> "ServedModel":
        """A loaded run; a few passes, so that the first image does not wait for what torch does once."""
        known = ood.load(run.folder)
        images = torch.rand(2, 1, run.size, run.size, generator=torch.Generator().manual_seed(0)).to(run.device)
        searched = fuse_batchnorm.fused(run.model, images)
        return cls(name, run, counterfactual_view.names_of(run), counterfactual_view.steps_for(run), searched, known)


def predict(ready: ServedModel, image: one_image.LoadedImage, *, epsilon: float, since: float) -> api_models.Prediction:
    """The classes of an image, and whether they stay within epsilon."""
    found = one_image.answer(ready.run, image.pixels, epsilon=epsilon, searched=ready.searched)
    return api_models.Prediction(**_said(ready, image, found, since))


def look_at_image(
    ready: ServedModel, image: one_image.LoadedImage, *, epsilon: float, since: float
) -> api_models.SeenImage:
    """The same, with the image and its maps: one part of an examination."""
    run = ready.run
    found = one_image.answer(run, image.pixels, epsilon=epsilon, searched=ready.searched)
    pixels = one_image.as_input(image.pixels, run.size, run.resize).to(run.device)
    predicted = run.classes.index(found.predicted)
    height, width = image.pixels.shape
    looked = {
        "width": width,
        "height": height,
        "size": run.size,
        "image": png.image(image.pixels),
        "network_image": png.grey(pixels[0, 0]),
        "maps": [_map(run, each, image) for each in counterfactual_view.maps(run, pixels, predicted, ready.methods)],
    }
    return api_models.SeenImage(**looked, **_said(ready, image, found, since))


def changed(ready: ServedModel, image: one_image.LoadedImage) -> api_models.Changed:
    """The smallest perturbation found that changes the answer, and corruptions: the other part."""
    run = ready.run
    pixels = one_image.as_input(image.pixels, run.size, run.resize).to(run.device)
    ((predicted, _),) = one_image.predict_labels(run, pixels)
    return api_models.Changed(
        perturbation=_flip(
            run, counterfactual_view.flip(run, pixels, predicted, steps=ready.steps, searched=ready.searched)
        ),
        tried_up_to=counterfactual_view.HIGHEST,
        corruptions=[_spoilt(run, each, predicted) for each in counterfactual_view.spoilt(run, pixels)],
    )


def heatmap(ready: ServedModel, image: one_image.LoadedImage, *, method: str) -> bytes:
    """The PNG that `predict` writes beside an image: the map of the predicted class over it, with its notice."""
    name = lookup({name: name for name in ready.methods}, "saliency method", method)
    run = ready.run
    pixels = one_image.as_input(image.pixels, run.size, run.resize).to(run.device)
    picture = _overlay(run, image, image.pixels, explain.method(name)(run.model, pixels, None))
    info, file = PngInfo(), io.BytesIO()
    info.add_text("TrustCXR", NOTICE)
    picture.save(file, "PNG", pnginfo=info, compress_level=3)
    return file.getvalue()


def as_dicom(ready: ServedModel, data: bytes, image: one_image.LoadedImage, *, epsilon: float) -> bytes:
    """The answer to a DICOM image as two DICOM objects, packed; UnreadableImage where there can be none.

    The map is drawn over the image as large as the objects show it.
    """
    if (why := dicom_files.reason_not_image(data)) is not None:
        raise greyscale.UnreadableImage(why)
    run = ready.run
    found = one_image.answer(run, image.pixels, epsilon=epsilon, searched=ready.searched)
    found.run = ready.name
    one_image.doubt(found, run, ready.known, image)
    pixels = one_image.as_input(image.pixels, run.size, run.resize).to(run.device)
    predicted = run.classes.index(found.predicted)
    small = Image.fromarray(image.pixels)
    small.thumbnail((dicom_answers.MOST_SIDE, dicom_answers.MOST_SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)
    picture = _overlay(run, image, np.asarray(small), explain.grad_cam(run.model, pixels, predicted))
    try:
        return dicom_answers.packed(dicom_answers.make_objects(data, found, picture))
    except dicom_answers.NoDicomAnswer as problem:
        raise greyscale.UnreadableImage(f"no DICOM answer: {problem}") from None


def _as_input(run: Run, image: one_image.LoadedImage) -> Tensor:
    return one_image.as_input(image.pixels, run.size, run.resize).to(run.device)


def _overlay(run: Run, image: one_image.LoadedImage, shown: np.ndarray, saliency: Tensor) -> Image.Image:
    """Draw a map (1, H, W) over the image as it is shown, with the notice."""
    on_image = resize.to_original(run.size, image.pixels.shape, run.resize)
    picture = heatmap_io.overlay(shown, saliency[0].float().cpu().numpy()[on_image])
    heatmap_io.write_notice(picture)
    return picture


def _said(ready: ServedModel, image: one_image.LoadedImage, found: ImageAnswer, since: float) -> dict[str, object]:
    one_image.doubt(found, ready.run, ready.known, image)
    familiar = None
    if ready.known is not None and found.rarer_than is not None:
        familiar = api_models.Familiar(
            rarer_than=found.rarer_than, accepted=ood.ACCEPTED, validated=len(ready.known.scores)
        )
    ranked = sorted(found.probabilities.items(), key=lambda pair: -pair[1])
    return {
        "run": ready.name,
        "predicted": found.predicted,
        "classes": [api_models.ClassProbability(name=name, probability=p) for name, p in ranked],
        "calibrated": bool(found.calibrated),
        "calibration": terminal.CALIBRATED if found.calibrated else terminal.NOT_CALIBRATED,
        "warnings": [*found.warnings, *([found.border] if found.border else []), *([] if ready.known else [UNKNOWN])],
        "familiarity": familiar,
        "epsilon": found.epsilon,
        "survives": [api_models.Survived(attack=name, survives=kept) for name, kept in found.survives.items()],
        "seconds": round(time.monotonic() - since, 3),
    }


def _map(run: Run, found: counterfactual_view.Map, image: one_image.LoadedImage) -> api_models.SaliencyMap:
    shown = resize.to_original(run.size, image.pixels.shape, run.resize)
    measured = run.metrics.saliency.get(found.method) if run.metrics else None
    beside = [
        api_models.ControlMap(
            label=other.label,
            likeness=round(other.likeness, 3) if math.isfinite(other.likeness) else None,
            png=png.heat(other.pixels[shown]),
        )
        for other in found.beside
    ]
    return api_models.SaliencyMap(
        method=found.method,
        label=formatting.method(found.method),
        cells=f"{found.cells[0]} x {found.cells[1]}" if found.cells else "",
        verdict=(measured.survives or measured.verdict) if measured else "",
        png=png.heat(found.pixels[shown]),
        controls=beside,
    )


def _flip(run: Run, found: counterfactual_view.Flip | None) -> api_models.SmallestPerturbation | None:
    if found is None:
        return None
    difference, factor = png.difference(found.change)
    return api_models.SmallestPerturbation(
        epsilon=found.epsilon,
        grey_levels=round(255 * found.epsilon, 2),
        becomes=run.classes[found.predicted],
        probability=found.probability,
        steps=found.steps,
        image=png.grey(found.image),
        difference=difference,
        magnified=round(factor, 1),
    )


def _spoilt(run: Run, found: counterfactual_view.Spoilt, predicted: int) -> api_models.Corrupted:
    return api_models.Corrupted(
        name=found.name,
        label=formatting.corruption(found.name),
        about=found.about,
        severity=counterfactual_view.SEVERITY,
        predicted=run.classes[found.predicted],
        probability=found.probability,
        changed=found.predicted != predicted,
        png=png.grey(found.image),
    )
