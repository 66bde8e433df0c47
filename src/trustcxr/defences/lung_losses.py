"""Images with emptied lungs, to which an even answer is asked: answers must not hang on what is outside the lungs.

The loss is the appearance confusion loss of Hendricks et al. 2018, "Women also snowboard".
"""

import math

import torch
from torch import Tensor, nn

from trustcxr.data.lung_masks import has_lungs

EMPTIED_SHARE = 0.25  # images with emptied lungs beside a batch, as a share of it


class WithEmptiedLungs(nn.Module):
    """A learner whose passes in training take images with emptied lungs along, and answer for them apart.

    All in one pass, so that BatchNorm's statistics are of both and an attack finds the model that was trained.
    `forward`: images (B, 1, H, W) -> their logits (B, C); those of the emptied ones are in `answer` (E, C).
    """

    def __init__(self, learner: nn.Module, emptied: Tensor) -> None:
        super().__init__()
        self.learner, self.emptied, self.answer = learner, emptied, emptied.new_zeros(0)
        self.training = learner.training

    @property
    def net(self) -> nn.Module:
        """The learner's network, as a Classifier has it."""
        net: nn.Module = getattr(self.learner, "net", self.learner)
        return net

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of the images (B, 1, H, W)."""
        if not self.training:
            return self.learner(images)
        both = torch.cat([images, self.emptied]).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.learner(both)
        self.answer = logits[len(images) :]
        return logits[: len(images)]

    def confusion_loss(self) -> Tensor:
        """How far the answers to emptied lungs are from even: KL(even || answer), a mean of images; a scalar."""
        log_shares = self.answer.float().log_softmax(1)
        return -log_shares.mean() - math.log(log_shares.shape[1])


def emptied(images: Tensor, lungs: Tensor) -> Tensor:
    """Some of the images (B, 1, H, W) that have lungs, with these filled with one grey: (E, 1, H, W).

    E is a share of B, or as many as have lungs. The grey is drawn evenly from [0, 1] for each image, from torch's
    random state on the processor.
    """
    some = has_lungs(lungs).flatten().nonzero()[:, 0][: max(1, round(EMPTIED_SHARE * len(images)))]
    grey = torch.rand(len(some), 1, 1, 1).to(images)
    return images[some] * (1 - lungs[some]) + grey * lungs[some]
