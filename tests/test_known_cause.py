"""Do the saliency methods point at what a model is known to use? Models small enough to train in seconds."""

from functools import lru_cache
from itertools import pairwise

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from trustcxr.explain import known_cause

SIZE = 48
METHODS = ("gradcam", "hirescam", "layercam", "random")


class Tiny(nn.Module):
    """Four convolutions, their last map an eighth of the side, its peaks pooled: pixel space to two logits."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 8, 16, 24, 24)
        blocks = []
        for k, (before, after) in enumerate(pairwise(widths)):
            blocks += [nn.Conv2d(before, after, 3, 2 if k else 1, 1), nn.BatchNorm2d(after), nn.ReLU()]
        self.body, self.cam_layer = nn.Sequential(*blocks), nn.Identity()
        self.head = nn.Linear(widths[-1], 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.cam_layer(self.body(images - 0.5)).mean(dim=(2, 3)))


@lru_cache
def model(reads: str) -> nn.Module:
    draw = {"marker": known_cause.shortcut, "lesion": known_cause.honest}[reads]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return known_cause.fit(Tiny(), draw(320, SIZE), epochs=16, learning_rate=1e-2)


@lru_cache
def table(reads: str) -> pd.DataFrame:
    return known_cause.shares(model(reads), known_cause.both(40, SIZE, seed=9), METHODS)


def test_films_are_the_same_patients_whatever_is_planted() -> None:
    both, bare = known_cause.both(6, SIZE, seed=3), known_cause.unmarked(6, SIZE, seed=3)
    assert both.labels.tolist() == [0, 1] * 3
    different = (both.images != bare.images)[:, 0]
    assert torch.equal(different & both.marker, different), "only the letter differs"
    assert both.marker.flatten(1).any(1).all()
    assert not bare.marker.any()
    assert torch.equal(both.lesion, bare.lesion)
    assert both.lesion[::2].flatten(1).any(1).all()
    assert not both.lesion[1::2].any()


def test_where_the_letter_gives_the_class_away_nothing_else_does() -> None:
    films = known_cause.shortcut(8, SIZE)
    assert torch.equal(films.marker.flatten(1).any(1), films.labels == 0)
    plain = known_cause.draw(8, SIZE, marked=lambda *_: False, conspicuity=0.0)
    healthy = known_cause.draw(8, SIZE, marked=lambda *_: False, conspicuity=2.0)
    assert not torch.equal(plain.images[0], healthy.images[0])  # the lesion, where it shows
    assert torch.equal(plain.images[1], healthy.images[1])
    halves = known_cause.honest(8, SIZE)
    assert halves.marker.flatten(1).any(1).tolist() == [True, True, False, False] * 2


@pytest.mark.full
def test_each_model_uses_what_it_is_meant_to_use() -> None:
    both, bare = known_cause.both(40, SIZE, seed=9), known_cause.unmarked(40, SIZE, seed=9)
    assert known_cause.accuracy(model("marker"), known_cause.shortcut(40, SIZE, seed=8)) >= 0.95
    assert known_cause.changed(model("marker"), both, bare) >= 0.9
    assert known_cause.accuracy(model("lesion"), known_cause.honest(40, SIZE, seed=8)) >= 0.8
    assert known_cause.changed(model("lesion"), both, bare) <= 0.2


@pytest.mark.full
@pytest.mark.parametrize("name", ["gradcam", "hirescam", "layercam"])
def test_a_method_finds_the_letter_or_the_lesion_by_what_the_model_uses(name: str) -> None:
    found = {
        reads: table(reads)[table(reads)["method"] == name].mean(numeric_only=True) for reads in ("marker", "lesion")
    }
    assert found["marker"]["marker_near"] > 5 * found["marker"]["marker_near_area"]
    assert found["marker"]["lesion"] < found["lesion"]["lesion"]
    assert found["lesion"]["lesion"] > 1.3 * found["lesion"]["lesion_area"]
    assert found["lesion"]["marker_near"] < 2 * found["lesion"]["marker_near_area"]


@pytest.mark.full
def test_the_random_map_finds_neither() -> None:
    for reads in ("marker", "lesion"):
        means = table(reads)[table(reads)["method"] == "random"].mean(numeric_only=True)
        for region in ("marker", "lesion"):
            assert means[f"{region}_near"] == pytest.approx(means[f"{region}_near_area"], rel=0.4)


@pytest.mark.full
def test_shares_are_of_the_diseased_films() -> None:
    rows = table("marker")
    assert set(rows["film"]) == set(range(0, 40, 2))
    assert len(rows) == 20 * len(METHODS)
    for region in ("marker", "lesion"):
        assert (rows[f"{region}_near"] >= rows[region] - 1e-9).all()
