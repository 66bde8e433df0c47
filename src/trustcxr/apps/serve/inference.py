"""Answer images in a worker process: prediction, maps, perturbation, corruptions, DICOM objects."""

import base64
import io
import logging
import math
import os
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from trustcxr.apps.dicom import writer as dicom_answers
from trustcxr.apps.serve import api_models
from trustcxr.apps.serve.api_models import Reply, WorkItem
from trustcxr.data.images import dicom_files, greyscale, read
from trustcxr.errors import UserError, lookup
from trustcxr.evaluation.trained_run import Run, load_run
from trustcxr.explain import counterfactual_view, ood
from trustcxr.explain import predict as one_image
from trustcxr.explain.predict import LoadedImage
from trustcxr.models import fuse_batchnorm
from trustcxr.report import formatting, terminal
from trustcxr.storage.schemas import ImageAnswer
from trustcxr.version import NOTICE

_LONGEST = 768  # pixels of an image on the page
_INFERNO = (matplotlib.colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


class ServedModel:
    """A loaded run: its name here, a faster copy of the model, map methods, PGD steps, and OOD statistics."""

    def __init__(self, name: str, run: Run) -> None:
        self.name, self.run, self.ood_model = name, run, ood.load(run.folder)
        images = torch.rand(2, 1, run.size, run.size, generator=torch.Generator().manual_seed(0)).to(run.device)
        self.searched = fuse_batchnorm.make_fused_copy(run.model, images)
        self.methods = counterfactual_view.find_methods(run)  # by a pass: the first image is as fast as others
        self.steps = counterfactual_view.choose_steps(run)
        calibrated, classes = counterfactual_view.temperature(run) is not None, list(run.classes)
        self.about = api_models.ServedRun(name=name, classes=classes, size=run.size, calibrated=calibrated)


def answer_items(connection: Connection, folders: Sequence[Path], threads: int, memory: int) -> None:
    """Load the runs and send their descriptions, or the reason why not. Then answer each item that arrives."""
    torch.set_num_threads(threads)
    try:
        models = load_models(folders)
    except UserError as problem:
        connection.send(str(problem))
        return
    connection.send([model.about for model in models])
    _silence()
    _limit_memory(memory)
    with suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            answer_item(connection, connection.recv(), models)


def load_models(folders: Sequence[Path]) -> list[ServedModel]:
    """Load runs on the CPU; of those with one name, each has its number after it."""
    runs = [load_run(folder, on="cpu") for folder in folders]
    names = [run.name for run in runs]
    unique = [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]
    return [ServedModel(name, run) for name, run in zip(unique, runs, strict=True)]


def _silence() -> None:
    """Print nothing from now on: libraries quote the file in what they print."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.stdout.flush()
    sys.stderr.flush()
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)


def _limit_memory(most: int) -> None:
    """Limit the memory of this process, so that a huge image fails in its decoder."""
    with suppress(ImportError, OSError, ValueError, StopIteration):
        import resource

        now = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
        resource.setrlimit(resource.RLIMIT_AS, (int(now.split()[1]) * 1024 + most,) * 2)


def answer_item(connection: Connection, item: WorkItem, models: Sequence[ServedModel]) -> None:
    """Send "read" if the image can be read, then the reply; or the reply why it cannot."""
    since = time.monotonic()
    try:
        if item.kind == "refusal":
            connection.send("read")
            reply = refuse(item, models[item.run].name)
        else:
            image = one_image.read_source(item.data, anyway=item.anyway)
            connection.send("read")
            reply = _classify(item, models[item.run], image, since)
    except greyscale.UnreadableImage as problem:
        code = "no-chest-image" if isinstance(problem, one_image.NoChestImage) else "unreadable"
        reply = Reply(422, code=code, message=str(problem))
    except UserError as problem:
        reply = Reply(422, code="invalid", message=str(problem))
    except MemoryError:
        reply = Reply(422, code="too-large", message="this image needs more memory than there is: make it smaller")
    except Exception as fault:  # its text might quote the image
        where = traceback.extract_tb(fault.__traceback__)[-1]
        location = f"{type(fault).__name__} at {Path(where.filename).name}:{where.lineno}"
        reply = Reply(500, code="fault", message=f"a fault of the program: {location}")
    connection.send(reply)


def refuse(item: WorkItem, name: str) -> Reply:
    """Return a DICOM report of why an image is not answered, or an error if its header allows none."""
    accession = dicom_files.read_accession(item.data)
    try:
        report = dicom_answers.to_file(dicom_answers.make_refusal(item.data, name, item.why))
        return Reply(200, files=(report,), accession=accession)
    except dicom_answers.NoDicomAnswer as problem:
        return Reply(422, code="unreadable", message=f"no DICOM report: {problem}", accession=accession)


def _classify(item: WorkItem, model: ServedModel, image: LoadedImage, since: float) -> Reply:
    if item.kind == "dicom":
        return Reply(200, files=as_dicom(model, item.data, image, epsilon=item.epsilon))
    if item.kind == "heatmap":
        return Reply(200, heatmap(model, image, method=item.method), "image/png")
    if item.kind == "changed":
        return Reply(200, changed(model, image).model_dump_json().encode())
    classify = predict if item.kind == "predict" else look_at_image
    return Reply(200, classify(model, image, epsilon=item.epsilon, since=since).model_dump_json().encode())


def predict(model: ServedModel, image: LoadedImage, *, epsilon: float, since: float) -> api_models.Prediction:
    """Return class probabilities, every reason for doubt, and the attacks that the answer survives."""
    answer, _ = _answer(model, image, epsilon)
    return api_models.Prediction(**_describe(model, answer, since))


def look_at_image(model: ServedModel, image: LoadedImage, *, epsilon: float, since: float) -> api_models.SeenImage:
    """Return the prediction with the image and its maps: one part of an examination."""
    run = model.run
    answer = one_image.predict_image(run, image.pixels, epsilon=epsilon, searched=model.searched)
    pixels = _as_input(run, image)
    maps = counterfactual_view.make_maps(run, pixels, run.classes.index(answer.predicted), model.methods)
    one_image.add_warnings(answer, run, model.ood_model, image)
    answer.warnings += counterfactual_view.describe_maps(maps, run)
    shown = Image.fromarray(image.pixels)
    shown.thumbnail((_LONGEST, _LONGEST), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return api_models.SeenImage(
        width=image.pixels.shape[1],
        height=image.pixels.shape[0],
        size=run.size,
        image=_encode(shown),
        network_image=_encode_grey(pixels[0, 0]),
        maps=[_map(run, each, image) for each in maps],
        **_describe(model, answer, since),
    )


def changed(model: ServedModel, image: LoadedImage) -> api_models.Changed:
    """Return the smallest perturbation found, and corruptions: the other part of an examination."""
    run = model.run
    pixels = _as_input(run, image)
    ((predicted, _),) = one_image.predict_labels(run, pixels)
    flip = counterfactual_view.find_flip(run, pixels, predicted, steps=model.steps, searched=model.searched)
    corrupted = counterfactual_view.corrupt_image(run, pixels)
    return api_models.Changed(
        warnings=counterfactual_view.describe_changes(flip, corrupted, predicted, run.classes),
        perturbation=None if flip is None else _flip(run, flip),
        tried_up_to=counterfactual_view.HIGHEST,
        corruptions=[
            api_models.Corrupted(
                name=each.name,
                label=formatting.corruption(each.name),
                about=each.about,
                severity=counterfactual_view.SEVERITY,
                predicted=run.classes[each.predicted],
                probability=each.probability,
                changed=each.predicted != predicted,
                png=_encode_grey(each.image),
            )
            for each in corrupted
        ],
    )


def heatmap(model: ServedModel, image: LoadedImage, *, method: str) -> bytes:
    """Return a PNG: the map of the predicted class over the image, with the notice."""
    name = lookup({name: name for name in model.methods}, "saliency method", method)
    run = model.run
    pixels = _as_input(run, image)
    ((predicted, _),) = one_image.predict_labels(run, pixels)
    (saliency,) = counterfactual_view.make_maps(run, pixels, predicted, [name])
    picture = one_image.draw_heatmap(run, image.pixels, saliency, image.pixels.shape)
    info = PngInfo()
    info.add_text("TrustCXR", NOTICE)
    return _to_png(picture, pnginfo=info)


def as_dicom(model: ServedModel, data: bytes, image: LoadedImage, *, epsilon: float) -> tuple[bytes, ...]:
    """Return the answer to a DICOM image as two DICOM files. Raises UnreadableImage if there can be none."""
    if (why := dicom_files.reason_not_image(data)) is not None:
        raise greyscale.UnreadableImage(why)
    answer, saliency = _answer(model, image, epsilon)
    answer.run = model.name
    small = Image.fromarray(image.pixels)
    small.thumbnail((dicom_answers.MOST_SIDE, dicom_answers.MOST_SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)
    picture = one_image.draw_heatmap(model.run, np.asarray(small), saliency, image.pixels.shape)
    try:
        return tuple(map(dicom_answers.to_file, dicom_answers.make_objects(data, answer, picture)))
    except dicom_answers.NoDicomAnswer as problem:
        raise greyscale.UnreadableImage(f"no DICOM answer: {problem}") from None


def _answer(model: ServedModel, image: LoadedImage, epsilon: float) -> tuple[ImageAnswer, counterfactual_view.Map]:
    """Return the answer with every reason for doubt, and the map that is shown."""
    run, searched = model.run, model.searched
    answer = one_image.predict_image(run, image.pixels, epsilon=epsilon, searched=searched)
    return answer, one_image.add_doubts(answer, run, model.ood_model, image, steps=model.steps, searched=searched)


def _as_input(run: Run, image: LoadedImage) -> Tensor:
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


def _map(run: Run, saliency: counterfactual_view.Map, image: LoadedImage) -> api_models.SaliencyMap:
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


def _flip(run: Run, flip: counterfactual_view.Flip) -> api_models.SmallestPerturbation:
    """Describe a perturbation; its difference is drawn around mid-grey, magnified to black or white."""
    largest = float(flip.change.abs().max())
    factor = min(0.5 / largest, 100.0) if largest > 0 else 1.0
    return api_models.SmallestPerturbation(
        epsilon=flip.epsilon,
        grey_levels=round(255 * flip.epsilon, 2),
        becomes=run.classes[flip.predicted],
        probability=flip.probability,
        steps=flip.steps,
        image=_encode_grey(flip.image),
        difference=_encode_grey((0.5 + factor * flip.change).clamp(0, 1)),
        magnified=round(factor, 1),
    )


def _encode_grey(pixels: Tensor) -> str:
    """Encode an image (H, W) in [0, 1]."""
    return _encode(Image.fromarray(_to_levels(pixels)))


def _encode_heat(pixels: Tensor) -> str:
    """Encode a map (H, W) in [0, 1] in the colours of inferno."""
    return _encode(Image.fromarray(_INFERNO[_to_levels(pixels)]))


def _encode(image: Image.Image) -> str:
    return base64.b64encode(_to_png(image)).decode("ascii")


def _to_png(image: Image.Image, pnginfo: PngInfo | None = None) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=3, pnginfo=pnginfo)
    return file.getvalue()


def _to_levels(pixels: Tensor) -> np.ndarray:
    return (pixels.detach().float().cpu().numpy().clip(0, 1) * 255).round().astype(np.uint8)
