"""Change the background of training images (another image's, or black), or empty their lungs.

A model that may use the background will (DeGrave et al. 2021; Maguolo and Nanni 2021). Only training images change, and
only a share of them: validation, test and hospital images come unchanged and without masks.

Images are (B, 1, H, W) floats in [0, 1]; lungs (B, 1, H, W), 1 inside the lungs. An image with an empty mask is
unchanged.
"""

import math

import torch
from torch import Tensor, nn

from trustcxr.data.lung_masks import has_lungs, soften

SHARE = 0.85  # of training images whose background is changed
EMPTIED_SHARE = 0.25  # images with emptied lungs beside a batch, as a share of it


def change(images: Tensor, lungs: Tensor, background: str, *, share: float, generator: torch.Generator) -> Tensor:
    """Put the lungs of a share of the images, soft-edged, on another background.

    "swap" is that of another image of the batch, of any class; "mask" is black; other names leave the images unchanged.
    """
    if background not in ("swap", "mask"):
        return images
    chosen = _chosen(lungs, share, generator)
    behind = torch.zeros_like(images)
    if background == "swap":
        if len(images) < 2:
            return images
        # Batches are shuffled, so a shift pairs images at random.
        behind = images.roll(int(torch.randint(1, len(images), (), generator=generator)), 0)
    visible = soften(lungs)
    return torch.where(chosen, visible * images + (1 - visible) * behind, images)


def _chosen(lungs: Tensor, share: float, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(len(lungs), generator=generator) < share
    return drawn.view(-1, 1, 1, 1).to(lungs.device) & has_lungs(lungs)


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
