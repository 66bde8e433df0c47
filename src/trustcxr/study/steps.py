"""Carry out one step of one run of a study, from the study's folder alone, in any process."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from trustcxr.console import log
from trustcxr.data import load_dataset
from trustcxr.data.dataset import Dataset, hash_training_data
from trustcxr.errors import CannotWrite, UserError
from trustcxr.explain import ood
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import DataRecipe, RunRecipe
from trustcxr.recipes.study_recipe import StudyRecipe, list_runs
from trustcxr.runs.run_folder import RunFolder, supersede_damaged
from trustcxr.runs.training_data import add_data
from trustcxr.storage import atomic, layout, locks
from trustcxr.storage.layout import DATA_FILE, STUDY_FILE
from trustcxr.storage.locks import folder_lock
from trustcxr.study import status
from trustcxr.study.engines import Failure, Task, forget_failure, read_failure
from trustcxr.training.devices import Devices
from trustcxr.training.environment import use_threads

_PATIENCE = 60.0  # seconds for a process of a killed study or a lost node to end


@dataclass(frozen=True)
class StudyFolder:
    """A study, loaded from its folder. devices: share each training. threads: of torch, for every step."""

    folder: Path
    recipe: StudyRecipe
    data: str
    fingerprint: str
    devices: int = 1
    threads: int | None = None

    @classmethod
    def load(cls, folder: Path, devices: int = 1) -> "StudyFolder":
        """Load study.yaml and the path of the images."""
        content = layout.read_study(folder)
        recipe = validate(StudyRecipe, content["recipe"], str(folder / STUDY_FILE))
        data = str(atomic.read_yaml(folder / DATA_FILE)["path"])
        threads = content.get("threads") if isinstance(content.get("threads"), int) else None
        return cls(folder, recipe, data, str(content.get("fingerprint", "")), devices, threads)  # type: ignore[arg-type]

    def run(self, name: str) -> RunRecipe:
        """Return the recipe of the run of a name."""
        for run in (*list_runs(self.recipe), *list_runs(self.recipe, self.recipe.defences)):
            if run.name == name:
                return run
        raise UserError(f"{self.folder}: no run '{name}' in its recipe")

    def images(self, role: str) -> Dataset:
        """Load the images of train, val or test. Raises UserError if they are not those of the study."""
        return _images(self.data, role, self.recipe.data.model_dump_json(), self.fingerprint)


@lru_cache(maxsize=3)  # every step needs them
def _images(data: str, role: str, recipe: str, fingerprint: str) -> Dataset:
    options = DataRecipe.model_validate_json(recipe)
    images = load_dataset(data, split=getattr(options.splits, role), **options.reading())
    if fingerprint and hash_training_data(images) != fingerprint:
        raise UserError(f"{data}: the images are not those that the study began with")
    return images


def carry_out(task: Task) -> None:
    """Do one step of one run, unless its file is current. An error is recorded in failure.json and raised."""
    try:
        _carry_out(task)
    except Exception as problem:
        Failure.from_error(task, problem).record(task.folder)
        raise
    if (read_failure(task.folder) or "").startswith(f"{task.step}: "):  # not of a later step
        forget_failure(task.folder)


def _carry_out(task: Task) -> None:
    study = StudyFolder.load(task.study, task.devices)
    run = study.run(task.run)
    folder = task.folder
    if locks.was_killed(folder):
        log(f"{run.name}: the previous process was killed (out of memory?). With --jobs 2 only that run is lost")
    with (
        use_threads(study.threads),
        folder_lock(task.folder, patience=_PATIENCE),
        status.record_time(task.folder, task.step),
    ):
        STEPS[task.step](study, run, RunFolder(folder))


def _train(study: StudyFolder, run: RunRecipe, steps: RunFolder) -> None:
    supersede_damaged(steps.folder)
    steps.train(run, study.images("train"), study.images("val"), devices=Devices(study.devices))


def _validate(study: StudyFolder, run: RunRecipe, steps: RunFolder) -> None:
    steps.validate(study.images("val"), batch_size=study.recipe.evaluation.batch_size)


def _test(study: StudyFolder, run: RunRecipe, steps: RunFolder) -> None:
    test, options = study.images("test"), study.recipe.evaluation
    steps.test(test, options)
    if run.defence.certifies:
        steps.prove(test, options.radii())


def _explain(study: StudyFolder, run: RunRecipe, steps: RunFolder) -> None:
    test = study.images("test")
    if test.has_mask("infection").any() or test.has_mask("lung").any():
        steps.explain(test, study.recipe.explanation, study.images("val"), train=study.images("train"))


def _describe(study: StudyFolder, run: RunRecipe, steps: RunFolder) -> None:
    _fit_ood(study, steps)
    steps.describe(study.images("test"), resamples=study.recipe.evaluation.bootstrap)


def _fit_ood(study: StudyFolder, steps: RunFolder) -> None:
    """Write ood.safetensors, by which `predict` and `serve` warn of images unlike those of the training."""
    with suppress(UserError):  # damaged, or of other weights
        if ood.load(steps.folder) is not None:
            return
    try:
        images = add_data(study.images("train"), study.recipe.data)
        ood.save(ood.fit(steps.run, images, study.images("val")), steps.folder)
    except CannotWrite:
        raise
    except UserError as problem:  # a network without feature maps
        log(f"{steps.folder.name}: nothing will warn of unlike images: {problem}")


STEPS: dict[str, Callable[[StudyFolder, RunRecipe, RunFolder], None]] = {
    "train": _train,
    "validate": _validate,
    "test": _test,
    "explain": _explain,
    "describe": _describe,
}
