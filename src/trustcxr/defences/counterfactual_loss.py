"""Lesion masks in training: images whose lesion is removed or transplanted.

Masks are needed in training alone. Images are (B, 1, H, W), float, in [0, 1]; lung and lesion masks (B, 1, H, W), 1
inside, all 0 where an image has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trustcxr.data import lesion_edits

CONTROL = 0.75  # controls beside each image that is made counterfactual: they keep its label


@dataclass(frozen=True)
class LesionBatch:
    """A batch and what training knows of it: pixels, lung, lesion (B, 1, H, W), labels (B,).

    edited (B,) bool: which images are counterfactual, or controls of such; None where none was made. shares (2,): of a
    part of a batch the shares of the whole batch's images that have a lesion, and that have lungs.
    """

    pixels: Tensor
    labels: Tensor
    lung: Tensor
    lesion: Tensor
    edited: Tensor | None = None
    shares: Tensor | None = None

    def of(self, part: slice) -> "LesionBatch":
        """A part of the batch."""
        edited = None if self.edited is None else self.edited[part]
        return LesionBatch(
            self.pixels[part], self.labels[part], self.lung[part], self.lesion[part], edited, self.shares
        )

    def ill(self) -> Tensor:
        """(B,) bool: images with a lesion."""
        return (self.lesion > 0.5).flatten(1).any(1)

    def with_lungs(self) -> Tensor:
        """(B,) bool: images with a lung mask."""
        return (self.lung > 0.5).flatten(1).any(1)

    def images(self, rows: Tensor) -> lesion_edits.EditInputs:
        """Some of them, with masks as `data.lesions` takes them."""
        return lesion_edits.EditInputs(self.pixels[rows], self.lung[rows, 0] > 0.5, self.lesion[rows, 0] > 0.5)


def counterfactual(
    known: LesionBatch,
    *,
    healthy: int,
    share: float,
    generator: torch.Generator,
    fills: Sequence[str] = ("grey",),
) -> LesionBatch:
    """The batch with a share of the images that have a lesion, and of the healthy ones, made counterfactual.

    Lesion removed: it is labelled `healthy`, whatever else may be on the image. As much healthy lung removed: it keeps
    its label, so that an edit alone says nothing. A lesion of the batch transplanted into a healthy image: that has the
    donor's label and lesion. A healthy image's lung put in at the same place: still healthy. Removed means filled by
    one of `fills` (of `data.lesion_edits.TRAINING_FILLS`) after the other: with several, no fill alone gives an edit
    away. An image without a lung mask stays as it is: nobody knows what healthy lung is there.
    """
    before = known.pixels
    usable = known.with_lungs()
    ill, well = _shuffled(known.ill() & usable, generator), _shuffled((known.labels == healthy) & usable, generator)
    count, beside = round(share * len(ill)), round(CONTROL * share * len(ill))
    for number, fill in enumerate(fills):
        gone, controls = ill[:count][number :: len(fills)], ill[count : count + beside][number :: len(fills)]
        known = _removed(known, gone, controls, healthy, fill)
    donors = ill[count + beside :]
    count, beside = (min(n, len(donors)) for n in (round(share * len(well)), round(CONTROL * share * len(well))))
    known = _transplanted(known, well[:count], donors[:count], patch=donors[:count])
    recipients = well[count : count + beside]
    others = well[count + beside :][: len(recipients)]
    few = min(len(recipients), len(others), len(donors))
    known = _transplanted(known, recipients[:few], others[:few], patch=donors[:few])
    return replace(known, edited=(known.pixels != before).flatten(1).any(1))


def _removed(known: LesionBatch, gone: Tensor, controls: Tensor, healthy: int, fill: str) -> LesionBatch:
    pixels, labels, lesion = known.pixels.clone(), known.labels.clone(), known.lesion.clone()
    images = known.images(gone)
    pixels[gone] = lesion_edits.fill_region(images.images, images.lesion, images.lung, images.lesion, fill=fill)
    labels[gone], lesion[gone] = healthy, 0.0
    images = known.images(controls)
    control = lesion_edits.match_controls(images.lesion, images.lung).control
    pixels[controls] = lesion_edits.fill_region(images.images, control, images.lung, images.lesion, fill=fill)
    return replace(known, pixels=pixels, labels=labels, lesion=lesion)


def _transplanted(known: LesionBatch, into: Tensor, donors: Tensor, *, patch: Tensor) -> LesionBatch:
    """What `donors` have where the lesions of `patch` lie, put into other images; a lesion takes its label along."""
    images = known.images(into)
    giver = lesion_edits.align_donors(known.images(donors), images.lung)
    region = lesion_edits.align_donors(known.images(patch), images.lung).lesion & images.lung & giver.lung
    pixels, labels, lesion = known.pixels.clone(), known.labels.clone(), known.lesion.clone()
    pixels[into] = lesion_edits.transplant(images, giver, region)
    carried = region & giver.lesion
    lesion[into] = carried[:, None].to(lesion)
    ill = carried.flatten(1).any(1)
    labels[into] = torch.where(ill, known.labels[donors], known.labels[into])
    return replace(known, pixels=pixels, labels=labels, lesion=lesion)


def _shuffled(chosen: Tensor, generator: torch.Generator) -> Tensor:
    rows = chosen.nonzero()[:, 0]
    return rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
