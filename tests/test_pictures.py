"""X-rays with outlines, heatmaps and the borders of cells: each where it belongs, in its colour."""

from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from trustcxr.report.figures import pictures

GREY = np.full((64, 96), 100, np.uint8)
BOX = np.zeros_like(GREY)
BOX[8:24, 12:36] = 1  # near the top, left of the middle


def shown(image: np.ndarray = GREY, **given: Any) -> np.ndarray:
    found = np.asarray(pictures.picture(image, **given)).astype(float)
    assert found.shape == (288, 288, 3)
    return found


def like(found: np.ndarray, colour: str) -> np.ndarray:
    return np.abs(found - 255 * np.array(to_rgb(colour))).max(2) < 40


def test_a_image_alone_is_the_image_stretched_to_a_square() -> None:
    image = np.repeat(np.arange(0, 192, 2, dtype=np.uint8)[None], 64, axis=0)
    found = shown(image)
    assert np.ptp(found, axis=2).max() == 0
    assert np.ptp(found, axis=0).max() <= 1, "columns stay columns"
    assert found[0, :, 0] == pytest.approx(np.linspace(-0.33, 190.33, 288), abs=1.5)


@pytest.mark.parametrize(("name", "colour"), [("infection", pictures.INFECTION), ("lung", pictures.LUNG)])
def test_the_outline_runs_along_the_border_of_its_mask(name: str, colour: str) -> None:
    found = shown(**{name: BOX})
    rows, columns = np.nonzero(like(found, colour))
    assert (rows.min(), rows.max()) == pytest.approx((8 * 4.5, 24 * 4.5), abs=2)
    assert (columns.min(), columns.max()) == pytest.approx((12 * 3, 36 * 3), abs=2)
    inside, outside = found[45:100, 45:100], found[150:]
    assert np.abs(inside - 100).max() <= 1
    assert np.abs(outside - 100).max() <= 1
    assert (found.max(2) < 85).sum() > 100, "a dark line beside it, so that it is seen on any image"


def test_a_mask_that_ends_with_the_image_has_its_whole_outline() -> None:
    found = like(shown(infection=np.ones_like(GREY)), pictures.INFECTION)
    assert [found[2:-2, place].mean() > 0.9 for place in (0, -1)] == [True, True]
    assert [found[place, 2:-2].mean() > 0.9 for place in (0, -1)] == [True, True]


def test_a_mask_of_nothing_or_of_another_shape_is_left_out() -> None:
    assert np.array_equal(shown(infection=np.zeros_like(GREY), lung=np.ones((3, 3), np.uint8)), shown())


def test_a_heatmap_lies_where_its_map_is_high_with_the_borders_of_its_cells() -> None:
    saliency = np.zeros(GREY.shape, np.float32)
    saliency[:32, 48:] = 1
    found = shown(saliency=saliency)
    assert found[20:120, 180:].mean() > found[170:, :].mean() + 60, "top right"
    with_cells = shown(saliency=saliency, cells=(2, 3))
    rows, columns = np.nonzero(np.abs(with_cells - found).max(2) > 20)
    assert set(rows[(columns > 110) & (columns < 180)]) <= set(range(142, 147)), "one border between two rows"
    assert {96, 192} & set(columns) or {95, 191} & set(columns)
    assert np.abs(with_cells - found)[:, 100:185][:140].max() == 0
