"""Check names, files, weights, layers and classes before hours of training."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import nn

from trustcxr.data import dataset
from trustcxr.data.dataset import Dataset, JoinedDataset
from trustcxr.errors import UserError, suggest_nearest
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.study_recipe import StudyRecipe, run_recipe
from trustcxr.recipes.training_recipe import DefenceRecipe, ModelRecipe
from trustcxr.storage import layout
from trustcxr.training.devices import Devices


def check_study(study: StudyRecipe, folder: Path, devices: int = 1) -> None:
    """Raise UserError for unknown or missing defences, surrogates, weights, layers and methods.

    `folder`: the study's; weights of networks that are trained in it are not needed. `devices`: share each training.
    """
    from trustcxr.certify import verify
    from trustcxr.models import factory

    check_names(study, folder)
    check_devices(study, devices)
    for model in study.models:
        factory.check_network(model.name, size=study.data.size, **model.options())
        if model.weights != "none" and not _trained(study, model, folder):  # fetched into the cache, for the training
            factory.build(model.name, classes=2, weights=model.weights, **model.options())
        for run in _runs_of(study, model):
            _check_methods(run, study.explanation.methods)
            if run.defence.certifies:
                try:
                    verify.layers(_build(run))
                except UserError as problem:
                    raise UserError(f"{run.name}: {problem}") from None


def check_names(study: StudyRecipe, folder: Path | None) -> None:
    """Raise UserError for an unknown name or a missing file; build and fetch nothing."""
    from trustcxr import defences
    from trustcxr.explain import evaluate
    from trustcxr.models import factory

    for defence in study.defences:
        defences.get(defence.name)
    evaluate.check_options(study.explanation)
    for attack in study.evaluation.attacks:
        if attack.surrogate is not None:
            layout.check_run(Path(attack.surrogate))
    for model in study.models:
        factory.architectures(model.name)
        missing = model.weights not in (names := ("imagenet", "none")) and not Path(model.weights).is_file()
        if missing and not _trained(study, model, folder):
            hint = f"{suggest_nearest(model.weights, names)}or choose imagenet or none"
            raise UserError(f"weights of {model.name}: no such file '{model.weights}'; {hint}")


def check_devices(study: StudyRecipe, devices: int) -> None:
    """Raise UserError if so many devices of this machine cannot share each training of a study."""
    for model in study.models:
        for run in _runs_of(study, model):
            Devices(devices).check_recipe(run, run.training.batch_size)


def _trained(study: StudyRecipe, model: ModelRecipe, folder: Path | None) -> bool:
    """Return whether all runs of a network are trained in a study's folder."""
    runs = [run for seed in study.seeds for run in _runs_of(study, model, seed)]
    return folder is not None and all((folder / "runs" / run.name / layout.TRAINING_FILE).is_file() for run in runs)


def _build(run: RunRecipe) -> nn.Module:
    from trustcxr.models import factory

    return factory.build(run.model.name, classes=2, **run.network_options())


def _check_methods(run: RunRecipe, methods: tuple[str, ...]) -> None:
    """Raise UserError if the network lacks a layer that a saliency method names."""
    import torch

    from trustcxr.explain import evaluate

    if not any("@" in name or name.startswith("evidence") for name in methods):
        return
    with torch.device("meta"):
        untrained: Any = SimpleNamespace(model=_build(run))
    try:
        evaluate.check_methods(untrained, methods)
    except UserError as problem:
        raise UserError(f"explanation.methods: {problem} (of {run.model.name}, {run.trained_how})") from None


def check_masks(study: StudyRecipe, train: Dataset | JoinedDataset) -> None:
    """Raise UserError if a run learns from masks or a column of the data, and no training image has one."""
    for run in (run for model in study.models for run in _runs_of(study, model)):
        dataset.read_sources(train, run.training.balanced_by)
        for kind, needed in {"lung": run.needs_lungs, "infection": run.training.needs_lesions}.items():
            if needed and (kind not in train.mask_kinds or not train.has_mask(kind).any()):
                raise UserError(
                    f"{train.where}: no training image has a mask of kind {kind}, which {run.name} learns from"
                )


def _runs_of(study: StudyRecipe, model: ModelRecipe, seed: int | None = None) -> list[RunRecipe]:
    """Return the runs of one network and seed, by default the first."""
    seed = study.seeds[0] if seed is None else seed
    return [run_recipe(study, model, defence, seed) for defence in (DefenceRecipe(), *study.defences)]


def check_classes(datasets: Mapping[str, Dataset]) -> None:
    """Raise UserError if there is one class alone, or a split lacks a class. Keys: train, val, test."""
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
