"""Remove lesions from images, or transplant them, to test whether a model uses the disease.

Images and results are (B, 1, H, W) float in [0, 1]; masks (B, H, W) bool. Edits have a soft edge, so that they draw no
outline. The control of an edit has the same shape at another position in the lungs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trustcxr.data.loader import to_pixels
from trustcxr.errors import UserError, unknown

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset

EDGE = 0.02  # of the side: width of the soft edge outside a region
HEALTHY = 0.05  # share of the lungs without lesion that their mean grey needs
_DARKEST = 0.2  # share of the lungs whose mean replaces it otherwise


@dataclass(frozen=True)
class Pair:
    """A part of each lesion and its control: the same shape moved, possibly mirrored, to a region without lesion.

    lesion, control: (B, H, W) bool of one area. share (B,): part of the whole lesion; NaN without a lesion. moves: for
    each image (mirrored, pixels down, pixels to the right).
    """

    lesion: Tensor
    control: Tensor
    share: Tensor
    moves: tuple[tuple[bool, int, int], ...] = ()

    def move_to_control(self, fields: Tensor) -> Tensor:
        """Move fields (B, H, W) as each lesion is moved to its control; 0 outside."""
        moved = [_shifted(f.flip(1) if flip else f, *by) for f, (flip, *by) in zip(fields, self.moves, strict=True)]
        return torch.stack(moved) if moved else fields

    def move_to_lesion(self, fields: Tensor) -> Tensor:
        """Move fields (B, H, W) as each control is moved to its lesion."""
        back = [(_shifted(f, -down, -right), flip) for f, (flip, down, right) in zip(fields, self.moves, strict=True)]
        moved = [field.flip(1) if flip else field for field, flip in back]
        return torch.stack(moved) if moved else fields


def compute_healthy_grey(images: Tensor, lung: Tensor, lesion: Tensor) -> Tensor:
    """Return the mean of the lungs outside the lesion, (B, 1, 1, 1).

    If the lesion leaves less than HEALTHY of the lungs, it is the mean of their darkest fifth, since air is dark.
    """
    pixels, inside = images[:, 0].flatten(1), lung.flatten(1)
    free = inside & ~lesion.flatten(1)
    mean = (pixels * free).sum(1) / free.sum(1).clamp(min=1)
    count = (_DARKEST * inside.sum(1)).long().clamp(min=1)[:, None]
    dark = torch.where(inside, pixels, torch.inf).sort(1).values.nan_to_num(posinf=0.0)
    darkest = dark.cumsum(1).gather(1, count - 1) / count
    enough = free.sum(1) >= HEALTHY * inside.sum(1).clamp(min=1)
    return torch.where(enough, mean, darkest[:, 0]).view(-1, 1, 1, 1)


def match_controls(lesion: Tensor, allowed: Tensor) -> Pair:
    """Return the largest part of each lesion with a congruent control inside `allowed` (B, H, W).

    Tries every shift of the lesion and of its mirror image, and takes the one with the largest overlap. Pixels outside
    `allowed` are left out of both masks. Both are empty if nothing fits.
    """
    free = allowed & ~lesion
    matches = [_match(one, other) for one, other in zip(lesion, free, strict=True)]
    parts = torch.stack([part for part, _, _ in matches]) if matches else lesion
    controls = torch.stack([control for _, control, _ in matches]) if matches else lesion
    share = parts.flatten(1).sum(1) / lesion.flatten(1).sum(1)
    return Pair(parts, controls, share, tuple(move for _, _, move in matches))


def match_place(images: "EditInputs", others: "EditInputs") -> Pair:
    """Return the part of each lesion whose place in the lungs is lung of another image too, and that place in it."""
    shifts = (_middle(others.lung) - _middle(images.lung)).round().long().tolist()
    size = images.lesion.flatten(1).sum(1)
    pair = Pair(images.lesion, images.lesion, size, tuple((False, down, right) for down, right in shifts))
    control = pair.move_to_control(images.lesion) & others.lung
    part = pair.move_to_lesion(control)
    return replace(pair, lesion=part, control=control, share=part.flatten(1).sum(1) / size)


def _match(lesion: Tensor, free: Tensor) -> tuple[Tensor, Tensor, tuple[bool, int, int]]:
    """Return the part of a lesion (H, W) that fits into `free` (H, W) after the best move, its control and the move."""
    height, width = lesion.shape
    size = (2 * height, 2 * width)  # no wrapping around
    shapes = torch.stack([lesion, lesion.flip(1)]).float()
    spectrum = torch.fft.rfft2(free.float(), s=size)
    overlap = torch.fft.irfft2(torch.fft.rfft2(shapes, s=size).conj() * spectrum, s=size).round()
    mirrored, position = divmod(int(overlap.argmax()), 4 * height * width)
    down, right = divmod(position, size[1])
    control = _shifted(shapes[mirrored] > 0, down, right) & free
    part = _shifted(control, -down, -right)
    return (part.flip(1) if mirrored else part), control, (bool(mirrored), down, right)


def _shifted(mask: Tensor, down: int, right: int) -> Tensor:
    """Shift a mask or image (H, W) by pixels modulo twice the side; the outside is 0."""
    height, width = mask.shape
    return F.pad(mask, (0, width, 0, height)).roll((down, right), (0, 1))[:height, :width]


# --- removed ---------------------------------------------------------------------------------------------------------


def fill_grey(images: Tensor, region: Tensor, lung: Tensor, lesion: Tensor) -> Tensor:
    """Fill with the mean grey of the image's healthy lung."""
    return compute_healthy_grey(images, lung, lesion).expand_as(images)


def fill_mirrored(images: Tensor, region: Tensor, lung: Tensor, lesion: Tensor) -> Tensor:
    """Fill with the image mirrored about the middle of its lungs; with healthy grey if that is no healthy lung."""
    values, usable = mirror_lungs(images, lung, lesion)
    return torch.where(usable[:, None], values, fill_grey(images, region, lung, lesion))


def mirror_lungs(images: Tensor, lung: Tensor, lesion: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror images about the middle of their lungs (B, 1, H, W); return also where that is healthy lung (B, H, W)."""
    width = images.shape[-1]
    columns = torch.arange(width, device=images.device)
    middle = (lung.sum(1) * columns).sum(1) / lung.flatten(1).sum(1).clamp(min=1)
    source = (2 * middle[:, None] - columns).round().long()
    inside = ((source >= 0) & (source < width))[:, None, :]
    source = source.clamp(0, width - 1)[:, None, :].expand_as(lung)
    usable = (lung & ~lesion).gather(2, source) & inside
    return images[:, 0].gather(2, source)[:, None], usable


def fill_inpainted(images: Tensor, region: Tensor, lung: Tensor, lesion: Tensor) -> Tensor:
    """Fill by biharmonic inpainting from healthy lung (Damelin and Hoang 2018; scikit-image).

    Brighter neighbours (chest wall, heart, the rest of the lesion) are first replaced by `fill_from_surroundings`.
    """
    try:
        from skimage.restoration import inpaint_biharmonic
    except ImportError:
        raise UserError(
            "inpaint: needs scikit-image. pip install 'trustcxr[inpaint]', or choose grey or mirror"
        ) from None
    healthy = (lung & ~lesion)[:, None]
    filled = torch.where(healthy, images, fill_from_surroundings(images, region, lung, lesion)).detach().clone()
    for image, hole in zip(filled[:, 0], _wide(region), strict=True):
        if hole.any() and not hole.all():
            values = inpaint_biharmonic(image.double().cpu().numpy(), hole.cpu().numpy())
            image.copy_(torch.from_numpy(values))
    return filled.clamp(0, 1)


def fill_drawn(images: Tensor, region: Tensor, lung: Tensor, lesion: Tensor) -> Tensor:
    """Fill with greys drawn at random from the image's healthy lung: equal brightness and variance, but no tissue.

    No fill of training resembles it. Every image uses the same random pattern, independent of its batch. Fills with
    healthy grey if the lesion leaves less than HEALTHY of the lungs.
    """
    free = (lung & ~lesion).flatten(1)
    count = free.sum(1, keepdim=True)
    order = torch.where(free, images[:, 0].flatten(1), torch.inf).sort(1).values
    generator = torch.Generator().manual_seed(0)
    ranks = torch.rand(images[0].numel(), generator=generator).to(images.device)
    greys = order.gather(1, (ranks * count).long().clamp(max=order.shape[1] - 1))
    enough = count >= HEALTHY * lung.flatten(1).sum(1, keepdim=True).clamp(min=1)
    return torch.where(enough.view(-1, 1, 1, 1), greys.view_as(images), fill_grey(images, region, lung, lesion))


def fill_from_surroundings(images: Tensor, region: Tensor, lung: Tensor, lesion: Tensor) -> Tensor:
    """Fill from the healthy lung around the region, coarser further inside: push and pull (Gortler et al. 1996).

    Fast enough for every training step. Fills with healthy grey if no healthy lung is left.
    """
    healthy = (lung & ~_wide(region | lesion))[:, None].to(images)
    some = healthy.flatten(1).any(1).view(-1, 1, 1, 1)
    return torch.where(some, _fill_coarser(images * healthy, healthy), fill_grey(images, region, lung, lesion))


def _fill_coarser(sums: Tensor, weights: Tensor) -> Tensor:
    """Return weighted means (B, 1, H, W); pixels without weight take those of half the size, recursively."""
    means = sums / weights.clamp(min=1e-6)
    if min(sums.shape[-2:]) < 2 or bool((weights > 0).all()):
        return means
    coarser = _fill_coarser(F.avg_pool2d(sums, 2, ceil_mode=True), F.avg_pool2d(weights, 2, ceil_mode=True))
    coarse = F.interpolate(coarser, size=sums.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(weights > 0, means, coarse)


Fill = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
_COMMON: dict[str, Fill] = {"grey": fill_grey, "mirror": fill_mirrored}
FILLS = _COMMON | {"inpaint": fill_inpainted, "drawn": fill_drawn}  # of measured effects
TRAINING_FILLS = _COMMON | {"surroundings": fill_from_surroundings}


def fill_region(
    images: Tensor, region: Tensor, lung: Tensor, lesion: Tensor, *, fill: str = "grey", only: Tensor | None = None
) -> Tensor:
    """Fill `region` (B, H, W), with a soft edge, by one of FILLS or TRAINING_FILLS.

    `lung` and `lesion` define healthy lung. The region may be the lesion, a part of it, or its control; an empty one
    changes nothing. Outside `only` (B, H, W) the fill is healthy grey. Raises UserError for an unknown fill.
    """
    if fill not in (fills := FILLS | TRAINING_FILLS):
        raise unknown("fill", fill, fills)
    weight, values = soften_edge(region), fills[fill](images, region, lung, lesion)
    if only is not None:
        values = torch.where(only[:, None], values, fill_grey(images, region, lung, lesion))
    return images * (1 - weight) + values * weight


def soften_edge(region: Tensor) -> Tensor:
    """Return weights (B, 1, H, W) of a region: 1 inside, falling to 0 within about EDGE of the side outside."""
    inside = region[:, None].float()
    reach = _reach(region)
    return torch.maximum(inside, F.avg_pool2d(inside, 2 * reach + 1, 1, reach, count_include_pad=False))


def _wide(region: Tensor) -> Tensor:
    reach = _reach(region)
    return F.max_pool2d(region[:, None].float(), 2 * reach + 1, 1, reach)[:, 0] > 0


def _reach(region: Tensor) -> int:
    return max(1, round(EDGE * region.shape[-1]))


# --- transplanted ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EditInputs:
    """Images (B, 1, H, W) with lung and lesion masks (B, H, W) bool."""

    images: Tensor
    lung: Tensor
    lesion: Tensor

    def __getitem__(self, rows: Tensor | slice | list[int]) -> "EditInputs":
        """Select rows."""
        return EditInputs(self.images[rows], self.lung[rows], self.lesion[rows])


def make_edit_inputs(dataset: "Dataset", rows: np.ndarray, device: torch.device) -> EditInputs:
    """Load rows of a data set with their masks."""
    images = to_pixels(torch.from_numpy(dataset.batch(rows)).to(device))
    masks = (torch.from_numpy(np.array(dataset.masks(kind)[rows])).to(device) > 0 for kind in ("lung", "infection"))
    return EditInputs(images, *masks)


def align_donors(donors: EditInputs, lung: Tensor) -> EditInputs:
    """Shift each donor so that the centre of its lungs is that of `lung` (B, H, W)."""
    if len(lung) == 0:
        return donors
    shifts = (_middle(lung) - _middle(donors.lung)).round().long().tolist()
    fields = (donors.images[:, 0], donors.lung, donors.lesion)
    images, lungs, lesions = (
        torch.stack([_shifted(one, *by) for one, by in zip(field, shifts, strict=True)]) for field in fields
    )
    return EditInputs(images[:, None], lungs, lesions)


def transplant(images: EditInputs, donors: EditInputs, region: Tensor) -> Tensor:
    """Put the donors' `region` (B, H, W) into the images, with a soft edge and matched grey.

    The donors are aligned by `align_donors`. The difference of the two healthy greys is added, so that the lesion keeps
    its contrast to healthy lung. Pixels outside the lungs of either image stay: chest wall is brighter than a lesion.
    """
    here, there = (compute_healthy_grey(each.images, each.lung, each.lesion) for each in (images, donors))
    weight = soften_edge(region & images.lung & donors.lung) * (images.lung & donors.lung)[:, None]
    return (images.images * (1 - weight) + (donors.images + (here - there)) * weight).clamp(0, 1)


def _middle(mask: Tensor) -> Tensor:
    """Centroids (B, 2), row and column; zeros for an empty mask."""
    count = mask.flatten(1).sum(1).clamp(min=1)
    rows = (mask.sum(2) * torch.arange(mask.shape[1], device=mask.device)).sum(1) / count
    columns = (mask.sum(1) * torch.arange(mask.shape[2], device=mask.device)).sum(1) / count
    return torch.stack([rows, columns], 1)
