"""What a model is, if not what its file declares: orders, ranges, inversion, names. Nothing honest is accused."""

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foreign_models import CLASSES, Computes
from trustcxr.audit import declaration_check as checks
from trustcxr.audit.entry_checks import describe_declaration
from trustcxr.audit.formats import load

# The class answered, of 100 images of each true class.
HONEST = {
    "good": [[80, 15, 5], [15, 80, 5], [5, 5, 90]],
    "often wrong": [[60, 25, 15], [25, 60, 15], [18, 17, 65]],
    "one class for nearly all": [[5, 0, 95], [4, 1, 95], [0, 5, 95]],
    "one class alone": [[0, 0, 100]] * 3,
    "at chance": [[34, 33, 33], [33, 34, 33], [33, 33, 34]],
    "one class taken for another": [[10, 85, 5], [10, 85, 5], [5, 5, 90]],
    "a class never answered, the others mixed up": [[0, 60, 40], [0, 40, 60], [0, 45, 55]],
    "a class never answered, and taken for the next": [[0, 90, 10], [0, 20, 80], [0, 5, 95]],
}


def images(confusion: list[list[int]], each: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Answers and true classes of so many images of each class."""
    rows = [np.repeat(np.arange(3), np.array(row) * each // 100) for row in confusion]
    truth = np.repeat(np.arange(3), [len(row) for row in rows])
    return np.concatenate(rows), truth


@pytest.mark.parametrize("name", HONEST)
def test_no_honest_order_is_called_wrong(name: str) -> None:
    assert checks.check_order(CLASSES, *images(HONEST[name], 200)).remedy is None


@pytest.mark.parametrize("name", ["good", "often wrong"])
@pytest.mark.parametrize("order", [order for order in permutations(range(3)) if order != (0, 1, 2)])
def test_every_wrong_order_is_noticed_with_the_right_one(name: str, order: tuple[int, ...]) -> None:
    answers, truth = images(HONEST[name], 200)
    declared = tuple(CLASSES[k] for k in order)  # output j is called declared[j], and is of CLASSES[j]
    place = {name: k for k, name in enumerate(declared)}
    known = np.array([place[CLASSES[k]] for k in truth])  # labels by the declared names
    found = checks.check_order(declared, answers, known)
    assert found.accuracy == pytest.approx(float((answers == known).mean()))
    assert found.remedy == f"output.classes: [{', '.join(CLASSES)}]"
    assert found.better == pytest.approx(float((answers == truth).mean()))
    assert found.weak is (name == "often wrong")
    assert describe_declaration(found, len(answers)).passed is False


def test_of_few_images_a_weak_models_order_is_not_said_to_be_wrong() -> None:
    answers, truth = images(HONEST["often wrong"], 20)
    swapped = np.array([1, 0, 2])[truth]
    assert checks.check_order(CLASSES, answers, swapped).remedy is None


def test_a_constant_answer_is_no_remedy_however_common_its_class() -> None:
    """The model gives every image the same answer, and every inverted image the other."""
    labels = torch.cat([torch.zeros(95), torch.ones(25)]).long()
    model = Computes(lambda images: (images.mean((1, 2, 3)) - 0.5)[:, None] * torch.tensor([-1, 1]))
    found = checks.check_declaration(model, ("ill", "well"), torch.full((120, 1, 4, 4), 0.7), labels)
    assert found.accuracy == pytest.approx(25 / 120)
    assert found.at_chance
    assert found.remedy is None


NAMES = ("Left", "Right", "Never known")
COUNT = 120


class Sides(nn.Module):
    """How bright the left and right half of an image are beyond a middle grey, squashed so that ranges matter."""

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
    model, rows = load(net, classes=NAMES, size=8, output="sigmoid").model, checks.select_rows(truth, 60)
    margins = model(images).detach().double().numpy() - cuts
    judged = checks.FindingAnswers(truth, margins, np.arange(COUNT).astype(str))
    other_input = checks.find_other_input(model, images[rows], np.full(3, cuts), judged.select(rows))
    return checks.find_other_names(NAMES, judged), other_input


def test_a_wrong_range_is_noticed_with_the_remedy() -> None:
    assert tried(Sides(lambda x: x / 255)) == (None, "input.range: [0, 255]")
    assert tried(Sides(lambda x: (x + 1) / 2)) == (None, "input.range: [-1, 1]")
    assert tried(Sides(lambda x: 1 - x)) == (None, "input.range: [1, 0], as MONOCHROME1 images are inverted")


@pytest.mark.parametrize("together", [0.0, 0.5])
def test_findings_that_have_each_others_names_are_noticed_with_the_remedy(together: float) -> None:
    assert tried(Sides(order=(1, 0)), together=together) == ("output.classes: [Right, Left, Never known]", None)


def nested(order: tuple[int, int], cuts: tuple[float, float]) -> str | None:
    """What is said of two findings of which the second is always one of the first, of names and thresholds."""
    random = np.random.default_rng(1)
    severity = random.integers(0, 3, COUNT)
    truth = np.stack([severity > 0, severity > 1], 1).astype(float)
    answers = np.array([[-2.5, -4.0], [2.5, -1.5], [5.5, 2.5]])[severity][:, order]
    answers = answers + random.standard_normal((COUNT, 2))
    judged = checks.FindingAnswers(truth, answers - cuts, np.arange(COUNT).astype(str))
    return checks.find_other_names(("Any", "Severe"), judged)


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
    few = checks.FindingAnswers(truth, margins, np.arange(COUNT).astype(str)).select(np.arange(4, 22))
    assert checks.find_other_names(NAMES, few) is None
