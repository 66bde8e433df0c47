"""Try MeanSparse (Amini et al. 2024) on a trained run, and attack it adaptively. A trial, no part of the package.

python -m benchmarks.mean_sparse RUN --data DATA [--alphas 0.1 0.2] [--split Val] [--table FILE]

Before each activation, a feature within alpha standard deviations of its channel's mean (of training images) becomes
that mean. This stops their gradient. So images are attacked in turn, each by what is left right:

- plain: PGD by the gradient as autograd has it;
- identity: the sparsification passes the gradient unchanged (BPDA);
- soft-S: the gradient of a smooth step at the threshold, S times as steep as the threshold is wide;
- base: the gradient of the network without the sparsification;
- square: random search without a gradient.

A row of the table has what all of them leave. Alphas are compared on the images that the figures are of, so the best of
them flatters.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.trials import TABLE, append_trial, percent, typed_command
from trustcxr import attacks
from trustcxr.data import load_dataset
from trustcxr.data.loader import to_pixels
from trustcxr.evaluation.trained_run import load_run
from trustcxr.statistics import paired

WAYS = ("plain", "identity", "soft-1", "soft-4", "soft-16", "base")
BATCH = 128


class Sparsify(nn.Module):
    """Replace features near their channel's mean by the mean; `way` chooses the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.way = 0.0, "plain"
        self.count = 0.0
        self.total: Tensor | None = None
        self.square: Tensor | None = None

    def measure(self, features: Tensor) -> None:
        """Add features (B, C, H, W) to the statistics of the channels."""
        flat = features.detach().double().transpose(0, 1).flatten(1)
        self.total = flat.sum(1) + (0 if self.total is None else self.total)
        self.square = flat.square().sum(1) + (0 if self.square is None else self.square)
        self.count += flat.shape[1]

    def forward(self, features: Tensor) -> Tensor:
        if not self.alpha or self.way == "base":
            return features
        assert self.total is not None
        assert self.square is not None
        mean = self.total / self.count
        threshold = self.alpha * (self.square / self.count - mean.square()).clamp(min=0).sqrt()
        mean, threshold = (value.float().view(1, -1, 1, 1) for value in (mean, threshold))
        offset = features - mean
        hard = torch.where(offset.abs() <= threshold, mean, features)
        if self.way == "plain":
            return hard
        smooth = features
        if self.way.startswith("soft"):
            scaled = (offset.abs() - threshold) / threshold.clamp(min=1e-6)
            smooth = mean + offset * torch.sigmoid(float(self.way.removeprefix("soft-")) * scaled)
        return smooth + (hard - smooth).detach()


def insert(model: nn.Module) -> list[Sparsify]:
    """Put a Sparsify before each ReLU of a model."""
    layers = []
    for module in [module for module in model.modules() if isinstance(module, nn.ReLU)]:
        layer = Sparsify()
        module.inplace = False
        module.register_forward_pre_hook(lambda _, inputs, layer=layer: (layer(inputs[0]),))
        layers.append(layer)
    return layers


def measure(model: nn.Module, layers: list[Sparsify], images: np.ndarray) -> None:
    """Measure means and spreads on training images."""
    hooks = [layer.register_forward_pre_hook(lambda layer, inputs: layer.measure(inputs[0])) for layer in layers]
    with torch.no_grad():
        for first in range(0, len(images), BATCH):
            model(to_pixels(torch.from_numpy(np.array(images[first : first + BATCH]))))
    for hook in hooks:
        hook.remove()


def is_right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return which images are answered correctly, (B,) bool."""
    with torch.no_grad():
        return model(images).argmax(1) == labels


def withstand(
    model: nn.Module,
    layers: list[Sparsify],
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int,
    queries: int,
) -> dict[str, Tensor]:
    """Return which images are right at first and after each attack, (B,) bool."""
    set_way(layers, "plain")
    right = is_right(model, images, labels)
    result = {"clean": right.clone()}
    for way in (*WAYS, "square"):
        if (rows := right.nonzero()[:, 0]).numel():
            if way == "square":
                adversarial = attacks.square(model, images[rows], labels[rows], epsilon=epsilon, queries=queries)
            else:
                set_way(layers, way)
                adversarial = attacks.pgd(model, images[rows], labels[rows], epsilon=epsilon, steps=steps)
                set_way(layers, "plain")
            right[rows] = is_right(model, adversarial, labels[rows])
        result[way] = right.clone()
    return result


def set_way(layers: list[Sparsify], way: str) -> None:
    for layer in layers:
        layer.way = way


def main() -> None:
    """Measure each alpha and write a row for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="Val")
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4])
    parser.add_argument("--epsilon", type=float, default=0.02)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--queries", type=int, default=300, help="of square")
    parser.add_argument("--most", type=int, default=0, help="images to measure; 0: all")
    parser.add_argument("--trial", default="mean-sparse")
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    run = load_run(options.run)
    model = run.model.eval().cpu().float()
    layers = insert(model)
    train = load_dataset(options.data, "Train", run.size, classes=run.classes)
    images = load_dataset(options.data, options.split, run.size, classes=run.classes)
    rows = np.random.default_rng(0).permutation(len(images))[: options.most or None]
    measure(model, layers, np.asarray(train.images))
    seed = str(run.recipe.seed)
    before: np.ndarray | None = None
    for alpha in options.alphas:
        for layer in layers:
            layer.alpha = alpha
        by_condition: dict[str, list[Tensor]] = {}
        for part in np.array_split(rows, -(-len(rows) // BATCH)):
            pixels, labels = to_pixels(torch.from_numpy(images.batch(part))), torch.from_numpy(images.labels[part])
            effort = {"steps": options.steps, "queries": options.queries}
            right = withstand(model, layers, pixels, labels, epsilon=options.epsilon, **effort)
            for name, values in right.items():
                by_condition.setdefault(name, []).append(values)
        correct = {name: torch.cat(values).numpy().astype(float) for name, values in by_condition.items()}
        lowest, groups = correct["square"], images.groups[rows]
        also = "right after " + ", ".join(f"{way} {100 * values.mean():.1f}" for way, values in correct.items())
        if before is not None:
            change = paired(before, lowest, groups)
            less, low, high = (f"{100 * value:+.1f}" for value in (change.difference, *change.difference_ci))
            also += f"; less alpha {options.alphas[0]:g}: {less} [{low}, {high}]"
        before = lowest if before is None else before
        row: dict[str, object] = {
            "study": "robust",
            "trial": f"{options.trial} {alpha:g}",
            "what": f"MeanSparse at alpha {alpha:g} on {run.name} ({run.folder.name})",
            "also": also,
            "seeds": seed,
            "n": len(rows),
            "attack": f"pgd-{options.steps} in {len(WAYS)} ways, square-{options.queries}",
            "epsilon": options.epsilon,
            "command": typed_command(),
        }
        row |= percent(correct["clean"], groups, "clean") | percent(lowest, groups, "attacked")
        append_trial(options.table, row)
        print(row["what"], also, flush=True)


if __name__ == "__main__":
    main()
