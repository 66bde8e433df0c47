"""Estimate the seconds of each step of a run: the time of one pass, multiplied by the passes of the recipe.

A step that this study has done for the same network and defence counts as measured. Otherwise the times are those of
`study --dry-run`: one training step, one forward pass and one gradient of each network.
"""

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from trustcxr.errors import UserError
from trustcxr.recipes.evaluation_recipe import AttackRecipe, EvaluationRecipe, ExplanationRecipe
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.study_recipe import StudyRecipe
from trustcxr.recipes.training_recipe import MONITOR_IMAGES, MONITOR_STEPS
from trustcxr.registry import CORRUPTIONS, DEFENCES, VIEWS, WORST_CASE, Method
from trustcxr.storage import atomic, layout, schemas
from trustcxr.storage.schemas import CostDocument, RunPlan, WayCost

COSTS = "costs"  # the key in a study's timings.json of what a dry run timed


class Passes(NamedTuple):
    """Passes of one image through a network, without and with its gradient."""

    forward: float = 0.0
    gradient: float = 0.0

    def seconds(self, way: WayCost) -> float:
        """Multiply the passes by the time of each."""
        return self.forward * (way.forward or 0.0) + self.gradient * (way.gradient or 0.0)


# Counted once on the shipped recipes; a CAM reads all layers and methods in one forward pass.
_MAP = {"integrated-gradients": Passes(0, 32), "smoothgrad": Passes(0, 16), "occlusion": Passes(225, 0)}
_CLIMBS = {WORST_CASE: 4, "fab": 2}  # gradients a step, of attacks that take more than one
_LESION_EFFECT = Passes(20, 1)  # of each annotated image
_SAMPLE, _SAMPLE_METHOD = Passes(0, 25), Passes(70, 0)  # of each sampled image, and of each method there


@contextmanager
def record_time(folder: Path, step: str) -> Iterator[None]:
    """Record how long a step of a run takes, unless it was done already or fails."""
    before, began = (folder / layout.STEP_FILES[step]).is_file(), time.monotonic()
    yield
    if not before:
        add_timings(folder, **{step: round(time.monotonic() - began, 2)})


def read_timings(folder: Path) -> dict[str, object]:
    """Return timings.json of a study or run; empty if it is missing or damaged."""
    with suppress(UserError):
        return atomic.read_document(folder / layout.TIMINGS_FILE)
    return {}


def add_timings(folder: Path, **timings: object) -> None:
    """Add keys to timings.json of a study or run."""
    atomic.write_json(folder / layout.TIMINGS_FILE, read_timings(folder) | timings)


def read_costs(study: Path) -> CostDocument | None:
    """Return what a dry run timed; None if there was none, or its record is damaged."""
    costs = atomic.section(read_timings(study), COSTS)
    with suppress(UserError):
        return schemas.parse(CostDocument, costs, study / layout.TIMINGS_FILE) if costs else None
    return None


def read_seconds(folder: Path) -> dict[str, float]:
    """Return the recorded seconds of each step of a run, or of a study in all."""
    timings = read_timings(folder).items()
    return {name: float(seconds) for name, seconds in timings if isinstance(seconds, int | float)}


def kind(run: RunRecipe) -> str:
    """Name a network and its way of training, whatever the seed."""
    return f"{run.model.called}-{run.trained_how}".lower()


def most_epochs(run: RunRecipe) -> int:
    """Return the most epochs of a run; with a refit those of both trainings."""
    return run.training.epochs * (2 if run.training.refit else 1)


class Times:
    """Seconds of each step, by network and defence: as this study measured them, else as a dry run estimates them."""

    def __init__(self, recipe: StudyRecipe, costs: CostDocument | None) -> None:
        self.recipe, self.costs = recipe, costs
        self.epochs: dict[str, list[float]] = {}
        self.steps: dict[str, dict[str, float]] = {}

    def add(self, run: RunRecipe, epochs: list[float], folder: Path) -> None:
        """Add the seconds of the epochs and steps that a run has done."""
        self.epochs.setdefault(kind(run), []).extend(epochs)
        self.steps.setdefault(kind(run), {}).update(read_seconds(folder))

    def left(self, plan: RunPlan, run: RunRecipe) -> dict[str, float | None]:
        """Return the most seconds of each step that is not done; None without an estimate."""
        seconds: dict[str, float] = self._estimate(run) | self.steps.get(kind(run), {})
        if epochs := self.epochs.get(kind(run)):
            seconds["train"] = most_epochs(run) * statistics.mean(epochs)
        if "train" in seconds:
            seconds["train"] *= max(1 - (plan.epoch or 0) / most_epochs(run), 0.0)
        steps = list(layout.STEP_FILES)
        return {step: seconds.get(step) for step in steps[steps.index(plan.step) :]}

    def _estimate(self, run: RunRecipe) -> dict[str, float]:
        """Return the most seconds of each step by a dry run; empty if it did not time this network and defence."""
        way = self.costs.ways.get(kind(run)) if self.costs is not None else None
        if self.costs is None or way is None:
            return {}
        counts, options = self.costs.counts, self.recipe.explanation
        train, val, annotated = (counts.get(role, 0) for role in ("train", "val", "annotated"))
        drawn = min(annotated, options.sample)
        return {
            "train": most_epochs(run) * _epoch(run, way, train, val),
            "validate": val * (way.forward or 0.0),
            "test": counts.get("test", 0) * _test_passes(self.recipe.evaluation, masks=annotated > 0).seconds(way),
            "explain": annotated * _explain_passes(options).seconds(way)
            + drawn * (_SAMPLE.seconds(way) + len(options.methods) * _SAMPLE_METHOD.seconds(way))
            + counts.get("annotated_val", 0) * _map_passes(options).seconds(way),
            "describe": (train + val) * (way.forward or 0.0),  # statistics of the training images
        }


def _epoch(run: RunRecipe, way: WayCost, train: int, val: int) -> float:
    """Return the seconds of one epoch and of the validation after it."""
    replays = run.defence.replays if "replays" in DEFENCES[run.defence.name].options else 1
    steps = max(math.floor((train + val * run.training.refit) / run.training.batch_size), 1) * replays
    validation = val * (way.forward or 0.0)
    if run.defence.attacks and not run.defence.certifies:
        validation += min(MONITOR_IMAGES, val) * Passes(2, MONITOR_STEPS + 1).seconds(way)
    return steps * (way.step or 0.0) + validation


def _test_passes(options: EvaluationRecipe, *, masks: bool) -> Passes:
    """Count the passes of one test image: clean, corrupted, without the lungs, and under every attack to its end."""
    forward = 1 + len(VIEWS) * masks + (len(options.corruptions.conditions()) if options.corruptions else 0)
    attacked = [_attack_passes(attack) for attack in options.attacks for _ in attack.epsilons]
    return Passes(forward + sum(one.forward for one in attacked), 1 + sum(one.gradient for one in attacked))


def _attack_passes(attack: AttackRecipe) -> Passes:
    climb = 0 if attack.entry.steps == "search" else (attack.steps or 1) * (attack.restarts or 1)
    return Passes(1 + (attack.queries or 0), climb * _CLIMBS.get(attack.name, 1))


def _map_passes(options: ExplanationRecipe) -> Passes:
    """Count the passes of the maps of one image by all methods."""
    slow = [_MAP[base] for name in options.methods if (base := Method.parse(name).base) in _MAP]
    return Passes(1 + sum(one.forward for one in slow), sum(one.gradient for one in slow))


def _explain_passes(options: ExplanationRecipe) -> Passes:
    """Count the passes of one annotated image: its maps clean, under FGSM and corrupted, and the lesion effect."""
    maps = _map_passes(options)
    times = 2 + len(CORRUPTIONS if options.corruptions == "all" else options.corruptions)
    return Passes(times * maps.forward + _LESION_EFFECT.forward, times * maps.gradient + _LESION_EFFECT.gradient)
