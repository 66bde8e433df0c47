"""A plain training loop for networks whose reason is known: what tests hold saliency methods against."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import small_networks


@dataclass(frozen=True)
class Images:
    images: Tensor
    labels: Tensor


def fit(
    model: nn.Module, radiographs: Images, *, epochs: int, batch: int = 16, learning_rate: float = 1e-3, seed: int = 0
) -> nn.Module:
    """Train `model` (images -> two logits) and return it in evaluation mode. The same seed repeats it."""
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


def accuracy(model: nn.Module, radiographs: Images) -> float:
    """Share of the images that the model gets right."""
    return small_networks.accuracy(model, radiographs.images, radiographs.labels)
