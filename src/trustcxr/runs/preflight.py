"""What would fail only after hours of training is said before it: names, files, weights, layers, classes."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from trustcxr.console import log
from trustcxr.data import dataset
from trustcxr.errors import UserError, suggest_nearest
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.study_recipe import StudyRecipe, run_recipe
from trustcxr.recipes.training_recipe import DefenceRecipe, ModelRecipe
from trustcxr.registry import Method
from trustcxr.storage import layout
from trustcxr.training.devices import Devices

if TYPE_CHECKING:
    from torch import nn

    from trustcxr.data.dataset import Dataset


def recipe(study: StudyRecipe, folder: Path, devices: int = 1) -> None:
    """UserError for what nobody knows or what is not there: defences, attacks' sources, weights, layers, methods.
    `folder` is the study's: the weights of a network that is trained there already are not asked for again. `devices`:
    cards that share each training, which some ways of training refuse.
    """
    names(study, folder)
    cards(study, devices)
    for model in study.models:
        _network(model, study.data.size, trained=_trained(study, model, folder))
        for run in _ways(study, model):
            _layers(run, study.explanation.methods)
            if run.defence.certifies or run.training.guides_a_layer:
                _learns(run)


def names(study: StudyRecipe, folder: Path | None) -> None:
    """UserError for a name that nobody knows, or a file that is not there; nothing is built, and nothing fetched."""
    from trustcxr import defences
    from trustcxr.explain import evaluate
    from trustcxr.models import zoo

    for defence in study.defences:
        defences.get(defence.name)
    evaluate.check_options(study.explanation)
    for attack in study.evaluation.attacks:
        if attack.surrogate is not None:
            layout.check_run(Path(attack.surrogate))
    for model in study.models:
        zoo.architectures(model.name)
        if not _trained(study, model, folder):
            _weights_are_there(model)


def cards(study: StudyRecipe, devices: int) -> None:
    """UserError where so many cards of this machine cannot share each training of a study."""
    for one in (one for model in study.models for one in _ways(study, model)):
        Devices(devices).check_recipe(one, one.training.batch_size)


def run(one: RunRecipe) -> None:
    """UserError where a single run's network, weights or defence cannot be had."""
    from trustcxr import defences

    defences.get(one.defence.name)
    _network(one.model, one.data.size, trained=False)


def _network(model: ModelRecipe, size: int, *, trained: bool) -> None:
    """Of a network: it takes images of that size, and its weights are there."""
    from trustcxr.models import factory

    factory.check_network(model.name, size=size, **model.options())
    if not trained:
        _weights_are_there(model)
    if model.weights != "none" and not trained:  # fetched now, into the cache, where training finds them
        factory.build(model.name, classes=2, weights=model.weights, **model.options())


def _trained(study: StudyRecipe, model: ModelRecipe, folder: Path | None) -> bool:
    """Whether all runs of a network are trained in a study's folder."""
    if folder is None:
        return False
    every = (run for seed in study.seeds for run in _ways(study, model, seed))
    return all((folder / "runs" / run.name / layout.TRAINING_FILE).is_file() for run in every)


def _weights_are_there(model: ModelRecipe) -> None:
    if model.weights not in (names := ("imagenet", "none")) and not Path(model.weights).is_file():
        near = suggest_nearest(model.weights, names)
        raise UserError(f"weights of {model.name}: no such file '{model.weights}'; {near}or choose imagenet or none")


def learns(one: RunRecipe, model: "nn.Module") -> None:
    """UserError where a network has not what its training works on: layers with bounds, one whose map is guided."""
    from trustcxr.certify import affine_graph
    from trustcxr.models.feature_maps import find_layer

    if one.defence.certifies:
        affine_graph.layers(model)
    if one.training.guides_a_layer:
        try:
            find_layer(model, one.training.guidance_layer)
        except UserError as problem:
            raise UserError(f"training.guidance_layer: {problem}") from None


def _learns(one: RunRecipe) -> None:
    from trustcxr.models import factory

    try:
        learns(one, factory.build(one.model.name, classes=2, **one.network_options()))
    except UserError as problem:
        raise UserError(f"{one.name}: {problem}") from None


def _layers(one: RunRecipe, methods: tuple[str, ...]) -> None:
    """Of the saliency methods: the layers that they name are in the network."""
    import torch

    from trustcxr.explain import evaluate
    from trustcxr.models import factory

    if not any("@" in name or name.startswith("evidence") for name in methods):
        return
    with torch.device("meta"):
        model = factory.build(one.model.name, classes=2, **one.network_options())
    empty: Any = SimpleNamespace(model=model)
    try:
        evaluate.check_methods(empty, methods)
    except UserError as problem:
        raise UserError(f"explanation.methods: {problem} (of {one.model.name}, {one.trained_how})") from None


def maps(study: StudyRecipe, folder: Path | None = None) -> None:
    """Say of which networks a CAM that is asked for reads a single cell at this size: such a map is a null map.

    Of those that are trained in the study's folder it was said when they were not.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for model in (model for model in study.models if not _trained(study, model, folder)):
        if flat := _of_one_cell(study, model):
            found.setdefault(flat, []).append(model.called)
    for flat, who in found.items():
        log(
            f"no map of {', '.join(who)} by {', '.join(flat)}: at {study.data.size} pixels what is read there has one "
            "cell, the same everywhere; a larger data.size has more, and so has an earlier layer, as in "
            f"{Method.parse(flat[0]).base}@-2"
        )


def _of_one_cell(study: StudyRecipe, model: ModelRecipe) -> tuple[str, ...]:
    """The CAMs that a study asks for whose map of a network has one cell."""
    import torch

    from trustcxr.explain import methods
    from trustcxr.models import factory

    cams = [name for name in study.explanation.methods if Method.parse(name).base in methods.COMBINE]
    one, size = _ways(study, model)[0], study.data.size
    for device in ("meta", "cpu") if cams else ():  # shapes alone, but for a layer that needs values to go on
        with suppress(Exception), torch.device(device), torch.no_grad():  # a network that cannot is refused elsewhere
            net = factory.build(one.model.name, classes=2, **one.network_options()).eval()
            image = torch.zeros(1, 1, size, size)
            return tuple(name for name in cams if methods.cells(net, image, name) == (1, 1))
    return ()


def masks(study: StudyRecipe, train: "Dataset") -> None:
    """UserError where a run of a study learns from masks or a column of the data, and no training image has one."""
    for run in (run for model in study.models for run in _ways(study, model)):
        dataset.read_sources(train, run.training.balanced_by)
        asked = {"lung": run.needs_lungs, "infection": run.training.needs_lesions}
        for kind in (kind for kind, needed in asked.items() if needed):
            if kind not in train.mask_kinds or not train.has_mask(kind).any():
                raise UserError(
                    f"{train.where}: no training image has a mask of kind {kind}, which {run.name} learns from"
                )


def _ways(study: StudyRecipe, model: ModelRecipe, seed: int | None = None) -> list[RunRecipe]:
    """The runs of one network, of one seed, the first unless said."""
    seed = study.seeds[0] if seed is None else seed
    return [run_recipe(study, model, defence, seed) for defence in (DefenceRecipe(), *study.defences)]


def classes(datasets: Mapping[str, "Dataset"]) -> None:
    """UserError where there is one class alone, or one is missing from a split; by role: train, val, test."""
    for role, part in datasets.items():
        names = ", ".join(map(str, part.classes))
        if len(part.classes) < 2:
            raise UserError(f"{part.where}: one class alone ({names}): a classifier needs two or more; see --label")
        counts = np.bincount(part.labels, minlength=len(part.classes))
        if missing := [str(c) for c, n in zip(part.classes, counts, strict=True) if n == 0]:
            raise UserError(
                f"{part.where}: no image of {', '.join(missing)} in the split {part.split} ({role}); every class must "
                "be in every split: add some, or leave the class out with a label mapping"
            )
