"""Networks whose answer hangs on a known place, and a plain training loop: what tests hold saliency methods against."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trustcxr.models.classifier import Classifier


@dataclass(frozen=True)
class Images:
    images: Tensor
    labels: Tensor


def fit(
    model: nn.Module, radiographs: Images, *, epochs: int, batch: int = 16, learning_rate: float = 1e-3, seed: int = 0
) -> nn.Module:
    """Train `model` (images -> two logits) on `images`;

    The same model, in evaluation mode. The same seed repeats it.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    steps = epochs * (len(radiographs.labels) // batch)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=max(steps, 1))
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(radiographs.labels), generator=generator)
        for some in order.split(batch)[: len(order) // batch]:
            loss = functional.cross_entropy(model(radiographs.images[some]), radiographs.labels[some])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rate.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, radiographs: Images, *, batch: int = 64) -> float:
    """Share of the images that the model gets right."""
    answers = torch.cat([model(images).argmax(1) for images in radiographs.images.split(batch)])
    return float((answers == radiographs.labels).double().mean())


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
