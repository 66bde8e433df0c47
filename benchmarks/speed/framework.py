"""What the framework costs: an epoch of training against a bare loop, `evaluate` against the bare attacks, in one run.

python -m benchmarks.speed.framework [--model resnet18] [--size 96] [--images 1024] [--batch 32] [--epochs 3] [--out F]

Goals: an epoch through `trustcxr train` at most 1.05 bare epochs; `evaluate` at most 1.1 times its attacks.
The bare loop does the same mathematics: the same batches off the same pixel store, the same augmentation, loss, Adam
and schedule, and the same validation, without Lightning, checkpoints, tables or progress. After each step of ours it
does the same step, in the same process, so that both have the same machine whatever else it does; both ends must agree:
the last loss is printed. The bare attacks are FGSM and PGD-20 on every image, with the clean and the perturbed answers;
they, `evaluate`'s table of them and the whole command, which describes everything with intervals and writes it, take
turns; so does the command on the same images with lung masks, where it also hides the lungs in eleven ways. Both the
network of the first part and one trained with FGSM are evaluated: PGD stops at an image that is answered wrongly, so
that what is fixed weighs more where a network holds out less. Medians of processor time. What an epoch has beside its
steps (checkpoint, best weights, their checksums, tables) is the same for a small epoch and a large one, so it is
printed apart, and counted on for epochs of real data.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from trustcxr import attacks, console
from trustcxr.attacks import preserve_state
from trustcxr.data import load_dataset
from trustcxr.data.dataset import Dataset
from trustcxr.data.loader import Batch, augment, loader, to_pixels
from trustcxr.data.phantom import write_files
from trustcxr.defences import base
from trustcxr.evaluation import predictions
from trustcxr.evaluation.trained_run import load_run
from trustcxr.models import factory
from trustcxr.recipes.evaluation_recipe import AttackRecipe
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.runs import run_folder
from trustcxr.storage import atomic
from trustcxr.training import fit_run
from trustcxr.training.step import TrainingStep

EPSILON, STEPS = 0.02, 20
EASY = 3.0  # lesions that few epochs teach, so that PGD has something to take
_SAID: list[str] = []
MOST_TRAINING, MOST_EVALUATION = 1.05, 1.1
_PAGE = """# What the framework costs

`python -m benchmarks.speed.framework {typed}`, on synthetic images, one thread, processor time.
What is compared takes turns on one machine, whatever else that does: its load stands in the first line. Research
software. Not for diagnosis."""
REAL = {"covidqu-midi": 3616, "COVID-QU-Ex": 21_709}


def tell(line: str) -> None:
    """A line of the result, printed and kept for the page."""
    print(line, flush=True)
    _SAID.append(line)


def recipe(given: argparse.Namespace, epochs: int, defence: str = "standard") -> RunRecipe:
    content = {
        "defence": {"name": defence},
        "model": {"name": given.model, "weights": "none"},
        "data": {"size": given.size},
        "training": {"epochs": epochs, "batch_size": given.batch, "patience": 100, "warmup_epochs": 0},
    }
    return validate(RunRecipe, content, "benchmark")


def pixels(images: Tensor) -> Tensor:
    return to_pixels(images).contiguous(memory_format=torch.channels_last)


@dataclass
class Epoch:
    """Processor seconds of one epoch: of each step, and of what comes after the last, by ours and by the bare loop."""

    ours: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    our_end: float = 0.0
    bare_end: float = 0.0


class Bare:
    """The same training with nothing around it, a step at a time."""

    def __init__(self, how: RunRecipe, train: Dataset, val: Dataset) -> None:
        self.how, self.val, self.at, self.losses = how, val, 0, list[float]()
        torch.manual_seed(how.seed)
        self.model = factory.build(how.model.name, classes=len(train.classes), weights="none")
        self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        batch = how.training.batch_size
        self.batches = loader(train, batch, shuffle=True, seed=how.seed, drop_last=True)
        step = TrainingStep(self.model, how, classes=len(train.classes), steps_per_epoch=len(self.batches))
        made = step.configure_optimizers()  # Adam and the schedule, as objects of torch alone
        self.optimiser, self.schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
        self.left: Iterator[Batch] = iter(())

    def begin(self, epoch: int) -> None:
        """The batches of an epoch."""
        self.model.train()
        self.losses = []
        self.batches.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        self.left = iter(self.batches)

    def step(self) -> None:
        """The next batch."""
        images, labels, _ = next(self.left)
        generator = torch.Generator().manual_seed((self.how.seed + 1) * 1_000_003 + self.at)
        changed = augment(to_pixels(images), generator, **self.how.training.augment.model_dump())
        loss, _ = base.standard(self.model, changed.contiguous(memory_format=torch.channels_last), labels)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        self.losses.append(float(loss.detach()))
        self.at += 1

    def validate(self) -> None:
        """All validation images."""
        with torch.no_grad(), preserve_state(self.model):
            sum(float((self.model(pixels(x)).argmax(1) == labels).sum()) for x, labels, _ in loader(self.val, 64))


def paired(how: RunRecipe, train: Dataset, val: Dataset, folder: Path) -> list[Epoch]:
    """Epochs of `training.fit`, and after each of its steps the same step of the bare loop.

    So both have the same machine, whatever else it does. A step of ours goes from the end of the one before to the end
    of its last hook.
    """
    bare, epochs = Bare(how, train, val), list[Epoch]()
    mark = [0.0]
    begin, end = TrainingStep.on_train_epoch_start, TrainingStep.on_train_batch_end

    def close() -> None:
        if epochs:
            epochs[-1].our_end = time.process_time() - mark[0]
            epochs[-1].bare_end = timed(bare.validate)[1]

    def on_train_epoch_start(self: TrainingStep) -> None:
        close()
        epochs.append(Epoch())
        bare.begin(len(epochs) - 1)
        mark[0] = time.process_time()
        begin(self)

    def on_train_batch_end(self: TrainingStep, *given: object) -> None:
        end(self, *given)
        epochs[-1].ours.append(time.process_time() - mark[0])
        epochs[-1].bare.append(timed(bare.step)[1])
        mark[0] = time.process_time()

    TrainingStep.on_train_epoch_start = on_train_epoch_start  # type: ignore[method-assign]
    TrainingStep.on_train_batch_end = on_train_batch_end  # type: ignore[method-assign]
    try:
        fit_run.fit(how, train, val, folder)
    finally:
        TrainingStep.on_train_epoch_start, TrainingStep.on_train_batch_end = begin, end  # type: ignore[method-assign]
    close()
    loss = atomic.read_table(folder / "history.csv")["train_loss"].iloc[-1]
    tell(f"  loss of the last epoch: trustcxr {loss:.6f}, bare {statistics.fmean(bare.losses):.6f}")
    return epochs


def report_training(epochs: list[Epoch], batch: int) -> None:
    """The cost of a step, of what comes after the last, and of an epoch as large as these and as real ones are."""
    ratios = [o / b for epoch in epochs for o, b in zip(epoch.ours, epoch.bare, strict=True)]
    ours, bare = (statistics.median(t for e in epochs for t in getattr(e, name)) for name in ("ours", "bare"))
    our_end, bare_end = (statistics.median(getattr(e, name) for e in epochs) for name in ("our_end", "bare_end"))
    low, middle, high = statistics.quantiles(ratios, n=4)
    tell("an epoch of training, validation and all, in processor time")
    tell(f"  a step: bare {bare:.3f} s, trustcxr {ours:.3f} s; cost {middle:.3f} (quartiles {low:.3f} to {high:.3f})")
    tell(f"  after the last step: bare {bare_end:.2f} s, trustcxr {our_end:.2f} s")
    whole = [(sum(e.ours) + e.our_end) / (sum(e.bare) + e.bare_end) for e in epochs]
    judge("cost", statistics.median(whole), MOST_TRAINING, f" of these epochs of {len(epochs[0].ours) * batch} images")
    for name, images in REAL.items():  # validation grows with the training images
        count, more = images // batch, images / (len(epochs[0].ours) * batch)
        extra = our_end - bare_end  # a checkpoint is as large for any number of images
        cost = (count * bare * middle + bare_end * more + extra) / (count * bare + bare_end * more)
        tell(f"  counted on for an epoch of {name} ({images:,} images): {cost:.3f}")


def judge(what: str, value: float, most: float, where: str = "") -> None:
    tell(f"  {what} {value:.3f}{where}: {'met' if value <= most else 'MISSED'} (<= {most})")


def report_evaluation(turns: dict[str, list[tuple[float, float]]], images: int) -> None:
    """Images a second, and the cost of the table and of the whole command in bare attacks."""
    bare, table, whole = (statistics.median(t[1] for t in turns[name]) for name in ("bare", "table", "whole"))
    tell(f"  bare {images / bare:.2f} images/s, trustcxr {images / table:.2f}, the whole command {images / whole:.2f}")
    ratios = {
        name: statistics.median(o[1] / b[1] for o, b in zip(turns[name], turns["bare"], strict=True)) for name in turns
    }
    judge("cost", ratios["table"], MOST_EVALUATION, " of the table")
    judge("cost", ratios["whole"], MOST_EVALUATION, " of the whole command, all figures with their intervals")
    tell(f"  cost {ratios['beside']:.3f} of it where there are lung masks: it hides the lungs in eleven ways too")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def without_masks(images: Dataset) -> Path:
    """The same images as a folder for each class: there are no views without the lungs to judge then."""
    folder = images.root.parent / "without-masks"
    for number, (path, label) in enumerate(zip(images.table["path"], images.labels, strict=True)):
        place = folder / images.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(images.root / path, place / f"{number:04d}.png")
    return folder


def evaluation(folder: Path, radiographs: Dataset, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """FGSM and PGD-20 on every image, with all answers: bare, `evaluate`'s table of them, and the whole command."""
    run = load_run(folder)
    run.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    asked = [
        validate(AttackRecipe, {"name": "fgsm", "epsilons": [EPSILON]}, "fgsm"),
        validate(AttackRecipe, {"name": "pgd", "epsilons": [EPSILON], "steps": STEPS}, "pgd"),
    ]

    def bare() -> None:
        for number, (images, labels, _) in enumerate(loader(radiographs, 64)):
            clean = pixels(images)
            options = {"epsilon": EPSILON, "steps": STEPS, "seed": number, "stop_when_wrong": True}
            found = [clean, attacks.fgsm(run.model, clean, labels, epsilon=EPSILON)]
            found.append(attacks.pgd(run.model, clean, labels, **options))  # type: ignore[arg-type]
            with torch.inference_mode(), preserve_state(run.model):
                for version in found:
                    run.model(version)

    def whole(data: Path) -> None:
        place = folder.parent / "evaluated"
        shutil.rmtree(place, ignore_errors=True)
        run_folder.evaluate(folder, data, epsilons=[EPSILON], steps=STEPS, out=place)

    found = list[pd.DataFrame]()
    turns: dict[str, list[tuple[float, float]]] = {"bare": [], "table": [], "whole": [], "beside": []}
    plain = without_masks(radiographs)
    for _ in range(rounds):
        turns["bare"].append(timed(bare))
        turns["table"].append(timed(lambda: found.append(predictions.predict(run, radiographs, asked, views=False))))
        turns["whole"].append(timed(lambda: whole(plain)))
        turns["beside"].append(timed(lambda: whole(radiographs.root)))
    right = found[-1].assign(right=np.stack(found[-1]["logits"].to_list()).argmax(1) == found[-1]["label"])
    shares = right.groupby("attack", sort=False)["right"].mean()
    tell("  right: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items()))
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--images", type=int, default=1024, help="to train on; a quarter as many to validate")
    parser.add_argument("--test", type=int, default=384, help="images to evaluate on")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3, help="the first warms up what both have")
    parser.add_argument("--rounds", type=int, default=3, help="turns of evaluation")
    parser.add_argument("--out", type=Path, help="a Markdown file for what is printed")
    given = parser.parse_args()
    if given.epochs < 2:
        parser.error("--epochs: at least 2, as the first warms up what both have and is left out")
    torch.set_num_threads(1)
    console.redirect(lambda _: None)
    with tempfile.TemporaryDirectory() as work:
        counts = {"Train": -(-given.images // 3), "Val": -(-given.images // 12), "Test": -(-given.test // 3)}
        data = write_files.write(Path(work) / "images", counts, size=given.size, conspicuity=EASY)
        train, val, test = (
            load_dataset(data, split=split, size=given.size, cache=Path(work) / "cache", workers=1) for split in counts
        )
        how = recipe(given, epochs=given.epochs)
        tell(
            f"{given.model}, {given.size} pixels, batches of {given.batch}, {len(train)} images an epoch, one thread, "
            f"{given.epochs} epochs, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
        )
        report_training(paired(how, train, val, Path(work) / "run")[1:], given.batch)
        fit_run.fit(recipe(given, epochs=given.epochs, defence="fgsm"), train, val, Path(work) / "robust")
        for folder, kind in (("run", "standard"), ("robust", "trained with FGSM")):
            tell(f"evaluate, FGSM and PGD-20 of {len(test)} images, in processor time; {kind}")
            report_evaluation(evaluation(Path(work) / folder, test, given.rounds), len(test))
    if given.out:
        page = _PAGE.format(typed=" ".join(sys.argv[1:]))
        lines = "\n".join(f"    {line}" for line in _SAID)
        given.out.write_text(f"{page}\n\n{lines}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
