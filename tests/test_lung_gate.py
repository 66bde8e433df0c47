"""A lung segmenter inside the model: it learns the lungs, hides the rest, and stays as it is while the rest trains."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from small_runs import PowerCut, cut_at, made_up, recipe, same, weights
from trustcxr import attacks
from trustcxr.data.loader import to_pixels
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import load_run
from trustcxr.explain import methods
from trustcxr.models import classifier, factory
from trustcxr.models.factory import load_weights
from trustcxr.recipes import study_recipe
from trustcxr.training import fit_run as loop
from trustcxr.training import lung_segmenter


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lung_segmenter, "EPOCHS", 2)
    made_up(monkeypatch, [(0.4 + 0.01 * i, 0.4 + 0.01 * i, 0.4 + 0.01 * i) for i in range(50)])


@pytest.mark.sample("fgsm")
@pytest.mark.slow
@pytest.mark.parametrize("defence", ["standard", "fgsm"])
def test_the_gate_finds_the_lungs_of_images_that_it_was_not_trained_on(
    defence: str, radiographs: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lung_segmenter, "EPOCHS", 40)
    train, val = radiographs
    torch.manual_seed(0)
    gate = classifier.LungGate()
    during = lung_segmenter.fit(gate, train.images, train.masks("lung"), recipe(defence, background="gate"))
    pixels, lungs = to_pixels(torch.from_numpy(np.array(val.images))), torch.from_numpy(np.array(val.masks("lung")))
    found = gate.logits(pixels).detach() > 0
    score = float(lung_segmenter.dice(found, lungs[:, None] > 0).mean())
    assert score > 0.8
    assert during > 0.75
    outside = lungs[:, None] == 0
    hidden = gate(pixels).detach()[outside].abs().mean()
    assert hidden < 0.25 * (pixels[outside] - 0.5).abs().mean()


def test_what_the_gate_closes_changes_no_answer() -> None:
    torch.manual_seed(0)
    model = factory.build("test_resnet", classes=3, lung_gate=True).eval()
    with torch.no_grad():
        model.gate.out.weight.zero_()  # type: ignore[union-attr]
        model.gate.out.bias.fill_(-60.0)  # type: ignore[union-attr]
        first, second = model(torch.rand(1, 1, 32, 32)), model(torch.rand(1, 1, 32, 32))
        model.gate.out.bias.fill_(60.0)  # type: ignore[union-attr]
        images = torch.rand(2, 1, 32, 32)
        assert torch.allclose(model.gate(images), images - 0.5)
        without = classifier.Classifier(model.net, mean=float(model.mean), std=float(model.std)).eval()
        assert torch.allclose(model(images), without(images), atol=1e-5), "an open gate changes nothing"
    assert torch.allclose(first, second)


@pytest.mark.parametrize("lung_gate", [False, True])
def test_every_saliency_method_of_every_shipped_recipe_has_its_place_in_a_model(lung_gate: bool) -> None:
    model = factory.build("test_resnet", classes=3, lung_gate=lung_gate).eval()
    images = torch.rand((2, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    every = {
        name
        for recipe in study_recipe.shipped_recipes()
        for name in study_recipe.load_study(recipe).explanation.methods
    }
    names = every - {"evidence"}  # of evidence networks, which test_evidence has
    assert "layercam@gate" in names
    found = methods.maps(model, images, 0, sorted(names))
    assert {name: saliency.shape for name, saliency in found.items()} == dict.fromkeys(sorted(names), (2, 32, 32))


@pytest.mark.parametrize("size", [(32, 32), (45, 37), (224, 224)])
def test_the_gate_takes_any_size(size: tuple[int, int]) -> None:
    gate = classifier.LungGate()
    assert gate(torch.rand(2, 1, *size)).shape == (2, 1, *size)
    assert gate.logits(torch.rand(2, 1, *size)).shape == (2, 1, *size)


def test_attacks_meet_the_gate() -> None:
    model = factory.build("test_resnet", classes=3, lung_gate=True)
    model.gate.requires_grad_(False)
    images, labels = torch.rand(2, 1, 32, 32), torch.tensor([0, 1])
    through, _ = attacks.input_gradient(model.eval(), images, labels)
    with torch.no_grad():
        opened = model.gate.logits(images).sigmoid()  # type: ignore[union-attr]
    leaf = images.clone().requires_grad_(True)
    features = model.net.forward_features(model.normalise((leaf - 0.5) * opened + 0.5))  # type: ignore[operator]
    logits = model.net.forward_head(features)  # type: ignore[operator]
    (around,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"), leaf)
    alike = torch.nn.functional.cosine_similarity(through.flatten(1), around.flatten(1))
    assert (alike < 0.999).all(), "the gradient goes through the segmenter too"


def test_the_gate_is_trained_on_what_makes_it_worse() -> None:
    torch.manual_seed(0)
    gate = classifier.LungGate()
    pixels, inside = torch.rand(8, 1, 32, 32), (torch.rand(8, 1, 32, 32) > 0.5).float()

    def loss(images: torch.Tensor) -> float:
        return float(torch.nn.functional.binary_cross_entropy_with_logits(gate.logits(images), inside))

    moved = lung_segmenter._perturbed(gate, pixels, inside, 0.05, torch.Generator().manual_seed(0))
    assert loss(moved) > loss(pixels)
    assert float((moved - pixels).abs().max()) <= 0.05 + 1e-6
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    assert lung_segmenter._perturbed(gate, pixels, inside, 0.0, torch.Generator()) is pixels


@pytest.mark.usefixtures("short")
def test_images_without_a_lung_mask_do_not_teach_the_gate(radiographs: tuple[Any, Any]) -> None:
    train, _ = radiographs
    lungs = np.array(train.masks("lung"))
    lungs[32:] = 0
    gates = []
    for images, masks in ((train.images, lungs), (train.images[:32], lungs[:32])):
        torch.manual_seed(0)
        gates.append(classifier.LungGate())
        lung_segmenter.fit(gates[-1], images, masks, recipe(background="gate"))
    first, second = (gate.state_dict() for gate in gates)
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_dice() -> None:
    a, b = torch.zeros(3, 1, 4, 4, dtype=torch.bool), torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    a[0, 0, :2], b[0, 0, 1:3] = True, True
    a[1, 0, 0] = True
    assert lung_segmenter.dice(a, b).tolist() == [0.5, 0.0, 1.0]


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_a_gated_run_is_named_kept_and_resumed(radiographs: tuple[Any, Any], tmp_path: Path) -> None:
    run = recipe("fgsm", background="gate")
    assert run.name == "test_resnet-gate-fgsm-s0"
    loop.fit(run, *radiographs, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        cut_at(patch, 4)
        with pytest.raises(PowerCut):
            loop.fit(run, *radiographs, tmp_path / "parts")
    loop.fit(run, *radiographs, tmp_path / "parts")
    kept = weights(tmp_path / "whole")
    assert same(kept, weights(tmp_path / "parts"))
    loaded = load_run(tmp_path / "whole")
    assert isinstance(loaded.model.gate, classifier.LungGate)
    assert loaded.recipe == run


@pytest.mark.usefixtures("short")
def test_the_classifier_does_not_bend_the_gate(radiographs: tuple[Any, Any], tmp_path: Path) -> None:
    """A segmenter that learnt from the labels could draw the class in the shape that it cuts."""
    gates = []
    real = lung_segmenter.fit

    def fit(gate: classifier.LungGate, *rest: Any) -> float:
        score = real(gate, *rest)
        gates.append({f"gate.{k}": v.clone() for k, v in gate.state_dict().items()})
        return score

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lung_segmenter, "fit", fit)
        loop.fit(recipe("standard", background="gate", ema_decay=0.5), *radiographs, tmp_path)
    kept = weights(tmp_path)
    assert gates[0]
    assert all(torch.allclose(kept[k], v) for k, v in gates[0].items())


def test_a_gate_that_was_trained_for_another_background_is_refused(tmp_path: Path) -> None:
    model = factory.build("test_resnet", classes=3, lung_gate=True)
    state = {key: value for key, value in model.state_dict().items() if key != "gate.level"}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"not the weights of this model .*gate\.level"):
        load_weights(model, tmp_path / "model.safetensors")
