"""Define the protocol of defences, and `standard` training."""

from typing import Any, Literal, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

Precision = Literal["same", "bf16"]
Radius = float | Tensor


class Defence(Protocol):
    """Signature that every defence has; the registry lists the options of each."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Return the loss (scalar) and the logits (B, C)."""
        ...


def standard(
    model: nn.Module, images: Tensor, labels: Tensor, *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross-entropy on the images as they are."""
    logits = model(images)
    return smoothed_cross_entropy(logits, labels, label_smoothing), logits


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Return the mean cross-entropy of logits (B, C), with smoothed labels."""
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
