"""What every defence is: the protocol, radii, the weighted cross-entropy; and `standard`, which defends nothing."""

from typing import Any, Literal, Protocol, TypedDict, Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr import attacks

Precision = Literal["same", "bf16"]
Radius = float | Tensor


class Weighing(TypedDict, total=False):
    """How the cross-entropy of the loss is weighed.

    `mean_weight`: what the class of a film weighs on average in the whole batch, where this is a part of one.
    """

    label_smoothing: float
    class_weights: Tensor | None
    mean_weight: Tensor


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
    logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    mean_weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy, a mean over images, of logits (B, C); its classes weighed and its labels smoothed as asked.

    The weighed sum is divided by the weights of these images; with `mean_weight` by what as many weigh on average in
    the whole batch, so that the parts of a batch, each counted by its images, add up to the loss of the whole.
    """
    if class_weights is not None and mean_weight is not None:
        weights = class_weights / mean_weight
        summed = F.cross_entropy(logits, labels, weight=weights, label_smoothing=label_smoothing, reduction="sum")
        return summed / len(labels)
    return F.cross_entropy(logits, labels, weight=class_weights, label_smoothing=label_smoothing)
