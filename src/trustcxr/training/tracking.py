"""Tracking of a training in TensorBoard or MLflow, through Lightning's loggers; what counts stays in the run's files.

TensorBoard's events go to `tensorboard/`, MLflow's runs to a SQLite file `mlflow.db`, in the folder of the study or of
the single run; or to the server at `tracking_uri`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from trustcxr.console import say
from trustcxr.errors import UserError
from trustcxr.recipes.run import RunRecipe
from trustcxr.results import files, folders
from trustcxr.training.monitor import Monitor

TRACKED_FILE = ".tracked.json"  # in a run's folder: the run of MLflow that a training which was cut off goes on with
_NEEDS = "pip install '.[track]'"
_LONGEST = 250  # characters of a value, as MLflow takes them
_WAIT = 120.0  # seconds for another run to have made the database


def logger(recipe: RunRecipe, folder: Path) -> Logger | None:
    """The logger of a run that is trained into `folder`; None where its recipe asks for none.

    Raises UserError where the package is not there, or the server does not answer.
    """
    track = recipe.training.track
    if track == "none":
        return None
    name = recipe.name if folder.name != folders.BEFORE_REFIT else f"{recipe.name}-{folders.BEFORE_REFIT}"
    with _in_one_line(track, recipe.training.tracking_uri):
        made = _tensorboard(name, folder) if track == "tensorboard" else _mlflow(name, folder, recipe)
        made.log_hyperparams(dict(flat(recipe.model_dump(mode="json"))))
    return made


def home(folder: Path) -> Path:
    """Where runs are tracked together: the folder of the study, or the run's own."""
    run = folder.parent if folder.name == folders.BEFORE_REFIT else folder
    study = run.parent.parent
    return study if run.parent.name == "runs" and (study / folders.STUDY_FILE).is_file() else run


def flat(content: Mapping[str, object], at: str = "") -> Iterator[tuple[str, object]]:
    """A recipe's keys with dots, as trackers take them."""
    for key, value in content.items():
        name = f"{at}.{key}".strip(".")
        if isinstance(value, Mapping) and value:
            yield from flat(value, name)
        else:
            yield name, value if isinstance(value, int | float | bool) else str(value)[:_LONGEST]


class Tracked(pl.Callback):
    """Sends each epoch's figures, those of history.csv, to the logger; after Monitor has made them."""

    def __init__(self, monitor: Monitor, to: Logger, said: tuple[str, str]) -> None:
        self.monitor, self.to, self.said, self.lost = monitor, to, said, False

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """One row."""
        row = self.monitor.table().iloc[-1].to_dict()
        figures = {str(key): float(value) for key, value in row.items() if key != "epoch" and value == value}
        self._send(lambda: self.to.log_metrics(figures, step=int(row["epoch"])))

    def on_fit_end(self, trainer: pl.Trainer, module: Any) -> None:
        """All is sent."""
        self._send(lambda: self.to.finalize("success"))

    def _send(self, what: Callable[[], object]) -> None:
        """A tracker that fails on the way costs no training: it is said once, and nothing more is sent."""
        if self.lost:
            return
        try:
            with _in_one_line(*self.said):
                what()
        except UserError as problem:
            self.lost = True
            say(f"{problem}; the training goes on, and history.csv has every epoch")


def callback(recipe: RunRecipe, monitor: Monitor) -> list[Tracked]:
    """The callback that tracks a training, where its recipe asks for that."""
    made = logger(recipe, monitor.folder)
    return [] if made is None else [Tracked(monitor, made, (recipe.training.track, recipe.training.tracking_uri))]


def _tensorboard(name: str, folder: Path) -> Logger:
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(home(folder), name="tensorboard", version=name)


def _mlflow(name: str, folder: Path, recipe: RunRecipe) -> Logger:
    from pytorch_lightning.loggers import MLFlowLogger

    place = home(folder).resolve()
    place.mkdir(parents=True, exist_ok=True)
    uri = recipe.training.tracking_uri or f"sqlite:///{place / 'mlflow.db'}"
    kept = folder / TRACKED_FILE
    before = files.read_document(kept) if kept.is_file() else {}
    again = str(before["run"]) if before.get("uri") == uri and "run" in before else None
    with _alone(place) if not recipe.training.tracking_uri else nullcontext():
        made = MLFlowLogger(
            experiment_name=place.name,
            run_name=name,
            tracking_uri=uri,
            artifact_location=None if recipe.training.tracking_uri else (place / "mlflow").as_uri(),
            run_id=again,
        )
        files.write_json(kept, {"uri": uri, "run": made.run_id})
    return made


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One at a time, where the disk knows locks: two would both make the tables of a new database."""
    from filelock import FileLock, Timeout

    lock = FileLock(place / ".mlflow.lock")
    with suppress(Timeout, NotImplementedError):  # of a disk that knows no locks, or a process that hangs
        lock.acquire(timeout=_WAIT)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _in_one_line(track: str, uri: str) -> Iterator[None]:
    """What a tracker raises, as a line that says what to install or which server does not answer."""
    try:
        yield
    except (ImportError, ModuleNotFoundError):
        raise UserError(f"tracking with {track} needs packages that are not there: {_NEEDS}") from None
    except UserError:
        raise
    except Exception as problem:
        where = f" at {uri}" if uri else ""
        said = " ".join(str(problem).split())[:200] or type(problem).__name__
        raise UserError(f"tracking with {track}{where} failed: {said}") from None
