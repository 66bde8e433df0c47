"""What every defence is: the protocol, radii, the cross-entropy; and `standard`, which defends nothing."""

from typing import Any, Literal, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

Precision = Literal["same", "bf16"]
Radius = float | Tensor


class Defence(Protocol):
    """What every defence looks like; the options that each takes are in the catalogue too."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """The loss (scalar) and the logits (B, C)."""
        ...


def standard(
    model: nn.Module, images: Tensor, labels: Tensor, *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross-entropy on the images as they are."""
    logits = model(images)
    return smoothed_cross_entropy(logits, labels, label_smoothing), logits


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Return the cross-entropy of logits (B, C), a mean over images, its labels smoothed."""
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
