"""Watch a training: validate after every epoch, keep the best weights, stop early, show progress."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from trustcxr import attacks
from trustcxr.attacks.base import check_finite
from trustcxr.certify import verify
from trustcxr.certify.verify import Interval, interval_margins
from trustcxr.console import Progress, format_duration, plural
from trustcxr.data.loader import loader, to_pixels
from trustcxr.errors import NotFiniteError
from trustcxr.models.factory import save_weights
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.training_recipe import MONITOR_IMAGES, MONITOR_STEPS
from trustcxr.registry import USUAL_ATTACKS
from trustcxr.storage import atomic, layout
from trustcxr.storage.schemas import VERSION, Refit, TrainingDocument
from trustcxr.training import checkpoint, environment
from trustcxr.training.devices import ALONE, Devices

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset

_STATE = ("history", "best", "stopped", "seconds", "best_sum", "alarm")  # kept in checkpoints
OVERFIT_FALL, OVERFIT_GAP = 0.15, 0.20  # see Monitor._overfits


class Monitor(pl.Callback):
    """Validate after every epoch, keep the best weights, stop early, and detect catastrophic overfitting.

    The score of an epoch is the accuracy on validation; for training by bounds, the certified accuracy. For training
    under attack it is the balanced accuracy under PGD above chance, on an even slice of validation. FGSM accuracy only
    breaks ties, since alone it rewards masked gradients.
    """

    measured_on = "validation"

    def __init__(self, folder: Path, val: "Dataset", recipe: RunRecipe, devices: Devices = ALONE) -> None:
        self.folder, self.val, self.recipe, self.devices = folder, val, recipe, devices
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] = {"epoch": -1.0, "score": -math.inf, "value": math.nan, "best_pgd": 0.0}
        self.stopped, self.seconds, self._started = "epochs", 0.0, 0.0
        self.monitor = "val_accuracy" if not recipe.defence.attacks else "val_pgd_accuracy"
        if recipe.defence.certifies:
            self.monitor = "val_certified_accuracy"
        self.epochs = recipe.training.epochs  # at most
        self.alarm = ""  # of catastrophic overfitting
        self.bar: Progress | None = None  # over all steps
        self.best_sum = ""  # the checksum of the best weights; empty until there are any

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a resumed run."""
        vars(self).update(state)

    def resume_if_ended(self, content: dict[str, Any]) -> bool:
        """Restore the state if this checkpoint's training stopped before its last epoch; return True if it did."""
        state = content.get("callbacks", {}).get(self.state_key, {})
        if ended := state.get("stopped", "epochs") != "epochs":
            self.load_state_dict(state)
        return ended

    def count_done(self, content: dict[str, Any] | None) -> int | None:
        """Return the epochs of this training in a checkpoint; None if none is left."""
        state = (content or {}).get("callbacks", {}).get(self.state_key, {})
        epochs = len(state.get("history", ()))
        return None if epochs >= self.epochs or state.get("stopped", "epochs") != "epochs" else epochs

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Advance the bar to the step of a resumed run."""
        if self.bar is not None and module.global_step:
            self.bar.advance(module.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        """Advance the bar by one step, with the newest validation figures."""
        note, last = "", self.history[-1] if self.history else {}
        if last:
            columns = {"PGD": "val_pgd_accuracy", "certified": "val_certified_accuracy"}
            under = "".join(f", {name} {last[key]:.1%}" for name, key in columns.items() if key in last)
            note = f"{self.measured_on} {last['val_accuracy']:.1%}{under}"
        if self.bar is not None:
            self.bar.advance(1, note=note)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Start the clock; the checkpoint of the previous epoch is complete."""
        if self.devices.rank == 0:
            checkpoint.choose_best(self.folder, self.best_sum)
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Validate, keep the best weights, and decide on stopping."""
        balanced: dict[str, float] = {}
        row = {
            "epoch": module.current_epoch,
            "train_loss": module.sums["loss"] / module.sums["count"],
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "epsilon": module.epsilon(module.global_step) if module.robust else 0.0,
            "train_accuracy": module.sums["right"] / module.sums["count"],
            **validate(module.candidate(), self.val, self.recipe, module.device, self.devices, balanced),
        }
        self.seconds += time.monotonic() - self._started
        row["seconds"] = self.seconds
        self.history.append(row)
        if self.devices.rank == 0:
            atomic.write_table(self.folder / layout.HISTORY_FILE, self.table())
        judged = row | balanced
        if self._overfits(judged):
            self.stopped, self.alarm = "overfitting", self._describe_fall(judged)
            trainer.should_stop = True
            return
        score = self._score(judged, module.classes)
        # While epsilon grows the task is easier: patience starts afterwards.
        ramp_ends = self.recipe.defence.ramp * self.recipe.training.epochs if module.robust else 0
        if score > self.best["score"]:
            self.best.update(epoch=row["epoch"], score=score, value=row[self.monitor])
            if self.devices.rank == 0:
                better = self.folder / checkpoint.FOLDER / checkpoint.NEXT
                save_weights(module.candidate(), better)
                self.best_sum = atomic.checksum(better)
        elif row["epoch"] - max(self.best["epoch"], ramp_ends) >= self.recipe.training.patience:
            self.stopped = "early"
            trainer.should_stop = True
        self.best["best_pgd"] = max(self.best["best_pgd"], judged.get("val_pgd_accuracy", 0.0))

    def table(self) -> pd.DataFrame:
        """Return history.csv: a row an epoch."""
        return pd.DataFrame(self.history)

    def summary(self) -> TrainingDocument:
        """Return training.json: durations, reason of the end, best epoch."""
        return TrainingDocument(
            version=VERSION,
            epochs=len(self.history),
            best_epoch=int(self.best["epoch"]),
            seconds=self.seconds,
            monitor=self.monitor,
            epsilon=None if self.monitor == "val_accuracy" else self.recipe.defence.epsilon,
            best_value=self.best["value"],
            stopped=self.stopped,
        )

    @property
    def best_epoch(self) -> int:
        """Return the epoch of the best weights, counted from 1; files count from 0."""
        return int(self.best["epoch"]) + 1

    def sentence(self) -> str:
        """Return the summary as text, after the run's name."""
        judged = f"{self.best['value']:.1%}{self.recipe.defence.at_epsilon}"
        best = f"best {self.monitor} {judged}, at epoch {self.best_epoch}"
        return f": {plural(len(self.history), 'epoch')} in {format_duration(self.seconds)}, {best}"

    def _score(self, row: dict[str, float], classes: int) -> float:
        if not self.recipe.defence.attacks:
            return row["val_accuracy"]
        if self.recipe.defence.certifies:
            return row["val_certified_accuracy"]
        return max(row["val_pgd_accuracy"] - 1 / classes, 0.0) + 1e-3 * row["val_fgsm_accuracy"]

    def _overfits(self, row: dict[str, float]) -> bool:
        """Detect catastrophic overfitting (Wong et al. 2020): PGD accuracy falls suddenly, FGSM accuracy stays."""
        if not self.recipe.defence.attacks or self.best["best_pgd"] < 1 / len(self.val.classes) + 0.1:
            return False
        fall = self.best["best_pgd"] - row["val_pgd_accuracy"]
        return fall > OVERFIT_FALL and row["val_fgsm_accuracy"] - row["val_pgd_accuracy"] > OVERFIT_GAP

    def _describe_fall(self, row: dict[str, float]) -> str:
        """Return the alarm of catastrophic overfitting, with the balanced accuracies that decided."""
        return (
            f"catastrophic overfitting at epoch {len(self.history)}: balanced accuracy under PGD-{MONITOR_STEPS}"
            f"{self.recipe.defence.at_epsilon} fell from {self.best['best_pgd']:.1%} to {row['val_pgd_accuracy']:.1%} "
            f"on {self.measured_on} while that under FGSM was {row['val_fgsm_accuracy']:.1%}; the weights of epoch "
            f"{self.best_epoch} are kept"
        )


class RefitMonitor(Monitor):
    """Monitor of the refit on training and validation images; the last epoch is kept.

    Its validation figures are training figures (columns `seen_*`): they can show catastrophic overfitting only.
    `chosen`: training.json of the first training, whose best epoch sets the number of epochs.
    """

    measured_on = "validation images that it was trained on"

    def __init__(
        self, folder: Path, val: "Dataset", recipe: RunRecipe, chosen: TrainingDocument, devices: Devices = ALONE
    ) -> None:
        super().__init__(folder, val, recipe, devices)
        self.chosen, self.epochs = chosen, (chosen.best_epoch or 0) + 1

    def table(self) -> pd.DataFrame:
        """Return history.csv with `seen_` for figures of validation images."""
        return super().table().rename(columns=lambda name: name.replace("val_", "seen_"))

    def summary(self) -> TrainingDocument:
        """Return training.json of the first training, with the time of both and `refit` of the second."""
        mine = super().summary()
        again = Refit(epochs=mine.epochs, seconds=mine.seconds, stopped=mine.stopped)
        both = (self.chosen.seconds or 0.0) + self.seconds
        return self.chosen.model_copy(update={"version": mine.version, "refit": again, "seconds": both})

    def sentence(self) -> str:
        """Return the summary as text, after the run's name."""
        epochs = plural(len(self.history), "epoch")
        return f" once more, on validation images too: {epochs} in {format_duration(self.seconds)}"

    def _score(self, row: dict[str, float], classes: int) -> float:
        return row["epoch"]


@torch.no_grad()
def validate(
    model: nn.Module,
    val: "Dataset",
    recipe: RunRecipe,
    device: torch.device,
    devices: Devices = ALONE,
    balanced: dict[str, float] | None = None,
) -> dict[str, float]:
    """Return the accuracy on validation; after training by bounds also the certified accuracy, by interval bounds.

    After training under attack, also the accuracies under FGSM and PGD on an even slice; `balanced` receives these as
    means over the classes. Each process of `devices` takes its part of the images, and all get the whole figures.
    Raises NotFiniteError, which ends training, if a logit is NaN or infinite.
    """

    def share(right: float, of: int) -> float:
        return float(devices.sum(torch.tensor(right, device=device))) / of

    right, epsilon = 0.0, recipe.defence.epsilon
    with attacks.preserve_state(model):
        for images, labels, _ in _batches(val, devices):
            logits = model(_pixels(images, device))
            if devices.world == 1:
                check_finite(logits)
            hit = logits.argmax(1) == labels.to(device)
            right += float(torch.where(logits.isfinite().all(1), hit, torch.nan).sum())
    figures = {"val_accuracy": share(right, len(val))}
    if math.isnan(figures["val_accuracy"]):  # in every process, so that none waits for another
        raise NotFiniteError("the model answers validation images with NaN or infinity")
    if recipe.defence.certifies:
        return figures | {"val_certified_accuracy": share(_certified(model, val, epsilon, device, devices), len(val))}
    if not recipe.defence.attacks:
        return figures
    watched = attacked_rows(val)
    rows = watched[devices.rank :: devices.world]
    lower = environment.autocast_dtype(recipe.training.precision, device.type)
    of_class = torch.bincount(torch.as_tensor(val.labels[watched]), minlength=len(val.classes))
    hits = {name: torch.zeros(len(of_class), device=device) for name in USUAL_ATTACKS}
    for start in range(0, len(rows), 64):
        some = rows[start : start + 64]
        images = _pixels(torch.from_numpy(val.images[some]), device)
        labels = torch.as_tensor(val.labels[some], device=device)
        # Attack in the precision of training, which is cheaper; judge in full precision.
        with torch.autocast(device.type, lower or torch.bfloat16, enabled=lower is not None):
            adversarial = (
                attacks.fgsm(model, images, labels, epsilon=epsilon),
                attacks.pgd(model, images, labels, epsilon=epsilon, steps=MONITOR_STEPS, stop_when_wrong=True),
            )
        with attacks.preserve_state(model):
            for name, perturbed in zip(USUAL_ATTACKS, adversarial, strict=True):
                right_labels = labels[model(perturbed).argmax(1) == labels]
                hits[name] += torch.bincount(right_labels, minlength=len(of_class))
    for name, right_by_class in hits.items():
        figures[f"val_{name}_accuracy"] = share(float(right_by_class.sum()), len(watched))
        if balanced is not None:
            by_class = devices.sum(right_by_class).cpu() / of_class
            balanced[f"val_{name}_accuracy"] = float(by_class[of_class > 0].mean())
    return figures


def _batches(val: "Dataset", devices: Devices) -> DataLoader:
    """Return this process's part of the validation images, 64 at a time."""
    return loader(val, 64 * devices.world, part=(devices.rank, devices.world))


def _certified(model: nn.Module, val: "Dataset", epsilon: float, device: torch.device, devices: Devices) -> float:
    """Count the validation images of this process that are right, and certified by interval bounds."""
    proved = 0.0
    with attacks.preserve_state(model):
        layers = verify.layers(model)
        for images, labels, _ in _batches(val, devices):
            truth = labels.to(device)
            box = Interval.from_ends(*verify.box(_pixels(images, device), epsilon))
            least = interval_margins(layers, box, truth).scatter(1, truth[:, None], torch.inf)
            proved += float((least > 0).all(1).sum())
    return proved


def attacked_rows(val: "Dataset") -> np.ndarray:
    """Return the rows of validation images that PGD attacks: an even slice, so of every class and source."""
    return np.unique(np.linspace(0, len(val) - 1, min(MONITOR_IMAGES, len(val))).astype(int))


def _pixels(images: Tensor, device: torch.device) -> Tensor:
    return to_pixels(images.to(device)).contiguous(memory_format=torch.channels_last)
