"""What every defence is: the protocol, radii, the weighted cross-entropy; and `standard`, which defends nothing."""

from typing import Any, Literal, Protocol, TypedDict, Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr import attacks

Precision = Literal["same", "bf16"]
Radius = float | Tensor


class Weighing(TypedDict, total=False):
    """How the cross-entropy of the loss is weighed."""

    label_smoothing: float
    class_weights: Tensor | None


class Defence(Protocol):
    """What every defence looks like; the options that each takes are in the catalogue too."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """The loss (scalar) and the logits (B, C)."""
        ...


def standard(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: Radius = 0.0,
    clean_share: float = 1.0,
    mode: attacks.Mode = "eval",
    **weighing: Unpack[Weighing],
) -> tuple[Tensor, Tensor]:
    """Cross-entropy on the images as they are; there is no attack that the options could change."""
    logits = model(images)
    return weighted_cross_entropy(logits, labels, **weighing), logits


def weighted_cross_entropy(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy, a mean over images, of logits (B, C); its classes weighed and its labels smoothed as asked."""
    return F.cross_entropy(logits, labels, weight=class_weights, label_smoothing=label_smoothing)
