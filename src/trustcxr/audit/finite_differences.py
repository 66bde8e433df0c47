"""Compare the gradients of a model with finite differences of its answers.

A small step along the sign of a true gradient raises the loss by what the gradient promises. A reversed gradient, or
one of another network, does not. No last layer need be seen.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trustcxr.attacks.base import input_gradient
from trustcxr.attacks.bpda import GradientTraits
from trustcxr.errors import UserError

_STEP = 1 / 4  # of epsilon
_ENOUGH = 0.25  # least median of the loss gained, as a share of what gradients promise
_UPHILL = 0.5  # least share of images whose loss rises by twice as much as along a random sign


@dataclass(frozen=True)
class Differences:
    """The median of loss gained over loss promised, and the share of images that gain more than by a random sign."""

    gained: float
    uphill: float

    @property
    def passed(self) -> bool:
        """Return whether the gradients point where the loss rises."""
        return self.gained >= _ENOUGH and self.uphill >= _UPHILL


def compare_differences(
    model: nn.Module, images: Tensor, traits: GradientTraits, *, epsilon: float
) -> Differences | None:
    """Step from images (B, 1, H, W) by a quarter of epsilon along the sign of the gradient, and along a random sign.

    The loss is the margin of the second highest logit over the highest. Returns None without a gradient to follow.
    """
    view = traits.variants(model)[-1]
    with torch.no_grad():
        top = model(images)
    single = top.shape[1] == 1
    top = top.topk(1 if single else 2, dim=1).indices

    def loss(logits: Tensor, _: Tensor | None = None) -> Tensor:
        if single:
            return logits[:, 0]
        chosen = logits.float().gather(1, top)
        return chosen[:, 1] - chosen[:, 0]

    try:
        gradient, _ = input_gradient(view, images, top[:, 0], loss=loss)
    except UserError:
        return None
    random = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(images) - 0.5
    steps = [((images + _STEP * epsilon * by.sign()).clamp(0, 1) - images) for by in (gradient, random)]
    with torch.no_grad():
        start, along, across = (loss(model(images + step)) for step in (torch.zeros_like(images), *steps))
    promised = (gradient * steps[0]).flatten(1).sum(1) * view.scale
    gained = (along - start) / promised.clamp(min=torch.finfo(torch.float32).tiny)
    if not bool((promised > 0).any()):
        return None
    uphill = along - start > 2 * (across - start).abs()
    return Differences(float(gained[promised > 0].median()), float(uphill.float().mean()))


def largest_difference_with_gradients(model: nn.Module, images: Tensor) -> float:
    """Return how far logits move if the image requires a gradient, as a share of the largest logit of each image."""
    with torch.no_grad():
        plain = model(images).float()
    with torch.inference_mode(False), torch.enable_grad():
        followed = model(images.detach().clone().requires_grad_(True)).detach().float()
    return float(((followed - plain).abs().amax(1) / plain.abs().amax(1).clamp(min=1e-12)).max())
