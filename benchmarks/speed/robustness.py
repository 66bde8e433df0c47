"""What robustness costs, as ratios in one run: an FGSM training step over a standard step, PGD-20 against torchattacks.

python benchmarks/speed/robustness.py [--model resnet18] [--size 96] [--batch 32] [--rounds 30] [--threads 1]
                                [--run RUN --data PATH]

Training step, goals: at most 1.65 standard steps; below 1.45 with the attack's pass in bf16, where there is bf16.
By arithmetic it is 5/3 where the attack computes no weight gradient: forward 1, input gradient 1, step 3, over 3.
PGD-20 evaluation of a standard model, goal: at least 3 times as fast as torchattacks, since broken images leave the
batch. The model is that of RUN, on test images of PATH; else one trained here for some seconds on made-up patterns,
which an attack does not always break. Both end with the accuracy that they found.

What is compared takes turns, so that whatever else the machine does falls on all of it; medians of wall and of
processor time.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr import attacks
from trustcxr.data import load_dataset
from trustcxr.data.loader import to_pixels
from trustcxr.defences import adversarial, base
from trustcxr.evaluation.trained_run import load_run
from trustcxr.models import factory

EPSILON = 0.02
WARM_UP = 3  # rounds that do not count
Times = dict[str, list[tuple[float, float]]]


def plain_fgsm(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """FGSM as tutorials write it: backward() fills the gradient of every weight too."""
    model.eval()
    leaf = images.clone().requires_grad_(True)
    F.cross_entropy(model(leaf), labels).backward()
    model.zero_grad()
    model.train()
    gradient = leaf.grad
    assert gradient is not None
    return (images + EPSILON * gradient.sign()).clamp(0, 1)


def losses(model: nn.Module) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The loss of one training step, by the way that the images are perturbed."""
    fgsm = adversarial.fgsm
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "standard": lambda x, y: base.standard(model, x, y)[0],
        "trustcxr fgsm": lambda x, y: fgsm(model, x, y, epsilon=EPSILON)[0],
        "trustcxr fgsm, attack in bf16": lambda x, y: fgsm(model, x, y, epsilon=EPSILON, attack_precision="bf16")[0],
        "plain backward()": lambda x, y: F.cross_entropy(model(plain_fgsm(model, x, y)), y),
    }
    try:
        import torchattacks
    except ImportError:
        print("torchattacks is not installed: pip install --no-deps torchattacks")
        return ways
    attack = torchattacks.FGSM(model, eps=EPSILON)
    return ways | {"torchattacks fgsm": lambda x, y: F.cross_entropy(model(attack(x, y)), y)}


def take_turns(ways: Mapping[str, Callable[[], object]], rounds: int, warm_up: int) -> Times:
    """Wall and processor seconds of each way, a round at a time."""
    taken: Times = {name: [] for name in ways}
    for number in range(rounds + warm_up):
        for name, way in ways.items():
            wall, processor = time.perf_counter(), time.process_time()
            way()
            if number >= warm_up:
                taken[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return taken


def medians(taken: Times) -> dict[str, tuple[float, float]]:
    """Median wall and processor seconds of each way."""
    return {n: (statistics.median(t[0] for t in ts), statistics.median(t[1] for t in ts)) for n, ts in taken.items()}


def training_step(model: nn.Module, images: Tensor, labels: Tensor, rounds: int) -> None:
    """Print what a training step costs, in standard steps."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        optimiser.zero_grad()
        loss(images, labels).backward()
        optimiser.step()

    ways = {name: (lambda loss=loss: step(loss)) for name, loss in losses(model.train()).items()}
    found = medians(take_turns(ways, rounds, WARM_UP))
    wall, processor = found["standard"]
    print("a training step")
    for name, (walls, processors) in found.items():
        print(
            f"  {name:30} {walls * 1000:7.1f} ms   {walls / wall:.2f} standard steps"
            f"   ({processors / processor:.2f} by processor time)"
        )


def patterns(count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (count, 1, size, size) of three classes, a faint smooth pattern for each under noise, and their labels."""
    shapes = torch.rand((3, 1, 6, 6), generator=torch.Generator().manual_seed(99)) - 0.5
    shapes = F.interpolate(shapes, size=(size, size), mode="bicubic")
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    noise = torch.randn((count, 1, size, size), generator=generator)
    return (0.5 + 0.2 * shapes[labels] + 0.1 * noise).clamp(0, 1), labels


def quickly_trained(model: nn.Module, size: int, batch: int) -> None:
    """Train the model on the patterns in the standard way."""
    optimiser = torch.optim.Adam(model.train().parameters(), lr=1e-3)
    for number in range(25):
        images, labels = patterns(batch, size, seed=number)
        optimiser.zero_grad()
        base.standard(model, images, labels)[0].backward()
        optimiser.step()
    model.eval()


def evaluation(model: nn.Module, images: Tensor, labels: Tensor, rounds: int) -> None:
    """Print what PGD-20 takes on a standard model, with the accuracy that it leaves."""
    accuracies: dict[str, float] = {}

    def judge(name: str, attack: Callable[[], Tensor]) -> None:
        found = attack()
        with torch.no_grad():
            accuracies[name] = float((model.eval()(found).argmax(1) == labels).float().mean())

    options = {"epsilon": EPSILON, "steps": 20}
    ways: dict[str, Callable[[], Tensor]] = {
        "trustcxr pgd": lambda: attacks.pgd(model, images, labels, stop_when_wrong=True, **options),  # type: ignore[arg-type]
        "trustcxr pgd, all 20 steps": lambda: attacks.pgd(model, images, labels, **options),  # type: ignore[arg-type]
    }
    try:
        import torchattacks
    except ImportError:
        pass
    else:
        theirs = torchattacks.PGD(model, eps=EPSILON, alpha=2.5 * EPSILON / 20, steps=20)
        ways["torchattacks pgd"] = lambda: theirs(images, labels)
    with torch.no_grad():
        clean = float((model(images).argmax(1) == labels).float().mean())
    turns = {name: (lambda name=name, way=way: judge(name, way)) for name, way in ways.items()}
    found = medians(take_turns(turns, rounds, 1))
    base = found.get("torchattacks pgd", found["trustcxr pgd, all 20 steps"])
    print(f"PGD-20 at {EPSILON:g} on {len(images)} images of a standard model (clean accuracy {clean:.1%})")
    for name, (wall, processor) in found.items():
        print(
            f"  {name:30} {wall:7.2f} s    {base[0] / wall:.1f} times as fast as "
            f"{'torchattacks' if 'torchattacks pgd' in found else 'all 20 steps'}"
            f"   ({base[1] / processor:.1f} by processor time)   accuracy {accuracies[name]:.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--run", type=Path, help="folder of a run that was trained in the standard way")
    parser.add_argument("--data", type=Path, help="its data")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model: nn.Module = factory.build(given.model, classes=3)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(given.batch, 1, given.size, given.size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 3, (given.batch,))
    print(
        f"{given.model}, {given.size} pixels, batch {given.batch}, channels_last, {given.rounds} rounds, "
        f"{given.threads} thread(s), torch {torch.__version__}"
    )
    training_step(model, images, labels, given.rounds)
    rounds = max(3, given.rounds // 10)
    if given.run is None:
        quickly_trained(model, given.size, given.batch)
        evaluation(model, *patterns(2 * given.batch, given.size, seed=1000), rounds)
    else:
        run = load_run(given.run)
        radiographs = load_dataset(given.data, split=run.recipe.data.splits.test, **run.recipe.data.reading())
        rows = torch.linspace(0, len(radiographs) - 1, min(len(radiographs), 4 * given.batch)).long().numpy()
        pixels = to_pixels(torch.from_numpy(radiographs.images[rows])).contiguous(memory_format=torch.channels_last)
        evaluation(run.model.eval(), pixels, torch.as_tensor(radiographs.labels[rows]), rounds)


if __name__ == "__main__":
    main()
