"""Try MixedNUTS (Bai et al. 2024): mix a standard and a robust network, and attack both as one. A trial.

python -m benchmarks.mixed_nuts --robust RUN [--robust RUN] --standard RUN --data DATA [--table FILE]

Several robust runs are an ensemble: the mean of their logits. The mix has the probabilities
(1 - share) * standard + share * softmax(f(robust logits)), where f makes confident answers still more confident:
f(z) = scale * sign(d) * |d| ** power with d = GELU(z - mean of z + offset). There is no layer normalisation: with three
classes it would remove how confident an answer is.

Half of the validation images (by group) choose share, scale, power and offset: the best clean accuracy among those that
lose at most --lose of the images that the robust network keeps under attack, if the standard one always answers wrong
with certainty. The other half, which chose nothing, is in the row.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.trials import TABLE, append_trial, percent, typed_command
from trustcxr import attacks
from trustcxr.data import load_dataset
from trustcxr.data.loader import to_pixels
from trustcxr.evaluation.trained_run import load_run
from trustcxr.statistics import paired

SCALES, POWERS, OFFSETS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0), (0.5, 1.0, 2.0, 3.0, 4.0), (-1.0, -0.5, 0.0, 0.5, 1.0)
SHARES = tuple(round(0.5 + 0.025 * number, 3) for number in range(1, 19))
BATCH, EPSILON, STEPS, QUERIES = 128, 0.02, 20, 100


class Mean(nn.Module):
    """The mean of the logits of several networks."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 1, H, W) in [0, 1] to logits (B, C)."""
        return torch.stack([model(images) for model in self.models]).mean(0)


def sharpen(logits: Tensor, scale: float, power: float, offset: float) -> Tensor:
    """Return the probabilities (B, C) of the robust network's logits, made more confident."""
    moved = F.gelu(logits - logits.mean(1, keepdim=True) + offset)
    return (scale * moved.sign() * (moved.abs() + 1e-12) ** power).softmax(1)


class Mixed(nn.Module):
    """The mix of a standard and a robust network."""

    def __init__(self, standard: nn.Module, robust: nn.Module, share: float, numbers: tuple[float, ...]) -> None:
        super().__init__()
        self.standard, self.robust, self.share, self.numbers = standard, robust, share, numbers

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 1, H, W) in [0, 1] to the logarithms of the mixed probabilities (B, C)."""
        sharp = sharpen(self.robust(images), *self.numbers)
        return ((1 - self.share) * self.standard(images).softmax(1) + self.share * sharp).clamp(min=1e-9).log()


def ask(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of all images."""
    with torch.no_grad():
        return torch.cat([model(part).float() for part in images.split(BATCH)])


def attack(model: nn.Module, images: Tensor, labels: Tensor, *, start: Tensor | None = None) -> Tensor:
    """Return the worst images of all attacks on the model."""
    batches, parts = images.split(BATCH), []
    starts: Sequence[Tensor | tuple[()]] = [()] * len(batches) if start is None else start.split(BATCH)
    for pixels, truth, before in zip(batches, labels.split(BATCH), starts, strict=True):
        options: dict[str, Any] = {"steps": STEPS, "queries": QUERIES, "start": before}
        parts.append(attacks.worst_case(model, pixels, truth, epsilon=EPSILON, **options))
    return torch.cat(parts)


def choose(standard: Tensor, robust: Tensor, attacked: Tensor, labels: Tensor, lose: float) -> tuple[float, ...]:
    """Return share, scale, power and offset, by logits (B, C) of clean images and of the robust one's attacked ones."""
    best: tuple[float, tuple[float, ...]] = (-1.0, ())
    usual, needed = standard.softmax(1), (attacked.argmax(1) == labels).float().mean() - lose
    for numbers in product(SCALES, POWERS, OFFSETS):
        clean, worst = sharpen(robust, *numbers), sharpen(attacked, *numbers)
        truth = worst.gather(1, labels[:, None])[:, 0]
        lead = truth - worst.scatter(1, labels[:, None], -1.0).amax(1)
        for share in SHARES:
            if (lead > (1 - share) / share).float().mean() < needed:
                continue
            right = (((1 - share) * usual + share * clean).argmax(1) == labels).float().mean()
            best = max(best, (float(right), (share, *numbers)))
    return best[1]


def main() -> None:
    """Choose on one half of the images, measure on the other, and write the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robust", type=Path, action="append", required=True)
    parser.add_argument("--standard", type=Path, action="append", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lose", type=float, default=0.01)
    parser.add_argument("--trial", default="MixedNUTS")
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    runs = {name: [load_run(folder) for folder in getattr(options, name)] for name in ("robust", "standard")}
    robust, standard = (Mean([run.model.eval().cpu().float() for run in group]) for group in runs.values())
    first = runs["robust"][0]
    data = load_dataset(options.data, "Val", first.size, classes=first.classes)
    images, labels = to_pixels(torch.from_numpy(data.batch(np.arange(len(data))))), torch.from_numpy(data.labels)
    half = torch.from_numpy(pd.factorize(data.groups)[0] % 2 == 0)
    attacked = attack(robust, images, labels)
    logits = {"standard": ask(standard, images), "robust": ask(robust, images), "attacked": ask(robust, attacked)}
    clean, sure, broken = (values[half] for values in logits.values())
    share, *numbers = choose(clean, sure, broken, labels[half], options.lose)
    mixed, rest = Mixed(standard, robust, share, tuple(numbers)), ~half
    worst = attack(mixed, images[rest], labels[rest], start=attacked[rest])
    answers = {"clean": ask(mixed, images[rest]), "attacked": ask(mixed, worst)}
    right = {name: (values.argmax(1) == labels[rest]).numpy().astype(float) for name, values in answers.items()}
    groups, also = data.groups[rest.numpy()], []
    for name, before in (("clean", logits["robust"]), ("attacked", logits["attacked"])):
        change = paired((before.argmax(1) == labels)[rest].numpy().astype(float), right[name], groups)
        more, low, high = (f"{100 * value:+.1f}" for value in (change.difference, *change.difference_ci))
        also.append(f"{name} {more} [{low}, {high}]")
    alone = (logits["standard"].argmax(1) == labels)[rest].float().mean()
    row: dict[str, object] = {
        "study": "robust",
        "trial": options.trial,
        "what": f"a standard network mixed in with a share of {1 - share:.3g}, chosen on the other half",
        "also": f"against the robust one: {', '.join(also)}; the standard one clean {100 * alone:.1f}; "
        f"scale, power, offset {numbers}; {len(runs['robust'])} robust",
        "seeds": " ".join(str(run.recipe.seed) for run in runs["robust"]),
        "n": int(rest.sum()),
        "attack": f"worst-case-{STEPS}/{QUERIES}",
        "epsilon": EPSILON,
        "command": typed_command(),
    }
    for name, values in right.items():
        row |= percent(values, groups, name)
    append_trial(options.table, row)
    print(pd.Series(row).to_string())


if __name__ == "__main__":
    main()
