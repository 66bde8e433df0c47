"""How a model is trained to hold up: one loss for each defence.

Each is (model, images, labels, *, epsilon, ...) -> (loss, logits). Images are (B, 1, H, W) in [0, 1], labels (B,).
`label_smoothing` in [0, 1] and `class_weights` (C,) are of the loss alone: the attack climbs the plain cross-entropy.
The logits are those of the images that the loss was taken on, for the training accuracy.
"""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr import attacks
from trustcxr.errors import unknown


class Defence(Protocol):
    """What every defence looks like."""

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        epsilon: float,
        clean_share: float,
        mode: attacks.Mode,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The loss (scalar) and the logits (B, C)."""
        ...


def standard(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 0.0,
    clean_share: float = 1.0,
    mode: attacks.Mode = "eval",
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy on the images as they are."""
    logits = model(images)
    return F.cross_entropy(logits, labels, weight=class_weights, label_smoothing=label_smoothing), logits


def fgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    clean_share: float = 0.0,
    mode: attacks.Mode = "eval",
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """FGSM adversarial training (Goodfellow et al. 2015).

    The loss is clean_share * clean loss + (1 - clean_share) * adversarial loss. The attack takes one
    gradient a step, in the images alone; `mode` is the model's mode while it is attacked.
    """
    adversarial = attacks.fgsm(model, images, labels, epsilon=epsilon, mode=mode)
    logits = model(adversarial)
    loss = F.cross_entropy(logits, labels, weight=class_weights, label_smoothing=label_smoothing)
    if clean_share > 0:
        clean = F.cross_entropy(model(images), labels, weight=class_weights, label_smoothing=label_smoothing)
        loss = clean_share * clean + (1 - clean_share) * loss
    return loss, logits


DEFENCES: dict[str, Defence] = {"standard": standard, "fgsm": fgsm}


def get(name: str) -> Defence:
    """The defence of that name; UserError with the valid names for any other."""
    if name not in DEFENCES:
        raise unknown("defence", name, DEFENCES)
    return DEFENCES[name]
