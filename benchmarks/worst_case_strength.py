"""Compare the worst case with torchattacks' suite and with PGD of 60 steps and restarts, image by image.

`python -m benchmarks.worst_case_strength --run FOLDER --run FOLDER --data IMAGES` does it on 200 images with honest
robust networks. Without `--run` it trains a tiny robust network on synthetic images, to try the script.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.masked_models import SmallNetwork
from trustcxr.attacks import pgd, worst_case
from trustcxr.data import load_dataset
from trustcxr.data.loader import to_pixels
from trustcxr.data.phantom import write_files
from trustcxr.evaluation.trained_run import load_run
from trustcxr.registry import WORST_CASE, format_attack

HEADER = ("network", "attack", "right", "broken", "broken by it alone", "left but broken by another", "seconds")
PGD_STEPS = 60
Attack = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    """Print a line for each network and attack, separated by tabs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", default=[], type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", default="Test")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--epsilon", type=float, default=0.02)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--restarts", type=int, default=5)
    options = parser.parse_args()
    if options.run and options.data is None:
        parser.error("--run needs --data")
    print("\t".join(HEADER))
    for name, model, images, labels in _open_networks(options):
        suites = list_suites(model, options)
        for row in compare_suites(model, images, labels, suites):
            print(name, *row, sep="\t", flush=True)


def _open_networks(options: argparse.Namespace) -> Iterator[tuple[str, nn.Module, Tensor, Tensor]]:
    """Yield each network with the images that it classifies rightly, spread evenly over the split."""
    for folder in options.run:
        run = load_run(folder)
        dataset = load_dataset(options.data, options.split, run.size, classes=run.classes)
        yield run.name, run.model, *_right_images(run.model, *_read(dataset), options.images)
    if not options.run:
        with tempfile.TemporaryDirectory() as folder:
            root = write_files.write(Path(folder) / "images", {"Train": 60, "Test": 40}, size=32)
            model = fit_robust_network(*_read(load_dataset(root, "Train", 32)), epsilon=options.epsilon)
            yield "tiny", model, *_right_images(model, *_read(load_dataset(root, "Test", 32)), options.images)


def _read(dataset: "object") -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(dataset.batch(np.arange(len(dataset))))  # type: ignore[attr-defined,arg-type]
    return to_pixels(images), torch.from_numpy(np.asarray(dataset.labels)).long()  # type: ignore[attr-defined]


def _right_images(model: nn.Module, images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    rows = torch.cat([find_right(model, images, labels)]).nonzero()[:, 0]
    chosen = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]
    return images[chosen], labels[chosen]


def fit_robust_network(images: Tensor, labels: Tensor, *, epsilon: float, epochs: int = 12) -> nn.Module:
    """Train a tiny network on PGD images of 5 steps; evaluation mode."""
    torch.manual_seed(0)
    net = SmallNetwork(images.shape[-1], int(labels.max()) + 1).train()
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    for epoch in range(epochs):
        for number, rows in enumerate(torch.randperm(len(images)).split(32)):
            seed = 1000 * epoch + number
            attacked = pgd(net, images[rows], labels[rows], epsilon=epsilon, steps=5, seed=seed)
            optimiser.zero_grad()
            F.cross_entropy(net(attacked), labels[rows]).backward()
            optimiser.step()
    return net.eval().requires_grad_(False)


def list_suites(model: nn.Module, options: argparse.Namespace) -> dict[str, list[Attack]]:
    """Return the suites by name. AutoAttack's standard version fails below four classes, so its parts are run."""
    import torchattacks

    at, steps, queries = {"eps": options.epsilon}, options.steps, options.queries
    worst = format_attack(WORST_CASE, steps, queries)
    strength = {"epsilon": options.epsilon, "steps": steps, "queries": queries}
    climb = {"epsilon": options.epsilon, "steps": PGD_STEPS, "restarts": options.restarts}

    def fab(images: Tensor, labels: Tensor) -> Tensor:
        count = model(images[:1]).shape[1]
        return torchattacks.FAB(model, steps=steps, n_classes=count, multi_targeted=True, **at)(images, labels)

    return {
        worst: [lambda x, y: worst_case(model, x, y, **strength)],
        f"torchattacks {steps}/{queries}": [
            torchattacks.APGD(model, steps=steps, loss="ce", **at),
            fab,
            torchattacks.Square(model, n_queries=queries, **at),
        ],
        f"PGD-{PGD_STEPS}, {options.restarts} starts": [lambda x, y: pgd(model, x, y, **climb)],
    }


def compare_suites(
    model: nn.Module, images: Tensor, labels: Tensor, suites: dict[str, list[Attack]]
) -> Iterator[tuple[object, ...]]:
    """Yield a row for each suite: images that it broke, that it alone broke, and that it left but another broke."""
    broken, spent = dict[str, Tensor](), dict[str, float]()
    for name, suite in suites.items():
        start, left = time.perf_counter(), torch.ones(len(images), dtype=torch.bool)
        for attack in suite:
            left &= find_right(model, attack(images, labels), labels)
        broken[name], spent[name] = ~left, time.perf_counter() - start
        print(f"{name}: {int(left.sum())} of {len(images)} left", file=sys.stderr)
    for name, own in broken.items():
        others = torch.stack([other for key, other in broken.items() if key != name])
        alone, left_alone = int((own & ~others.any(0)).sum()), int((~own & others.any(0)).sum())
        yield name, len(images), int(own.sum()), alone, left_alone, f"{spent[name]:.1f}"


def find_right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return which images (N, 1, H, W) are answered rightly, (N,); torchattacks may have left the model in training."""
    with torch.no_grad():
        return torch.cat([model.eval()(part).argmax(1) for part in images.split(64)]) == labels


if __name__ == "__main__":
    main()
