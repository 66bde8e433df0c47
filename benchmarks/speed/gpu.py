"""On one card: images a second of a standard and an FGSM step, waiting for data, and hours that `paper` would take.

python -m benchmarks.speed.gpu [--data FOLDER] [--batch 64] [--seconds 20] [--dry-run]

ResNet50 and EfficientNetV2S at 224 pixels in bf16, off the pixel store, as `trustcxr train` makes its steps. Without
`--data` synthetic images are drawn. Goals: waiting for data under 5 %; `paper` under 3 hours on an H100.
`--dry-run` does a handful of small steps on the processor, to show that all of it works; its figures are of nothing.
The hours are counted from the steps that were measured: every network by the faster of the two that are timed, scaled
by its work in a forward pass, for as many epochs as the recipe says at most, and every attack of its tests by the
gradients that it takes. Early stopping makes it less; corruptions, explaining and validation make it more.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trustcxr import attacks
from trustcxr.data import load_dataset
from trustcxr.data.dataset import Dataset
from trustcxr.data.layouts.folders import PUBLISHED
from trustcxr.data.loader import augment, loader, to_pixels
from trustcxr.data.phantom import write_files
from trustcxr.defences import adversarial, base
from trustcxr.models import factory
from trustcxr.recipes.study_recipe import StudyRecipe, load_study

TIMED = ("ResNet50", "EfficientNetV2S")
EPSILON, PGD_STEPS = 0.02, 20
TRAIN, TEST = 0.64, 0.2  # shares of COVID-QU-Ex, as published
WAITING, HOURS = 0.05, 3.0


def forever(batches: Any) -> Iterator[Any]:
    epoch = 0
    while True:
        batches.sampler.set_epoch(epoch)
        yield from batches
        epoch += 1


def speed(model: nn.Module, radiographs: Dataset, given: argparse.Namespace, defence: str) -> tuple[float, float]:
    """Images a second of training steps, and the share of the time spent waiting for the next batch."""
    device = next(model.parameters()).device
    optimiser = torch.optim.Adam(model.train().parameters(), lr=1e-4)
    batches = forever(loader(radiographs, given.batch, shuffle=True, drop_last=True))
    loss_of = partial(adversarial.fgsm, epsilon=EPSILON) if defence == "fgsm" else base.standard
    done, waited, began, number = 0, 0.0, 0.0, 0
    while number < 3 or time.perf_counter() - began < given.seconds:
        if number == 3:  # what is compiled and cached is there by now
            synchronise(device)
            done, waited, began = 0, 0.0, time.perf_counter()
        asked = time.perf_counter()
        images, labels, _ = next(batches)
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        waited += time.perf_counter() - asked
        x = augment(to_pixels(images), torch.Generator().manual_seed(number))
        x = x.contiguous(memory_format=torch.channels_last)
        optimiser.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss, _ = loss_of(model, x, labels)
        loss.backward()
        optimiser.step()
        float(loss.detach())  # as training does, which looks at every loss
        done, number = done + len(labels), number + 1
    synchronise(device)
    taken = time.perf_counter() - began
    return done / taken, waited / taken


def pgd_speed(model: nn.Module, radiographs: Dataset, given: argparse.Namespace) -> float:
    """Images a second of PGD-20 in full precision, as tests are."""
    device = next(model.parameters()).device
    images, labels, _ = next(iter(loader(radiographs, given.batch)))
    x, y = to_pixels(images.to(device)).contiguous(memory_format=torch.channels_last), labels.to(device)
    attacks.pgd(model, x, y, epsilon=EPSILON, steps=2)
    synchronise(device)
    began = time.perf_counter()
    attacks.pgd(model, x, y, epsilon=EPSILON, steps=PGD_STEPS)
    synchronise(device)
    return len(y) / (time.perf_counter() - began)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def work(name: str, size: int) -> float:
    """Multiplications and additions of a forward pass on one image, in thousands of millions."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = factory.build(name, classes=3, weights="none").eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 1, size, size))
    return counter.get_total_flops() / 1e9


def hours(study: StudyRecipe, rates: dict[str, dict[str, float]], works: dict[str, float]) -> float:
    """Hours of a study's trainings, to the last epoch, and of the attacks of its tests."""
    gradients = sum(len(attack.epsilons) * max(1, attack.effort) for attack in study.evaluation.attacks)
    images = sum(PUBLISHED["COVID-QU-Ex"].values())
    trained, tested = TRAIN * images * study.training.epochs, TEST * images * gradients / PGD_STEPS

    def rate(name: str, kind: str) -> float:  # images a second, by the timed network that does more work a second
        return max(rates[timed][kind] * works[timed] for timed in TIMED) / works[name]

    seconds = 0.0
    for model in study.models:
        seconds += trained / rate(model.name, "standard")
        seconds += tested / rate(model.name, "pgd")
    largest = sorted(study.models, key=lambda model: works[model.name])[-study.selection.count :]
    for model in largest:  # the most expensive ones, as long as nobody has chosen
        seconds += trained / rate(model.name, "fgsm")
        seconds += tested / rate(model.name, "pgd")
    return seconds * len(study.seeds) / 3600


def measure(images: Dataset, given: argparse.Namespace, device: torch.device) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name in TIMED:
        model: nn.Module = factory.build(name, classes=len(images.classes), weights="none").to(device)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        found[name] = {}
        for defence in ("standard", "fgsm"):
            found[name][defence], waiting = speed(model, images, given, defence)
            verdict = "met" if waiting < WAITING else "MISSED"
            print(
                f"{name:18} {defence:9} {found[name][defence]:9.1f} images/s, waiting for data {waiting:.1%} "
                f"({verdict}: < {WAITING:.0%})",
                flush=True,
            )
        found[name]["pgd"] = pgd_speed(model.eval(), images, given)
        print(f"{name:18} PGD-20    {found[name]['pgd']:9.1f} images/s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of X-rays; synthetic ones unless said")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--dry-run", action="store_true", help="a few small steps on the processor")
    given = parser.parse_args()
    if not given.dry_run and not torch.cuda.is_available():
        raise SystemExit("no card here: --dry-run shows that all of it works, on the processor")
    size, device = (32, torch.device("cpu")) if given.dry_run else (224, torch.device("cuda"))
    if given.dry_run:
        given.batch, given.seconds = 4, 0.0
    study = load_study("paper")
    works = {name: work(name, study.data.size) for name in {*TIMED, *(model.name for model in study.models)}}
    with tempfile.TemporaryDirectory() as folder:
        data = given.data or write_files.write(
            Path(folder) / "images", {"Train": 4 if given.dry_run else 700}, size=size
        )
        images = load_dataset(data, split="Train", size=size, cache=Path(folder) / "cache")
        where = (
            torch.cuda.get_device_name() if device.type == "cuda" else "DRY RUN on the processor, figures of nothing"
        )
        print(f"{where}; {size} pixels, bf16, batches of {given.batch}, torch {torch.__version__}")
        rates = measure(images, given, device)
    took = hours(study, rates, works)
    verdict = "" if given.dry_run else f" ({'met' if took < HOURS else 'MISSED'}: < {HOURS:g})"
    counts = f"{len(study.models)} networks and {study.selection.count} trained by FGSM"
    print(f"paper: {counts}, attacks on them included, to the last epoch: {took:.2f} h{verdict}")


if __name__ == "__main__":
    main()
