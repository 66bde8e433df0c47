"""What a map has over maps that know nothing of the model."""

import numpy as np
import pytest
import torch
from torch import Tensor

from trustcxr.explain import margins
from trustcxr.explain.margins import Lesions

SIZE = 32


@pytest.fixture
def films() -> tuple[Tensor, Lesions]:
    lung, lesion = torch.zeros(20, SIZE, SIZE, dtype=torch.bool), torch.zeros(20, SIZE, SIZE, dtype=torch.bool)
    lung[:, 6:26, 4:14] = lung[:, 6:26, 18:28] = True
    random = np.random.default_rng(0)
    for mask in lesion:
        row, column = random.integers(6, 20), random.choice([5, 19])
        mask[row : row + 6, column : column + 6] = True
    noise = torch.from_numpy(random.uniform(0, 0.1, (20, SIZE, SIZE))).float()
    return (0.7 - 0.4 * lung.float() + 0.3 * lesion.float() + noise)[:, None].clamp(0, 1), Lesions(lesion, lung)


def _table(maps: Tensor, images: Tensor, masks: Lesions) -> margins.pd.DataFrame:
    beside = margins.beside(margins.film_controls(images, masks.lung), masks, maps)
    beside[margins.CHANCE] = margins.by_chance(masks)
    return margins.margins(margins.measured(maps, masks), beside, np.arange(len(images)).astype(str))


def test_a_map_that_is_the_brightness_has_nothing_over_it(films: tuple[Tensor, Lesions]) -> None:
    images, masks = films
    table = _table(margins.film_controls(images, masks.lung)["brightness"], images, masks)
    for measure in margins.MEASURES:
        least = margins.least(table, measure)
        assert least["difference"] <= 0
    chance = table[(table["control"] == margins.CHANCE) & (table["measure"] == "hit_rate")].iloc[0]
    assert chance["low"] > 0.5, "though it is far above chance"


@pytest.mark.parametrize("power", [1, 8, 0.25])
def test_a_sharper_picture_of_the_brightness_has_nothing_over_it(films: tuple[Tensor, Lesions], power: float) -> None:
    images, masks = films
    smooth = margins.film_controls(images, masks.lung)["brightness-smooth"]
    table = _table(smooth**power, images, masks)
    own = table[table["control"] == "brightness-smooth, as sharp"].set_index("measure")["difference"]
    assert own.abs().max() < 1e-9, "the same order of pixels, whatever their contrast"
    if power == 8:
        plain, sharp = (margins.measured(m, masks)["infection_given_lung"].mean() for m in (smooth, smooth**power))
        assert sharp > plain + 0.1, "as shares of energy the sharper one would be far above"


def test_the_mask_itself_beats_every_control(films: tuple[Tensor, Lesions]) -> None:
    images, masks = films
    images = images * 0 + 0.5  # nothing to see on the film
    table = _table(masks.lesion.float(), images, masks)
    assert margins.least(table, "infection_given_lung")["low"] > 0.3
    assert margins.least(table, "hit_rate")["low"] > 0.3
    assert set(table["control"]) >= {"centre", "lung", "brightness", "edges", "chance"}
    assert (table["films"] == len(images)).all()


def test_differences_are_of_the_same_films(films: tuple[Tensor, Lesions]) -> None:
    images, masks = films
    lesion = masks.lesion.clone()
    lesion[:5] = False
    table = _table(torch.rand(20, SIZE, SIZE), images, Lesions(lesion, masks.lung))
    assert (table["films"] == 15).all()
    assert table["difference"].to_numpy() == pytest.approx((table["value"] - table["beside"]).to_numpy())


def test_chance_is_what_an_even_map_has(films: tuple[Tensor, Lesions]) -> None:
    _, masks = films
    chance = margins.by_chance(masks)
    shares = masks.lesion.float().mean((1, 2)).numpy()
    assert chance["hit_rate"] == pytest.approx(shares)
    lung = margins.measured(masks.lung.float(), masks)
    assert lung["infection_given_lung"] == pytest.approx(chance["infection_given_lung"])


def test_edges_are_where_the_film_is_steep_and_even_films_have_none() -> None:
    images = torch.zeros(1, 1, 9, 9)
    images[..., 5:] = 1
    found = margins.edges(images)[0]
    assert found[4, 4] == found[4, 5] == found.max()
    assert found[:, :3].max() == 0
    assert margins.edges(torch.full((1, 1, 9, 9), 0.7)).abs().max() < 1e-6


def test_the_mean_mask_is_of_the_films_that_have_one() -> None:
    masks = np.zeros((4, 2, 2), np.uint8)
    masks[0, 0, 0] = masks[1, 0] = 1
    assert margins.mean_mask(masks).tolist() == [[1.0, 0.5], [0.0, 0.0]]
