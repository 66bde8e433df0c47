"""Measure what `exam-1` costs: seconds of each part of an audit, and minutes of the whole.

    python -m benchmarks.speed.audit_parts RUN --data PATH [--per-class 12] [--split Val] [--size 96] [--cores 2]
    python -m benchmarks.speed.audit_parts [--model resnet18] [--size 96] [--images 570] [--cores 2]

With a run, it audits the first `--per-class` validation images of each class on one core, in processor time, and
extrapolates to `--images`. `--size` uses the run's weights at another size.

Without a run it needs no data: labels are the network's own predictions, and the radius is so small that no image
ever breaks. This is the most expensive case: every attack spends all of its steps and queries.
"""

import argparse
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.formats import as_weights, first_images
from trustcxr import attacks
from trustcxr.audit import run_audit as audits
from trustcxr.audit.attack_runner import AttackRunner
from trustcxr.evaluation import predictions
from trustcxr.evaluation.trained_run import load_run
from trustcxr.models import factory
from trustcxr.models.fuse_batchnorm import make_fused_copy
from trustcxr.recipes.evaluation_recipe import AttackRecipe
from trustcxr.recipes.protocol import ExamRecipe, load_exam

RADIUS = 1e-7
ENTRY_CHECKS, FIGURES, REST = (
    "entry checks",
    "figures with intervals",
    "images as they are and gone wrong, judging",
)


def attacked(model: nn.Module, recipe: AttackRecipe, images: Tensor, labels: Tensor, start: list[Tensor]) -> Tensor:
    """Run one attack at one radius as an audit does."""
    keywords = dict(recipe.options())
    if recipe.entry.stops_when_wrong:
        keywords["stop_when_wrong"] = True
    if recipe.name == "worst-case":
        keywords["start"] = start
    return attacks.get(recipe.name)(model, images, labels, epsilon=RADIUS, **keywords)


def by_attack(model: nn.Module, exam: ExamRecipe, images: Tensor) -> dict[str, float]:
    """Return processor seconds per image of each attack, at all radii, and of corrupted images."""
    with torch.no_grad():
        labels = model(images).argmax(1)
    found, start = {}, list[Tensor]()
    for recipe in sorted(exam.attacks, key=lambda attack: attack.name == "worst-case"):
        before = time.process_time()
        for _ in recipe.epsilons:
            start.append(attacked(model, recipe, images, labels, start))
        found[recipe.name] = (time.process_time() - before) / len(images)
    before = time.process_time()
    with torch.no_grad():
        for _ in exam.corruptions.conditions():
            model(images)
    return found | {REST: (time.process_time() - before) / len(images)}


@contextmanager
def clocked(spent: dict[str, float]) -> Iterator[None]:
    """Add the processor seconds of each part of an audit to `spent`, by name."""

    def timed(name: Callable[..., str], function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        before = time.process_time()
        try:
            return function(*arguments, **keywords)
        finally:
            spent[name(*arguments)] += time.process_time() - before

    def watched(owner: Any, method: str, name: Callable[..., str]) -> Any:
        function = getattr(owner, method)
        return mock.patch.object(
            owner, method, lambda *arguments, **keywords: timed(name, function, *arguments, **keywords)
        )

    with (
        watched(audits, "run_entry_checks", lambda *_: ENTRY_CHECKS),
        watched(AttackRunner, "__call__", lambda _, attack, *rest: f"{attack.name} {rest[2]:g}"),
        watched(predictions, "predict", lambda *_: REST),
    ):
        yield


def time_audit(run: Path, data: Path, images: int, split: str, size: int | None) -> tuple[dict[str, float], int, Any]:
    """Return processor seconds of each part of an audit of a run, the number of images, and the audit."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        loaded = load_run(run, on="cpu")
        shown = first_images(data, out / "images", loaded, images, split=split)
        model = run if size in (None, loaded.size) else as_weights(loaded, out / "models", size=size)
        spent, before = defaultdict[str, float](float), time.process_time()
        with clocked(spent):
            document = audits.audit(model, shown, out / "audit")
        whole = time.process_time() - before
    inside = [name for name in spent if name not in (ENTRY_CHECKS, REST)]
    figures = whole - spent[ENTRY_CHECKS] - spent[REST]
    rest = spent[REST] - sum(spent[name] for name in inside)
    parts = {ENTRY_CHECKS: spent[ENTRY_CHECKS], **{name: spent[name] for name in inside}, REST: rest, FIGURES: figures}
    return parts, document.data.n or 0, document


def extrapolate(parts: dict[str, float], count: int, images: int, batch: int, cores: int) -> tuple[float, float]:
    """Extrapolate seconds of `count` images to `images`: on one core, and on several with parallel batches."""
    each = sum(seconds for name, seconds in parts.items() if name not in (ENTRY_CHECKS, FIGURES)) / count
    fixed = parts.get(ENTRY_CHECKS, 0.0) + parts.get(FIGURES, 0.0) * images / count
    turns = math.ceil(math.ceil(images / batch) / cores)
    return fixed + images * each, fixed + min(images, turns * batch) * each


def print_parts(parts: dict[str, float], count: int, options: argparse.Namespace, batch: int) -> None:
    """Print the measured parts and the extrapolated whole."""
    for name, seconds in parts.items():
        per_image = "" if name == ENTRY_CHECKS else f", {seconds / count:6.3f} s an image"
        print(f"  {name:42} {seconds:7.1f} s{per_image}")
    one, several = extrapolate(parts, count, options.images, batch, options.cores)
    print(f"  the whole, of {options.images} images: {one / 60:.1f} min of one core; on {options.cores} cores "
          f"{several / 60:.1f} min")  # fmt: skip


def measure_a_run(options: argparse.Namespace) -> None:
    """Time an audit of a run on some images, part by part."""
    torch.set_num_threads(1)
    parts, count, document = time_audit(options.run, options.data, options.per_class, options.split, options.size)
    left = {f"{row.attack} {row.epsilon:g}": f"{row.accuracy.value or 0:.1%}" for row in document.attacks}
    clean = f"{document.clean.accuracy.value or 0:.1%}"
    print(f"{document.model.name} on {count} images of {options.split}: clean {clean}, left under attack {left}")
    print_parts(parts, count, options, load_exam().batch_size)


def measure_the_worst(options: argparse.Namespace) -> None:
    """Time a network that no attack breaks."""
    exam, side = load_exam(), options.size or 96
    batch = options.batch or exam.batch_size
    torch.manual_seed(0)
    model: nn.Module = factory.build(options.model, classes=3, weights="none").eval()
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(batch, 1, side, side).contiguous(memory_format=torch.channels_last)
    torch.set_num_threads(1)
    print(f"{options.model}, {side} pixels, batches of {batch}, torch {torch.__version__}; images that never break:")
    found = {name: seconds * batch for name, seconds in by_attack(make_fused_copy(model, images), exam, images).items()}
    print_parts(found, batch, options, batch)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--data", type=Path, help="with a run: the images")
    parser.add_argument("--per-class", type=int, default=12, help="of each class, of --split, to time the audit on")
    parser.add_argument("--split", default="Val")
    parser.add_argument("--model", default="resnet18", help="without a run: a network with random weights")
    parser.add_argument("--size", type=int, help="side in pixels; the run's, or 96")
    parser.add_argument("--images", type=int, default=570, help="to extrapolate to")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--batch", type=int, help="without a run: images of a batch; those of exam-1 unless said")
    options = parser.parse_args()
    if options.run and not options.data:
        parser.error("with a run, say --data PATH")
    (measure_a_run if options.run else measure_the_worst)(options)


if __name__ == "__main__":
    main()
