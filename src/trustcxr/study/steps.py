"""One step of one run of a study, from the study's folder alone: what an engine carries out, in whatever process."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from trustcxr.console import say
from trustcxr.data import load_dataset, provenance
from trustcxr.errors import CannotWrite, UserError
from trustcxr.explain import familiarity
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.study import StudyRecipe, run_recipe
from trustcxr.recipes.training import DefenceRecipe
from trustcxr.recipes.validation import validate
from trustcxr.results import files, folders, locks
from trustcxr.results.folders import DATA_FILE, STUDY_FILE
from trustcxr.results.locks import holding
from trustcxr.study import costs, finished, mending
from trustcxr.study.engines import Failure, Task, failures
from trustcxr.study.run_folder import RunFolder
from trustcxr.training.cards import Cards
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
        """From study.yaml and where the films are."""
        content = folders.read_study(folder)
        recipe = validate(StudyRecipe, content["recipe"], str(folder / STUDY_FILE))
        data = str(files.read_yaml(folder / DATA_FILE)["path"])
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

    def films(self, role: str) -> "Dataset":
        """The films of a role, train, val or test; UserError where they are no longer those of the study."""
        return _films(self.data, role, self.recipe.model_dump_json(include={"data"}), self.fingerprint)


@lru_cache(maxsize=3)
def _films(data: str, role: str, recipe: str, fingerprint: str) -> "Dataset":
    """Kept, since every step asks; the fingerprint says whether what is kept is what is meant."""
    options = StudyRecipe.model_validate_json('{"name": "-", "models": ["-"], ' + recipe[1:]).data
    found = load_dataset(data, split=getattr(options.splits, role), **options.reading())
    if fingerprint and provenance.whole(found) != fingerprint:
        raise UserError(f"{data}: the films are not those that the study began with")
    return found


def carry_out(task: Task) -> None:
    """Do one step of one run; nothing where an earlier start has done it, or the run was finished elsewhere.

    Whatever it raises is in the run's failure.json by then, CannotWrite too if there is room for that.
    """
    try:
        _carry_out(task)
    except Exception as problem:
        failures.record(failures.folder_of(task), Failure.of(task, problem))
        raise
    failures.over(task)


def _carry_out(task: Task) -> None:
    study = StudyFolder.read(task.study, task.devices)
    run = study.run(task.run)
    folder = study.run_folder(run)
    if finished.is_finished(folder):
        return finished.check(folder, run)
    if locks.was_killed(folder):
        say(f"{run.name}: whoever worked on it before was killed, or had too little memory; --jobs 2 loses a run alone")
    with use_threads(study.threads), holding(folder, patience=_PATIENCE), costs.taken(folder, task.step):
        STEPS[task.step](study, run, RunFolder(folder))
    return None


def _train(study: StudyFolder, run: RunRecipe, steps: RunFolder) -> None:
    mending.mend(steps.folder)
    steps.train(run, study.films("train"), study.films("val"), cards=Cards(study.devices))


def _validate(study: StudyFolder, run: RunRecipe, steps: RunFolder) -> None:
    steps.validate(study.films("val"), batch_size=study.recipe.evaluation.batch_size)


def _test(study: StudyFolder, run: RunRecipe, steps: RunFolder) -> None:
    test, options = study.films("test"), study.recipe.evaluation
    steps.test(test, options, once=True)
    if run.defence.certifies:
        steps.prove(test, options.radii(), once=True)


def _explain(study: StudyFolder, run: RunRecipe, steps: RunFolder) -> None:
    test = study.films("test")
    if test.has_mask("infection").any() or test.has_mask("lung").any():
        train = study.films("train")
        steps.explain(test, study.recipe.explanation, study.films("val"), train=train, once=True)


def _describe(study: StudyFolder, run: RunRecipe, steps: RunFolder) -> None:
    test, options = study.films("test"), study.recipe.evaluation
    _know_films(study, steps)
    validation = steps.validation(test, None)
    methods = study.recipe.explanation.methods
    steps.describe(test, validation=validation, resamples=options.bootstrap, only=options, methods=methods)


def _know_films(study: StudyFolder, steps: RunFolder) -> None:
    """familiarity.safetensors, made once: `predict` and `serve` then warn of films unlike those of the training."""
    if (steps.folder / folders.FAMILIARITY_FILE).is_file():
        return
    try:
        familiarity.save(familiarity.fit(steps.run, study.films("train"), study.films("val")), steps.folder)
    except CannotWrite:
        raise
    except UserError as problem:  # a network that has no maps to read: its results are as good without
        say(f"{steps.folder.name}: nothing will warn of unlike films: {problem}")


STEPS: dict[str, Callable[[StudyFolder, RunRecipe, RunFolder], None]] = {
    "train": _train,
    "validate": _validate,
    "test": _test,
    "explain": _explain,
    "describe": _describe,
}
