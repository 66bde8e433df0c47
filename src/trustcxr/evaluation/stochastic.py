"""A model that answers at random, as it is judged: by the mean over draws, and in the worst case by the worst of them.

Whoever attacks may hand the same image in again until an answer is wrong, so that the worst case counts an image as
withstood where every draw is right. The mean over draws is an answer that the model never gives, and a steadier one.
"""

import numpy as np
import torch
from torch import Tensor, nn

from trustcxr.attacks.bpda import AttackView
from trustcxr.registry import STOCHASTIC_DRAWS


class OverDraws(AttackView):
    """A random model as it is judged: called, it answers with the mean of STOCHASTIC_DRAWS draws."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, draws=STOCHASTIC_DRAWS)

    def each(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W) in [0, 1] -> the logits of each draw, (draws, B, C).

        Torch's random state says which, and no attack that begins with the same state has seen them.
        """
        torch.manual_seed(int(torch.randint(2**31, ())))
        return torch.stack([self.model(images).float() for _ in range(self.draws)])


def judge(model: nn.Module, images: Tensor, labels: Tensor, *, at_worst: bool) -> tuple[Tensor, np.ndarray | None]:
    """The logits (B, C) by which a model is judged and, where it answers at random, the share of draws that are right.

    `at_worst`: those of the draw in which the label (B,) stands lowest against the highest other class, for each image;
    else the mean. Call it with the model in evaluation mode and without gradients.
    """
    if not isinstance(model, OverDraws):
        return model(images).float(), None
    drawn = model.each(images)
    right = (drawn.argmax(2) == labels).float().mean(0).cpu().numpy()
    if not at_worst:
        return drawn.mean(0), right
    own = drawn.gather(2, labels.expand(len(drawn), -1)[..., None])[..., 0]
    others = drawn.scatter(2, labels.expand(len(drawn), -1)[..., None], -torch.inf).amax(2)
    worst = (own - others).nan_to_num(nan=-torch.inf).argmin(0)
    return drawn[worst, torch.arange(len(labels), device=drawn.device)], right
