"""What is done with one film in a worker: the answers of `predict`, and a closer look."""

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
from trustcxr.about import NOTICE
from trustcxr.data.images import dicom, grey, squares
from trustcxr.dicom import answers as dicom_answers
from trustcxr.errors import lookup
from trustcxr.evaluation.run import Run
from trustcxr.explain import closer_look, familiarity, heatmap_files, one_image
from trustcxr.explain.familiarity import Familiarity
from trustcxr.models import folding
from trustcxr.report import terminal, words
from trustcxr.results.documents import FilmAnswer
from trustcxr.serve import answers, pictures

UNKNOWN = "not known whether it is like the training films: trustcxr familiarity RUN --data PATH fits that"


@dataclass(frozen=True)
class Ready:
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
    def of(cls, name: str, run: Run) -> "Ready":
        """A loaded run; a few passes, so that the first film does not wait for what torch does once."""
        known = familiarity.load(run.folder)
        films = torch.rand(2, 1, run.size, run.size, generator=torch.Generator().manual_seed(0)).to(run.device)
        searched = folding.faster(run.model, films)
        return cls(name, run, closer_look.names_of(run), closer_look.steps_for(run), searched, known)


def predict(ready: Ready, film: one_image.Film, *, epsilon: float, since: float) -> answers.Prediction:
    """The classes of a film, and whether they stay within epsilon."""
    found = one_image.answer(ready.run, film.pixels, epsilon=epsilon, searched=ready.searched)
    return answers.Prediction(**_said(ready, film, found, since))


def seen(ready: Ready, film: one_image.Film, *, epsilon: float, since: float) -> answers.Seen:
    """The same, with the film and its maps: one part of an examination."""
    run = ready.run
    found = one_image.answer(run, film.pixels, epsilon=epsilon, searched=ready.searched)
    pixels = one_image.as_input(film.pixels, run.size, run.resize).to(run.device)
    predicted = run.classes.index(found.predicted)
    height, width = film.pixels.shape
    looked = {
        "width": width,
        "height": height,
        "size": run.size,
        "film": pictures.film(film.pixels),
        "network_film": pictures.grey(pixels[0, 0]),
        "maps": [_map(run, each, film) for each in closer_look.maps(run, pixels, predicted, ready.methods)],
    }
    return answers.Seen(**looked, **_said(ready, film, found, since))


def changed(ready: Ready, film: one_image.Film) -> answers.Changed:
    """The smallest perturbation found that changes the answer, and corruptions: the other part."""
    run = ready.run
    pixels = one_image.as_input(film.pixels, run.size, run.resize).to(run.device)
    ((predicted, _),) = one_image.answers(run, pixels)
    return answers.Changed(
        perturbation=_flip(run, closer_look.flip(run, pixels, predicted, steps=ready.steps, searched=ready.searched)),
        tried_up_to=closer_look.HIGHEST,
        corruptions=[_spoilt(run, each, predicted) for each in closer_look.spoilt(run, pixels)],
    )


def heatmap(ready: Ready, film: one_image.Film, *, method: str) -> bytes:
    """The PNG that `predict` writes beside a film: the map of the predicted class over it, with its notice."""
    name = lookup({name: name for name in ready.methods}, "saliency method", method)
    run = ready.run
    pixels = one_image.as_input(film.pixels, run.size, run.resize).to(run.device)
    picture = _overlay(run, film, film.pixels, explain.method(name)(run.model, pixels, None))
    info, file = PngInfo(), io.BytesIO()
    info.add_text("TrustCXR", NOTICE)
    picture.save(file, "PNG", pnginfo=info, compress_level=3)
    return file.getvalue()


def as_dicom(ready: Ready, data: bytes, film: one_image.Film, *, epsilon: float) -> bytes:
    """The answer to a DICOM film as two DICOM objects, packed; UnreadableImage where there can be none.

    The map is drawn over the film as large as the objects show it.
    """
    if (why := dicom.not_a_film(data)) is not None:
        raise grey.UnreadableImage(why)
    run = ready.run
    found = one_image.answer(run, film.pixels, epsilon=epsilon, searched=ready.searched)
    found.run = ready.name
    one_image.doubt(found, run, ready.known, film)
    pixels = one_image.as_input(film.pixels, run.size, run.resize).to(run.device)
    predicted = run.classes.index(found.predicted)
    small = Image.fromarray(film.pixels)
    small.thumbnail((dicom_answers.MOST_SIDE, dicom_answers.MOST_SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)
    picture = _overlay(run, film, np.asarray(small), explain.grad_cam(run.model, pixels, predicted))
    try:
        return dicom_answers.packed(dicom_answers.of(data, found, picture))
    except dicom_answers.NoDicomAnswer as problem:
        raise grey.UnreadableImage(f"no DICOM answer: {problem}") from None


def _as_input(run: Run, film: one_image.Film) -> Tensor:
    return one_image.as_input(film.pixels, run.size, run.resize).to(run.device)


def _overlay(run: Run, film: one_image.Film, shown: np.ndarray, saliency: Tensor) -> Image.Image:
    """Draw a map (1, H, W) over the film as it is shown, with the notice."""
    on_film = squares.on_film(run.size, film.pixels.shape, run.resize)
    picture = heatmap_files.overlay(shown, saliency[0].float().cpu().numpy()[on_film])
    heatmap_files.write_notice(picture)
    return picture


def _said(ready: Ready, film: one_image.Film, found: FilmAnswer, since: float) -> dict[str, object]:
    one_image.doubt(found, ready.run, ready.known, film)
    familiar = None
    if ready.known is not None and found.rarer_than is not None:
        familiar = answers.Familiar(
            rarer_than=found.rarer_than, accepted=familiarity.ACCEPTED, validated=len(ready.known.scores)
        )
    ranked = sorted(found.probabilities.items(), key=lambda pair: -pair[1])
    return {
        "run": ready.name,
        "predicted": found.predicted,
        "classes": [answers.ClassProbability(name=name, probability=p) for name, p in ranked],
        "calibrated": bool(found.calibrated),
        "calibration": terminal.CALIBRATED if found.calibrated else terminal.NOT_CALIBRATED,
        "warnings": [*found.warnings, *([found.border] if found.border else []), *([] if ready.known else [UNKNOWN])],
        "familiarity": familiar,
        "epsilon": found.epsilon,
        "survives": [answers.Survived(attack=name, survives=kept) for name, kept in found.survives.items()],
        "seconds": round(time.monotonic() - since, 3),
    }


def _map(run: Run, found: closer_look.Map, film: one_image.Film) -> answers.SaliencyMap:
    shown = squares.on_film(run.size, film.pixels.shape, run.resize)
    measured = run.metrics.saliency.get(found.method) if run.metrics else None
    beside = [
        answers.ControlMap(
            label=other.label,
            likeness=round(other.likeness, 3) if math.isfinite(other.likeness) else None,
            png=pictures.heat(other.pixels[shown]),
        )
        for other in found.beside
    ]
    return answers.SaliencyMap(
        method=found.method,
        label=words.method(found.method),
        cells=f"{found.cells[0]} x {found.cells[1]}" if found.cells else "",
        verdict=(measured.survives or measured.verdict) if measured else "",
        png=pictures.heat(found.pixels[shown]),
        controls=beside,
    )


def _flip(run: Run, found: closer_look.Flip | None) -> answers.SmallestPerturbation | None:
    if found is None:
        return None
    difference, factor = pictures.difference(found.change)
    return answers.SmallestPerturbation(
        epsilon=found.epsilon,
        grey_levels=round(255 * found.epsilon, 2),
        becomes=run.classes[found.predicted],
        probability=found.probability,
        steps=found.steps,
        film=pictures.grey(found.film),
        difference=difference,
        magnified=round(factor, 1),
    )


def _spoilt(run: Run, found: closer_look.Spoilt, predicted: int) -> answers.Corrupted:
    return answers.Corrupted(
        name=found.name,
        label=words.corruption(found.name),
        about=found.about,
        severity=closer_look.SEVERITY,
        predicted=run.classes[found.predicted],
        probability=found.probability,
        changed=found.predicted != predicted,
        png=pictures.grey(found.film),
    )
