"""What an FGSM training step costs over a standard step. Target: at most 1.65.

python benchmarks/robustness.py [--model resnet18] [--size 96] [--batch 32] [--rounds 30] [--threads 1]

By arithmetic it is 5/3 where the attack computes no weight gradient: forward 1, input gradient 1, step 3, over 3.
The steps take turns, so that whatever else the machine does falls on all of them; medians of processor and wall time.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr import defences, models

EPSILON = 0.02


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
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "standard": lambda x, y: defences.standard(model, x, y)[0],
        "trustcxr fgsm": lambda x, y: defences.fgsm(model, x, y, epsilon=EPSILON)[0],
        "plain backward()": lambda x, y: F.cross_entropy(model(plain_fgsm(model, x, y)), y),
    }
    try:
        import torchattacks
    except ImportError:
        return ways
    attack = torchattacks.FGSM(model, eps=EPSILON)
    return ways | {"torchattacks fgsm": lambda x, y: F.cross_entropy(model(attack(x, y)), y)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model: nn.Module = models.build(given.model, classes=3).train()
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
    images = torch.rand(given.batch, 1, given.size, given.size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 3, (given.batch,))
    taken: dict[str, list[tuple[float, float]]] = {}
    ways = losses(model)
    for number in range(given.rounds + 3):
        for name, loss in ways.items():
            wall, processor = time.perf_counter(), time.process_time()
            optimiser.zero_grad()
            loss(images, labels).backward()
            optimiser.step()
            if number >= 3:  # the first rounds warm up
                spent = time.perf_counter() - wall, time.process_time() - processor
                taken.setdefault(name, []).append(spent)
    print(f"{given.model}, {given.size} pixels, batch {given.batch}, channels_last, {given.rounds} rounds, ", end="")
    print(f"{given.threads} thread(s), torch {torch.__version__}")
    walls, processors = ({n: statistics.median(t[k] for t in times) for n, times in taken.items()} for k in (0, 1))
    for name in taken:
        print(
            f"{name:18} {walls[name] * 1000:7.1f} ms   {walls[name] / walls['standard']:.2f} standard steps"
            f"   ({processors[name] / processors['standard']:.2f} by processor time)"
        )


if __name__ == "__main__":
    main()
