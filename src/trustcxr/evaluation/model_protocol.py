"""A model as evaluation and explanation take it."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class ModelUnderTest:
    """A model as it is judged: `model` from pixel space to logits in the order of `classes`, on `device`."""

    name: str
    model: nn.Module
    classes: tuple[str, ...]
    device: torch.device
