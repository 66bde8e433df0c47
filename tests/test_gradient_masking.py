"""The verdict on masked gradients: each sign by itself, what could not be looked at, and sweeps of a small network."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from small_networks import images_and_labels, trained
from trustcxr import attacks
from trustcxr.evaluation import gradient_masking, predictions


def document(clean: float, *rows: tuple[str, float, float]) -> dict[str, Any]:
    steps = {"pgd": 20, "worst-case": 50, "square": 1000, "transfer": 10, "pgd-l2": 20}
    listed = [
        {"attack": attack, "epsilon": epsilon, "accuracy": accuracy}
        | ({"steps": steps[attack]} if attack in steps else {})
        for attack, epsilon, accuracy in rows
    ]
    return {"clean": {"accuracy": clean}, "attacks": listed}


HONEST = (
    ("fgsm", 0.01, 0.6), ("fgsm", 0.02, 0.4), ("fgsm", 0.3, 0.35), ("pgd", 0.01, 0.55), ("pgd", 0.02, 0.33),
    ("pgd", 0.3, 0.0), ("square", 0.02, 0.5), ("transfer", 0.02, 0.7), ("worst-case", 0.02, 0.31),
)  # fmt: skip


def test_an_honest_sweep_is_not_masked() -> None:
    found = gradient_masking.verdict(document(0.8, *HONEST[:2], *HONEST[3:]))
    assert found["masked"] is False
    assert found["looked_for"] == [
        "one step against many", "the fall with epsilon", "about zero at 0.3", "black box against white box",
    ]  # fmt: skip
    assert gradient_masking.sentence(found).startswith(
        "No masked gradients found: no sign of it in one step against many, "
    )


@pytest.mark.parametrize(
    ("rows", "because"),
    [
        ([("fgsm", 0.02, 0.63), ("pgd", 0.02, 0.0)], "63.0% under FGSM but 0.0% under PGD-20 at epsilon 0.02"),
        ([("fgsm", 0.02, 0.63), ("worst-case", 0.02, 0.2)], "20.0% under WORST-CASE-50"),
        ([("fgsm", 0.02, 0.3), ("pgd", 0.02, 0.4)], "30.0% under FGSM but 40.0% under PGD-20"),
        ([("pgd", 0.02, 0.3), ("pgd", 0.05, 0.36)], "under PGD-20 rises from 30.0% at epsilon 0.02 to 36.0% at 0.05"),
        ([("pgd", 0.02, 0.9)], "rises from 80.0% at epsilon 0 to 90.0% at 0.02"),
        ([("pgd", 0.02, 0.3), ("pgd", 0.3, 0.2)], "still 20.0% under PGD-20 at epsilon 0.3"),
        ([("pgd", 0.02, 0.5), ("square", 0.02, 0.3)], "30.0% under SQUARE-1000, 50.0% under PGD-20"),
        ([("pgd", 0.02, 0.5), ("transfer", 0.02, 0.4)], "without gradients is the stronger at epsilon 0.02"),
    ],
)
def test_each_sign_by_itself(rows: list[tuple[str, float, float]], because: str) -> None:
    found = gradient_masking.verdict(document(0.8, *rows))
    assert found["masked"] is True
    assert because in found["because"]
    assert "\n" not in gradient_masking.sentence(found)


def test_what_is_no_sign() -> None:
    found = gradient_masking.verdict(document(0.8, ("fgsm", 0.02, 0.42), ("pgd", 0.02, 0.33), ("square", 0.02, 0.32)))
    assert found["masked"] is False
    # A single step overshoots at a large radius, on any network; an L2 radius is another measure.
    rows = [("fgsm", 0.02, 0.2), ("fgsm", 0.3, 0.4), ("pgd", 0.02, 0.15), ("pgd-l2", 0.02, 0.8), ("pgd-l2", 0.3, 0.7)]
    assert gradient_masking.verdict(document(0.8, *rows))["masked"] is False
    assert "about zero at 0.3" not in gradient_masking.verdict(document(0.8, *rows))["looked_for"]


def test_what_could_not_be_looked_at() -> None:
    for rows in ((), (("fgsm", 0.02, 0.5),), (("square", 0.02, 0.5),)):
        found = gradient_masking.verdict(document(0.8, *rows))
        assert (found["masked"], found["looked_for"]) == (None, [])
        assert "not looked for" in found["because"]


# --- a real sweep ----------------------------------------------------------------------------------------------------


def swept(model: nn.Module) -> dict[str, Any]:
    images, labels = images_and_labels(150, seed=5)
    rows = []
    for epsilon in predictions.SWEEP:
        for name, options in (("fgsm", {}), ("pgd", {"steps": 20})):
            changed = attacks.get(name)(model, images, labels, epsilon=epsilon, **options)
            rows.append((name, epsilon, accuracy(model, changed, labels)))
    return document(accuracy(model, images, labels), *rows)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((model(images).argmax(1) == labels).float().mean())


def test_the_sweep_of_a_sound_network_falls_to_about_zero() -> None:
    """Trap 7: from clean accuracy at epsilon 0 it falls and reaches zero before 0.3."""
    found = swept(trained())
    pgd = [row["accuracy"] for row in found["attacks"] if row["attack"] == "pgd"]
    assert pgd[0] == pytest.approx(found["clean"]["accuracy"])
    assert pgd[0] > 0.8
    assert all(after <= before + 1e-9 for before, after in pairwise(pgd))
    assert pgd[-1] == 0
    verdict = gradient_masking.verdict(found)
    assert verdict["masked"] is False, verdict["because"]
    assert "about zero at 0.3" in verdict["looked_for"]


class Hidden(nn.Module):
    """The same network behind rounding to 12 grey levels: its gradient is zero almost everywhere."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images * 12).round() / 12 + 0 * images)


def test_a_network_that_hides_its_gradient_is_found_out() -> None:
    found = swept(Hidden(trained()))
    verdict = gradient_masking.verdict(found)
    assert verdict["masked"] is True
    assert "at epsilon 0.3" in verdict["because"]
