"""Corrupt a batch of images in pixel space as real radiographs are, at severities 1 to 5.

Severity 1 is just visible; at 5 a radiologist can still read the image. Strengths are defined for 224 pixels a side and
scaled with the side. Small images lose more at a low severity, above all by `resolution`: compare results at one size.

The random numbers of an image depend on (seed, name, the image's key) alone, not on its batch or the device. Every
severity uses the same draw, only stronger.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trustcxr import registry
from trustcxr.corruptions import artefacts
from trustcxr.corruptions.acquisition import ImageRandom
from trustcxr.errors import UserError, check_pixels, lookup, unknown

SEVERITIES = (1, 2, 3, 4, 5)
_IN_CACHE = 4 * 224 * 224  # pixels


CORRUPTIONS = registry.CORRUPTIONS
ARTEFACTS = tuple(c.name for c in CORRUPTIONS.values() if c.artefact)


def get(name: str) -> registry.Corruption:
    """Return a corruption by name. Raises UserError for an unknown name."""
    return lookup(CORRUPTIONS, "corruption", name)


def corrupt(
    images: Tensor, name: str, severity: int, *, seed: int = 0, keys: Sequence[int | str] | None = None
) -> Tensor:
    """Apply one of CORRUPTIONS to images (B, 1, H, W), float in [0, 1], at `severity` 1 to 5; same shape and range.

    `keys` (B,) identify the images: sample ids or rows of the data set (default: the index in the batch). The same key
    gives the same result in any batch (blurs: to 1e-6). Raises UserError for an unknown name, a severity outside 1 to
    5, images outside [0, 1], or another number of keys.
    """
    return _applied(get(name), images, severity, seed, keys)[0]


def artefact(
    images: Tensor, name: str, severity: int, *, seed: int = 0, keys: Sequence[int | str] | None = None
) -> tuple[Tensor, Tensor]:
    """Draw one of ARTEFACTS as `corrupt` does; return images (B, 1, H, W) and its masks (B, H, W) bool.

    Raises UserError as `corrupt` does, and for a corruption that is no artefact.
    """
    if not get(name).artefact:
        raise unknown("artefact", name, ARTEFACTS)
    changed, mask = _applied(get(name), images, severity, seed, keys)
    assert mask is not None
    return changed, mask


@torch.no_grad()
def _applied(
    corruption: registry.Corruption, images: Tensor, severity: int, seed: int, keys: Sequence[int | str] | None
) -> tuple[Tensor, Tensor | None]:
    check_pixels("corruption", images)
    if images.shape[1] != 1:
        raise UserError(f"corruption: images must be floats (B, 1, H, W), not {images.dtype} {tuple(images.shape)}")
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise UserError(f"severity {severity}: choose a whole number from {SEVERITIES[0]} to {SEVERITIES[-1]}")
    severity = int(severity)
    names = range(len(images)) if keys is None else keys
    if len(names) != len(images):
        raise UserError(f"{corruption.name}: {len(images)} images but {len(names)} keys; give one for each image")
    changed = torch.empty_like(images, requires_grad=False)
    mask = torch.empty(images[:, 0].shape, dtype=torch.bool, device=images.device) if corruption.artefact else None
    function = registry.load_function("corruptions", corruption.where)
    # On a CPU as many at a time as fit the cache.
    size = max(_IN_CACHE // max(images[:1].numel(), 1) if images.device.type == "cpu" else len(images), 1)
    for part in (slice(first, first + size) for first in range(0, len(images), size)):
        draws, pixels = ImageRandom(corruption.name, seed, names[part]), images[part].detach().float()
        if mask is None:
            pixels = function(pixels, severity, draws)
        else:
            pixels, mask[part] = artefacts.paint(function, pixels, severity, draws)
        changed[part] = pixels.clamp_(0, 1)
    return changed, mask
