"""What `exam-1` costs: seconds of each attack for an image that nothing breaks, and the minutes of a whole audit.

    python benchmarks/speed/examination.py [--model resnet18] [--size 96] [--images 570] [--cores 2] [--batches 4]

No data are needed and nothing is trained: the labels are the network's own answers, and the radius is so small that no
image ever breaks, which is what costs the most: every attack then spends all of its steps and queries on every image.
So the minutes are those of a network that resists everything; of one of which attacks break a part it takes that much
less. First one batch on one core, attack by attack, in processor time; then as many batches as are asked for, one by
one with all cores on each operation, and side by side with a core for each batch, in wall time: on a machine that
others use too, the first line is the one to go by.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from trustcxr import attacks
from trustcxr.evaluation import side_by_side
from trustcxr.models import factory
from trustcxr.recipes.exam import ExamRecipe, load_exam
from trustcxr.recipes.testing import AttackRecipe

RADIUS = 1e-7


def attacked(model: nn.Module, recipe: AttackRecipe, images: Tensor, labels: Tensor, start: list[Tensor]) -> Tensor:
    """What an examination does for one attack at one radius."""
    options = dict(recipe.options())
    if recipe.entry.stops_when_wrong:
        options["stop_when_wrong"] = True
    if recipe.name == "worst-case":
        options["start"] = start
    return attacks.get(recipe.name)(model, images, labels, epsilon=RADIUS, **options)


def by_attack(model: nn.Module, exam: ExamRecipe, images: Tensor) -> dict[str, float]:
    """Processor seconds an image of each attack, at all of its radii, and of the films that went wrong."""
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
    return found | {"corruptions": (time.process_time() - before) / len(images)}


def whole(model: nn.Module, exam: ExamRecipe, images: Tensor) -> Callable[[int], None]:
    """One batch through all attacks."""

    def work(_: int) -> None:
        by_attack(model, exam, images)

    return work


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--images", type=int, default=570)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--batch", type=int, help="images of a batch; those of exam-1 unless said")
    parser.add_argument("--batches", type=int, default=4, help="of the two ways that are compared; 0: neither")
    asked = parser.parse_args()
    exam = load_exam()
    size = asked.batch or exam.batch_size
    torch.manual_seed(0)
    model: nn.Module = factory.build(asked.model, classes=3, weights="none").eval()
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(size, 1, asked.size, asked.size).contiguous(memory_format=torch.channels_last)
    torch.set_num_threads(1)
    found = by_attack(model, exam, images)
    print(
        f"{asked.model}, {asked.size} pixels, batches of {size}, torch {torch.__version__}; one core, processor time:"
    )
    for name, seconds in found.items():
        print(f"  {name:12} {seconds:6.3f} s an image that never breaks")
    each = sum(found.values())
    rounds = -(-asked.images // size)
    turns = -(-rounds // asked.cores)
    print(f"  all          {each:6.3f} s; {asked.images} such images: {each * asked.images / 60:.1f} min on one core")
    print(f"  {rounds} batches on {asked.cores} cores, side by side: {turns * size * each / 60:.1f} min")
    if not asked.batches:
        return
    torch.set_num_threads(asked.cores)
    for name, threads in (("one by one", 1), ("side by side", asked.cores)):
        before = time.perf_counter()
        list(side_by_side.mapped(whole(model, exam, images), range(asked.batches), threads=threads, model=model))
        taken = time.perf_counter() - before
        print(f"{asked.batches} batches {name} on {asked.cores} cores: {taken / asked.batches:.1f} s a batch")


if __name__ == "__main__":
    main()
