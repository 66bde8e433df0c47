"""What `exam-1` costs: seconds of each part of an audit, and the minutes of the whole.

    python -m benchmarks.speed.examination RUN --data PATH [--images 12] [--split Val] [--size 96] [--cores 2]
    python -m benchmarks.speed.examination [--model resnet18] [--size 96] [--images 570] [--cores 2]

With a run, the audit itself is carried out on the first `--images` validation images of each class (Test is not opened)
on one core, part by part in processor time, and reckoned up to `--images`: what images cost hangs on what attacks
break, so such a network costs what a real one does. `--size` takes the run's weights at another side.

Without a run nothing is trained and no data are needed: the labels are the network's own answers, and the radius is so
small that no image ever breaks, which is what costs the most: every attack then spends all of its steps and queries on
every image. Those are the minutes of a network that resists everything.

On a machine that others use too, processor time is what to go by. The minutes on several cores suppose that each core
does as much as one alone.
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
DOOR, FIGURES, REST = "the gate at the door", "figures with intervals", "images as they are and gone wrong, judging"


def attacked(model: nn.Module, recipe: AttackRecipe, images: Tensor, labels: Tensor, start: list[Tensor]) -> Tensor:
    """What an examination does for one attack at one radius."""
    options = dict(recipe.options())
    if recipe.entry.stops_when_wrong:
        options["stop_when_wrong"] = True
    if recipe.name == "worst-case":
        options["start"] = start
    return attacks.get(recipe.name)(model, images, labels, epsilon=RADIUS, **options)


def by_attack(model: nn.Module, exam: ExamRecipe, images: Tensor) -> dict[str, float]:
    """Processor seconds an image of each attack, at all of its radii, and of the images that went wrong."""
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
    """Inside, the parts of an audit add the processor seconds that they take to `spent`, by name."""

    def timed(name: Callable[..., str], function: Callable[..., Any], *given: Any, **options: Any) -> Any:
        before = time.process_time()
        try:
            return function(*given, **options)
        finally:
            spent[name(*given)] += time.process_time() - before

    def watched(owner: Any, place: str, name: Callable[..., str]) -> Any:
        function = getattr(owner, place)
        return mock.patch.object(owner, place, lambda *given, **options: timed(name, function, *given, **options))

    with (
        watched(audits, "run_entry_checks", lambda *_: DOOR),
        watched(AttackRunner, "__call__", lambda _, attack, *rest: f"{attack.name} {rest[2]:g}"),
        watched(predictions, "predict", lambda *_: REST),
    ):
        yield


def of_an_audit(run: Path, data: Path, images: int, split: str, size: int | None) -> tuple[dict[str, float], int, Any]:
    """Processor seconds of each part of an audit of a run on some images, how many these were, and the audit."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        loaded = load_run(run, on="cpu")
        shown = first_images(data, out / "images", loaded, images, split=split)
        model = run if size in (None, loaded.size) else as_weights(loaded, out / "models", size=size)
        spent, before = defaultdict[str, float](float), time.process_time()
        with clocked(spent):
            document = audits.audit(model, shown, out / "audit")
        whole = time.process_time() - before
    inside = [name for name in spent if name not in (DOOR, REST)]
    figures = whole - spent[DOOR] - spent[REST]
    rest = spent[REST] - sum(spent[name] for name in inside)
    parts = {DOOR: spent[DOOR], **{name: spent[name] for name in inside}, REST: rest, FIGURES: figures}
    return parts, document.data.n or 0, document


def whole_of(parts: dict[str, float], count: int, images: int, batch: int, cores: int) -> tuple[float, float]:
    """Seconds of an audit of so many images, from those of `count`: on one core; on several, batches side by side."""
    each = sum(seconds for name, seconds in parts.items() if name not in (DOOR, FIGURES)) / count
    fixed = parts.get(DOOR, 0.0) + parts.get(FIGURES, 0.0) * images / count
    turns = math.ceil(math.ceil(images / batch) / cores)
    return fixed + images * each, fixed + min(images, turns * batch) * each


def say(parts: dict[str, float], count: int, asked: argparse.Namespace, batch: int) -> None:
    """Print what was measured, and what it comes to."""
    for name, seconds in parts.items():
        per_image = "" if name == DOOR else f", {seconds / count:6.3f} s an image"
        print(f"  {name:42} {seconds:7.1f} s{per_image}")
    one, several = whole_of(parts, count, asked.images, batch, asked.cores)
    print(f"  the whole, of {asked.images} images: {one / 60:.1f} min of one core; on {asked.cores} cores "
          f"{several / 60:.1f} min")  # fmt: skip


def measure_a_run(asked: argparse.Namespace) -> None:
    """An audit of a run on some images, part by part."""
    torch.set_num_threads(1)
    parts, count, document = of_an_audit(asked.run, asked.data, asked.images, asked.split, asked.size)
    left = {f"{row.attack} {row.epsilon:g}": f"{row.accuracy.value or 0:.1%}" for row in document.attacks}
    clean = f"{document.clean.accuracy.value or 0:.1%}"
    print(f"{document.model.name} on {count} images of {asked.split}: clean {clean}, left under attack {left}")
    say(parts, count, asked, load_exam().batch_size)


def measure_the_worst(asked: argparse.Namespace) -> None:
    """A network that nothing breaks."""
    exam, side = load_exam(), asked.size or 96
    batch = asked.batch or exam.batch_size
    torch.manual_seed(0)
    model: nn.Module = factory.build(asked.model, classes=3, weights="none").eval()
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(batch, 1, side, side).contiguous(memory_format=torch.channels_last)
    torch.set_num_threads(1)
    print(f"{asked.model}, {side} pixels, batches of {batch}, torch {torch.__version__}; images that never break:")
    found = {name: seconds * batch for name, seconds in by_attack(make_fused_copy(model, images), exam, images).items()}
    say(found, batch, asked, batch)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--data", type=Path, help="with a run: the images")
    parser.add_argument("--images", type=int, default=12, help="of each class, of --split, that the audit is timed on")
    parser.add_argument("--split", default="Val")
    parser.add_argument("--model", default="resnet18", help="without a run: a network with random weights")
    parser.add_argument("--size", type=int, help="side in pixels; the run's, or 96")
    parser.add_argument("--images", type=int, default=570, help="that the whole is reckoned for")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--batch", type=int, help="without a run: images of a batch; those of exam-1 unless said")
    asked = parser.parse_args()
    if asked.run and not asked.data:
        parser.error("with a run, say --data PATH")
    (measure_a_run if asked.run else measure_the_worst)(asked)


if __name__ == "__main__":
    main()
