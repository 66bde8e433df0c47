"""A test of the saliency methods themselves, on synthetic films and models that are known to use this or that.

One model is trained where a letter in the corner gives the class away and no lesion shows; another where lesions show
and the letter says nothing. On films that have both, a method that tells the truth points at the letter for the first
model and at the lesion for the second (as Adebayo et al. 2020 and Arras et al. 2022 test methods on known causes).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from trustcxr.data.phantom import anatomy
from trustcxr.data.phantom.film import render
from trustcxr.explain import measures
from trustcxr.explain import methods as cam
from trustcxr.models.classifier import Classifier

DISEASE, HEALTHY = anatomy.CLASSES[0], "Normal"
MARKER = "marker"
VISIBLE = 2.5  # conspicuity at which a lesion is plain to see


@dataclass(frozen=True)
class Films:
    """Synthetic films of two classes, disease (0) and none (1).

    images (N, 1, H, W) float in [0, 1]; labels (N,) int64; lesion, marker (N, H, W) bool.
    """

    images: Tensor
    labels: Tensor
    lesion: Tensor
    marker: Tensor


def draw(
    count: int, size: int, *, marked: Callable[[int, bool], bool], conspicuity: float = VISIBLE, seed: int = 0
) -> Films:
    """`count` films of `size` pixels, every other one diseased.

    `marked`: (number, diseased) -> whether it has a letter. The same seed draws the same patients, whatever is planted.
    """
    films, labels = [], []
    for number in range(count):
        diseased = number % 2 == 0
        planted = [MARKER] if marked(number, diseased) else []
        name = DISEASE if diseased else HEALTHY
        films.append(render(name, 100_000 * seed + number, size, planted, conspicuity=conspicuity))
        labels.append(0 if diseased else 1)
    nothing = np.zeros((size, size), np.uint8)
    return Films(
        torch.from_numpy(np.stack([film.image for film in films])).float().div_(255)[:, None],
        torch.tensor(labels),
        torch.from_numpy(np.stack([film.infection_mask for film in films])) > 0,
        torch.from_numpy(np.stack([film.marks.get(MARKER, nothing) for film in films])) > 0,
    )


def shortcut(count: int, size: int, *, seed: int = 0) -> Films:
    """Where the letter gives the disease away, and nothing else does: lesions are there but cannot be seen."""
    return draw(count, size, marked=lambda _, diseased: diseased, conspicuity=0.0, seed=seed)


def honest(count: int, size: int, *, seed: int = 0) -> Films:
    """Where lesions are plain to see, and every other film of either class has the letter."""
    return draw(count, size, marked=lambda number, _: number % 4 < 2, seed=seed)


def both(count: int, size: int, *, seed: int = 0) -> Films:
    """Where every film has the letter, and those with the disease a lesion that is plain to see."""
    return draw(count, size, marked=lambda *_: True, seed=seed)


def unmarked(count: int, size: int, *, seed: int = 0) -> Films:
    """The films of `both` without their letters."""
    return draw(count, size, marked=lambda *_: False, seed=seed)


def fit(
    model: nn.Module, films: Films, *, epochs: int, batch: int = 16, learning_rate: float = 1e-3, seed: int = 0
) -> nn.Module:
    """Train `model` (images -> two logits) on `films`; the same model, in evaluation mode. The same seed repeats it."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    steps = epochs * (len(films.labels) // batch)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=max(steps, 1))
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(films.labels), generator=generator)
        for some in order.split(batch)[: len(order) // batch]:
            loss = functional.cross_entropy(model(films.images[some]), films.labels[some])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rate.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, films: Films, *, batch: int = 64) -> float:
    """Share of the films that the model gets right."""
    answers = torch.cat([model(images).argmax(1) for images in films.images.split(batch)])
    return float((answers == films.labels).double().mean())


@torch.no_grad()
def changed(model: nn.Module, films: Films, others: Films, *, batch: int = 64) -> float:
    """Share of the films on which the model answers otherwise than on the film of the same number in `others`."""
    pairs = zip(films.images.split(batch), others.images.split(batch), strict=True)
    return float(torch.cat([model(a).argmax(1) != model(b).argmax(1) for a, b in pairs]).double().mean())


def shares(model: nn.Module, films: Films, methods: Sequence[str], *, batch: int = 16) -> pd.DataFrame:
    """How much of each method's saliency for the disease lies on the lesion and on the marker of each diseased film.

    Columns: method, film, and for `lesion` and `marker` the share of the saliency, the same within three pixels in a
    hundred of the side (a CAM is blurred), and the share of the area that each of the two has.
    """
    chosen = torch.nonzero(films.labels == 0)[:, 0]
    reach = max(round(0.03 * films.images.shape[-1]), 1)
    tables = []
    for some in chosen.split(batch):
        for name, maps in cam.maps(model, films.images[some], 0, methods).items():
            columns: dict[str, object] = {"method": name, "film": some.numpy(), "null": measures.null_map(maps).numpy()}
            for region, mask in (("lesion", films.lesion[some]), ("marker", films.marker[some])):
                near = measures.grow(mask, reach)
                columns |= {
                    region: measures.energy_inside(maps, mask).numpy(),
                    f"{region}_area": measures.chance("energy_inside", maps, mask).numpy(),
                    f"{region}_near": measures.energy_inside(maps, near).numpy(),
                    f"{region}_near_area": measures.chance("energy_inside", maps, near).numpy(),
                }
            tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


class CornerReader(nn.Module):
    """A network whose answer hangs on what sets one image apart from another, and on nothing else.

    Where the two differ in one corner only, a map that is right lies in that corner, whatever the network's weights.
    `forward`: images (B, 1, H, W) -> logits (B, 2).
    """

    def __init__(self, classifier: Classifier, image: Tensor, other: Tensor) -> None:
        super().__init__()
        self.classifier, self.cam_layer = classifier.eval(), nn.Identity()
        with torch.no_grad():
            self.empty = self._features(other)
            difference = self._features(image) - self.empty
            self.direction = difference / difference.norm()

    def _features(self, x: Tensor) -> Tensor:
        return self.classifier.net.forward_features(self.classifier.normalise(x))  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 1, H, W) -> logits (B, 2): how much of the difference is there, and its negative."""
        difference = self.cam_layer(self._features(x) - self.empty)
        evidence = (difference * self.direction).sum(dim=(1, 2, 3))
        return torch.stack([evidence, -evidence], dim=1)


def corners(size: int) -> dict[str, tuple[slice, slice]]:
    """The four corners of an image of `size` pixels a side, each 5/14 of a side, as (rows, columns)."""
    low, high = slice(0, size * 5 // 14), slice(size - size * 5 // 14, size)
    places = {"top": low, "bottom": high}, {"left": low, "right": high}
    return {f"{a} {b}": (rows, columns) for a, rows in places[0].items() for b, columns in places[1].items()}


def grey_but_for(size: int, place: tuple[slice, slice]) -> tuple[Tensor, Tensor]:
    """An even grey image (1, 1, size, size), and the same with noise from torch's random state in one place."""
    flat = torch.full((1, 1, size, size), 0.5)
    marked = flat.clone()
    marked[(..., *place)] = torch.rand_like(marked)[(..., *place)]
    return flat, marked
