"""What the steps of a run that are not done will take: arithmetic on what was measured, and nothing where it was not.

In the study itself are measured seconds an epoch (history.csv) and seconds a step (`.steps.json`), of the same network
trained in the same way. Before it, by `study --dry-run`, timed steps and passes of each network, and how many passes a
film takes in each kind of work. What the study itself took counts before what a dry run expects.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trustcxr.catalogue import DEFENCES
from trustcxr.errors import UserError
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.training import MONITOR_IMAGES, MONITOR_STEPS
from trustcxr.results import documents, files, folders
from trustcxr.results.documents import CostDocument, FilmCost, RunPlan, WayCost
from trustcxr.study.planned import epochs_of, most_epochs

COST_FILE = ".costs.json"  # in a study's folder: what a dry run measured
STEPS_FILE = ".steps.json"  # in a run's folder: seconds that each step took


@contextmanager
def taken(folder: Path, step: str) -> Iterator[None]:
    """Note how long a step of a run takes; nothing where it was done before, or fails."""
    before, began = (folder / folders.STEP_FILES[step]).is_file(), time.monotonic()
    yield
    if not before:
        known = steps_of(folder) | {step: round(time.monotonic() - began, 2)}
        files.write_json(folder / STEPS_FILE, known)


def steps_of(folder: Path) -> dict[str, float]:
    """Seconds that each step of a run took, as far as they were noted."""
    found: dict[str, object] = {}
    with suppress(UserError):  # not there, or damaged
        found = files.read_document(folder / STEPS_FILE)
    return {step: float(seconds) for step, seconds in found.items() if isinstance(seconds, int | float)}


def kind(run: RunRecipe) -> str:
    """A network and its way of training, whatever the seed."""
    return f"{run.model.called}-{run.trained_how}".lower()


class Known:
    """What is known of costs in a study's folder, and in a dry run's document."""

    def __init__(self, study: Path | None, runs: list[RunRecipe], costs: CostDocument | None) -> None:
        self.costs = costs
        if costs is None and study is not None:
            self.costs = documents.read_if_whole(CostDocument, study / COST_FILE)
        self.epochs: dict[str, list[float]] = {}
        self.steps: dict[str, dict[str, float]] = {}
        for run in runs if study is not None else ():
            folder = study / "runs" / run.name if study is not None else Path()
            epochs, seconds = epochs_of(folder)
            if epochs:
                self.epochs.setdefault(kind(run), []).append(seconds / epochs)
            self.steps.setdefault(kind(run), {}).update(steps_of(folder))

    def left(self, plan: RunPlan, run: RunRecipe) -> dict[str, float | None]:
        """Seconds at most of each step of a run that is not done, None where nobody measured it."""
        steps = list(folders.STEP_FILES)
        at = steps.index(plan.step) if plan.step else 0
        expected = _expected(run, self.costs)
        found: dict[str, float | None] = {}
        for step in steps[at:]:
            own = self._training(run, plan) if step == "train" else self.steps.get(kind(run), {}).get(step)
            share = 1 - (plan.epoch or 0) / most_epochs(run) if step == "train" else 1.0
            known = expected.get(step)
            found[step] = own if own is not None else None if known is None else known * max(share, 0.0)
        return found

    def _training(self, run: RunRecipe, plan: RunPlan) -> float | None:
        measured = self.epochs.get(kind(run))
        if not measured:
            return None
        return max(most_epochs(run) - (plan.epoch or 0), 0) * sum(measured) / len(measured)


def _expected(run: RunRecipe, costs: CostDocument | None) -> dict[str, float]:
    """Seconds at most of each step of a run, by a dry run; empty where it did not measure this network and way."""
    way = costs.ways.get(kind(run)) if costs is not None else None
    if costs is None or way is None or None in (way.step, way.forward, way.gradient):
        return {}
    counts, films = costs.counts, costs.films

    def work(name: str, count: int) -> float:
        return count * _film(films.get(name, FilmCost()), way)

    drawn = min(counts.get("annotated", 0), films.get("sample", FilmCost()).most or 0)
    return {
        "train": most_epochs(run) * _epoch(run, way, counts),
        "validate": counts.get("val", 0) * (way.forward or 0.0),
        "test": work("test", counts.get("test", 0)),
        "explain": work("explain", counts.get("annotated", 0))
        + work("sample", drawn)
        + work("tune", counts.get("annotated_val", 0)),
        "describe": (films.get("describe", FilmCost()).seconds or 0.0)
        + (counts.get("train", 0) + counts.get("val", 0)) * (way.forward or 0.0),  # what its films are like
    }


def _epoch(run: RunRecipe, way: WayCost, counts: dict[str, int]) -> float:
    """One epoch with the validation after it."""
    images = counts.get("train", 0) + (counts.get("val", 0) if run.training.refit else 0)
    replays = run.defence.replays if "replays" in DEFENCES[run.defence.name].options else 1
    steps = max(math.floor(images / run.training.batch_size), 1) * replays
    val = counts.get("val", 0) * (way.forward or 0.0)
    if run.defence.attacks and not run.defence.certifies:
        watched = min(MONITOR_IMAGES, counts.get("val", 0))
        val += watched * ((MONITOR_STEPS + 1) * (way.gradient or 0.0) + 2 * (way.forward or 0.0))
    return steps * (way.step or 0.0) + val


def _film(film: FilmCost, way: WayCost) -> float:
    passes = (film.forward or 0.0) * (way.forward or 0.0) + (film.gradient or 0.0) * (way.gradient or 0.0)
    return passes + (film.seconds or 0.0)
