"""Which runs a study has, and how far each of them is, read off its folder: also while another process works there."""

import csv
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.study import StudyRecipe, run_recipe
from trustcxr.recipes.training import DefenceRecipe
from trustcxr.recipes.validation import validate
from trustcxr.results import documents, files, folders, locks
from trustcxr.results.documents import RunPlan, StudyDocument
from trustcxr.study.engines import failures


@dataclass(frozen=True)
class Planned:
    """The runs that there will be, and those of which validation will choose: `to_choose` networks are still open."""

    certain: list[RunRecipe]
    open: list[RunRecipe]
    to_choose: int


def recipe_of(study: Path) -> StudyRecipe:
    """The recipe of a study in its folder; UserError where there is none."""
    path = folders.check_begun(study) / folders.STUDY_FILE
    return validate(StudyRecipe, files.part(folders.read_study(study), "recipe"), str(path))


def runs(recipe: StudyRecipe, study: Path | None) -> Planned:
    """The runs of a recipe; `study` is its folder, where one was begun."""
    standard = [run_recipe(recipe, model, DefenceRecipe(), seed) for model in recipe.models for seed in recipe.seeds]
    robust = [
        run_recipe(recipe, model, defence, seed)
        for defence in recipe.defences
        for model in recipe.models
        for seed in recipe.seeds
    ]
    chosen = _chosen(recipe, study, standard)
    if chosen is None:
        return Planned(standard, robust, recipe.selection.count)
    return Planned([*standard, *(run for run in robust if run.model.called in chosen)], [], 0)


def _chosen(recipe: StudyRecipe, study: Path | None, standard: list[RunRecipe]) -> set[str] | None:
    """The networks that go on to robust training; None where validation has not said it yet."""
    if recipe.selection.count >= len(recipe.models):
        return {model.called for model in recipe.models}
    if study is None:
        return None
    said = documents.read_if_there(StudyDocument, study / folders.STUDY_RESULTS)
    if said is not None and said.selection.ranking and _is_of(said, recipe):
        return {row.model for row in said.selection.ranking if row.chosen}
    from trustcxr.study.choice import ranked

    pairs = [(run, study / "runs" / run.name) for run in standard]
    if not all((folder / folders.VALIDATION_FILE).is_file() for _, folder in pairs):
        return None
    classes = files.read_yaml(pairs[0][1] / folders.RUN_FILE).get("classes")
    names = [str(name) for name in classes] if isinstance(classes, list) else []
    return {row.model for row in ranked(recipe.selection, pairs, names) if row.chosen}


def _is_of(said: StudyDocument, recipe: StudyRecipe) -> bool:
    """Whether a study.json is of all seeds of a recipe, and not from before the study grew."""
    seeds = said.recipe.get("seeds")
    return not isinstance(seeds, list) or set(seeds) == set(recipe.seeds)


def standing(run: RunRecipe, folder: Path, *, described: bool = False) -> RunPlan:
    """How far a run in its folder is; `described`: its figures stand in study.json, which counts beside its tables."""
    plan = RunPlan(
        run=run.name,
        model=run.model.called,
        way=run.trained_how,
        seed=run.seed,
        state="waiting",
        step="",
        epoch=epochs_of(folder)[0],
        epochs=most_epochs(run),
        holder="",
        reason="",
        seconds={},
    )
    missing = [step for step, name in folders.STEP_FILES.items() if not (folder / name).is_file()]
    if "describe" not in missing or (described and "test" not in missing):
        return plan.model_copy(update={"state": "done"})
    plan.step = missing[0]
    if (holder := locks.holder(folder)) is not None:
        return plan.model_copy(update={"state": "running", "holder": holder})
    if (reason := failures.reason(folder)) is not None:
        return plan.model_copy(update={"state": "failed", "reason": reason})
    return plan


def most_epochs(run: RunRecipe) -> int:
    """Epochs of a run at most, with a refit those of both trainings."""
    return run.training.epochs * (2 if run.training.refit else 1)


def epochs_of(folder: Path) -> tuple[int, float]:
    """Epochs that a run has finished, and the seconds that they took; with a refit those of both trainings."""
    done, seconds = 0, 0.0
    for place in (folder, folder / folders.BEFORE_REFIT):
        with suppress(ValueError, csv.Error):  # damaged: as far as it can be read
            rows = _rows(place / folders.HISTORY_FILE)
            done += len(rows)
            seconds += float(rows[-1].get("seconds") or 0) if rows else 0.0
    return done, seconds


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
