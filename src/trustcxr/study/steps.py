"""One step of one run of a study, from the study's folder alone: what an engine carries out, in whatever process."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from trustcxr.console import log
from trustcxr.data import fingerprints, load_dataset
from trustcxr.errors import CannotWrite, UserError
from trustcxr.explain import ood
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.study_recipe import StudyRecipe, run_recipe
from trustcxr.recipes.training_recipe import DefenceRecipe
from trustcxr.runs import repair
from trustcxr.runs.run_folder import RunFolder
from trustcxr.storage import atomic, layout, locks
from trustcxr.storage.layout import DATA_FILE, STUDY_FILE
from trustcxr.storage.locks import folder_lock
from trustcxr.study import cost
from trustcxr.study.engines import Failure, Task, failures
from trustcxr.training.devices import Devices
from trustcxr.training.threads import use_threads

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset

_PATIENCE = 60.0  # seconds that a process of a study that was killed, or of a node that was lost, has to end


@dataclass(frozen=True)
class StudyFolder:
    """What a study is, read from its folder."""

    folder: Path
    recipe: StudyRecipe
    data: str
    fingerprint: str
    devices: int = 1  # cards that share each training: where it is worked on, and no part of what the study is
    threads: int | None = None  # of torch, for every step of every run

    @classmethod
    def read(cls, folder: Path, devices: int = 1) -> "StudyFolder":
        """From study.yaml and where the images are."""
        content = layout.read_study(folder)
        recipe = validate(StudyRecipe, content["recipe"], str(folder / STUDY_FILE))
        data = str(atomic.read_yaml(folder / DATA_FILE)["path"])
        threads = content.get("threads")
        fixed = threads if isinstance(threads, int) else None
        return cls(folder, recipe, data, str(content.get("fingerprint", "")), devices, fixed)

    def run_folder(self, run: RunRecipe) -> Path:
        """Where a run of this study is."""
        return self.folder / "runs" / run.name

    def run(self, name: str) -> RunRecipe:
        """The recipe of the run of that name."""
        for model in self.recipe.models:
            for defence in (DefenceRecipe(), *self.recipe.defences):
                for seed in self.recipe.seeds:
                    run = run_recipe(self.recipe, model, defence, seed)
                    if run.name == name:
                        return run
        raise UserError(f"{self.folder}: no run '{name}' in its recipe")

    def images(self, role: str) -> "Dataset":
        """The images of a role, train, val or test; UserError where they are no longer those of the study."""
        return _images(self.data, role, self.recipe.model_dump_json(include={"data"}), self.fingerprint)


@lru_cache(maxsize=3)
def _images(data: str, role: str, recipe: str, fingerprint: str) -> "Dataset":
    """Kept, since every step asks; the fingerprint says whether what is kept is what is meant."""
    options = StudyRecipe.model_validate_json('{"name": "-", "models": ["-"], ' + recipe[1:]).data
    found = load_dataset(data, split=getattr(options.splits, role), **options.reading())
    if fingerprint and fingerprints.hash_training_data(found) != fingerprint:
        raise UserError(f"{data}: the images are not those that the study began with")
    return found


def carry_out(task: Task) -> None:
    """Do one step of one run; nothing if its file is current.

    Whatever it raises is in the run's failure.json by then, CannotWrite too if there is room for that.
    """
    try:
        _carry_out(task)
    except Exception as problem:
        failures.record(failures.failure_folder(task), Failure.of(task, problem))
        raise
    failures.over(task)


def _carry_out(task: Task) -> None:
    study = StudyFolder.read(task.study, task.devices)
    run = study.run(task.run)
    folder = study.run_folder(run)
    if locks.was_killed(folder):
        log(f"{run.name}: whoever worked on it before was killed, or had too little memory; --jobs 2 loses a run alone")
    with use_threads(study.threads), folder_lock(folder, patience=_PATIENCE), cost.taken(folder, task.step):
        STEPS[task.step](study, run, RunFolder(folder))


def _train(study: StudyFolder, run: RunRecipe, steps: RunFolder) -> None:
    repair.supersede_damaged(steps.folder)
    steps.train(run, study.images("train"), study.images("val"), cards=Devices(study.devices))


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
    _know_images(study, steps)
    steps.describe(study.images("test"), resamples=study.recipe.evaluation.bootstrap)


def _know_images(study: StudyFolder, steps: RunFolder) -> None:
    """ood.safetensors, made once: `predict` and `serve` then warn of images unlike those of the training."""
    with suppress(UserError):  # damaged, or of other weights
        if ood.load(steps.folder) is not None:
            return
    try:
        ood.save(ood.fit(steps.run, study.images("train"), study.images("val")), steps.folder)
    except CannotWrite:
        raise
    except UserError as problem:  # a network that has no maps to read: its results are as good without
        log(f"{steps.folder.name}: nothing will warn of unlike images: {problem}")


STEPS: dict[str, Callable[[StudyFolder, RunRecipe, RunFolder], None]] = {
    "train": _train,
    "validate": _validate,
    "test": _test,
    "explain": _explain,
    "describe": _describe,
}
