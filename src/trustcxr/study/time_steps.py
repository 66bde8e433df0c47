"""Time one training step, one forward pass and one gradient of each network of a study, for `study --dry-run`."""

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trustcxr import attacks
from trustcxr.console import format_duration, log
from trustcxr.data import remote
from trustcxr.data.layouts import read_manifest
from trustcxr.data.layouts.covidqu import PUBLISHED
from trustcxr.data.manifest import NO_SPLIT, SHARES
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import device
from trustcxr.models import factory
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.study_recipe import StudyRecipe
from trustcxr.registry import PLAIN_STEP
from trustcxr.runs.training_data import read_added
from trustcxr.storage.schemas import CostDocument, WayCost
from trustcxr.study.cost import kind
from trustcxr.training import environment
from trustcxr.training.environment import hardware
from trustcxr.training.step import TrainingStep

_BUDGET = 0.25  # seconds; a pass that takes less is timed again with more images
_CLASSES = 3

Work = Callable[[], object]


def measure(recipe: StudyRecipe, runs: Iterable[RunRecipe], data: Path | None) -> CostDocument:
    """Time every network of these runs with random weights, on noise, and log each as it is timed."""
    counts, note = count_images(recipe, data)
    ways = {kind(run): run for run in runs}
    notes = [note, "at most: training may stop before its last epoch, and an attack at an image that it has broken"]
    notes.append("passes through the network alone: corruptions, measures and tables on the processor come on top")
    if any(run.lung_gate for run in ways.values()):
        notes.append("without the training of the lung segmenter")
    if any(run.defence.certifies for run in ways.values()):
        notes.append("without proofs (certified.parquet) and bounds on validation")
    document = CostDocument(
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware=hardware(),
        size=recipe.data.size,
        counts=counts,
        ways={},
        notes=notes,
    )
    networks: dict[str, WayCost] = {}
    began = time.monotonic()
    for number, (name, run) in enumerate(ways.items()):
        left = (time.monotonic() - began) / max(number, 1) * (len(ways) - number)
        log(f"[{number + 1}/{len(ways)}] timing {name}" + (f", about {format_duration(left)} left" if number else ""))
        network = f"{run.model.called} {run.lung_gate}"
        document.ways[name] = networks[network] = time_network(run, like=networks.get(network))
    return document


def time_network(run: RunRecipe, like: WayCost | None = None) -> WayCost:
    """Time a network trained in one way; `like`: the same network trained in another way, whose passes take as long."""
    model = factory.build(run.model.name, classes=_CLASSES, weights="none", **run.network_options()).to(device())
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch, updates = run.training.batch_size, list[Work]()

    def prepare_step(count: int) -> Work:
        step, update = _training_step(model, run, count)
        updates[:] = [update]
        return step

    seconds, timed = _time(prepare_step, batch)
    fixed = _seconds(*updates)  # the optimiser's part does not grow with the batch
    way = WayCost(step=fixed + max(seconds - fixed, 0.0) * batch / timed, batch=batch, timed=timed)
    if like is not None:
        return way.model_copy(update={"forward": like.forward, "gradient": like.gradient})
    model.eval()
    for name, prepare in (("forward", _forward), ("gradient", _gradient)):
        seconds, timed = _time(lambda count, prepare=prepare: prepare(model, run, count), batch)  # type: ignore[misc]
        setattr(way, name, seconds / timed)
    return way


def _time(prepare: Callable[[int], Work], most: int) -> tuple[float, int]:
    """Return the seconds of some work, and the number of images: as many as fit in a second, up to `most`."""
    count = min(2, most)
    while True:
        work = prepare(count)
        work()  # the first time takes longer: memory, choice of kernels
        seconds = _seconds(work)
        if count == most or seconds > _BUDGET:
            return seconds, count
        count = min(4 * count, most)


def _seconds(work: Work) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _training_step(model: nn.Module, run: RunRecipe, count: int) -> tuple[Work, Work]:
    """Return a whole training step on `count` images of noise, and the optimiser's part of it."""
    size, on = run.data.size, device()
    training = run.training.model_copy(update={"batch_size": count})
    module = TrainingStep(
        model,
        run.model_copy(update={"training": training}),
        classes=_CLASSES,
        steps_per_epoch=100,
        lungs=_discs(count, size, 0.3) if run.needs_lungs else None,
        lesions=_discs(count, size, 0.1) if run.training.needs_lesions else None,
        healthy=0 if run.training.counterfactuals.share else None,
    ).to(on)
    module.train()
    optimiser = module.configure_optimizers()["optimizer"]
    batch = _noise(count, size).to(on), (torch.arange(count) % _CLASSES).to(on), torch.arange(count).to(on)
    lower = environment.autocast_dtype(training.precision, on.type)

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast(on.type, lower or torch.bfloat16, enabled=lower is not None):
            loss = module.training_step(batch, 0)
        loss.backward()
        update()

    def update() -> None:
        optimiser.step()

    return step, update


def _forward(model: nn.Module, run: RunRecipe, count: int) -> Work:
    images = _noise(count, run.data.size).to(device()) / 255

    def forward() -> Tensor:
        with torch.inference_mode(), attacks.preserve_state(model):
            return model(images)

    return forward


def _gradient(model: nn.Module, run: RunRecipe, count: int) -> Work:
    images = _noise(count, run.data.size).to(device()) / 255
    labels = torch.zeros(count, dtype=torch.long, device=device())
    return lambda: attacks.get(PLAIN_STEP)(model, images, labels, epsilon=0.01)


def _noise(count: int, size: int) -> Tensor:
    drawn = torch.randint(0, 256, (count, 1, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return drawn.contiguous(memory_format=torch.channels_last)


def _discs(count: int, size: int, radius: float) -> np.ndarray:
    """Draw masks (count, size, size) of 0 and 1."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    return np.repeat((np.hypot(x, y) < radius)[None].astype(np.uint8), count, 0)


def count_images(recipe: StudyRecipe, data: Path | None) -> tuple[dict[str, int], str]:
    """Count the images of each role and those with masks, without reading one; and say where the counts are from.

    Without `data` they are those of COVID-QU-Ex as it was published.
    """
    names = recipe.data.splits
    roles = {"train": names.train, "val": names.val, "test": names.test}
    if data is None:
        totals = [sum(part.values()) for part in PUBLISHED.values()]
        shares = dict(zip(roles, (SHARES[split] for split in ("Train", "Val", "Test")), strict=True))
        counts = {role: round(max(totals) * share) for role, share in shares.items()}
        counts |= {
            "annotated": round(min(totals) * shares["test"]),
            "annotated_val": round(min(totals) * shares["val"]),
        }
        return counts, f"without --data images are counted as COVID-QU-Ex was published: {max(totals):,}"
    if remote.is_address(data):
        where = remote.resolve_address(data)
        raise UserError(f"{where}: a dry run downloads nothing. Leave --data out, or name a folder of this machine")
    manifest = read_manifest(data, **recipe.data.listing())
    if recipe.data.labels:
        manifest = manifest.with_labels(recipe.data.labels)
    if manifest.splits == (NO_SPLIT,) and set(roles.values()) <= set(SHARES):
        manifest = manifest.with_splits(seed=0)
    counts = {}
    for role, split in roles.items():
        rows = manifest.table[manifest.table["split"] == split]
        if rows.empty:
            raise manifest.missing_split(split)
        counts[role] = len(rows)
        if role != "train":
            masks = [rows[f"{kind}_mask"].notna() for kind in ("infection", "lung")]
            annotated = next((int(has.sum()) for has in masks if has.any()), 0)
            counts["annotated" if role == "test" else "annotated_val"] = annotated
    for added in recipe.data.add:
        counts["train"] += int((read_added(added, manifest.root).table["split"] == added.split).sum())
    return counts, f"images counted in {manifest.root.name}"
