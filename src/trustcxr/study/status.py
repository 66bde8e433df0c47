"""Report which runs of a study are done, running or failed, and the time left, from the files in its folder alone."""

import csv
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trustcxr.console import log, plural
from trustcxr.errors import UserError
from trustcxr.recipes import study_recipe
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.study_recipe import StudyRecipe, run_recipe
from trustcxr.recipes.training_recipe import DefenceRecipe
from trustcxr.storage import atomic, layout, locks, schemas
from trustcxr.storage.os_errors import shell_quote
from trustcxr.storage.schemas import CostDocument, RunPlan, StudyDocument, StudyPlan
from trustcxr.study import cost
from trustcxr.study.engines import failures
from trustcxr.version import NOTICE

EVERY = 120.0  # seconds between two lines of progress


@dataclass(frozen=True)
class PlannedRuns:
    """The runs that a study will make, and the robust runs from which validation will choose `to_choose` networks."""

    certain: list[RunRecipe]
    open: list[RunRecipe]
    to_choose: int = 0


def read_recipe(study: Path) -> StudyRecipe:
    """Load the recipe of a study from its folder; UserError if no study was begun there."""
    layout.check_begun(study)
    return validate(StudyRecipe, atomic.section(layout.read_study(study), "recipe"), str(study / layout.STUDY_FILE))


def plan_runs(recipe: StudyRecipe, study: Path | None) -> PlannedRuns:
    """List the runs of a recipe; `study` is its folder, if it was begun."""
    standard, *robust = (
        [run_recipe(recipe, model, defence, seed) for model in recipe.models for seed in recipe.seeds]
        for defence in (DefenceRecipe(), *recipe.defences)
    )
    defended = [run for runs in robust for run in runs]
    chosen = _read_choice(recipe, study, standard)
    if chosen is None:
        return PlannedRuns(standard, defended, recipe.selection.count)
    return PlannedRuns([*standard, *(run for run in defended if run.model.called in chosen)], [])


def _read_choice(recipe: StudyRecipe, study: Path | None, standard: list[RunRecipe]) -> set[str] | None:
    """Return the networks that are trained robustly; None if validation has not chosen them yet."""
    if recipe.selection.count >= len(recipe.models):
        return {model.called for model in recipe.models}
    if study is None:
        return None
    document = schemas.read_if_there(StudyDocument, study / layout.STUDY_RESULTS)
    if document is not None and document.recipe.get("seeds") == list(recipe.seeds) and document.selection.ranking:
        return {row.model for row in document.selection.ranking if row.chosen}
    pairs = [(run, study / "runs" / run.name) for run in standard]
    if not all((folder / layout.VALIDATION_FILE).is_file() for _, folder in pairs):
        return None
    from trustcxr.study.selection import ranked

    classes = atomic.read_yaml(pairs[0][1] / layout.RUN_FILE).get("classes")
    names = [str(name) for name in classes] if isinstance(classes, list) else []
    return {row.model for row in ranked(recipe.selection, pairs, names) if row.chosen}


def read_state(run: RunRecipe, folder: Path) -> RunPlan:
    """Return how far a run is: its step, its epoch, who works on it, and why it failed."""
    plan = RunPlan(
        run=run.name,
        model=run.model.called,
        way=run.trained_how,
        seed=run.seed,
        state="waiting",
        step="",
        epoch=len(_epoch_times(folder)),
        epochs=cost.most_epochs(run),
        holder="",
        reason="",
        seconds={},
    )
    if (folder / layout.METRICS_FILE).is_file():
        return plan.model_copy(update={"state": "done"})
    plan.step = next(step for step, name in layout.STEP_FILES.items() if not (folder / name).is_file())
    if (holder := locks.holder(folder)) is not None:
        return plan.model_copy(update={"state": "running", "holder": holder})
    if (reason := failures.reason(folder)) is not None:
        return plan.model_copy(update={"state": "failed", "reason": reason})
    return plan


def _epoch_times(folder: Path) -> list[float]:
    """Return the seconds of each finished epoch; with a refit those of both trainings."""
    seconds: list[float] = []
    for path in (folder / layout.BEFORE_REFIT / layout.HISTORY_FILE, folder / layout.HISTORY_FILE):
        with suppress(OSError, ValueError, csv.Error), open(path, newline="", encoding="utf-8") as file:
            before = 0.0
            for row in csv.DictReader(file):
                now = float(row.get("seconds") or 0)
                seconds, before = [*seconds, now - before], now
    return seconds


def status(study: Path) -> StudyPlan:
    """Return every run of a study as its files describe it now; UserError if there is no study."""
    return plan(read_recipe(study), study)


def plan(recipe: StudyRecipe, study: Path | None, measured: CostDocument | None = None) -> StudyPlan:
    """Return every run of a recipe with its state and the seconds left; `study` is its folder, if there is one."""
    runs = plan_runs(recipe, study)
    if measured is None and study is not None:
        measured = cost.read_costs(study)
    folders = {run.name: (study or Path("nowhere")) / "runs" / run.name for run in (*runs.certain, *runs.open)}
    times = cost.Times(recipe, measured)
    for run in (*runs.certain, *runs.open):
        times.add(run, _epoch_times(folders[run.name]), folders[run.name])
    certain, candidates = ([read_state(run, folders[run.name]) for run in part] for part in (runs.certain, runs.open))
    for one, run in zip((*certain, *candidates), (*runs.certain, *runs.open), strict=True):
        if one.state != "done":
            one.seconds = times.left(one, run)
    for one in candidates:
        one.state = "if chosen"
    least, most = _sum_left(certain, candidates, runs.to_choose)
    return StudyPlan(
        study=recipe.name,
        folder="" if study is None else str(study),
        notice=NOTICE,
        holder=(locks.holder(study) or "") if study is not None else "",
        at_once=sum(one.state == "running" for one in certain),
        to_choose=runs.to_choose,
        runs=[*certain, *candidates],
        least=least,
        most=most,
        costs=measured,
    )


def _sum_left(certain: list[RunPlan], candidates: list[RunPlan], to_choose: int) -> tuple[float | None, float | None]:
    """Sum the seconds left with the cheapest and with the most expensive choice; None if a run has no estimate."""
    sure = [one.left for one in certain if one.state != "done"]
    if None in [*sure, *(one.left for one in candidates)]:
        return None, None
    by_model = dict.fromkeys((one.model for one in candidates), 0.0)
    for one in candidates:
        by_model[one.model] += one.left or 0.0
    order, base = sorted(by_model.values()), sum(part or 0.0 for part in sure)
    return base + sum(order[:to_choose]), base + sum(order[len(order) - to_choose :])


def dry_run(
    recipe: StudyRecipe, data: Path | None, out: Path | None, *, devices: int = 1, measured: bool = True
) -> StudyPlan:
    """Return the plan of a study without training, decoding or fetching anything.

    What is done in `out` counts. `measured`: time each network now, some seconds each, and keep the result in `out` for
    `status`. Raises UserError for unknown names, and if `devices` cannot share each training.
    """
    from trustcxr.runs import preflight

    begun = out if out is not None and (out / layout.STUDY_FILE).is_file() else None
    if begun is not None:
        _check_same_study(begun, recipe)
    preflight.check_names(recipe, begun)
    if devices != 1:
        preflight.check_devices(recipe, devices)
    if not measured:
        return plan(recipe, begun or out)
    log("timing each network and defence, some seconds each")
    from trustcxr.study import time_steps

    runs = plan_runs(recipe, None)
    document = time_steps.measure(recipe, [*runs.certain, *runs.open], data)
    if out is not None:
        cost.add_timings(out, **{cost.COSTS: document})
    return plan(recipe, begun or out, document)


def _check_same_study(begun: Path, recipe: StudyRecipe) -> None:
    before = read_recipe(begun)
    study_recipe.check_seeds(before, recipe, begun)
    if (
        study_recipe.without_tracker(before) != study_recipe.without_tracker(recipe)
        and not study_recipe.adds_seeds(before, recipe)
        and not study_recipe.removed_models(before, recipe)
    ):
        raise UserError(
            f"{begun}: holds a study of another recipe. Choose another --out, or see "
            f"trustcxr status {shell_quote(begun)}"
        )


@contextmanager
def watched(recipe: StudyRecipe, study: Path) -> Iterator[None]:
    """Log every two minutes, if anything has changed, which runs are done, what is trained, and the time left."""
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(recipe, study, over), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _watch(recipe: StudyRecipe, study: Path, over: threading.Event) -> None:
    before = ""
    while not over.wait(EVERY):
        with suppress(UserError, OSError):  # a file that is being replaced
            now = line(plan(recipe, study))
            if now != before:
                log(now)
            before = now


def line(plan: StudyPlan) -> str:
    """Return the state of a study in one line, without a time if some run has no estimate."""
    runs = [one for one in plan.runs if one.state != "if chosen"]
    later = f", before validation chooses {plural(plan.to_choose, 'network')}" if plan.to_choose else ""
    parts = [f"{sum(one.state == 'done' for one in runs)} of {len(runs)} runs done{later}"]
    parts += [f"{one.run}: {one.at}" for one in runs if one.state == "running"]
    if plan.ends:
        parts.append(f"at most {' to '.join(plan.ends)} left")
    return f"{plan.study}: " + "; ".join(parts)
