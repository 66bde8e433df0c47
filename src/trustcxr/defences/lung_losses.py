"""Train on images with masked lungs to predict all classes evenly, so that answers do not rely on the background.

The loss is the appearance confusion loss of Hendricks et al. 2018, "Women also snowboard".
"""

import math

import torch
from torch import Tensor, nn

from trustcxr.data.lung_masks import has_lungs

EMPTIED_SHARE = 0.25  # images with emptied lungs beside a batch, as a share of it


class WithEmptiedLungs(nn.Module):
    """A learner whose training passes include images with masked lungs; their logits (E, C) are in `answer`.

    One pass covers both, so BatchNorm's statistics are of both and an attack sees the model that is trained.
    """

    def __init__(self, learner: nn.Module, emptied: Tensor) -> None:
        super().__init__()
        self.learner, self.emptied, self.answer = learner, emptied, emptied.new_zeros(0)
        self.training = learner.training

    @property
    def net(self) -> nn.Module:
        """Network of the learner, as in a Classifier."""
        net: nn.Module = getattr(self.learner, "net", self.learner)
        return net

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 1, H, W) to logits (B, C)."""
        if not self.training:
            return self.learner(images)
        both = torch.cat([images, self.emptied]).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.learner(both)
        self.answer = logits[len(images) :]
        return logits[: len(images)]

    def confusion_loss(self) -> Tensor:
        """Return the mean KL(even || prediction) over the images with masked lungs; a scalar."""
        log_shares = self.answer.float().log_softmax(1)
        return -log_shares.mean() - math.log(log_shares.shape[1])


def emptied(images: Tensor, lungs: Tensor) -> Tensor:
    """Fill the lungs of some images (B, 1, H, W) with one grey: (E, 1, H, W).

    E is EMPTIED_SHARE of B, or as many as have lungs. Each grey is drawn evenly from [0, 1] by torch's CPU random
    state.
    """
    some = has_lungs(lungs).flatten().nonzero()[:, 0][: max(1, round(EMPTIED_SHARE * len(images)))]
    grey = torch.rand(len(some), 1, 1, 1).to(images)
    return images[some] * (1 - lungs[some]) + grey * lungs[some]
