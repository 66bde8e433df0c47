"""What the framework costs: an epoch of training against a bare loop, `evaluate` against the bare attacks, in one run.

taskset -c 0 python -m benchmarks.speed.framework [--model resnet18] [--size 96] [--images 2048] [--batch 32]
                                [--rounds 5]

Goals: an epoch through `trustcxr train` at most 1.05 bare epochs; `evaluate` at most 1.1 times its attacks.
The bare loop does the same mathematics: the same batches off the same pixel store, the same augmentation, loss, Adam
and schedule, and the same validation, without Lightning, checkpoints, tables or progress. The bare attacks are FGSM and
PGD-20 on every image, with the clean and the perturbed answers. What is compared takes turns; medians of processor
time, which what else a machine does touches less than wall time, and of wall time. Both ends must agree: the last loss
is printed. What an epoch has beside its steps (checkpoint, best weights, their checksums, tables) is the same for a
small epoch and a large one, so it is printed apart: `--images` should be as many as an epoch really has.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from trustcxr import attacks, console
from trustcxr.attacks import undisturbed
from trustcxr.data import load_dataset
from trustcxr.data.batches import Batch, augment, loader, to_pixels
from trustcxr.data.dataset import Dataset
from trustcxr.data.phantom import writing
from trustcxr.defences import contract
from trustcxr.evaluation import predictions
from trustcxr.evaluation.run import load_run
from trustcxr.models import factory
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.testing import AttackRecipe
from trustcxr.recipes.validation import validate
from trustcxr.results import files
from trustcxr.training import loop
from trustcxr.training.step import TrainingStep

EPSILON, STEPS = 0.02, 20
Times = dict[str, list[tuple[float, float]]]


def recipe(given: argparse.Namespace, epochs: int) -> RunRecipe:
    content = {
        "model": {"name": given.model, "weights": "none"},
        "data": {"size": given.size},
        "training": {"epochs": epochs, "batch_size": given.batch, "patience": 100, "warmup_epochs": 0},
    }
    return validate(RunRecipe, content, "benchmark")


def pixels(images: Tensor) -> Tensor:
    return to_pixels(images).contiguous(memory_format=torch.channels_last)


def bare_epochs(how: RunRecipe, train: Dataset, val: Dataset) -> tuple[list[tuple[float, float]], list[float]]:
    """Wall and processor seconds of each epoch of a loop with nothing around it, and processor seconds of its steps.

    It prints its last mean loss.
    """
    training = how.training
    torch.manual_seed(how.seed)
    model = factory.build(how.model.name, classes=len(train.classes), weights="none")
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = loader(train, training.batch_size, shuffle=True, seed=how.seed, drop_last=True)
    step = TrainingStep(model, how, classes=len(train.classes), steps_per_epoch=len(batches))
    made = step.configure_optimizers()  # Adam and the schedule, as objects of torch alone
    optimiser, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    model.train()
    taken, at = [], 0
    steps: list[float] = []
    for epoch in range(training.epochs):
        wall, processor, losses = time.perf_counter(), time.process_time(), 0.0
        batches.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        marks = []
        for images, labels, _ in batches:
            marks.append(time.process_time())
            first = (how.seed + 1) * 1_000_003 + at
            generator = torch.Generator().manual_seed(first)
            changed = augment(to_pixels(images), generator, **training.augment.model_dump())
            loss, _ = contract.standard(model, changed.contiguous(memory_format=torch.channels_last), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses, at = losses + float(loss.detach()), at + 1
        steps += [after - before for before, after in itertools.pairwise(marks)]
        validated(model, loader(val, 64))
        taken.append((time.perf_counter() - wall, time.process_time() - processor))
    print(f"  bare, loss of the last epoch     {losses / len(batches):.6f}")
    return taken, steps


def validated(model: torch.nn.Module, batches: DataLoader) -> float:
    with torch.no_grad(), undisturbed(model):
        return sum(float((model(pixels(images)).argmax(1) == labels).sum()) for images, labels, _ in batches)


def our_epochs(
    how: RunRecipe, train: Dataset, val: Dataset, folder: Path
) -> tuple[list[tuple[float, float]], list[float]]:
    """The same through `training.fit`: epochs from the beginning of one to that of the next, steps likewise."""
    marks: list[tuple[float, float]] = []
    began: list[list[float]] = []
    real, real_step = TrainingStep.on_train_epoch_start, TrainingStep.training_step

    def mark(self: TrainingStep) -> None:
        marks.append((time.perf_counter(), time.process_time()))
        began.append([])
        real(self)

    def step(self: TrainingStep, batch: Batch, number: int) -> Tensor:
        began[-1].append(time.process_time())
        return real_step(self, batch, number)

    TrainingStep.on_train_epoch_start = mark  # type: ignore[method-assign]
    TrainingStep.training_step = step  # type: ignore[method-assign,assignment]
    try:
        loop.fit(how, train, val, folder)
    finally:
        TrainingStep.on_train_epoch_start, TrainingStep.training_step = real, real_step  # type: ignore[method-assign]
    marks.append((time.perf_counter(), time.process_time()))
    loss = files.read_table(folder / "history.csv")["train_loss"].iloc[-1]
    print(f"  trustcxr, loss of the last epoch {loss:.6f}")
    steps = [after - before for epoch in began for before, after in itertools.pairwise(epoch)]
    return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(marks)], steps


def medians(times: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)


def report(
    title: str, bare: list[tuple[float, float]], ours: list[tuple[float, float]], images: int, most: float
) -> None:
    (wall, processor), (our_wall, our_processor) = medians(bare), medians(ours)
    ratio = our_processor / processor
    print(f"{title}")
    print(f"  bare     {images / processor:8.1f} images/s of processor time, {images / wall:8.1f} of wall time")
    print(f"  trustcxr {images / our_processor:8.1f} images/s of processor time, {images / our_wall:8.1f} of wall time")
    print(f"  cost {ratio:.3f} (wall {our_wall / wall:.3f}): {'met' if ratio <= most else 'MISSED'} (<= {most})")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def evaluation(
    folder: Path, films: Dataset, rounds: int
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """FGSM and PGD-20 on every image, with all answers: bare, and the table that `evaluate` makes of them."""
    run = load_run(folder)
    run.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    asked = [
        validate(AttackRecipe, {"name": "fgsm", "epsilons": [EPSILON]}, "fgsm"),
        validate(AttackRecipe, {"name": "pgd", "epsilons": [EPSILON], "steps": STEPS}, "pgd"),
    ]

    def bare() -> None:
        for number, (images, labels, _) in enumerate(loader(films, 64)):
            clean = pixels(images)
            options = {"epsilon": EPSILON, "steps": STEPS, "seed": number, "stop_when_wrong": True}
            found = [clean, attacks.fgsm(run.model, clean, labels, epsilon=EPSILON)]
            found.append(attacks.pgd(run.model, clean, labels, **options))  # type: ignore[arg-type]
            with torch.inference_mode(), undisturbed(run.model):
                for version in found:
                    run.model(version)

    turns: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
    for _ in range(rounds):
        turns[0].append(timed(bare))
        turns[1].append(timed(lambda: predictions.predict(run, films, asked, views=False)))
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--images", type=int, default=2048, help="to train on; a quarter as many to validate and test")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    console.tell(lambda _: None)
    with tempfile.TemporaryDirectory() as work:
        counts = {"Train": -(-given.images // 3), "Val": -(-given.images // 12), "Test": -(-given.images // 12)}
        data = writing.write(Path(work) / "films", counts, size=given.size)
        train, val, test = (
            load_dataset(data, split=split, size=given.size, cache=Path(work) / "cache", workers=1) for split in counts
        )
        how = recipe(given, epochs=3)
        print(
            f"{given.model}, {given.size} pixels, batches of {given.batch}, {len(train)} images an epoch, one thread, "
            f"{given.rounds} rounds of 3 epochs, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
        )
        bare: list[tuple[float, float]] = []
        ours: list[tuple[float, float]] = []
        bare_steps: list[float] = []
        our_steps: list[float] = []
        for number in range(given.rounds):
            epochs, steps = bare_epochs(how, train, val)
            bare, bare_steps = bare + epochs[1:], bare_steps + steps  # the first warms up what both have
            epochs, steps = our_epochs(how, train, val, Path(work) / f"run{number}")
            ours, our_steps = ours + epochs[1:], our_steps + steps
        a_step, our_step = statistics.median(bare_steps), statistics.median(our_steps)
        count = len(train) // given.batch
        beside = [medians(times)[1] - count * step for times, step in ((bare, a_step), (ours, our_step))]
        print(
            f"a step: bare {a_step:.3f} s, trustcxr {our_step:.3f} s of processor time, cost {our_step / a_step:.3f}; "
            f"beside its {count} steps an epoch takes bare {beside[0]:.2f} s, trustcxr {beside[1]:.2f} s"
        )
        report("an epoch of training, validation and all", bare, ours, len(train), 1.05)
        report("evaluate, FGSM and PGD-20", *evaluation(Path(work) / "run0", test, given.rounds), len(test), 1.1)


if __name__ == "__main__":
    main()
