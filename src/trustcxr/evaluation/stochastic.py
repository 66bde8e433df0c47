"""Evaluate random models: by the mean over draws, and in the worst case by the worst draw.

An attacker may submit an image repeatedly, so the worst case requires every draw to be right.
"""

import numpy as np
import torch
from torch import Tensor, nn

from trustcxr.attacks.bpda import AttackView
from trustcxr.registry import STOCHASTIC_DRAWS


class OverDraws(AttackView):
    """A random model that returns the mean of STOCHASTIC_DRAWS draws."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, draws=STOCHASTIC_DRAWS)

    def each(self, images: Tensor) -> Tensor:
        """Return the logits of each draw, (draws, B, C), for images (B, 1, H, W) in [0, 1].

        The seed is derived from torch's random state, so an attack that starts from the same state has not seen the
        draws.
        """
        torch.manual_seed(int(torch.randint(2**31, ())))
        return torch.stack([self.model(images).float() for _ in range(self.draws)])


def predict_logits(
    model: nn.Module, images: Tensor, labels: Tensor, *, at_worst: bool
) -> tuple[Tensor, np.ndarray | None]:
    """Return the logits (B, C) to judge a model by and, for a random model, the share of correct draws.

    `at_worst`: of each image, take the draw with the lowest lead of the label (B,); else the mean. Call it with the
    model in evaluation mode and without gradients.
    """
    if not isinstance(model, OverDraws):
        return model(images).float(), None
    drawn = model.each(images)
    right = (drawn.argmax(2) == labels).float().mean(0).cpu().numpy()
    if not at_worst:
        return drawn.mean(0), right
    label_logits = drawn.gather(2, labels.expand(len(drawn), -1)[..., None])[..., 0]
    others = drawn.scatter(2, labels.expand(len(drawn), -1)[..., None], -torch.inf).amax(2)
    worst = (label_logits - others).nan_to_num(nan=-torch.inf).argmin(0)
    return drawn[worst, torch.arange(len(labels), device=drawn.device)], right
