"""Train one run: Adam, a learning-rate schedule, early stopping on validation, checkpoints, resume."""

import logging
import shutil
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import nn

from trustcxr.console import Progress, log
from trustcxr.data.dataset import Dataset, JoinedDataset, check_same_images, describe_training_data, read_sources
from trustcxr.data.loader import loader
from trustcxr.errors import UserError, unknown
from trustcxr.models import classifier, factory
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.storage import atomic, layout, schemas, segments
from trustcxr.storage.memory import keep_freed_memory
from trustcxr.storage.schemas import TrainingDocument
from trustcxr.training import checkpoint, environment, lung_segmenter, tracking
from trustcxr.training.devices import ALONE, Devices, does_not_fit, rank_variable, start_processes
from trustcxr.training.monitor import Monitor, RefitMonitor, attacked_rows
from trustcxr.training.step import TrainingStep, replays


def fit(
    recipe: RunRecipe, train: Dataset | JoinedDataset, val: Dataset, folder: Path, *, devices: Devices = ALONE
) -> TrainingDocument:
    """Train one run into `folder` and return its training.json; an interrupted run resumes from its last epoch.

    With `training.refit` the run is trained twice: first into `folder`/before_refit, where validation chooses the
    epoch, then on both splits to that epoch of the same schedule. Several `devices` share each batch. A part that does
    not fit in memory is split in two, from the last epoch on.
    Raises UserError if the run cannot be trained; the last good weights stay.
    """
    devices.check_recipe(recipe, len(train))
    if devices.world > 1 and not torch.cuda.is_available() and recipe.model.normalisation == "batch":
        log("without GPUs each process has its own batch statistics; normalisation: group has none")
    devices = replace(devices, parts=recipe.training.accumulate)
    largest = -(-min(recipe.training.batch_size, len(train)) // devices.world)
    if note := environment.describe_substitute(recipe.training.precision, environment.device_kind()):
        log(note)
    while True:
        job = recipe, train, val, folder, devices
        try:
            with start_processes(devices, _fit_part, *job):
                return _fit_part(*job)
        except Exception as problem:
            if not does_not_fit(problem):
                raise
            if devices.parts >= largest:
                raise UserError(f"{recipe.name}: not even one image fits in memory; lower data.size") from None
            if devices.world > 1 and rank_variable():  # srun or torchrun started the others, which keep their parts
                advice = f"start all of them again with --set training.accumulate={2 * devices.parts}"
                raise UserError(f"{recipe.name}: a batch does not fit in memory; {advice}") from None
        devices = replace(devices, parts=2 * devices.parts)
        torch.cuda.empty_cache()
        log(f"{recipe.name}: a batch does not fit in memory: using {devices.parts} parts and adding up their gradients")


def _fit_part(
    recipe: RunRecipe, train: Dataset | JoinedDataset, val: Dataset, folder: Path, devices: Devices
) -> TrainingDocument:
    if environment.device_kind() == "cpu":
        keep_freed_memory()
    if not recipe.training.refit:
        return _fit(recipe, train, Monitor(folder, val, recipe, devices))
    both, first = JoinedDataset(train, val), folder / layout.BEFORE_REFIT
    if devices.rank == 0:
        _write_recipe(folder, recipe, both, devices, None)
    if not (first / layout.TRAINING_FILE).is_file():
        alone = recipe.model_copy(update={"training": recipe.training.model_copy(update={"refit": False})})
        # Validation must not judge weights that have seen the validation images.
        _fit(alone, train, Monitor(first, val, alone, devices))
    if devices.rank == 0:
        checkpoint.remove(first)  # a kill after the last file leaves it
    chosen = schemas.read_schema(TrainingDocument, first / layout.TRAINING_FILE)
    return _fit(recipe, both, RefitMonitor(folder, val, recipe, chosen, devices))


def _fit(recipe: RunRecipe, train: Dataset | JoinedDataset, monitor: Monitor) -> TrainingDocument:
    """Train a run once, into the folder of `monitor`."""
    folder = monitor.folder
    before = checkpoint.load_checkpoint(folder)
    # Raise for missing masks or sources before anything is written.
    read_sources(train, recipe.training.balanced_by)
    _healthy(train, recipe)
    lungs, without = _lungs(train, recipe)
    lesions = _lesions(train, recipe)
    if monitor.devices.rank == 0:
        _write_recipe(folder, recipe, train, monitor.devices, monitor.count_done(before))
    torch.manual_seed(recipe.seed)
    model = _network(recipe, train, lungs, resumed=before is not None)
    if before is not None and monitor.resume_if_ended(before):
        steps = int(before["global_step"])  # interrupted after its last epoch: only the rest remains
    else:
        steps = _run(recipe, train, monitor, model, lungs, lesions, resumed=before is not None)
    counts = {"steps": steps} | ({} if lungs is None else {"images_without_lung_mask": without})
    document = monitor.summary()
    if monitor.devices.rank == 0:
        document = _finish(folder, recipe, monitor, model, counts)
    monitor.devices.wait()
    return document


def _run(
    recipe: RunRecipe,
    train: Dataset | JoinedDataset,
    monitor: Monitor,
    model: classifier.Classifier,
    lungs: np.ndarray | None,
    lesions: np.ndarray | None,
    *,
    resumed: bool,
) -> int:
    """Train the remaining epochs; return the number of steps of all epochs."""
    training, classes, devices = recipe.training, len(train.classes), monitor.devices
    batches = loader(
        train,
        training.batch_size,
        shuffle=True,
        seed=recipe.seed,
        balanced=training.balanced,
        sources=read_sources(train, training.balanced_by),
        drop_last=True,
        repeats=replays(recipe),
        part=(devices.rank, devices.world),
    )
    module = TrainingStep(
        devices.share_statistics(model),
        recipe,
        classes=classes,
        steps_per_epoch=len(batches),
        lungs=lungs,
        lesions=lesions,
        healthy=_healthy(train, recipe),
        devices=devices,
        batch_images=min(training.batch_size, len(train)),
    )
    last = monitor.folder / checkpoint.FOLDER / checkpoint.LAST
    with _quiet(), Progress(f"training {recipe.name}", monitor.epochs * len(batches)) as monitor.bar:
        trainer = _trainer(recipe, monitor)
        try:
            trainer.fit(module, batches, ckpt_path=last if resumed else None, weights_only=True)
        except SystemExit:  # Lightning raises it on Ctrl-C, and would ignore the next
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
        except FloatingPointError as problem:
            monitor.stopped = f"numbers: {problem}"
            if monitor.best["epoch"] < 0:
                raise UserError(f"{recipe.name}: {problem}, in the first epoch; lower training.learning_rate") from None
            log(f"{recipe.name}: {problem}; the weights of epoch {monitor.best_epoch} are kept")
    return module.global_step


def _trainer(recipe: RunRecipe, monitor: Monitor) -> pl.Trainer:
    save = pl.callbacks.ModelCheckpoint(
        monitor.folder / checkpoint.FOLDER,
        filename=Path(checkpoint.LAST).stem,
        every_n_epochs=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    followed = []
    if recipe.training.track != "none" and monitor.devices.rank == 0:
        followed = [tracking.Tracked(monitor, tracking.make_logger(recipe, monitor.folder))]
    own = monitor.devices.world > 1 and not rank_variable()  # processes that were started here
    processes = [LightningEnvironment()] if own else []
    return pl.Trainer(
        max_epochs=monitor.epochs,
        accelerator="auto",
        precision=environment.supported_precision(recipe.training.precision, environment.device_kind()),
        callbacks=[monitor, save, *followed],
        plugins=[checkpoint.WholeCheckpoints(), *processes],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        **monitor.devices.trainer_options(),
    )


def _network(
    recipe: RunRecipe, train: Dataset | JoinedDataset, lungs: np.ndarray | None, *, resumed: bool
) -> classifier.Classifier:
    """Return the model before training, its lung gate trained and frozen; a checkpoint fills a resumed one later."""
    weights = "none" if resumed else recipe.model.weights
    model = factory.build(recipe.model.name, classes=len(train.classes), weights=weights, **recipe.network_options())
    if isinstance(model.gate, classifier.LungGate) and lungs is not None and not resumed:
        lung_segmenter.fit(model.gate, train.images, lungs, recipe)
    model.gate.requires_grad_(False)  # trained on labels, it could draw the class in its mask
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _masks(train: Dataset | JoinedDataset, recipe: RunRecipe, kind: str, needs: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the masks (N, H, W) of a kind, 0 without one, and which images have one (N,); `needs`: for the message."""
    masks = train.masks(kind) if kind in train.mask_kinds else np.zeros((len(train), 0, 0))
    has = np.array([bool(mask.any()) for mask in masks])
    if not has.any():
        raise UserError(f"{recipe.name}: {needs} masks, and no image of {train.where} has one")
    return masks, has


def _lungs(train: Dataset | JoinedDataset, recipe: RunRecipe) -> tuple[np.ndarray | None, int]:
    """Return the lung masks if training needs them, and the number of images without one."""
    if not recipe.needs_lungs:
        return None, 0
    lungs, has = _masks(train, recipe, "lung", "background, guidance and counterfactuals need lung")
    if without := int((~has).sum()):
        log(f"{recipe.name}: {without} of {len(train)} training images have no lung mask; these stay unchanged")
    return lungs, without


def _lesions(train: Dataset | JoinedDataset, recipe: RunRecipe) -> np.ndarray | None:
    """Return the lesion masks if training needs them; log the classes without any, which are unguided."""
    if not recipe.training.needs_lesions:
        return None
    lesions, has = _masks(train, recipe, "infection", "guidance and counterfactuals need lesion")
    counts = {name: int(has[train.labels == k].sum()) for k, name in enumerate(train.classes)}
    some = ", ".join(f"{count} of {name}" for name, count in counts.items() if count)
    none = ", ".join(name for name, count in counts.items() if not count)
    log(f"{recipe.name}: lesion masks of {some}" + (f"; {none} unguided, without any" if none else ""))
    return lesions


def _healthy(train: Dataset | JoinedDataset, recipe: RunRecipe) -> int | None:
    """Return the index of the class of an image without its lesion; None without counterfactual images."""
    edits = recipe.training.counterfactuals
    if not edits.share:
        return None
    if edits.healthy_class not in train.classes:
        raise unknown("healthy class (training.counterfactuals.healthy_class)", edits.healthy_class, train.classes)
    return train.classes.index(edits.healthy_class)


def _finish(
    folder: Path, recipe: RunRecipe, monitor: Monitor, model: nn.Module, counts: dict[str, int]
) -> TrainingDocument:
    checkpoint.choose_best(folder, monitor.best_sum)
    best = folder / checkpoint.FOLDER / checkpoint.BEST
    if monitor.best_sum != atomic.checksum(best):
        checkpoint.remove(folder)
        raise UserError(f"{best}: damaged, so the weights are lost; the same command trains them anew")
    with atomic.atomic_write(folder / layout.WEIGHTS_FILE) as temporary:
        shutil.copyfile(best, temporary)
    content = atomic.read_yaml(folder / layout.RUN_FILE)
    content["checksums"] = layout.checksums(folder, content["classes"])
    more = {**counts, "parameters": factory.count_parameters(model), **segments.read_split(folder)}
    summary = monitor.summary().model_copy(update=more)
    atomic.write_yaml(folder / layout.RUN_FILE, content)
    summary.precision_asked = recipe.training.precision
    summary.precision = environment.supported_precision(summary.precision_asked, environment.device_kind())
    if recipe.defence.attacks and not recipe.defence.certifies:
        summary.watched_images = len(attacked_rows(monitor.val))
    if monitor.alarm:
        summary.alarm = monitor.alarm
        log(f"{recipe.name}: {summary.alarm}")
    atomic.write_json(folder / layout.TRAINING_FILE, summary)
    checkpoint.remove(folder)
    log(f"trained {recipe.name}{monitor.sentence()}")
    if differing := segments.describe_segments(folder):
        log(f"{recipe.name}: resumed on another machine or version: {differing}")
    return summary


def _write_recipe(
    folder: Path, recipe: RunRecipe, train: Dataset | JoinedDataset, devices: Devices, done: int | None
) -> None:
    """Write run.yaml and the list of training images; raise UserError if the folder was trained on other images."""
    folder.mkdir(parents=True, exist_ok=True)
    check_same_images(folder, train)
    content: dict[str, object] = {
        "name": recipe.name,
        "background": recipe.background,
        "classes": list(train.classes),
        "recipe": recipe.model_dump(mode="json"),
        "data": describe_training_data(train),
    }
    path = folder / layout.RUN_FILE
    now = {"versions": layout.versions(), "hardware": environment.hardware(), "source": environment.source()}
    now |= {"split_batches": split} if (split := devices.split_batches()) else {}
    content["segments"] = segments.append_segment(atomic.read_yaml(path) if path.is_file() else {}, now, done)
    atomic.write_yaml(path, content)
    if not (folder / layout.IMAGES_FILE).is_file():
        table = pd.DataFrame({"sample_id": train.sample_ids, "image": train.image_sums})
        atomic.write_table(folder / layout.IMAGES_FILE, table)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's advice: users see one bar and one line."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="(pytorch_lightning|lightning_fabric).*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
