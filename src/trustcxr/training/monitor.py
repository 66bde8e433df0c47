"""What looks on while a run is trained: validation after every epoch, the best weights kept, one bar."""

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
from trustcxr.certify import affine_graph, ibp
from trustcxr.console import Progress, duration
from trustcxr.data.loader import loader, to_pixels
from trustcxr.errors import NotFiniteError
from trustcxr.models.weights import save_weights
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.training_recipe import MONITOR_IMAGES, MONITOR_STEPS
from trustcxr.registry import USUAL_ATTACKS
from trustcxr.storage import atomic, layout
from trustcxr.storage.schemas import VERSION, Refit, TrainingDocument
from trustcxr.training import checkpoint, precision
from trustcxr.training.devices import Devices

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset

ALONE = Devices()
_STATE = ("history", "best", "stopped", "seconds", "best_sum", "processor_seconds")  # kept in checkpoints
OVERFIT_FALL, OVERFIT_GAP = 0.15, 0.20  # see Monitor._overfits


class Monitor(pl.Callback):
    """Validates after every epoch, keeps the best weights, stops early, and notices catastrophic overfitting.

    A run that no attack trained is judged by its accuracy on validation. One that an attack trained is judged by its
    accuracy under PGD on a slice of validation, above what a constant answer would have; FGSM accuracy only breaks ties
    (and decides where PGD accuracy is never above chance), since FGSM accuracy alone rewards masked gradients. Both are
    balanced there, a mean over the classes: of uneven classes one answer to all would have the most.
    One that was trained by bounds is judged by what interval bounds prove on all of validation, at the whole epsilon.
    """

    measured_on = "validation"

    def __init__(self, folder: Path, val: "Dataset", recipe: RunRecipe, cards: Devices = ALONE) -> None:
        self.folder, self.val, self.recipe, self.cards = folder, val, recipe, cards
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] = {"epoch": -1.0, "score": -math.inf, "value": math.nan, "best_pgd": 0.0}
        self.stopped, self.seconds, self._started = "epochs", 0.0, 0.0
        self.processor_seconds, self._worked = 0.0, 0.0
        self.monitor = "val_accuracy" if not recipe.defence.attacks else "val_pgd_accuracy"
        if recipe.defence.certifies:
            self.monitor = "val_certified_accuracy"
        self.epochs = recipe.training.epochs  # at most
        self.best_sum = ""  # the checksum of the best weights; empty until there are any

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a resumed run."""
        vars(self).update(state)

    def take_up_if_ended(self, content: dict[str, Any]) -> bool:
        """Whether the training of this checkpoint had stopped before its last epoch; if so, its state is taken up."""
        state = content.get("callbacks", {}).get(self.state_key)
        if not state or state["stopped"] == "epochs":
            return False
        self.load_state_dict(state)
        return True

    def done(self, content: dict[str, Any] | None) -> int | None:
        """Epochs of this training that stand in a checkpoint; None where it had ended, and none is left to do."""
        state = (content or {}).get("callbacks", {}).get(self.state_key) or {}
        epochs = len(state.get("history", ()))
        return None if epochs >= self.epochs or state.get("stopped", "epochs") != "epochs" else epochs

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Start the clock; the checkpoint of the epoch before is written by now."""
        if self.cards.rank == 0:
            checkpoint.choose_best(self.folder, self.best_sum)
        self._started, self._worked = time.monotonic(), time.process_time()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Validate, keep, and decide whether to go on."""
        balanced: dict[str, float] = {}
        row = {
            "epoch": module.current_epoch,
            "train_loss": module.sums["loss"] / module.sums["count"],
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "epsilon": module.epsilon(module.global_step) if module.robust else 0.0,
            "train_accuracy": module.sums["right"] / module.sums["count"],
            **validate(module.candidate(), self.val, self.recipe, module.device, self.cards, balanced),
        }
        self.seconds += time.monotonic() - self._started
        worked = torch.tensor(time.process_time() - self._worked, device=module.device)
        self.processor_seconds += float(self.cards.summed(worked))
        row["seconds"] = self.seconds
        self.history.append(row)
        if self.cards.rank == 0:
            atomic.write_table(self.folder / layout.HISTORY_FILE, self.table())
        judged = row | balanced
        if self._overfits(judged):
            self.stopped = "overfitting"
            trainer.should_stop = True
            return
        score = self._score(judged, module.classes)
        # While epsilon still grows the figures are of an easier task: waiting does not count yet.
        ramp_ends = self.recipe.defence.ramp * self.recipe.training.epochs if module.robust else 0
        if score > self.best["score"]:
            self.best.update(epoch=row["epoch"], score=score, value=row[self.monitor])
            if self.cards.rank == 0:
                better = self.folder / checkpoint.FOLDER / checkpoint.NEXT
                save_weights(module.candidate(), better)
                self.best_sum = atomic.checksum(better)
        elif row["epoch"] - max(self.best["epoch"], ramp_ends) >= self.recipe.training.patience:
            self.stopped = "early"
            trainer.should_stop = True
        self.best["best_pgd"] = max(self.best["best_pgd"], judged.get("val_pgd_accuracy", 0.0))

    def table(self) -> pd.DataFrame:
        """What stands in history.csv: a row an epoch."""
        return pd.DataFrame(self.history)

    def summary(self) -> TrainingDocument:
        """What training.json says of how long, why no longer, and which epoch is kept."""
        return TrainingDocument(
            version=VERSION,
            epochs=len(self.history),
            best_epoch=int(self.best["epoch"]),
            seconds=self.seconds,
            processor_seconds=self.processor_seconds,
            monitor=self.monitor,
            epsilon=None if self.monitor == "val_accuracy" else self.recipe.defence.epsilon,
            best_value=self.best["value"],
            stopped=self.stopped,
        )

    @property
    def kept_epoch(self) -> int:
        """The epoch of the best weights as people count, from 1; in files the first is 0."""
        return int(self.best["epoch"]) + 1

    def sentence(self) -> str:
        """The same for a person, after the run's name."""
        judged = f"{self.best['value']:.1%}{self.recipe.defence.at_epsilon}"
        best = f"best {self.monitor} {judged}, at epoch {self.kept_epoch}"
        return f": {len(self.history)} epochs in {duration(self.seconds)}, {best}"

    def _score(self, row: dict[str, float], classes: int) -> float:
        if not self.recipe.defence.attacks:
            return row["val_accuracy"]
        if self.recipe.defence.certifies:
            return row["val_certified_accuracy"]
        return max(row["val_pgd_accuracy"] - 1 / classes, 0.0) + 1e-3 * row["val_fgsm_accuracy"]

    def _overfits(self, row: dict[str, float]) -> bool:
        """Catastrophic overfitting (Wong et al. 2020): PGD accuracy falls at once while FGSM accuracy stays."""
        if not self.recipe.defence.attacks or self.best["best_pgd"] < 1 / len(self.val.classes) + 0.1:
            return False
        fall = self.best["best_pgd"] - row["val_pgd_accuracy"]
        return fall > OVERFIT_FALL and row["val_fgsm_accuracy"] - row["val_pgd_accuracy"] > OVERFIT_GAP


class RefitMonitor(Monitor):
    """Monitor of the refit on training and validation images.

    Its validation figures are training figures (columns `seen_*`): they can show catastrophic overfitting, but the
    number of epochs is fixed beforehand.
    The last epoch is kept, which is the one that validation chose before; `chosen` is the training.json of that.
    """

    measured_on = "validation images that it was trained on"

    def __init__(
        self, folder: Path, val: "Dataset", recipe: RunRecipe, chosen: TrainingDocument, cards: Devices = ALONE
    ) -> None:
        super().__init__(folder, val, recipe, cards)
        self.chosen, self.epochs = chosen, (chosen.best_epoch or 0) + 1

    def table(self) -> pd.DataFrame:
        """As of any run; what is measured on validation images is named `seen_`."""
        return super().table().rename(columns=lambda name: name.replace("val_", "seen_"))

    def summary(self) -> TrainingDocument:
        """What was chosen, the time of both, and in `refit` how the second went."""
        mine = super().summary()
        again = Refit(epochs=mine.epochs, seconds=mine.seconds, stopped=mine.stopped)
        both = {
            "seconds": (self.chosen.seconds or 0.0) + self.seconds,
            "processor_seconds": (self.chosen.processor_seconds or 0.0) + self.processor_seconds,
        }
        return self.chosen.model_copy(update={"version": mine.version, "refit": again} | both)

    def sentence(self) -> str:
        """The same for a person, after the run's name."""
        return f" once more, on validation images too: {len(self.history)} epochs in {duration(self.seconds)}"

    def _score(self, row: dict[str, float], classes: int) -> float:
        return row["epoch"]


class Bar(pl.Callback):
    """One bar for the whole of training, with the time left."""

    def __init__(self, name: str, monitor: Monitor) -> None:
        self.name, self.monitor = name, monitor
        self.bar: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Open it, at the step where a resumed run stands."""
        steps = self.monitor.epochs * module.steps_per_epoch  # fewer than the schedule's where training ends before it
        self.bar = Progress(f"training {self.name}", steps).__enter__()
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
        if not self.monitor.history:
            return ""
        last = self.monitor.history[-1]
        columns = {"PGD": "val_pgd_accuracy", "certified": "val_certified_accuracy"}
        under = "".join(f", {name} {last[key]:.1%}" for name, key in columns.items() if key in last)
        return f"{self.monitor.measured_on} {last['val_accuracy']:.1%}{under}"


@torch.no_grad()
def validate(
    model: nn.Module,
    val: "Dataset",
    recipe: RunRecipe,
    device: torch.device,
    cards: Devices = ALONE,
    balanced: dict[str, float] | None = None,
) -> dict[str, float]:
    """Accuracy on validation; for a run that an attack trained also under FGSM and PGD on an even slice of it.

    Raises NotFiniteError, which ends training, where the model answers with NaN or infinity: argmax would call that a
    class, and such weights could be kept as the best.

    For a run that was trained by bounds also what interval bounds prove, without CROWN and in the weights' precision.
    Of `cards` each judges its part of the images, every image once, and all get the figures of the whole. Into
    `balanced` go the accuracies under attack as means over the classes.
    """

    def share(right: float, of: int) -> float:
        return float(cards.summed(torch.tensor(right, device=device))) / of

    right, epsilon = 0.0, recipe.defence.epsilon
    with attacks.preserve_state(model):
        for images, labels, _ in _batches(val, cards):
            logits = model(_pixels(images, device))
            if cards.world == 1:
                check_finite(logits)
            right += float(
                torch.where(logits.isfinite().all(1), logits.argmax(1) == labels.to(device), torch.nan).sum()
            )
    figures = {"val_accuracy": share(right, len(val))}
    if math.isnan(figures["val_accuracy"]):  # every process hears of it, so that none waits for another
        raise NotFiniteError("the model answers validation images with NaN or infinity")
    if recipe.defence.certifies:
        return figures | {"val_certified_accuracy": share(_certified(model, val, epsilon, device, cards), len(val))}
    if not recipe.defence.attacks:
        return figures
    watched = attacked_rows(val)
    rows, lower = watched[cards.rank :: cards.world], precision.autocast_dtype(recipe.training.precision, device.type)
    of_class = torch.bincount(torch.as_tensor(val.labels[watched]), minlength=len(val.classes))
    hits = {name: torch.zeros(len(of_class), device=device) for name in USUAL_ATTACKS}
    for start in range(0, len(rows), 64):
        some = rows[start : start + 64]
        images = _pixels(torch.from_numpy(val.images[some]), device)
        labels = torch.as_tensor(val.labels[some], device=device)
        # Attacked in the precision of training, which is what the run can afford; judged in full.
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
            balanced[f"val_{name}_accuracy"] = float(
                (cards.summed(right_by_class).cpu() / of_class)[of_class > 0].mean()
            )
    return figures


def _batches(val: "Dataset", cards: Devices) -> DataLoader:
    """This process's part of the validation images, 64 at a time; every image is in the part of one."""
    return loader(val, 64 * cards.world, part=(cards.rank, cards.world))


def _certified(model: nn.Module, val: "Dataset", epsilon: float, device: torch.device, cards: Devices) -> float:
    """How many validation images of this process are right, and proved to stay so by interval bounds."""
    proved = 0.0
    with attacks.preserve_state(model):
        layers = affine_graph.layers(model)
        for images, labels, _ in _batches(val, cards):
            truth, box = labels.to(device), ibp.Interval.of(*affine_graph.box(_pixels(images, device), epsilon))
            least = ibp.least_margins(layers, box, truth).scatter(1, truth[:, None], torch.inf)
            proved += float((least > 0).all(1).sum())
    return proved


def attacked_rows(val: "Dataset") -> np.ndarray:
    """The places of the validation images that PGD is run on: an even slice, so of every class and source."""
    return np.unique(np.linspace(0, len(val) - 1, min(MONITOR_IMAGES, len(val))).astype(int))


def _pixels(images: Tensor, device: torch.device) -> Tensor:
    return to_pixels(images.to(device)).contiguous(memory_format=torch.channels_last)
