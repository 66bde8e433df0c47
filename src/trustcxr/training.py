"""Fitting one run: Adam, a learning-rate schedule, early stopping on validation, checkpoints, resume."""

import math
import shutil
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from trustcxr import defences, lung_gate, models, results, right_reasons
from trustcxr.console import duration, say
from trustcxr.data import backgrounds
from trustcxr.data.batches import Batch, augment, loader, to_pixels
from trustcxr.errors import UserError
from trustcxr.recipes import DEFENCE_OPTIONS, RunRecipe
from trustcxr.twin_batchnorm import TwinBatchNorm
from trustcxr.watching import WATCH_STEPS, Bar, Watch, watched
from trustcxr.weights import load_weights

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset


class Fitting(pl.LightningModule):
    """One defence applied to one model."""

    def __init__(
        self,
        model: nn.Module,
        recipe: RunRecipe,
        *,
        classes: int,
        steps_per_epoch: int,
        class_weights: Tensor | None = None,
        lungs: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.model, self.recipe, self.classes, self.steps_per_epoch = model, recipe, classes, steps_per_epoch
        self.lungs = lungs  # (N, H, W) of 0 and 1, all 0 where there is no mask
        self.defence, self.robust = defences.get(recipe.defence.name), recipe.defence.attacks
        ours = ("epsilon", "ramp", "replays", "separate_batchnorm", "evaluated_batchnorm", "epsilon_outside")
        self.options = {k: getattr(recipe.defence, k) for k in DEFENCE_OPTIONS[recipe.defence.name] if k not in ours}
        self.twin = TwinBatchNorm(model) if recipe.defence.separate_batchnorm else None
        self.perturbation: Tensor | None
        self.register_buffer("perturbation", _first_perturbation(recipe))
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.average = _average(model, recipe.training.averaging)
        self.sums: dict[str, float] = {}

    @property
    def total_steps(self) -> int:
        """Steps in the whole of training."""
        return self.recipe.training.epochs * self.steps_per_epoch

    def epsilon(self, step: int) -> float:
        """The radius at a step: it grows evenly from 0 over the first `ramp` of training."""
        return self.recipe.defence.epsilon * self._grown(step)

    def radii(self, step: int, lungs: Tensor | None) -> float | Tensor:
        """The radius at a step; with `epsilon_outside` one for each pixel (B, 1, H, W), by the lungs (B, 1, H, W).

        An image without a lung mask has one radius everywhere.
        """
        outside = self.recipe.defence.epsilon_outside
        if outside is None or lungs is None:
            return self.epsilon(step)
        inside = torch.where(backgrounds.has_lungs(lungs), lungs, 1.0)
        return inside * self.epsilon(step) + (1 - inside) * outside * self._grown(step)

    def _grown(self, step: int) -> float:
        ramp = self.recipe.defence.ramp * self.total_steps
        return min(1.0, step / ramp) if ramp else 1.0

    def defence_options(self, lungs: Tensor | None = None) -> dict[str, Any]:
        """What the defence is told at this step, beside model, images and labels."""
        options = self.options | {
            "label_smoothing": self.recipe.training.label_smoothing,
            "class_weights": self.class_weights,
        }
        if self.robust:
            options["epsilon"] = self.radii(self.global_step, lungs)
        if self.perturbation is not None:
            options["perturbation"] = self.perturbation
        if self.twin is not None:
            options["clean"] = self.model if self.attacked() is self.twin else self.twin
        return options

    def attacked(self) -> nn.Module:
        """What adversarial images go through: the model, or its twin where the model's BatchNorm is for clean ones."""
        if self.twin is not None and self.recipe.defence.evaluated_batchnorm == "clean":
            return self.twin
        return self.model

    def candidate(self) -> nn.Module:
        """The model that is validated and kept: the averaged weights where there are any."""
        return self.model if self.average is None else self.average.module

    def on_train_epoch_start(self) -> None:
        """Start the sums of an epoch."""
        self.sums = {}

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One step of the defence on a batch."""
        images, labels, rows = batch
        pixels, lungs = self._pixels(images, rows)
        # Networks side by side learn each for itself, on its own attack, so that they stay different.
        learners = [self.attacked()]
        if isinstance(self.model, models.Classifier) and self.recipe.model.several:
            learners = list(self.model.members())
        learnt = [self._learn(learner, pixels, labels, lungs) for learner in learners]
        loss = torch.stack([loss for loss, _ in learnt]).mean()
        logits = torch.stack([logits.detach() for _, logits in learnt]).mean(0)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {float(loss)} at step {self.global_step}")
        right = (logits.argmax(1) == labels).sum()
        for name, value in (("loss", loss.detach() * len(labels)), ("right", right), ("count", len(labels))):
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        return loss

    def _learn(self, learner: nn.Module, pixels: Tensor, labels: Tensor, lungs: Tensor | None) -> tuple[Tensor, Tensor]:
        """The loss of one network on a batch, and its logits."""
        weight, beside = self.recipe.training.rrr, None
        if self.recipe.empties and lungs is not None and len(emptied := right_reasons.emptied(pixels, lungs)):
            learner = beside = right_reasons.BesideEmptied(learner, emptied)
        with right_reasons.recorded(learner, wanted=weight > 0) as passes:
            loss, logits = self.defence(learner, pixels, labels, **self.defence_options(lungs))
        if weight and lungs is not None:
            outside = (1 - lungs) * backgrounds.has_lungs(lungs)
            loss = loss + weight * right_reasons.penalty(passes, logits, outside)
        if beside is not None:
            loss = loss + beside.unevenness()
        return loss, logits

    def _pixels(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """A batch as the model sees it, with its lungs where the recipe needs them.

        The random state of a step depends on seed and step alone, so that a resumed run is the same run; all replays of
        a batch are augmented alike.
        """
        training, first = self.recipe.training, (self.recipe.seed + 1) * 1_000_003
        torch.manual_seed(first + self.global_step)
        generator = torch.Generator().manual_seed(first + self.global_step // replays(self.recipe))
        pixels, lungs = to_pixels(images), None
        if self.lungs is None:
            pixels = augment(pixels, generator, **training.augment.model_dump())
        else:
            lungs = torch.from_numpy(np.asarray(self.lungs[rows.cpu().numpy()])).to(pixels)[:, None]
            share, background = training.swap_share, training.background
            if background == "crop":  # before augmentation, which would otherwise lose its shift and scale
                pixels, lungs = backgrounds.crop(pixels, lungs, share=share, generator=generator)
            both = augment(torch.cat([pixels, lungs], 1), generator, **training.augment.model_dump())
            pixels, lungs = both[:, :1], both[:, 1:]
            pixels = backgrounds.change(pixels, lungs, background, share=share, generator=generator)
        if not torch.isfinite(pixels).all():
            raise FloatingPointError(f"a pixel is not a number at step {self.global_step}")
        return pixels.contiguous(memory_format=torch.channels_last), lungs

    def on_train_batch_end(self, *_: Any) -> None:
        """Move the averaged weights."""
        if self.average is not None:
            self.average.update_parameters(self.model)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Nothing here: Watch validates the kept weights once an epoch."""

    def configure_optimizers(self) -> Any:
        """Adam, with a warm-up and then a cosine to zero (or constant)."""
        training = self.recipe.training
        trained = [*self.model.parameters(), *(self.twin.layers.parameters() if self.twin else ())]
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimiser]
        optimiser = kind(trained, lr=training.learning_rate, weight_decay=training.weight_decay)
        warm = max(1.0, training.warmup_epochs * self.steps_per_epoch)

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / (warm + 1)
            if training.schedule == "constant":
                return 1.0
            done = (step - warm) / max(1.0, self.total_steps - warm)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(
    recipe: RunRecipe, train: "Dataset", val: "Dataset", folder: Path, *, start_from: Path | None = None
) -> dict[str, Any]:
    """Train one run into `folder` and return its training.json; a run that was cut off goes on from its last epoch.

    `start_from` is a run whose weights this one begins with. Raises UserError where the run cannot be trained, with the
    last good weights kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = folder / "checkpoint"
    torch.manual_seed(recipe.seed)
    classes, training = train.classes, recipe.training
    lungs, without = _lungs(train, recipe)
    resumed = _can_resume(checkpoints / "last.ckpt")
    model = _network(recipe, train, lungs, start_from, resumed=resumed)
    batches = loader(
        train,
        training.batch_size,
        shuffle=True,
        seed=recipe.seed,
        balanced=training.balanced,
        drop_last=True,
        repeats=replays(recipe),
    )
    module = Fitting(
        model,
        recipe,
        classes=len(classes),
        steps_per_epoch=len(batches),
        class_weights=class_weights(train.labels, len(classes)) if training.class_weights else None,
        lungs=lungs,
    )
    watch = Watch(folder, val, recipe)
    save = pl.callbacks.ModelCheckpoint(
        checkpoints, filename="last", every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    _write_recipe(folder, recipe, classes, train, start_from)
    with _quiet():
        trainer = _trainer(recipe, [watch, Bar(recipe.name, watch), save])
        try:
            trainer.fit(module, batches, ckpt_path=checkpoints / "last.ckpt" if resumed else None, weights_only=True)
        except SystemExit:  # Lightning's answer to Ctrl-C, after which it would ignore the next
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
        except FloatingPointError as problem:
            watch.stopped = f"numbers: {problem}"
            if watch.best["epoch"] < 0:
                raise UserError(f"{recipe.name}: {problem}, in the first epoch; lower training.learning_rate") from None
            say(f"{recipe.name}: {problem}; the weights of epoch {watch.best['epoch']} are kept")
    counts = {"steps": module.global_step} | ({} if lungs is None else {"images_without_lung_mask": without})
    return _finish(folder, recipe, watch, model, counts)


def _trainer(recipe: RunRecipe, callbacks: list[pl.Callback]) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=recipe.training.epochs,
        accelerator="auto",
        devices=1,
        precision=recipe.training.precision,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )


def _network(
    recipe: RunRecipe, train: "Dataset", lungs: np.ndarray | None, start_from: Path | None, *, resumed: bool
) -> models.Classifier:
    """The model as training finds it, its lung gate trained and frozen; a resumed run's checkpoint fills it later."""
    weights = "none" if resumed or start_from else recipe.model.weights
    model = models.build(recipe.model.name, classes=len(train.classes), weights=weights, **recipe.network_options())
    if start_from is not None and not resumed:
        load_weights(model, start_from / results.WEIGHTS_FILE)
    elif isinstance(model.gate, lung_gate.LungGate) and lungs is not None and not resumed:
        lung_gate.fit(model.gate, train.images, lungs, recipe)
    model.gate.requires_grad_(False)  # a segmenter that learnt from the labels could draw the class in what it cuts
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _lungs(train: "Dataset", recipe: RunRecipe) -> tuple[np.ndarray | None, int]:
    """The lung masks (N, H, W) where training needs them, and how many images have none or an empty one."""
    if not recipe.needs_lungs:
        return None, 0
    lungs = train.masks("lung") if "lung" in train.mask_kinds else np.zeros((len(train), 0, 0))
    without = sum(not mask.any() for mask in lungs)
    if without == len(train):
        raise UserError(
            f"{recipe.name}: background, rrr and epsilon_outside need lung masks, and no image of {train.root} has one"
        )
    if without:
        say(f"{recipe.name}: {without} of {len(train)} training images have no lung mask; these are left as they are")
    return lungs, without


def _can_resume(checkpoint: Path) -> bool:
    if not checkpoint.is_file():
        return False
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as problem:
        reason = f"cannot be read as tensors alone ({type(problem).__name__})"
        raise UserError(f"{checkpoint}: {reason}; delete {checkpoint.parent} to start anew") from None
    return True


def _finish(folder: Path, recipe: RunRecipe, watch: Watch, model: nn.Module, counts: dict[str, int]) -> dict[str, Any]:
    with results.replacing(folder / results.WEIGHTS_FILE) as temporary:
        shutil.copyfile(folder / "checkpoint" / "best.safetensors", temporary)
    summary = {
        "epochs": len(watch.history),
        **counts,
        "best_epoch": int(watch.best["epoch"]),
        "seconds": watch.seconds,
        "parameters": models.count_parameters(model),
        "monitor": watch.monitor,
        "best_value": watch.best["value"],
        "stopped": watch.stopped,
    }
    if recipe.defence.attacks:
        summary["watched_images"] = len(watched(watch.val))
    if watch.stopped == "overfitting":
        summary["alarm"] = (
            f"catastrophic overfitting at epoch {len(watch.history) - 1}: accuracy under PGD-{WATCH_STEPS} fell from "
            f"{watch.best['best_pgd']:.1%} to {watch.history[-1]['val_pgd_accuracy']:.1%} on validation while FGSM "
            f"accuracy was {watch.history[-1]['val_fgsm_accuracy']:.1%}; "
            f"the weights of epoch {int(watch.best['epoch'])} are kept"
        )
        say(f"{recipe.name}: {summary['alarm']}")
    results.write_json(folder / results.TRAINING_FILE, summary)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    say(
        f"trained {recipe.name}: {summary['epochs']} epochs in {duration(watch.seconds)}, best {watch.monitor} "
        f"{summary['best_value']:.1%} at epoch {summary['best_epoch']}"
    )
    return summary


def replays(recipe: RunRecipe) -> int:
    """How many optimiser steps each batch has in a row: more than one in free adversarial training alone."""
    return recipe.defence.replays if "replays" in DEFENCE_OPTIONS[recipe.defence.name] else 1


def class_weights(labels: np.ndarray, classes: int) -> Tensor:
    """Weights (C,) inverse to how many images each class has, 1 on average: scikit-learn's "balanced"."""
    counts = torch.bincount(torch.as_tensor(labels), minlength=classes)
    return len(labels) / (classes * counts.clamp(min=1)).float()


def _write_recipe(
    folder: Path, recipe: RunRecipe, classes: tuple[str, ...], train: "Dataset", start: Path | None
) -> None:
    content = {
        "name": recipe.name,
        "background": recipe.background,
        "classes": list(classes),
        "recipe": recipe.model_dump(mode="json"),
        "data": {"root_name": train.root.name, "split": recipe.data.splits.train, "images": len(train)},
        "started_from": start.name if start else None,
        "versions": results.versions(),
    }
    results.write_yaml(folder / results.RUN_FILE, content)


def _average(model: nn.Module, decay: float) -> torch.optim.swa_utils.AveragedModel | None:
    if not decay:
        return None
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    return torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average, use_buffers=True)


def _first_perturbation(recipe: RunRecipe) -> Tensor | None:
    """Of free adversarial training: zeros, to be kept from step to step and in checkpoints."""
    if "replays" not in DEFENCE_OPTIONS[recipe.defence.name]:
        return None
    return torch.zeros(recipe.training.batch_size, 1, recipe.data.size, recipe.data.size)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's advice is for its own users; ours see one bar and one line."""
    import logging

    loggers = [logging.getLogger(n) for n in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [log.level for log in loggers]
    try:
        for log in loggers:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning.*")
            warnings.filterwarnings("ignore", module="lightning_fabric.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
