"""A model of findings that is not what its file declares: ranges, inversion, names; and nothing honest accused."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trustcxr.audit.declaration_check import FindingAnswers, find_other_input, find_other_names, select_rows
from trustcxr.audit.formats import load

NAMES = ("Left", "Right", "Never known")
COUNT = 120


class Sides(nn.Module):
    """Logits:

    How bright the left and right half of an image are beyond a middle grey, squashed so that ranges matter.
    """

    def __init__(self, make: Callable[[Tensor], Tensor] = lambda x: x, order: tuple[int, ...] = (0, 1)) -> None:
        super().__init__()
        self.make, self.order = make, order

    def forward(self, images: Tensor) -> Tensor:
        grey = self.make(images)
        half = grey.shape[-1] // 2
        sides = torch.stack([grey[..., :half].mean((1, 2, 3)), grey[..., half:].mean((1, 2, 3))], 1)
        sides = 8 * (sides - 0.5).clamp(-0.4, 0.4)
        return torch.sigmoid(torch.cat([sides[:, self.order], sides[:, :1]], 1))


def radiographs(together: float = 0.5, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Images whose halves are bright where the finding is there, one finding as the other in that share of images."""
    random = np.random.default_rng(seed)
    truth = np.stack([random.random(COUNT) < 0.4, random.random(COUNT) < 0.4, np.zeros(COUNT)], 1).astype(float)
    same = random.random(COUNT) < together
    truth[same, 1] = truth[same, 0]
    truth[:, 2] = np.nan
    truth[:4, 0] = np.nan
    grey = np.where(np.nan_to_num(truth[:, :2]) > 0, 0.62, 0.38) + 0.07 * random.standard_normal((COUNT, 2))
    images = np.repeat(grey, 4, 1)[:, None, None, :].repeat(8, 2) + 0.03 * random.standard_normal((COUNT, 1, 8, 8))
    return torch.tensor(images.clip(0, 1), dtype=torch.float32), truth


def tried(net: nn.Module, cuts: float = 0.0, together: float = 0.5, seed: int = 0) -> tuple[str | None, str | None]:
    images, truth = radiographs(together, seed)
    given = load(net, classes=NAMES, size=8, output="sigmoid")
    assert given.model is not None
    margins = given.model(images).detach().double().numpy() - cuts
    judged = FindingAnswers(truth, margins, np.arange(COUNT).astype(str))
    rows = select_rows(truth, 60)
    return find_other_names(NAMES, judged), find_other_input(
        given.model, images[rows], np.full(3, cuts), judged.select(rows)
    )


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda x: x / 255, "input.range: [0, 255]"),
        (lambda x: (x + 1) / 2, "input.range: [-1, 1]"),
        (lambda x: 1 - x, "input.range: [1, 0], as MONOCHROME1 images are inverted"),
    ],
)
def test_a_wrong_range_is_noticed_with_the_remedy(make: Callable[[Tensor], Tensor], remedy: str) -> None:
    assert tried(Sides(make)) == (None, remedy)


@pytest.mark.parametrize("together", [0.0, 0.5])
def test_findings_that_have_each_others_names_are_noticed_with_the_remedy(together: float) -> None:
    names, taken = tried(Sides(order=(1, 0)), together=together)
    assert names == "output.classes: [Right, Left, Never known]"
    assert taken is None


def nested(order: tuple[int, int], cuts: tuple[float, float]) -> str | None:
    """What is said of two findings of which the second is always one of the first, of names and thresholds."""
    random = np.random.default_rng(1)
    severity = random.integers(0, 3, COUNT)
    truth = np.stack([severity > 0, severity > 1], 1).astype(float)
    answers = np.array([[-2.5, -4.0], [2.5, -1.5], [5.5, 2.5]])[severity][:, order]
    answers = answers + random.standard_normal((COUNT, 2))
    return find_other_names(("Any", "Severe"), FindingAnswers(truth, answers - cuts, np.arange(COUNT).astype(str)))


def test_findings_that_include_each_other_are_told_apart_from_badly_chosen_thresholds() -> None:
    assert nested((1, 0), (0, 0)) == "output.classes: [Severe, Any]"
    assert nested((0, 1), (0, 0)) is None
    assert nested((0, 1), (4, -2.75)) is None, "the first is said of severe images alone, the second of any"


@pytest.mark.parametrize("together", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("cuts", [0.0, 2.5, -2.5])
def test_nothing_honest_is_accused(together: float, cuts: float) -> None:
    """Neither of findings that go together, nor of a threshold that calls all images the same."""
    for seed in range(2):
        assert tried(Sides(), cuts, together, seed) == (None, None)
        assert tried(Sides(order=(0, 0)), cuts, together, seed)[0] is None, "two outputs that say the same"


def test_a_model_that_knows_one_of_two_findings_is_bad_and_not_wrongly_declared() -> None:
    noise = Sides(lambda x: torch.cat([x[..., :4], torch.rand(x[..., 4:].shape)], -1))
    for together in (0.0, 0.5, 0.9):
        assert tried(noise, together=together) == (None, None)


def test_few_images_accuse_nobody() -> None:
    images, truth = radiographs()
    margins = Sides(order=(1, 0))(images).logit().double().numpy()
    few = FindingAnswers(truth, margins, np.arange(COUNT).astype(str)).select(np.arange(4, 22))
    assert find_other_names(NAMES, few) is None
