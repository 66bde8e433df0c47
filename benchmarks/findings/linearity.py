"""Why does a network mask its gradients? How straight its loss is around an image, for networks with other layers.

python -m benchmarks.findings.linearity --data COVID-QU-Ex [--models tf_efficientnet_lite0 resnet18]
                                        [--size 64] [--images 48]

Training with one gradient a step is honest where that gradient still holds a small step away. Measured before any
training, on training images: the cosine between the loss's gradient at an image and at a random point within a radius
of it, and how far the gradient's signs agree after an FGSM step of 0.002 (1: all, 0: as by chance). BatchNorm has seen
twenty batches of these images first. A row each for the network as it is and with other normalisation, activation or
blur at the input, from ImageNet weights where the package has them and from none.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr import attacks
from trustcxr.data import load_dataset
from trustcxr.data.batches import to_pixels
from trustcxr.errors import UserError
from trustcxr.models import factory
from trustcxr.report import markdown

RADII = (0.002, 0.005, 0.02)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"activation": "silu"},
    {"activation": "softplus"},
    {"normalisation": "group"},
    {"normalisation": "group", "activation": "silu"},
    {"input_blur": 5},
    {"input_blur": 9},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["tf_efficientnet_lite0", "resnet18"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=48)
    given = parser.parse_args()
    films = load_dataset(given.data, split="Train", size=given.size)
    rows = np.unique(np.linspace(0, len(films) - 1, given.images).astype(int))
    images, labels = to_pixels(torch.from_numpy(films.images[rows])), torch.as_tensor(films.labels[rows])
    print("# Is the loss straight around an image?")
    print()
    print(
        f"`python -m benchmarks.findings.linearity --data {given.data.resolve().name}`: means over "
        f"{len(rows)} Train images, {given.size} pixels, before training, one seed, no intervals. Cosine of "
        f"the loss's gradient at an image "
        "and at a random point within the radius; signs: 1 where all agree, 0 as by chance. "
        "Research software, not for diagnosis."
    )
    print()
    first, *others = (f"{radius:g}" for radius in RADII)
    head = ["network", "weights", "layers", f"cosine at {first}", *others, "signs after FGSM 0.002"]
    print("\n".join(markdown.table(head, [])))
    for name in given.models:
        for weights in ("imagenet", "none"):
            for options in OPTIONS:
                torch.manual_seed(0)
                try:
                    model: nn.Module = factory.build(name, classes=len(films.classes), weights=weights, **options)
                except UserError:  # no such weights here, or no layer that the option is about
                    continue
                cosines, signs = straightness(model, images, labels)
                changed = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in options.items()) or "own"
                cells = [name, weights, changed, *(f"{c:.2f}" for c in cosines), f"{signs:.2f}"]
                print(markdown.row(cells), flush=True)


def straightness(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[list[float], float]:
    """Mean cosine of the gradients at each of RADII, and the agreement of signs after a small FGSM step."""
    with torch.no_grad():
        for _ in range(20):
            model.train()(images)
    model.eval()
    direction = 2 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 1
    here, _ = attacks.input_gradient(model, images, labels)
    cosines = []
    for radius in RADII:
        there, _ = attacks.input_gradient(model, (images + radius * direction).clamp(0, 1), labels)
        cosines.append(float(F.cosine_similarity(here.flatten(1), there.flatten(1)).mean()))
    there, _ = attacks.input_gradient(model, (images + RADII[0] * here.sign()).clamp(0, 1), labels)
    return cosines, 2 * float((here.sign() == there.sign()).float().mean()) - 1


if __name__ == "__main__":
    main()
