"""Report which runs of a study are done, running or failed, and the time left, from the files in its folder alone."""

import csv
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trustcxr.console import log, plural
from trustcxr.errors import UserError
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.study_recipe import StudyRecipe, list_runs
from trustcxr.storage import atomic, layout, locks, schemas
from trustcxr.storage.schemas import RunPlan, StudyDocument, StudyPlan
from trustcxr.study.engines import read_failure
from trustcxr.version import NOTICE

Seconds = dict[str, dict[str, float]]  # of each step, by the kind of run
ESTIMATE = "estimate"  # the key in a study's timings.json of what a dry run estimated
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
    standard, defended = list_runs(recipe), list_runs(recipe, recipe.defences)
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
    if not all((study / "runs" / run.name / layout.VALIDATION_FILE).is_file() for run in standard):
        return None
    from trustcxr.study.comparison import ranked

    return {row.model for row in ranked(recipe, study) if row.chosen}


@contextmanager
def record_time(folder: Path, step: str) -> Iterator[None]:
    """Record how long a step of a run takes, unless it was done already or fails."""
    before, began = (folder / layout.STEP_FILES[step]).is_file(), time.monotonic()
    yield
    if not before:
        add_timings(folder, **{step: round(time.monotonic() - began, 2)})


def _read_timings(folder: Path) -> dict[str, object]:
    """Return timings.json of a study or run; empty if it is missing or damaged."""
    with suppress(UserError):
        return atomic.read_document(folder / layout.TIMINGS_FILE)
    return {}


def add_timings(folder: Path, **timings: object) -> None:
    """Add keys to timings.json of a study or run."""
    atomic.write_json(folder / layout.TIMINGS_FILE, _read_timings(folder) | timings)


def read_seconds(folder: Path) -> dict[str, float]:
    """Return the recorded seconds of each step of a run, or of a study in all."""
    return _numbers(_read_timings(folder))


def _numbers(content: object) -> dict[str, float]:
    values = content.items() if isinstance(content, dict) else ()
    return {str(name): float(seconds) for name, seconds in values if isinstance(seconds, int | float)}


def kind(run: RunRecipe) -> str:
    """Name a network and its way of training, whatever the seed."""
    return f"{run.model.called}-{run.trained_how}".lower()


def most_epochs(run: RunRecipe) -> int:
    """Return the most epochs of a run; with a refit those of both trainings."""
    return run.training.epochs * (2 if run.training.refit else 1)


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
        epochs=most_epochs(run),
        holder="",
        reason="",
        seconds={},
    )
    if (folder / layout.METRICS_FILE).is_file():
        return plan.model_copy(update={"state": "done"})
    plan.step = next(step for step, name in layout.STEP_FILES.items() if not (folder / name).is_file())
    if (holder := locks.holder(folder)) is not None:
        return plan.model_copy(update={"state": "running", "holder": holder})
    if (reason := read_failure(folder)) is not None:
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


def plan(recipe: StudyRecipe, study: Path | None, estimate: Seconds | None = None) -> StudyPlan:
    """Return every run of a recipe with its state and the seconds left; `study` is its folder, if there is one.

    Seconds are those that the study measured for the same network and defence, else those of an `estimate`, by default
    that of its last dry run.
    """
    runs, seconds, epochs = plan_runs(recipe, study), Seconds(), dict[str, list[float]]()
    if study is not None and estimate is None:
        estimate = {name: _numbers(steps) for name, steps in atomic.section(_read_timings(study), ESTIMATE).items()}
    folders = {run.name: (study or Path("nowhere")) / "runs" / run.name for run in (*runs.certain, *runs.open)}
    for run in (*runs.certain, *runs.open):
        epochs.setdefault(kind(run), []).extend(_epoch_times(folders[run.name]))
        seconds.setdefault(kind(run), dict((estimate or {}).get(kind(run), {}))).update(read_seconds(folders[run.name]))
    certain, candidates = ([read_state(run, folders[run.name]) for run in part] for part in (runs.certain, runs.open))
    for one, run in zip((*certain, *candidates), (*runs.certain, *runs.open), strict=True):
        if one.state != "done":
            one.seconds = _seconds_left(one, run, seconds[kind(run)], epochs[kind(run)])
    for one in candidates:
        one.state = "if chosen"
    return StudyPlan(
        study=recipe.name,
        folder="" if study is None else str(study),
        notice=NOTICE,
        holder=(locks.holder(study) or "") if study is not None else "",
        at_once=sum(one.state == "running" for one in certain),
        to_choose=runs.to_choose,
        runs=[*certain, *candidates],
        most=_sum_left(certain, candidates, runs.to_choose),
    )


def _seconds_left(
    plan: RunPlan, run: RunRecipe, seconds: dict[str, float], epochs: list[float]
) -> dict[str, float | None]:
    """Return the most seconds of each step that is not done; None without a time. `epochs`: the measured ones."""
    train = most_epochs(run) * statistics.mean(epochs) if epochs else seconds.get("train")
    if train is not None:
        seconds = seconds | {"train": train * max(1 - (plan.epoch or 0) / most_epochs(run), 0.0)}
    steps = list(layout.STEP_FILES)
    return {step: seconds.get(step) for step in steps[steps.index(plan.step) :]}


def _sum_left(certain: list[RunPlan], candidates: list[RunPlan], to_choose: int) -> float | None:
    """Sum the seconds left with the most expensive choice; None if a run has no time."""
    sure = [one.left for one in certain if one.state != "done"]
    by_model = dict.fromkeys((one.model for one in candidates), 0.0)
    for one in candidates:
        by_model[one.model] += one.left or 0.0
    if None in [*sure, *(one.left for one in candidates)]:
        return None
    return sum(part or 0.0 for part in sure) + sum(sorted(by_model.values(), reverse=True)[:to_choose])


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
    if plan.time_left:
        parts.append(f"at most {plan.time_left} left")
    return f"{plan.study}: " + "; ".join(parts)
