"""Train with lesion masks: on images whose lesion was removed or transplanted.

Only training needs masks. Images are (B, 1, H, W) floats in [0, 1]; lung and lesion masks (B, 1, H, W), 1 inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trustcxr.data import lesion_edits

CONTROL = 0.75  # controls for each counterfactual image; they keep the label


@dataclass(frozen=True)
class LesionBatch:
    """A training batch: pixels, lung, lesion (B, 1, H, W), labels (B,).

    edited (B,) bool: counterfactuals and their controls, if any. shares (2,): of the whole batch's images with a
    lesion, and with lungs, if this is a part of it.
    """

    pixels: Tensor
    labels: Tensor
    lung: Tensor
    lesion: Tensor
    edited: Tensor | None = None
    shares: Tensor | None = None

    def slice_rows(self, part: slice) -> "LesionBatch":
        """Return a part of the batch."""
        edited = None if self.edited is None else self.edited[part]
        return LesionBatch(
            self.pixels[part], self.labels[part], self.lung[part], self.lesion[part], edited, self.shares
        )

    def ill(self) -> Tensor:
        """Return (B,) bool: images with a lesion."""
        return (self.lesion > 0.5).flatten(1).any(1)

    def with_lungs(self) -> Tensor:
        """Return (B,) bool: images with a lung mask."""
        return (self.lung > 0.5).flatten(1).any(1)

    def images(self, rows: Tensor) -> lesion_edits.EditInputs:
        """Return some rows as `data.lesion_edits` takes them."""
        return lesion_edits.EditInputs(self.pixels[rows], self.lung[rows, 0] > 0.5, self.lesion[rows, 0] > 0.5)


def counterfactual(
    batch: LesionBatch, *, healthy: int, share: float, generator: torch.Generator, fills: Sequence[str] = ("grey",)
) -> LesionBatch:
    """Return the batch with a share of its images with a lesion, and of its healthy ones, made counterfactual.

    - A lesion is removed: the label becomes `healthy`.
    - As much healthy lung is removed instead (control): the label stays, so an edit alone says nothing.
    - A lesion is transplanted into a healthy image: it gets the donor's label and lesion.
    - A healthy image's lung is put in at the same position (control): still healthy.

    Removal alternates between `fills` (of `data.lesion_edits.TRAINING_FILLS`), so that no fill gives an edit away. An
    image without a lung mask is unchanged.
    """
    before = batch.pixels
    usable = batch.with_lungs()
    ill, well = _shuffled(batch.ill() & usable, generator), _shuffled((batch.labels == healthy) & usable, generator)
    count, control_count = round(share * len(ill)), round(CONTROL * share * len(ill))
    for number, fill in enumerate(fills):
        edited, controls = ill[:count][number :: len(fills)], ill[count : count + control_count][number :: len(fills)]
        batch = _removed(batch, edited, controls, healthy, fill)
    donors = ill[count + control_count :]
    count, control_count = (min(n, len(donors)) for n in (round(share * len(well)), round(CONTROL * share * len(well))))
    batch = _transplanted(batch, well[:count], donors[:count], patch=donors[:count])
    recipients = well[count : count + control_count]
    others = well[count + control_count :][: len(recipients)]
    few = min(len(recipients), len(others), len(donors))
    batch = _transplanted(batch, recipients[:few], others[:few], patch=donors[:few])
    return replace(batch, edited=(batch.pixels != before).flatten(1).any(1))


def _removed(batch: LesionBatch, edited: Tensor, controls: Tensor, healthy: int, fill: str) -> LesionBatch:
    pixels, labels, lesion = batch.pixels.clone(), batch.labels.clone(), batch.lesion.clone()
    images = batch.images(edited)
    pixels[edited] = lesion_edits.fill_region(images.images, images.lesion, images.lung, images.lesion, fill=fill)
    labels[edited], lesion[edited] = healthy, 0.0
    images = batch.images(controls)
    control = lesion_edits.match_controls(images.lesion, images.lung).control
    pixels[controls] = lesion_edits.fill_region(images.images, control, images.lung, images.lesion, fill=fill)
    return replace(batch, pixels=pixels, labels=labels, lesion=lesion)


def _transplanted(batch: LesionBatch, into: Tensor, donors: Tensor, *, patch: Tensor) -> LesionBatch:
    """Copy the region of `patch`'s lesions from `donors` into other images; a lesion brings its label."""
    images = batch.images(into)
    giver = lesion_edits.align_donors(batch.images(donors), images.lung)
    region = lesion_edits.align_donors(batch.images(patch), images.lung).lesion & images.lung & giver.lung
    pixels, labels, lesion = batch.pixels.clone(), batch.labels.clone(), batch.lesion.clone()
    pixels[into] = lesion_edits.transplant(images, giver, region)
    carried = region & giver.lesion
    lesion[into] = carried[:, None].to(lesion)
    ill = carried.flatten(1).any(1)
    labels[into] = torch.where(ill, batch.labels[donors], batch.labels[into])
    return replace(batch, pixels=pixels, labels=labels, lesion=lesion)


def _shuffled(chosen: Tensor, generator: torch.Generator) -> Tensor:
    rows = chosen.nonzero()[:, 0]
    return rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
