"""What goes wrong with real X-rays, on a batch in pixel space, at severities 1 to 5.

Severity 1 is just visible; at 5 a radiologist could still read the image. The tables are written for images of 224
pixels
and scaled by the side, so that a severity means much the same image at every size: a blurred image made smaller looks
like a small image blurred. Light ones, of `resolution` above all, take more from a small image: figures of one severity
compare at one size alone.

Every random number of an image comes from (seed, name, the image's key) alone: neither its neighbours, nor its place in
the batch, nor the device change what is drawn for it, and at every severity it is the same draw, only stronger.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trustcxr import registry
from trustcxr.corruptions import artefacts
from trustcxr.corruptions.rng import ImageRandom
from trustcxr.errors import UserError, lookup, pixel_range_error, unknown

SEVERITIES = (1, 2, 3, 4, 5)
_IN_CACHE = 4 * 224 * 224  # pixels


@dataclass(frozen=True)
class Corruption:
    """One thing that goes wrong. `about` says what, in a few words; an artefact knows where it is."""

    name: str
    about: str
    apply: Callable[[Tensor, int, ImageRandom], tuple[Tensor, Tensor | None]]
    is_artefact: bool = False


def _found(entry: registry.Corruption) -> Corruption:
    function = registry.load_function("corruptions", entry.where)
    if entry.artefact:
        return Corruption(entry.name, entry.about, partial(artefacts.paint, function), is_artefact=True)
    return Corruption(entry.name, entry.about, partial(_without_place, function))


def _without_place(
    function: Callable[[Tensor, int, ImageRandom], Tensor], images: Tensor, severity: int, draws: ImageRandom
) -> tuple[Tensor, None]:
    return function(images, severity, draws), None


CORRUPTIONS: dict[str, Corruption] = {name: _found(entry) for name, entry in registry.CORRUPTIONS.items()}
ARTEFACTS: tuple[str, ...] = tuple(c.name for c in CORRUPTIONS.values() if c.is_artefact)


def get(name: str) -> Corruption:
    """The corruption of that name; UserError with the valid names for any other."""
    return lookup(CORRUPTIONS, "corruption", name)


def check_severity(severity: int) -> int:
    """The severity itself; UserError where it is not a whole number from 1 to 5."""
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise UserError(f"severity {severity}: choose a whole number from {SEVERITIES[0]} to {SEVERITIES[-1]}")
    return int(severity)


def corrupt(
    images: Tensor, name: str, severity: int, *, seed: int = 0, keys: Sequence[int | str] | None = None
) -> Tensor:
    """Images (B, 1, H, W), float in [0, 1], with one of CORRUPTIONS at `severity` 1 to 5: the same shape and range.

    `keys` (B) name the images: a sample's id, or its row in the data set; its place in the batch unless said. An image
    comes out the same whatever batch it is in, so long as its key is the same; blurs, by Fourier transform, to 1e-6.
    Raises UserError for an unknown name, a severity outside 1 to 5, images outside [0, 1], or keys that do not fit.
    """
    return _applied(get(name), images, severity, seed, keys)[0]


def artefact(
    images: Tensor, name: str, severity: int, *, seed: int = 0, keys: Sequence[int | str] | None = None
) -> tuple[Tensor, Tensor]:
    """As `corrupt` for one of ARTEFACTS, and where it was drawn: (images (B, 1, H, W), masks (B, H, W) bool).

    Raises UserError as `corrupt` does, and for a corruption that is all over the image.
    """
    if not get(name).is_artefact:
        raise unknown("artefact", name, ARTEFACTS)
    changed, mask = _applied(get(name), images, severity, seed, keys)
    assert mask is not None
    return changed, mask


@torch.no_grad()
def _applied(
    corruption: Corruption, images: Tensor, severity: int, seed: int, keys: Sequence[int | str] | None
) -> tuple[Tensor, Tensor | None]:
    _check(images)
    severity = check_severity(severity)
    names = list(range(len(images)) if keys is None else keys)
    if len(names) != len(images):
        raise UserError(f"{corruption.name}: {len(images)} images but {len(names)} keys; give one for each image")
    changed = torch.empty_like(images, requires_grad=False)
    mask = torch.empty(images[:, 0].shape, dtype=torch.bool, device=images.device) if corruption.is_artefact else None
    size = _piece(images)
    for part in (slice(first, first + size) for first in range(0, len(images), size)):
        draws = ImageRandom(corruption.name, seed, names[part])
        pixels, where = corruption.apply(images[part].detach().float(), severity, draws)
        changed[part] = pixels.clamp_(0, 1)
        if mask is not None and where is not None:
            mask[part] = where
    return changed, mask


def _piece(images: Tensor) -> int:
    """How many images to work on at a time: all on an accelerator; on a processor what stays in its cache."""
    if images.device.type != "cpu":
        return max(len(images), 1)
    return max(_IN_CACHE // max(images[0].numel() if len(images) else 1, 1), 1)


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 1 or not images.is_floating_point():
        raise UserError(f"corruption: images must be floats (B, 1, H, W), not {images.dtype} {tuple(images.shape)}")
    if images.numel():
        low, high = (float(v) for v in images.detach().aminmax())
        if not (low >= 0 and high <= 1):  # a NaN fails this too
            raise pixel_range_error("corruption", low, high)
