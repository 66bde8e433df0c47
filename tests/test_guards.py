"""Attacks without gradients guard an audit: a long Square, a surrogate, and a large epsilon."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from small_networks import Wrapped, images_and_labels, trained
from trustcxr.attacks import pgd
from trustcxr.attacks.adaptive import probe_gradients
from trustcxr.audit import attack_runner
from trustcxr.audit.attack_runner import AttackRunner, Guards, describe_guards, try_guards
from trustcxr.recipes.protocol import GuardRecipe

EPSILON, COUNT = 0.04, 40
RECIPE = GuardRecipe(images=24, queries=200, large_images=8, large_queries=60)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Attack a model by PGD, and try the guards on what is left."""
    images, labels = images_and_labels(COUNT, seed=8)
    dataset: Any = TensorDataset(images)  # as much of a data set as guards need
    dataset.labels, dataset.sample_ids = labels.numpy(), np.array([f"i{k}" for k in range(COUNT)])
    monkeypatch.setattr(attack_runner, "load_pixels", lambda data, rows, device: images[rows])

    def work(model: nn.Module, *, quick: bool = True) -> Guards:
        runner = AttackRunner(model, probe_gradients(model, images[:8]), gradients=True, images=images)
        if quick:
            runner.__dict__["distilled"] = trained("standard")
        table = pd.DataFrame({"sample_id": [*dataset.sample_ids] * 2, "label": [*dataset.labels] * 2})
        table["attack"], table["epsilon"] = np.repeat(["clean", "worst-case"], COUNT), np.repeat([0.0, EPSILON], COUNT)
        attacked = pgd(model, images, labels, epsilon=EPSILON, steps=10)
        table["logits"] = [*model(torch.cat([images, attacked])).detach().numpy()]
        return try_guards(runner, dataset, table, RECIPE)

    return work


def described(guards: Guards) -> dict[str, Any]:
    return {check.check: check for check in describe_guards(guards, RECIPE, "9 images", gradients=True)}


def test_an_honest_network_passes_and_a_masked_one_does_not(tried: Any) -> None:
    honest = trained("fgsm")
    found = tried(honest)
    assert found["total"] == COUNT
    assert 5 < found["left"] < COUNT
    assert found["searched"] + found["untried"] == min(24, found["left"])
    checks = described(found)
    assert all(check.passed is not False for check in checks.values()), checks
    assert "Square with 200 queries breaks 0 of" in checks["long Square"].text
    assert f"among the {found['left']} of {COUNT} images" in checks["long Square"].text
    # A network whose gradient points the other way.
    masked = described(tried(Wrapped(trained("standard"), lambda net, images: net(2 * images.detach() - images))))
    assert masked["long Square"].passed is False
    assert masked["surrogate"].passed is False
    assert all(check.grave for check in masked.values())


def test_a_long_square_ends_once_the_others_could_not_change_its_result(
    tried: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attack_runner, "STRONGER", 0.2)
    network, asked = trained("fgsm"), list[int]()
    search = attack_runner._GuardTrial.square
    monkeypatch.setattr(
        attack_runner._GuardTrial,
        "square",
        lambda trial, rows, epsilon, queries: asked.append(len(rows)) or search(trial, rows, epsilon, queries),
    )
    found = tried(network)
    # As many in one search as must stay right, for the check to pass if all the others were broken.
    assert 0 < found["searched"] == asked[0] < found["left"] < RECIPE.images
    assert found["searched"] + found["untried"] == found["left"]
    assert found["by_square"] == 0
    assert attack_runner._lead(found, found["untried"], found["left"]) <= 0.2
    assert attack_runner._lead(found, found["untried"] + 1, found["left"]) > 0.2
    check = described(found)["long Square"]
    assert check.passed is True
    assert f"If it broke the {found['untried']} others too, the result would be the same" in check.text
    monkeypatch.setattr(attack_runner, "STRONGER", 1.0)
    assert tried(network)["searched"] == 1, "one is tried even if none could fail the check"
    monkeypatch.setattr(attack_runner, "STRONGER", 0.2)
    monkeypatch.setattr(attack_runner._GuardTrial, "square", lambda trial, rows, epsilon, queries: min(1, len(rows)))
    assert tried(network)["searched"] == found["left"], "an image is broken: all the others are tried too"


def test_the_sentence_of_a_surrogate_that_disagrees_is_withheld(tried: Any) -> None:
    model = trained("standard")
    with torch.no_grad():
        other = nn.Sequential(model, nn.Linear(3, 3))
        other[1].weight.copy_(torch.eye(3).roll(1, 0))
        other[1].bias.zero_()
    guards = tried(other)
    assert guards["agreeing"] < 0.8 * guards["compared"]
    assert guards["transferred"] == 0
    check = described(guards)["surrogate"]
    assert (check.passed, check.grave) == (None, False)
    share = f"{guards['agreeing'] / guards['compared']:.0%}"
    assert f"It agrees with the model on {share} of 24 images, less than 80%, so nothing follows" in check.text


def test_a_surrogate_is_distilled_although_the_gradients_are_sound(tried: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "trustcxr.audit.attack_runner.distil", lambda model, images, **_: asked.append(len(images)) or trained("fgsm")
    )
    guards = tried(trained("fgsm"), quick=False)
    assert asked == [COUNT]
    assert guards["agreeing"] == guards["compared"] == 24
    assert "100% of 24 images" in described(guards)["surrogate"].text


def test_counts_of_findings_add_up_and_chance_is_allowed() -> None:
    one = Guards(total=40, left=30, searched=20, by_square=1)
    both = one + one
    assert (both["total"], both["searched"], both["by_square"], both["large"]) == (80, 40, 2, 0)
    assert described(both)["long Square"].passed is True, "two of forty may be chance"
    many = described(Guards(total=40, left=30, searched=30, by_square=9))
    assert many["long Square"].passed is False
    assert "large epsilon" not in many
    assert described(Guards()) == {}
    few = described(Guards(total=40, left=30, large=16, large_pgd=0, large_square=16))
    assert few["large epsilon"].passed is True, "Square alone tells nothing of gradients"
    assert described(Guards(total=40, left=30, large=16, large_pgd=9))["large epsilon"].passed is False
