"""Define what saliency methods share: images and target in, a map in [0, 1] out."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from trustcxr.errors import UserError

Target = int | Tensor | None
_FLAT = 1e-6  # share of the peak: a map with smaller differences is null


def check_images(x: Tensor) -> None:
    """Raise UserError unless these are float images (B, C, H, W)."""
    if x.ndim != 4 or not x.is_floating_point():
        raise UserError(f"images must be float, (B, 1, H, W), in [0, 1]; got {x.dtype}, {tuple(x.shape)}")


def target_classes(target: Target, logits: Tensor) -> Tensor:
    """Return the class to explain for each image, (B,), int64; None means the predicted class of logits (B, C).

    Raises UserError for a class that the model does not have.
    """
    images, classes = logits.shape
    if target is None:
        return logits.argmax(dim=1)
    wanted = torch.as_tensor(target, device=logits.device)
    if wanted.is_floating_point() or wanted.is_complex() or wanted.dtype == torch.bool:
        raise UserError(f"a target is a class number, 0 to {classes - 1}; got {wanted.dtype}")
    if wanted.ndim == 0:
        wanted = wanted.expand(images)
    if wanted.shape != (images,):
        raise UserError(f"targets: one for each of the {images} images, or one for all; got {tuple(wanted.shape)}")
    outside = wanted[(wanted < 0) | (wanted >= classes)]
    if len(outside):
        raise UserError(f"target {int(outside[0])} is outside the model's {classes} classes: 0 to {classes - 1}")
    return wanted.long()


def to_saliency(raw: Tensor, height: int, width: int) -> Tensor:
    """Convert signed evidence (B, h, w) to saliency (B, height, width), float32, in [0, 1].

    Negative evidence becomes 0; maps are upsampled bilinearly and divided by their maximum. A constant map, or one that
    is not finite, becomes all zeros (a null map).
    """
    positive = raw.float().clamp(min=0)
    large = functional.interpolate(positive[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
    peak = large.amax(dim=(1, 2), keepdim=True)
    low = large.amin(dim=(1, 2), keepdim=True)
    # False for infinity and NaN too: a model that overflows gives a null map, not a broken one.
    return torch.where(peak - low > _FLAT * peak, large / peak, 0.0)


class LeftOut(NamedTuple):
    """Reasons why parts are left out, because the model does not allow them; empty for parts that are done."""

    attacks: str = ""
    weights: str = ""
    cascade: str = ""

    def notes(self) -> list[str]:
        """Return the reasons, a line each."""
        return [why for why in self if why]


ALL_DONE = LeftOut()
