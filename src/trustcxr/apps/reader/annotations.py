"""Define the marks of a reader (boxes, outlines), and convert them to a mask."""

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_REGIONS, MOST_POINTS = 20, 600
Fraction = Annotated[float, Field(ge=0, le=1)]  # of the image's width or height


class Region(BaseModel):
    """A box (two opposite corners) or an outline (three points or more); points are (x, y), each 0 to 1."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    kind: Literal["box", "outline"]
    points: list[tuple[Fraction, Fraction]] = Field(min_length=2, max_length=MOST_POINTS)

    @model_validator(mode="after")
    def _check_points(self) -> "Region":
        if self.kind == "box" and len(self.points) != 2:
            raise ValueError("a box has two corners")
        if self.kind == "outline" and len(self.points) < 3:
            raise ValueError("an outline has three points or more")
        return self


class Mark(BaseModel):
    """All regions of an image; an empty list means no finding."""

    model_config = ConfigDict(extra="forbid")
    regions: list[Region] = Field(max_length=MOST_REGIONS)


def draw_mask(mark: Mark, height: int, width: int) -> np.ndarray:
    """Return a mask (height, width), uint8, 1 for pixels whose centre is in a region.

    A region that contains no centre marks the pixels of its points.
    """
    mask = np.zeros((height, width), dtype=bool)
    for region in mark.regions:
        points = np.array(region.points) * (width, height)
        if region.kind == "box":
            (left, top), (right, bottom) = points
            points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        inside = _fill_polygon(points, height, width)
        if not inside.any():
            column, row = np.minimum(points.astype(int), (width - 1, height - 1)).T
            inside[row, column] = True
        mask |= inside
    return mask.astype(np.uint8)


def _fill_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return pixels (height, width) whose centre is in a polygon, by the even-odd rule."""
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    inside = np.zeros((height, width), dtype=bool)
    for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y1 != y2:
            rows = np.flatnonzero((y1 <= y) != (y2 <= y))
            at = x1 + (y[rows] - y1) * (x2 - x1) / (y2 - y1)
            inside[rows] ^= x >= at[:, None]
    return inside
