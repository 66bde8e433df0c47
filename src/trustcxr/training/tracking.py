"""Track a training in TensorBoard or MLflow through Lightning's loggers.

TensorBoard's events go to `tensorboard/`, MLflow's runs to a SQLite file `mlflow.db`, in the folder of the study or of
the single run; or to the server at `tracking_uri`.
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from filelock import FileLock
from pytorch_lightning import loggers

from trustcxr.console import log
from trustcxr.errors import UserError
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.storage import atomic, layout
from trustcxr.training.monitor import Monitor

TRACKED_FILE = ".tracked.json"  # in a run's folder: the run of MLflow that a resumed training continues


def make_logger(recipe: RunRecipe, folder: Path) -> loggers.Logger:
    """Make the logger of a run that is trained into `folder`.

    Raises UserError if a package is missing, or the server does not answer.
    """
    track, uri = recipe.training.track, recipe.training.tracking_uri
    name = recipe.name if folder.name != layout.BEFORE_REFIT else f"{recipe.name}-{layout.BEFORE_REFIT}"
    try:
        if track == "tensorboard":
            tracker: loggers.Logger = loggers.TensorBoardLogger(
                tracking_folder(folder), name="tensorboard", version=name
            )
        else:
            tracker = _mlflow(name, folder, uri)
        tracker.log_hyperparams(recipe.model_dump(mode="json"))
    except ImportError:
        raise UserError(f"tracking with {track} needs missing packages: pip install 'trustcxr[track]'") from None
    except Exception as problem:
        raise UserError(_failed(recipe, problem)) from None
    return tracker


def tracking_folder(folder: Path) -> Path:
    """Return where runs are tracked together: the folder of the study, or the run's own."""
    run = folder.parent if folder.name == layout.BEFORE_REFIT else folder
    study = run.parent.parent
    return study if run.parent.name == "runs" and (study / layout.STUDY_FILE).is_file() else run


class Tracked(pl.Callback):
    """Send each row of history.csv to the logger; training continues if the tracker fails."""

    def __init__(self, monitor: Monitor, to: loggers.Logger) -> None:
        self.monitor, self.to, self.lost = monitor, to, False

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Send the row of an epoch."""
        row = self.monitor.table().iloc[-1].dropna()
        figures = {str(name): float(value) for name, value in row.items() if name != "epoch"}
        self._send(lambda: self.to.log_metrics(figures, step=int(row["epoch"])))

    def on_fit_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Report the end."""
        self._send(lambda: self.to.finalize("success"))

    def _send(self, send: Callable[[], object]) -> None:
        if not self.lost:
            try:
                send()
            except Exception as problem:  # of the tracker's client: logged once
                self.lost = True
                log(f"{_failed(self.monitor.recipe, problem)}; training continues, and history.csv has every epoch")


def _mlflow(name: str, folder: Path, uri: str) -> loggers.Logger:
    folder_ = tracking_folder(folder).resolve()
    folder_.mkdir(parents=True, exist_ok=True)
    address = uri or f"sqlite:///{folder_ / 'mlflow.db'}"
    before = atomic.read_document(folder / TRACKED_FILE) if (folder / TRACKED_FILE).is_file() else {}
    # Two runs would both create the tables of a new database.
    with nullcontext() if uri else FileLock(folder_ / ".mlflow.lock", timeout=120):
        tracker = loggers.MLFlowLogger(
            experiment_name=folder_.name,
            run_name=name,
            tracking_uri=address,
            artifact_location=None if uri else (folder_ / "mlflow").as_uri(),
            run_id=str(before["run"]) if before.get("uri") == address else None,
        )
        atomic.write_json(folder / TRACKED_FILE, {"uri": address, "run": tracker.run_id})
    return tracker


def _failed(recipe: RunRecipe, problem: Exception) -> str:
    uri = recipe.training.tracking_uri
    message = " ".join(str(problem).split())[:200] or type(problem).__name__
    return f"tracking with {recipe.training.track}{f' at {uri}' if uri else ''} failed: {message}"
