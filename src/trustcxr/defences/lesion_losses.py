"""Lesion masks in training: films whose lesion is removed or transplanted.

Masks are needed in training alone. Images are (B, 1, H, W), float, in [0, 1]; lung and lesion masks (B, 1, H, W), 1
inside, all 0 where an image has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trustcxr.data import lesions

CONTROL = 0.75  # controls beside each film that is made counterfactual: they keep its label


@dataclass(frozen=True)
class Known:
    """A batch and what training knows of it: pixels, lung, lesion (B, 1, H, W), labels (B,).

    edited (B,) bool: which films are counterfactual, or controls of such; None where none was made. shares (2,): of a
    part of a batch the shares of the whole batch's films that have a lesion, and that have lungs.
    """

    pixels: Tensor
    labels: Tensor
    lung: Tensor
    lesion: Tensor
    edited: Tensor | None = None
    shares: Tensor | None = None

    def of(self, part: slice) -> "Known":
        """A part of the batch."""
        edited = None if self.edited is None else self.edited[part]
        return Known(self.pixels[part], self.labels[part], self.lung[part], self.lesion[part], edited, self.shares)

    def ill(self) -> Tensor:
        """(B,) bool: films with a lesion."""
        return (self.lesion > 0.5).flatten(1).any(1)

    def with_lungs(self) -> Tensor:
        """(B,) bool: films with a lung mask."""
        return (self.lung > 0.5).flatten(1).any(1)

    def films(self, rows: Tensor) -> lesions.Films:
        """Some of them, with masks as `data.lesions` takes them."""
        return lesions.Films(self.pixels[rows], self.lung[rows, 0] > 0.5, self.lesion[rows, 0] > 0.5)


def counterfactual(
    known: Known,
    *,
    healthy: int,
    share: float,
    generator: torch.Generator,
    fills: Sequence[str] = ("grey",),
) -> Known:
    """The batch with a share of the films that have a lesion, and of the healthy ones, made counterfactual.

    Lesion removed: it is labelled `healthy`, whatever else may be on the film. As much healthy lung removed: it keeps
    its label, so that an edit alone says nothing. A lesion of the batch transplanted into a healthy film: that has the
    donor's label and lesion. A healthy film's lung put in at the same place: still healthy. Removed means filled by
    one of `fills` (of `data.lesions.TAUGHT`) after the other: with several, no fill alone gives an edit away. A film
    without a lung mask stays as it is: nobody knows what healthy lung is there.
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


def _removed(known: Known, gone: Tensor, controls: Tensor, healthy: int, fill: str) -> Known:
    pixels, labels, lesion = known.pixels.clone(), known.labels.clone(), known.lesion.clone()
    films = known.films(gone)
    pixels[gone] = lesions.removed(films.images, films.lesion, films.lung, films.lesion, fill=fill)
    labels[gone], lesion[gone] = healthy, 0.0
    films = known.films(controls)
    control = lesions.congruent(films.lesion, films.lung).control
    pixels[controls] = lesions.removed(films.images, control, films.lung, films.lesion, fill=fill)
    return replace(known, pixels=pixels, labels=labels, lesion=lesion)


def _transplanted(known: Known, into: Tensor, donors: Tensor, *, patch: Tensor) -> Known:
    """What `donors` have where the lesions of `patch` lie, put into other films; a lesion takes its label along."""
    films = known.films(into)
    giver = lesions.moved_onto(known.films(donors), films.lung)
    region = lesions.moved_onto(known.films(patch), films.lung).lesion & films.lung & giver.lung
    pixels, labels, lesion = known.pixels.clone(), known.labels.clone(), known.lesion.clone()
    pixels[into] = lesions.transplanted(films, giver, region)
    carried = region & giver.lesion
    lesion[into] = carried[:, None].to(lesion)
    ill = carried.flatten(1).any(1)
    labels[into] = torch.where(ill, known.labels[donors], known.labels[into])
    return replace(known, pixels=pixels, labels=labels, lesion=lesion)


def _shuffled(chosen: Tensor, generator: torch.Generator) -> Tensor:
    rows = chosen.nonzero()[:, 0]
    return rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
