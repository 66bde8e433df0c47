"""Fitting one run: Adam, a learning-rate schedule, early stopping on validation, checkpoints, resume."""

import math
import shutil
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trustcxr import attacks, defences, models, results
from trustcxr.console import Progress, duration, say
from trustcxr.data.batches import Batch, augment, loader, to_pixels
from trustcxr.errors import UserError
from trustcxr.recipes import RunRecipe

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset

WATCH_IMAGES = 128  # validation images that PGD is run on after every epoch
WATCH_STEPS = 10
OVERFIT_FALL, OVERFIT_GAP = 0.15, 0.20  # see Watch._overfits


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
    ) -> None:
        super().__init__()
        self.model, self.recipe, self.classes, self.steps_per_epoch = model, recipe, classes, steps_per_epoch
        self.defence = defences.get(recipe.defence.name)
        self.robust = recipe.defence.name != "standard"
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
        ramp = self.recipe.defence.ramp * self.total_steps
        return self.recipe.defence.epsilon * (min(1.0, step / ramp) if ramp else 1.0)

    def candidate(self) -> nn.Module:
        """The model that is validated and kept: the averaged weights where there are any."""
        return self.model if self.average is None else self.average.module

    def on_train_epoch_start(self) -> None:
        """Start the sums of an epoch."""
        self.sums = {}

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One step of the defence on a batch."""
        images, labels, _ = batch
        training = self.recipe.training
        # The random state of a step depends on seed and step alone, so that a resumed run is the same run.
        state = (self.recipe.seed + 1) * 1_000_003 + self.global_step
        torch.manual_seed(state)
        generator = torch.Generator().manual_seed(state)
        pixels = augment(to_pixels(images), generator, **training.augment.model_dump())
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        options = self.recipe.defence
        loss, logits = self.defence(
            self.model,
            pixels,
            labels,
            epsilon=self.epsilon(self.global_step),
            clean_share=options.clean_share,
            mode=options.mode,
            label_smoothing=training.label_smoothing,
            class_weights=self.class_weights,
        )
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {float(loss)} at step {self.global_step}")
        right = (logits.detach().argmax(1) == labels).sum()
        for name, value in (("loss", loss.detach() * len(labels)), ("right", right), ("count", len(labels))):
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        """Move the averaged weights."""
        if self.average is not None:
            self.average.update_parameters(self.model)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Nothing here: Watch validates the kept weights once an epoch."""

    def configure_optimizers(self) -> Any:
        """Adam, with a warm-up and then a cosine to zero (or constant)."""
        training = self.recipe.training
        optimiser = torch.optim.Adam(
            self.model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
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


class Watch(pl.Callback):
    """Validates after every epoch, keeps the best weights, stops early, and notices catastrophic overfitting.

    A standard run is judged by its accuracy on validation. A robust run is judged by its accuracy under PGD on a slice
    of validation, above what a constant answer would have; FGSM accuracy only breaks ties (and decides where PGD
    accuracy is never above chance), since FGSM accuracy alone rewards masked gradients.
    """

    def __init__(self, folder: Path, val: "Dataset", recipe: RunRecipe) -> None:
        self.folder, self.val, self.recipe = folder, val, recipe
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] = {"epoch": -1.0, "score": -math.inf, "value": math.nan, "best_pgd": 0.0}
        self.stopped, self.seconds, self._started = "epochs", 0.0, 0.0
        self.monitor = "val_accuracy" if recipe.defence.name == "standard" else "val_pgd_accuracy"

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"history": self.history, "best": self.best, "stopped": self.stopped, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a resumed run."""
        self.history, self.best = state["history"], state["best"]
        self.stopped, self.seconds = state["stopped"], state["seconds"]

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Validate, keep, and decide whether to go on."""
        row = {
            "epoch": module.current_epoch,
            "train_loss": module.sums["loss"] / module.sums["count"],
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "epsilon": module.epsilon(module.global_step) if module.robust else 0.0,
            "train_accuracy": module.sums["right"] / module.sums["count"],
            **validate(module.candidate(), self.val, self.recipe, module.device),
        }
        self.seconds += time.monotonic() - self._started
        row["seconds"] = self.seconds
        self.history.append(row)
        results.write_table(self.folder / results.HISTORY_FILE, pd.DataFrame(self.history))
        if self._overfits(row):
            self.stopped = "overfitting"
            trainer.should_stop = True
            return
        score = self._score(row, module.classes)
        # While epsilon still grows the figures are of an easier task: waiting does not count yet.
        ramp_ends = self.recipe.defence.ramp * self.recipe.training.epochs if module.robust else 0
        if score > self.best["score"]:
            self.best.update(epoch=row["epoch"], score=score, value=row[self.monitor])
            save_weights(module.candidate(), self.folder / "checkpoint" / "best.safetensors")
        elif row["epoch"] - max(self.best["epoch"], ramp_ends) >= self.recipe.training.patience:
            self.stopped = "early"
            trainer.should_stop = True
        self.best["best_pgd"] = max(self.best["best_pgd"], row.get("val_pgd_accuracy", 0.0))

    def _score(self, row: dict[str, float], classes: int) -> float:
        if self.recipe.defence.name == "standard":
            return row["val_accuracy"]
        return max(row["val_pgd_accuracy"] - 1 / classes, 0.0) + 1e-3 * row["val_fgsm_accuracy"]

    def _overfits(self, row: dict[str, float]) -> bool:
        """Catastrophic overfitting (Wong et al. 2020): PGD accuracy falls at once while FGSM accuracy stays."""
        if self.recipe.defence.name == "standard" or self.best["best_pgd"] < 1 / len(self.val.classes) + 0.1:
            return False
        fall = self.best["best_pgd"] - row["val_pgd_accuracy"]
        return fall > OVERFIT_FALL and row["val_fgsm_accuracy"] - row["val_pgd_accuracy"] > OVERFIT_GAP


class Bar(pl.Callback):
    """One bar for the whole of training, with the time left."""

    def __init__(self, name: str, watch: Watch) -> None:
        self.name, self.watch = name, watch
        self.bar: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Open it, at the step where a resumed run stands."""
        self.bar = Progress(f"training {self.name}", module.total_steps).__enter__()
        if module.global_step:
            self.bar.advance(module.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        """One step further."""
        if self.bar is not None:
            self.bar.advance(1, note=self._note())

    def on_fit_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Close it."""
        if self.bar is not None:
            self.bar.__exit__()

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        """Close it."""
        self.on_fit_end(trainer, module)

    def _note(self) -> str:
        if not self.watch.history:
            return ""
        last = self.watch.history[-1]
        under = f", PGD {last['val_pgd_accuracy']:.1%}" if "val_pgd_accuracy" in last else ""
        return f"validation {last['val_accuracy']:.1%}{under}"


@torch.no_grad()
def validate(model: nn.Module, val: "Dataset", recipe: RunRecipe, device: torch.device) -> dict[str, float]:
    """Accuracy on validation; for a robust run also under FGSM and PGD on an even slice of it."""
    right, epsilon = 0.0, recipe.defence.epsilon
    with attacks.undisturbed(model):
        for images, labels, _ in loader(val, 64):
            right += float((model(_pixels(images, device)).argmax(1) == labels.to(device)).sum())
    figures = {"val_accuracy": right / len(val)}
    if recipe.defence.name == "standard":
        return figures
    rows = torch.linspace(0, len(val) - 1, min(WATCH_IMAGES, len(val))).long().unique().numpy()
    hits = {"fgsm": 0.0, "pgd": 0.0}
    for start in range(0, len(rows), 64):
        some = rows[start : start + 64]
        images = _pixels(torch.from_numpy(val.images[some]), device)
        labels = torch.as_tensor(val.labels[some], device=device)
        adversarial = {
            "fgsm": attacks.fgsm(model, images, labels, epsilon=epsilon),
            "pgd": attacks.pgd(model, images, labels, epsilon=epsilon, steps=WATCH_STEPS, stop_when_wrong=True),
        }
        with attacks.undisturbed(model):
            for name, perturbed in adversarial.items():
                hits[name] += float((model(perturbed).argmax(1) == labels).sum())
    return figures | {f"val_{name}_accuracy": count / len(rows) for name, count in hits.items()}


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
    resumed = _can_resume(checkpoints / "last.ckpt")
    weights = "none" if resumed or start_from else recipe.model.weights
    model = models.build(recipe.model.name, classes=len(classes), weights=weights)
    if start_from is not None and not resumed:
        load_weights(model, start_from / results.WEIGHTS_FILE)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = loader(
        train, training.batch_size, shuffle=True, seed=recipe.seed, balanced=training.balanced, drop_last=True
    )
    module = Fitting(
        model,
        recipe,
        classes=len(classes),
        steps_per_epoch=len(batches),
        class_weights=class_weights(train.labels, len(classes)) if training.class_weights else None,
    )
    watch = Watch(folder, val, recipe)
    save = pl.callbacks.ModelCheckpoint(
        checkpoints, filename="last", every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    _write_recipe(folder, recipe, classes, train, start_from)
    with _quiet():
        trainer = pl.Trainer(
            max_epochs=training.epochs,
            accelerator="auto",
            devices=1,
            precision=training.precision,
            callbacks=[watch, Bar(recipe.name, watch), save],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            use_distributed_sampler=False,
        )
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
    return _finish(folder, recipe, watch, model)


def _can_resume(checkpoint: Path) -> bool:
    if not checkpoint.is_file():
        return False
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as problem:
        reason = f"cannot be read as tensors alone ({type(problem).__name__})"
        raise UserError(f"{checkpoint}: {reason}; delete {checkpoint.parent} to start anew") from None
    return True


def _finish(folder: Path, recipe: RunRecipe, watch: Watch, model: nn.Module) -> dict[str, Any]:
    with results.replacing(folder / results.WEIGHTS_FILE) as temporary:
        shutil.copyfile(folder / "checkpoint" / "best.safetensors", temporary)
    summary = {
        "epochs": len(watch.history),
        "best_epoch": int(watch.best["epoch"]),
        "seconds": watch.seconds,
        "parameters": models.count_parameters(model),
        "monitor": watch.monitor,
        "best_value": watch.best["value"],
        "stopped": watch.stopped,
    }
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


def save_weights(model: nn.Module, path: Path) -> None:
    """The weights alone, as safetensors."""
    with results.replacing(path) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, temporary)


def load_weights(model: nn.Module, path: Path) -> None:
    """Weights from safetensors, every one of them; UserError where they do not fit."""
    try:
        model.load_state_dict(load_file(path))
    except Exception as problem:
        raise UserError(f"{path}: not the weights of this model ({str(problem).splitlines()[0]})") from problem


def class_weights(labels: np.ndarray, classes: int) -> Tensor:
    """Weights (C,) inverse to how many images each class has, 1 on average: scikit-learn's "balanced"."""
    counts = torch.bincount(torch.as_tensor(labels), minlength=classes)
    return len(labels) / (classes * counts.clamp(min=1)).float()


def _write_recipe(
    folder: Path, recipe: RunRecipe, classes: tuple[str, ...], train: "Dataset", start: Path | None
) -> None:
    content = {
        "name": recipe.name,
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


def _pixels(images: Tensor, device: torch.device) -> Tensor:
    return to_pixels(images.to(device)).contiguous(memory_format=torch.channels_last)


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
