"""Small networks and images that train in seconds, for the tests of attacks, defences and statistics."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr import defences
from trustcxr.data.loader import to_pixels
from trustcxr.explain import evaluate, randomisation

SIDE = 20


def images_and_labels(count: int, *, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (count, 1, SIDE, SIDE) in [0, 1]: a faint pattern for each class under noise. Labels (count,)."""
    patterns = torch.rand((classes, 1, SIDE // 4, SIDE // 4), generator=torch.Generator().manual_seed(99)) - 0.5
    patterns = F.interpolate(patterns, scale_factor=4, mode="bilinear")
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    noise = torch.randn((count, 1, SIDE, SIDE), generator=generator)
    return (0.5 + 0.2 * patterns[labels] + 0.12 * noise).clamp(0, 1), labels


def write_onnx(net: nn.Module, path: Path, side: int) -> Path:
    """Write a network of grey images of that side as ONNX, for any number of images."""
    images, any_batch = torch.rand(2, 1, side, side), {"x": {0: "batch"}}
    torch.onnx.export(net.eval(), (images,), path, dynamo=False, input_names=["x"], dynamic_axes=any_batch)
    return path


class SmallNet(nn.Module):
    """Two convolutions with BatchNorm, dropout, a linear layer: pixel space to logits."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        first = (nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        second = (nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(*first, *second, nn.Flatten(), nn.Dropout(0.2))
        self.head = nn.Linear(16 * (SIDE // 4) ** 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images - 0.5))


class Wrapped(nn.Module):
    """Answers as a function of a network and of the images says; in evaluation mode."""

    def __init__(self, net: nn.Module, answer: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.net, self.answer = net, answer
        self.eval()

    def forward(self, images: Tensor) -> Any:
        return self.answer(self.net, images)


class Meter(nn.Module):
    """Counts the images that pass forward, and whether a gradient was asked for."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.rows, self.with_gradient = inner, 0, 0

    def forward(self, images: Tensor) -> Tensor:
        self.rows += len(images)
        self.with_gradient += len(images) if torch.is_grad_enabled() else 0
        return self.inner(images)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order: with more threads the same seed trains another network, and figures move."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def trained(defence: str = "standard", *, classes: int = 3, epsilon: float = 0.03) -> SmallNet:
    """A SmallNet after some steps of a defence, in evaluation mode. Shared by tests: leave it as it is."""
    model = _trained(defence, classes, epsilon)
    model.zero_grad(set_to_none=True)  # a test before may have left some, whichever that was: files come in any order
    return model


@lru_cache
def _trained(defence: str, classes: int, epsilon: float) -> SmallNet:
    with torch.random.fork_rng(devices=[]), one_thread(), torch.enable_grad():  # whoever is the first to ask
        torch.manual_seed(1)
        model = SmallNet(classes)
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        for step in range(80):
            batch, labels = images_and_labels(64, classes=classes, seed=1000 + step)
            options = {} if defence == "standard" else {"epsilon": epsilon}
            loss, _ = defences.get(defence)(model, batch, labels, **options)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images that the model gets right."""
    return float((model(images).argmax(1) == labels).float().mean())


def stages_of(
    model: nn.Module, x: Tensor, method: Callable[..., Tensor], target: Any = None, **options: Any
) -> Iterator[randomisation.Stage]:
    """The stages of the cascade of one method's maps."""
    stages = randomisation.cascade(model, x, lambda network, classes: [method(network, x, classes)], target, **options)
    return (stage for (stage,) in stages)


def scores_of(*arguments: Any, **options: Any) -> pd.DataFrame:
    """The whole table of saliency.parquet."""
    return pd.concat(evaluate.score_batches(*arguments, **options), ignore_index=True)


def annotated(dataset: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, np.ndarray]:
    """Pixels, labels, infection and lung masks of all annotated images of a data set, and their ids."""
    rows = evaluate.find_annotated(dataset)
    infection, lung = (torch.from_numpy(np.array(dataset.masks(kind)[rows])) != 0 for kind in ("infection", "lung"))
    images, labels = (
        to_pixels(torch.from_numpy(dataset.batch(rows))),
        torch.from_numpy(np.asarray(dataset.labels[rows])),
    )
    return images, labels, infection, lung, dataset.sample_ids[rows]


def rows_of(table: pd.DataFrame, measure: str, method: str = "gradcam", condition: str = "clean") -> pd.DataFrame:
    """The rows of one measure in the table of saliency.parquet, by the image's id."""
    rows = (table["method"] == method) & (table["condition"] == condition) & (table["measure"] == measure)
    return table[rows].set_index("sample_id")
