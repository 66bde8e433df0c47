"""Plan a study without training, and estimate its time: the time of a pass of each network, times the passes."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from trustcxr import attacks
from trustcxr.console import log, track
from trustcxr.data import remote
from trustcxr.data.layouts import read_manifest
from trustcxr.data.manifest import NO_SPLIT
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import device
from trustcxr.models import factory
from trustcxr.recipes.evaluation_recipe import EvaluationRecipe, ExplanationRecipe
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.study_recipe import StudyRecipe
from trustcxr.recipes.training_recipe import MONITOR_IMAGES, MONITOR_STEPS
from trustcxr.registry import CORRUPTIONS, DEFENCES, PLAIN_STEP, VIEWS, WORST_CASE, Method
from trustcxr.runs import preflight
from trustcxr.runs.training_data import read_added
from trustcxr.storage import layout
from trustcxr.storage.schemas import StudyPlan
from trustcxr.study import status
from trustcxr.study.run_study import check_same_study
from trustcxr.training.step import replays

_TIMED = 8  # images of a timed pass on a processor; a GPU has a whole batch
_CLIMBS = {WORST_CASE: 4, "fab": 2}  # gradients a step, of attacks that take more than one


def dry_run(recipe: StudyRecipe, data: Path | None, out: Path | None, *, devices: int = 1) -> StudyPlan:
    """Return the plan of a study without training, decoding or fetching anything.

    What is done in `out` counts. With `data` each network is timed now, some seconds each; `out` keeps the estimate for
    `status`. Raises UserError for unknown names, and if `devices` cannot share each training.
    """
    begun = out if out is not None and (out / layout.STUDY_FILE).is_file() else None
    if begun is not None:
        check_same_study(begun, recipe)
    preflight.check_names(recipe, begun)
    preflight.check_devices(recipe, devices)
    if data is None:
        return status.plan(recipe, out)
    runs = status.plan_runs(recipe, None)
    seconds = estimate(recipe, [*runs.certain, *runs.open], data)
    if out is not None:
        status.add_timings(out, **{status.ESTIMATE: seconds})
    return status.plan(recipe, out, seconds)


def estimate(recipe: StudyRecipe, runs: Iterable[RunRecipe], data: Path) -> status.Seconds:
    """Estimate the most seconds of each step, by network and defence, from passes of noise with random weights.

    Training may stop early, and an attack at an image that it has broken. The training of a lung segmenter, proofs and
    what the processor does beside the network come on top.
    """
    counts, kinds = count_images(recipe, data), {status.kind(run): run for run in runs}
    train, val, annotated = counts["train"], counts["val"], counts["annotated"]
    seconds, times = status.Seconds(), dict[str, tuple[float, float]]()
    for name, run in track(kinds.items(), "timing each network", len(kinds)):
        network = f"{run.model.called} {run.network_options()}"
        times[network] = forward, gradient = times.get(network) or _time_passes(run)
        epoch = (train + val * run.training.refit) * replays(run) * _step_gradients(run) * gradient + val * forward
        if run.defence.attacks and not run.defence.certifies:
            epoch += min(MONITOR_IMAGES, val) * (2 * forward + (MONITOR_STEPS + 1) * gradient)
        seconds[name] = {
            "train": status.most_epochs(run) * epoch,
            "validate": val * forward,
            "test": counts["test"] * _test_image(recipe.evaluation, annotated > 0, forward, gradient),
            "explain": _explain_images(recipe.explanation, annotated, forward, gradient),
            "describe": (train + val) * forward,  # statistics of the training images
        }
    return seconds


def _step_gradients(run: RunRecipe) -> float:
    """Return the gradients in the pixels that a training step takes as long as; that in the weights counts for 1.5."""
    options = DEFENCES[run.defence.name].options
    if "steps" in options:
        return 1.5 + run.defence.steps
    if run.defence.certifies:
        return 3.0  # both ends of the bounds
    return 2.5 if run.defence.attacks and "replays" not in options else 1.5


def _test_image(options: EvaluationRecipe, masks: bool, forward: float, gradient: float) -> float:
    """Return the seconds of one test image: clean, corrupted, without the lungs, and under every attack to its end."""
    conditions = 1 + len(VIEWS) * masks + (len(options.corruptions.conditions()) if options.corruptions else 0)
    total = conditions * forward + gradient
    for attack in options.attacks:
        climb = 0 if attack.entry.steps == "search" else (attack.steps or 1) * (attack.restarts or 1)
        once = (1 + (attack.queries or 0)) * forward + climb * _CLIMBS.get(attack.name, 1) * gradient
        total += len(attack.epsilons) * once
    return total


def _explain_images(options: ExplanationRecipe, annotated: int, forward: float, gradient: float) -> float:
    """Return the seconds of the maps, their measures and the lesion effect; passes were counted on shipped recipes."""
    slow = {"integrated-gradients": 32 * gradient, "smoothgrad": 16 * gradient, "occlusion": 225 * forward}
    maps = forward + sum(slow.get(Method.parse(name).base, 0.0) for name in options.methods)
    times = 3 + len(CORRUPTIONS if options.corruptions == "all" else options.corruptions)  # clean, FGSM, on validation
    sampled = 25 * gradient + 70 * len(options.methods) * forward
    return annotated * (times * maps + 20 * forward + gradient) + min(annotated, options.sample) * sampled


def _time_passes(run: RunRecipe) -> tuple[float, float]:
    """Return the seconds of an image in a forward pass, and in one with the gradient in its pixels."""
    on, size, batch = device(), run.data.size, run.training.batch_size
    count = batch if on.type == "cuda" else min(batch, _TIMED)
    model = factory.build(run.model.name, classes=3, weights="none", **run.network_options()).eval().to(on)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = torch.rand(count, 1, size, size, device=on), torch.zeros(count, dtype=torch.long, device=on)

    def seconds(work: Callable[[], object]) -> float:
        work()  # the first time takes longer: memory, choice of kernels
        began = time.perf_counter()
        work()
        if on.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / count

    with torch.inference_mode():
        forward = seconds(lambda: model(images))
    return forward, seconds(lambda: attacks.get(PLAIN_STEP)(model, images, labels, epsilon=0.01))


def count_images(recipe: StudyRecipe, data: Path) -> dict[str, int]:
    """Count the images of each role, and the test images with masks, without reading one."""
    if remote.is_address(data):
        where = remote.resolve_address(data)
        raise UserError(f"{where}: a dry run downloads nothing. Leave --data out, or name a folder of this machine")
    names, manifest = recipe.data.splits, read_manifest(data, **recipe.data.listing())
    if recipe.data.labels:
        manifest = manifest.with_labels(recipe.data.labels)
    if manifest.splits == (NO_SPLIT,):
        manifest = manifest.with_splits(seed=0)
    counts = {}
    for role, split in (("train", names.train), ("val", names.val), ("test", names.test)):
        rows = manifest.table[manifest.table["split"] == split]
        if rows.empty:
            raise manifest.missing_split(split)
        counts[role] = len(rows)
    masks = (int(rows[f"{name}_mask"].notna().sum()) for name in ("infection", "lung"))
    counts["annotated"] = next(filter(None, masks), 0)
    for added in recipe.data.add:
        counts["train"] += int((read_added(added, manifest.root).table["split"] == added.split).sum())
    log(f"images in {manifest.root.name}: " + ", ".join(f"{count:,} {role}" for role, count in counts.items()))
    return counts
