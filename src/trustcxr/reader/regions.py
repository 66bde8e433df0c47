"""What a reader marks: boxes and outlines, in shares of the film's width and height, and as pixels."""

from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_REGIONS, MOST_POINTS = 20, 600
Share = Annotated[float, Field(ge=0, le=1)]  # of the film's width or height


class Region(BaseModel):
    """A box by two opposite corners, or an outline by three points or more; (x, y), each 0 to 1."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    kind: Literal["box", "outline"]
    points: list[tuple[Share, Share]] = Field(min_length=2, max_length=MOST_POINTS)

    @model_validator(mode="after")
    def _fits(self) -> "Region":
        if self.kind == "box" and len(self.points) != 2:
            raise ValueError("a box has two corners")
        if self.kind == "outline" and len(self.points) < 3:
            raise ValueError("an outline has three points or more")
        return self


class Mark(BaseModel):
    """All regions of a film; none where the reader sees no finding."""

    model_config = ConfigDict(extra="forbid")
    regions: list[Region] = Field(max_length=MOST_REGIONS)


def pixels(mark: Mark, height: int, width: int) -> np.ndarray:
    """The regions as a mask, uint8 (height, width), 0 and 1."""
    picture = Image.new("1", (width, height))
    pen = ImageDraw.Draw(picture)
    for region in mark.regions:
        points = [(x * (width - 1), y * (height - 1)) for x, y in region.points]
        if region.kind == "box":
            (left, right), (top, bottom) = (sorted(side) for side in zip(*points, strict=True))
            pen.rectangle((left, top, right, bottom), fill=1)
        else:
            pen.polygon(points, fill=1)
    return np.asarray(picture, dtype=np.uint8)
