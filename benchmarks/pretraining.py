"""Train a network on images without labels, so that two views of one image get the same features (SimCLR, 2002.05709).

A view is a random part of the image, mirrored or not, with other brightness, contrast and gamma, blurred or noisy.
"""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from trustcxr.models import factory

BATCH, TEMPERATURE, LEARNING_RATE = 256, 0.2, 1e-3


def view(images: Tensor) -> Tensor:
    """Return a random view (B, 1, H, W) in [0, 1] of each image."""
    count = len(images)
    scale = torch.empty(count, 2).uniform_(0.6, 1.0)
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    corners = torch.zeros(count, 2, 3)
    corners[:, 0, 0], corners[:, 1, 1] = scale[:, 0] * mirror, scale[:, 1]
    corners[:, :, 2] = (1 - scale) * torch.empty(count, 2).uniform_(-1, 1)
    grid = F.affine_grid(corners, list(images.shape), align_corners=False)
    parts = F.grid_sample(images, grid, padding_mode="border", align_corners=False).clamp(1e-4, 1)

    def draw(low: float, high: float) -> Tensor:
        return torch.empty(count, 1, 1, 1).uniform_(low, high)

    parts = parts ** draw(-0.5, 0.5).exp()
    mean = parts.mean((2, 3), keepdim=True)
    parts = (parts - mean) * draw(0.6, 1.4) + mean + draw(-0.2, 0.2)
    parts = torch.where(draw(0, 1) < 0.3, F.avg_pool2d(parts, 3, 1, 1, count_include_pad=False), parts)
    return (parts + draw(0, 0.05) * torch.randn_like(parts)).clamp(0, 1)


def contrast(features: Tensor) -> Tensor:
    """Return the loss of features (2 B, D): of all others, row i + B is to be the nearest to row i."""
    features = F.normalize(features, dim=1)
    near = (features @ features.T / TEMPERATURE).fill_diagonal_(-math.inf)
    count = len(features) // 2
    return F.cross_entropy(near, (torch.arange(2 * count) + count) % (2 * count))


def pretrain(images: Tensor, name: str, file: Path, *, epochs: int, seed: int) -> None:
    """Train the network `name` on images (N, 1, H, W) in [0, 1] and write its weights."""
    torch.manual_seed(seed)
    model = factory.build(name, classes=3).train()
    net: Any = model.net
    width = int(net.num_features)
    project = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))
    values = [*net.parameters(), *project.parameters()]
    steps = epochs * (len(images) // BATCH)
    optimiser = torch.optim.AdamW(values, LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            views = torch.cat([view(images[batch]), view(images[batch])]).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                features = net.forward_head(net.forward_features((views - 0.5) / 0.25), pre_logits=True)
            loss = contrast(project(features.float()))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        print(f"pretraining: epoch {epoch + 1} of {epochs}, loss {total / (len(images) // BATCH):.3f}", flush=True)
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, file)
