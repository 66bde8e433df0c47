"""Change the background of training images (another image's, black, or cropped away), or empty their lungs.

A model that may use the background will (DeGrave et al. 2021; Maguolo and Nanni 2021). Only training images change, and
only a share of them: validation, test and hospital images come unchanged and without masks.

Images are (B, 1, H, W) floats in [0, 1]; lungs (B, 1, H, W), 1 inside the lungs. An image with an empty mask is
unchanged.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr.data.lung_masks import has_lungs, soften

SHARE = 0.85  # of training images whose background is changed
EMPTIED_SHARE = 0.25  # images with emptied lungs beside a batch, as a share of it
MARGIN = 0.05  # around the lungs after cropping, as a share of the side


def crop(images: Tensor, lungs: Tensor, *, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Crop a share of the images, and their lungs, to the square around the lungs, and resize them back."""
    chosen = _chosen(lungs, share, generator)
    rows, columns = (lungs > 0.5).any(3)[:, 0], (lungs > 0.5).any(2)[:, 0]
    (top, bottom), (left, right) = _ends(rows), _ends(columns)
    half = torch.maximum(bottom - top, right - left) / 2 + 2 * MARGIN  # in grid_sample's [-1, 1]
    zero = torch.zeros_like(half)
    theta = torch.stack(
        [torch.stack([half, zero, (left + right) / 2], 1), torch.stack([zero, half, (top + bottom) / 2], 1)], 1
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    both = F.grid_sample(torch.cat([images, lungs], 1), grid, padding_mode="zeros", align_corners=False)
    both = torch.where(chosen, both, torch.cat([images, lungs], 1))
    return both[:, :1], both[:, 1:]


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


def _ends(inside: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and last edge of the inside (B, S), in [-1, 1]; the whole side if it is empty."""
    side = inside.shape[1]
    index = torch.arange(side, device=inside.device)
    first = torch.where(inside, index, side).amin(1)
    last = torch.where(inside, index, -1).amax(1) + 1
    empty = last == 0
    first, last = torch.where(empty, 0, first), torch.where(empty, side, last)
    return first * 2 / side - 1, last * 2 / side - 1


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
