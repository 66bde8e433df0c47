"""A wrong order of the classes is noticed of models that are often wrong too; none that is merely bad is accused."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trustcxr.audit.declaration_check import check_declaration, check_order
from trustcxr.audit.entry_checks import describe_declaration

CLASSES = ("COVID-19", "Non-COVID", "Normal")
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
    found = check_order(CLASSES, *images(HONEST[name], 200))
    assert found.remedy is None


@pytest.mark.parametrize("name", ["good", "often wrong"])
@pytest.mark.parametrize("order", [order for order in permutations(range(3)) if order != (0, 1, 2)])
def test_every_wrong_order_is_noticed_with_the_right_one(name: str, order: tuple[int, ...]) -> None:
    answers, truth = images(HONEST[name], 200)
    declared = tuple(CLASSES[k] for k in order)  # output j is called declared[j], and is of CLASSES[j]
    place = {name: k for k, name in enumerate(declared)}
    known = np.array([place[CLASSES[k]] for k in truth])  # labels by the declared names
    found = check_order(declared, answers, known)
    assert found.accuracy == pytest.approx(float((answers == known).mean()))
    assert found.remedy == f"output.classes: [{', '.join(CLASSES)}]"
    assert found.better == pytest.approx(float((answers == truth).mean()))
    assert found.weak is (name == "often wrong")
    assert describe_declaration(found, len(answers)).passed is False


def test_of_few_images_a_weak_models_order_is_not_said_to_be_wrong() -> None:
    answers, truth = images(HONEST["often wrong"], 20)
    swapped = np.array([1, 0, 2])[truth]
    assert check_order(CLASSES, answers, swapped).remedy is None


class OneAnswer(nn.Module):
    """Gives every image the same answer, and every inverted image the other."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images.mean((1, 2, 3)) - 0.5
        return torch.stack([-bright, bright], 1)


def test_a_constant_answer_is_no_remedy_however_common_its_class() -> None:
    labels = torch.cat([torch.zeros(95), torch.ones(25)]).long()
    found = check_declaration(OneAnswer(), ("ill", "well"), torch.full((120, 1, 4, 4), 0.7), labels)
    assert found.accuracy == pytest.approx(25 / 120)
    assert found.at_chance
    assert found.remedy is None
