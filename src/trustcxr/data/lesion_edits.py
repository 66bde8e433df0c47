"""Images as they would be without their lesion, or with another's: what asks a model whether the disease is its reason.

Images are (B, 1, H, W), float, in [0, 1]; masks (B, H, W), bool; what is returned has the same shapes. A change is soft
at its edge, so that no outline is drawn, and the control of a change is the same shape at another place, changed alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trustcxr.data.loader import to_pixels
from trustcxr.errors import UserError, unknown

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset

EDGE = 0.02  # of the side: how far outside a region its change fades out
HEALTHY = 0.05  # of the lungs must be free of the lesion for their mean grey to be taken as the healthy one
_DARKEST = 0.2  # of the lungs, whose mean is the healthy grey where the lesion leaves less than that


@dataclass(frozen=True)
class Pair:
    """A part of each lesion and its control: the same shape moved, maybe mirrored, to where there is no lesion.

    lesion, control (B, H, W) bool, of one area. `share` (B,): of the whole lesion that the part is; NaN without one.
    moves: of each image whether its part is mirrored, then how far it is moved down and to the right.
    """

    lesion: Tensor
    control: Tensor
    share: Tensor
    moves: tuple[tuple[bool, int, int], ...] = ()

    def move_to_control(self, fields: Tensor) -> Tensor:
        """What lies at each lesion in fields (B, H, W), moved to its control as the part is; 0 where nothing comes."""
        moved = [_shifted(f.flip(1) if flip else f, *by) for f, (flip, *by) in zip(fields, self.moves, strict=True)]
        return torch.stack(moved) if moved else fields

    def move_to_lesion(self, fields: Tensor) -> Tensor:
        """What lies at each control, moved to its lesion."""
        moved = []
        for field, (flip, down, right) in zip(fields, self.moves, strict=True):
            back = _shifted(field, -down, -right)
            moved.append(back.flip(1) if flip else back)
        return torch.stack(moved) if moved else fields


def compute_healthy_grey(images: Tensor, lung: Tensor, lesion: Tensor) -> Tensor:
    """The mean of the lungs outside the lesion, (B, 1, 1, 1).

    Where the lesion leaves less than HEALTHY of the lungs it is the mean of their darkest fifth: air is dark.
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
    """The largest part of each lesion that has a congruent counterpart inside `allowed` (B, H, W), and that.

    Every shift of the lesion and of its mirror image is tried; the one that covers most of `allowed` is taken, and what
    falls outside is left out on both sides, so that the two differ in place alone. Parts are empty where nothing fits.
    """
    free = allowed & ~lesion
    found = [_counterpart(one, other) for one, other in zip(lesion, free, strict=True)]
    parts = torch.stack([part for part, _, _ in found]) if found else lesion
    controls = torch.stack([control for _, control, _ in found]) if found else lesion
    share = parts.flatten(1).sum(1) / lesion.flatten(1).sum(1)
    return Pair(parts, controls, share, tuple(move for _, _, move in found))


def _counterpart(lesion: Tensor, free: Tensor) -> tuple[Tensor, Tensor, tuple[bool, int, int]]:
    """The part of one lesion (H, W) that fits into `free` (H, W) after the best move, where that is, and the move."""
    height, width = lesion.shape
    size = (2 * height, 2 * width)  # so that nothing comes in again at the other side
    shapes = torch.stack([lesion, lesion.flip(1)]).float()
    there = torch.fft.rfft2(free.float(), s=size)
    overlap = torch.fft.irfft2(torch.fft.rfft2(shapes, s=size).conj() * there, s=size).round()
    best = int(overlap.argmax())
    mirrored, place = divmod(best, 4 * height * width)
    down, right = place // size[1], place % size[1]
    control = _shifted(shapes[mirrored] > 0, down, right) & free
    part = _shifted(control, -down, -right)
    return (part.flip(1) if mirrored else part), control, (bool(mirrored), down, right)


def _shifted(mask: Tensor, down: int, right: int) -> Tensor:
    """A mask or an image (H, W) moved by so many pixels, taken modulo twice the side; what leaves it is lost."""
    height, width = mask.shape
    return F.pad(mask, (0, width, 0, height)).roll((down, right), (0, 1))[:height, :width]


# --- removed ---------------------------------------------------------------------------------------------------------


def fill_grey(images: Tensor, region: Tensor, lung: Tensor, lesion: Tensor) -> Tensor:
    """The grey of the image's own healthy lung, everywhere."""
    return compute_healthy_grey(images, lung, lesion).expand_as(images)


def fill_mirrored(images: Tensor, region: Tensor, lung: Tensor, lesion: Tensor) -> Tensor:
    """The image mirrored about the middle of its lungs; the healthy grey where that is no lung or the lesion itself."""
    values, usable = mirror_lungs(images, lung, lesion)
    return torch.where(usable[:, None], values, fill_grey(images, region, lung, lesion))


def mirror_lungs(images: Tensor, lung: Tensor, lesion: Tensor) -> tuple[Tensor, Tensor]:
    """The image mirrored about the middle of its lungs (B, 1, H, W), and where that is healthy lung (B, H, W) bool."""
    width = images.shape[-1]
    columns = torch.arange(width, device=images.device)
    middle = (lung.sum(1) * columns).sum(1) / lung.flatten(1).sum(1).clamp(min=1)
    source = (2 * middle[:, None] - columns).round().long()
    inside = ((source >= 0) & (source < width))[:, None, :]
    source = source.clamp(0, width - 1)[:, None, :].expand_as(lung)
    usable = (lung & ~lesion).gather(2, source) & inside
    return images[:, 0].gather(2, source)[:, None], usable


def fill_inpainted(images: Tensor, region: Tensor, lung: Tensor, lesion: Tensor) -> Tensor:
    """The region as healthy lung goes on into it: biharmonic inpainting (Damelin and Hoang 2018), scikit-image's.

    What is no healthy lung beside it (chest wall, heart, the rest of the lesion) is brighter, and would be drawn in: it
    stands as `surroundings` has it.
    """
    try:
        from skimage.restoration import inpaint_biharmonic
    except ImportError:
        raise UserError("inpaint needs scikit-image: pip install '.[inpaint]', or choose grey or mirror") from None
    healthy = (lung & ~lesion)[:, None]
    filled = torch.where(healthy, images, fill_from_surroundings(images, region, lung, lesion)).detach().clone()
    for image, hole in zip(filled[:, 0], _wide(region), strict=True):
        if hole.any() and not hole.all():
            found = inpaint_biharmonic(image.double().cpu().numpy(), hole.cpu().numpy())
            image.copy_(torch.from_numpy(found))
    return filled.clamp(0, 1)


def fill_drawn(images: Tensor, region: Tensor, lung: Tensor, lesion: Tensor) -> Tensor:
    """Greys of the image's own healthy lung, drawn at random for each pixel: as bright and as varied, and no tissue.

    No fill that training may use is like it (`TRAINING_FILLS`). One pattern for every image, so that it does not
    hang on which
    images stand beside it; the healthy grey where the lesion leaves less than HEALTHY of the lungs.
    """
    free = (lung & ~lesion).flatten(1)
    count = free.sum(1, keepdim=True)
    order = torch.where(free, images[:, 0].flatten(1), torch.inf).sort(1).values
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(images[0].numel(), generator=generator).to(images.device)
    greys = order.gather(1, (places * count).long().clamp(max=order.shape[1] - 1))
    enough = count >= HEALTHY * lung.flatten(1).sum(1, keepdim=True).clamp(min=1)
    return torch.where(enough.view(-1, 1, 1, 1), greys.view_as(images), fill_grey(images, region, lung, lesion))


def fill_from_surroundings(images: Tensor, region: Tensor, lung: Tensor, lesion: Tensor) -> Tensor:
    """The region from the healthy lung around it, coarser the further inside: push and pull (Gortler et al. 1996).

    Cheap enough to be made in every step of training, and never the same grey twice. The healthy grey where no healthy
    lung is left.
    """
    known = (lung & ~_wide(region | lesion))[:, None].to(images)
    some = known.flatten(1).any(1).view(-1, 1, 1, 1)
    return torch.where(some, _pulled(images * known, known), fill_grey(images, region, lung, lesion))


def _pulled(sums: Tensor, known: Tensor) -> Tensor:
    """Means of what is known (B, 1, H, W), and where nothing is, those of half the size."""
    means = sums / known.clamp(min=1e-6)
    if min(sums.shape[-2:]) < 2 or bool((known > 0).all()):
        return means
    coarser = _pulled(F.avg_pool2d(sums, 2, ceil_mode=True), F.avg_pool2d(known, 2, ceil_mode=True))
    coarse = F.interpolate(coarser, size=sums.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(known > 0, means, coarse)


Fill = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
FILLS: dict[str, Fill] = {
    "grey": fill_grey,
    "mirror": fill_mirrored,
    "inpaint": fill_inpainted,
    "drawn": fill_drawn,
}  # effects are told of
TRAINING_FILLS: dict[str, Fill] = {
    "grey": fill_grey,
    "mirror": fill_mirrored,
    "surroundings": fill_from_surroundings,
}  # training may use these


def fill_region(
    images: Tensor, region: Tensor, lung: Tensor, lesion: Tensor, *, fill: str = "grey", only: Tensor | None = None
) -> Tensor:
    """The images with `region` (B, H, W) replaced, soft at its edge, by one of FILLS or TRAINING_FILLS.

    `lung` and `lesion` say what is healthy. A region may be the lesion, a part of it, or its control. An empty one
    leaves its image as it is. Outside `only` (B, H, W), where it is given, the fill gives way to the healthy grey.
    UserError for an unknown fill.
    """
    if fill not in (known := FILLS | TRAINING_FILLS):
        raise unknown("fill", fill, known)
    weight, values = soften_edge(region), known[fill](images, region, lung, lesion)
    if only is not None:
        values = torch.where(only[:, None], values, fill_grey(images, region, lung, lesion))
    return images * (1 - weight) + values * weight


def soften_edge(region: Tensor) -> Tensor:
    """Weights (B, 1, H, W) of a region: 1 inside, falling to 0 within about EDGE of the side around it."""
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
    """Images with what is known of them: images (B, 1, H, W); lung, lesion (B, H, W) bool."""

    images: Tensor
    lung: Tensor
    lesion: Tensor

    def __getitem__(self, rows: Tensor | slice | list[int]) -> "EditInputs":
        """Some of them."""
        return EditInputs(self.images[rows], self.lung[rows], self.lesion[rows])


def make_edit_inputs(dataset: "Dataset", rows: np.ndarray, device: torch.device) -> EditInputs:
    """Some images of a data set, with their masks."""
    images = to_pixels(torch.from_numpy(dataset.batch(rows)).to(device))
    masks = (torch.from_numpy(np.array(dataset.masks(kind)[rows])).to(device) > 0 for kind in ("lung", "infection"))
    return EditInputs(images, *masks)


def align_donors(donors: EditInputs, lung: Tensor) -> EditInputs:
    """Each donor shifted so that the middle of its lungs lies on that of `lung` (B, H, W)."""
    if len(lung) == 0:
        return donors
    shifts = (_middle(lung) - _middle(donors.lung)).round().long().tolist()
    fields = (donors.images[:, 0], donors.lung, donors.lesion)
    images, lungs, lesions = (
        torch.stack([_shifted(one, *by) for one, by in zip(field, shifts, strict=True)]) for field in fields
    )
    return EditInputs(images[:, None], lungs, lesions)


def transplant(images: EditInputs, donors: EditInputs, region: Tensor) -> Tensor:
    """What the donors have in `region` (B, H, W) put into the images, soft at its edge and matched in grey.

    Matched: by the difference of the two healthy greys, so that the patch is as much brighter than healthy lung there
    as it was at home. The donors lie as `moved_onto` leaves them. What falls outside the lungs of either image is not
    put in, at the soft edge neither: beside a lung lies chest wall, brighter than a lesion.
    """
    step = _healthy(images) - _healthy(donors)
    weight = soften_edge(region & images.lung & donors.lung) * (images.lung & donors.lung)[:, None]
    return (images.images * (1 - weight) + (donors.images + step) * weight).clamp(0, 1)


def _healthy(images: EditInputs) -> Tensor:
    return compute_healthy_grey(images.images, images.lung, images.lesion)


def _middle(mask: Tensor) -> Tensor:
    """Centroids (B, 2), row and column; zeros for an empty mask."""
    count = mask.flatten(1).sum(1).clamp(min=1)
    rows = (mask.sum(2) * torch.arange(mask.shape[1], device=mask.device)).sum(1) / count
    columns = (mask.sum(1) * torch.arange(mask.shape[2], device=mask.device)).sum(1) / count
    return torch.stack([rows, columns], 1)
