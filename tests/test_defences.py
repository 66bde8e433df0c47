"""The loss of each defence, against the same loss written out by hand."""

import copy
import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from small_networks import SmallNet, images_and_labels
from trustcxr import attacks, defences, registry
from trustcxr.defences import base
from trustcxr.defences.adversarial import fgsm
from trustcxr.recipes.training_recipe import DefenceRecipe

# Those that train on a bound need a network that can be bounded: see test_certify_defences.
UNBOUNDED = [name for name, entry in registry.DEFENCES.items() if not entry.certifies]
DEFENCE_OPTIONS = {name: entry.options for name, entry in registry.DEFENCES.items()}


@pytest.fixture
def model() -> SmallNet:
    torch.manual_seed(0)
    model = SmallNet().train()
    model.body[-1].p = 0.0  # no dropout, so that a loss can be computed twice
    return model


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    return images_and_labels(16, seed=2)


def test_standard_is_cross_entropy(model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    loss, logits = base.standard(model, images, labels)
    expected = model(images)
    assert torch.allclose(logits, expected)
    assert torch.allclose(loss, F.cross_entropy(expected, labels))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_fgsm_shares_clean_and_adversarial_loss(share: float, model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    twin = copy.deepcopy(model)
    loss, logits = fgsm(model, images, labels, epsilon=0.05, clean_weight=share)
    leaf = images.clone().requires_grad_(True)
    F.cross_entropy(copy.deepcopy(twin).eval()(leaf), labels).backward()
    adversarial = (images + 0.05 * leaf.grad.sign()).clamp(0, 1)
    expected = twin(adversarial)
    assert torch.allclose(logits, expected, atol=1e-6)
    whole = share * F.cross_entropy(twin(images), labels) + (1 - share) * F.cross_entropy(expected, labels)
    assert torch.allclose(loss, whole, atol=1e-6)
    if share < 1:
        assert bool(loss > F.cross_entropy(twin(images), labels))


def test_fgsm_loss_reaches_the_weights_but_not_through_the_attack(
    model: SmallNet, batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = batch
    twin = copy.deepcopy(model)
    adversarial = attacks.fgsm(twin, images, labels, epsilon=0.05)
    F.cross_entropy(twin(adversarial), labels).backward()
    fgsm(model, images, labels, epsilon=0.05)[0].backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
    counted = [int(m.num_batches_tracked) for m in model.body if isinstance(m, torch.nn.BatchNorm2d)]
    assert counted == [1, 1], "the attack's pass must not count as a batch"
    assert model.training


def options_of(name: str, batch: tuple[Tensor, Tensor]) -> dict[str, Any]:
    options: dict[str, Any] = {"epsilon": 0.02} if "epsilon" in DEFENCE_OPTIONS[name] else {}
    return options | ({"perturbation": torch.zeros_like(batch[0])} if name == "free" else {})


def test_the_recipe_knows_what_each_defence_takes() -> None:
    """A key that a defence does not use is an error: the table in recipes.py and the signatures must agree."""
    assert DEFENCE_OPTIONS.keys() == defences.DEFENCES.keys()
    not_the_loss = {"ramp", "replays"}  # of training
    not_options = {"label_smoothing", "perturbation", "grown", "with_crown"}
    for name, defence in defences.DEFENCES.items():
        parameters = inspect.signature(defence).parameters
        takes = parameters.keys() - {"model", "images", "labels", *not_options}
        if name != "standard":
            assert takes == set(DEFENCE_OPTIONS[name]) - not_the_loss, name
        assert ("perturbation" in parameters) == ("replays" in DEFENCE_OPTIONS[name]), name
        for key in takes & DefenceRecipe.model_fields.keys() - {"epsilon"} if name != "standard" else ():
            assert parameters[key].default == DefenceRecipe.model_fields[key].default, (name, key)


@pytest.mark.parametrize("name", UNBOUNDED)
def test_label_smoothing_reaches_the_loss(name: str, model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    options = options_of(name, batch)
    loss, logits = defences.get(name)(
        model, images, labels, **options, label_smoothing=1.0, **({"beta": 0.0} if name == "trades" else {})
    )
    if name == "trades":  # its cross-entropy is of the clean images
        logits = model(images)
    assert torch.allclose(loss, -F.log_softmax(logits, dim=1).mean(), atol=1e-6)
    if name == "fgsm":
        both, _ = fgsm(model, images, labels, epsilon=0.0, clean_weight=0.5, label_smoothing=1.0)
        assert torch.allclose(both, -F.log_softmax(model(images), dim=1).mean(), atol=1e-6)


@pytest.mark.parametrize("name", UNBOUNDED)
def test_every_defence_leaves_the_model_training_and_its_weights_with_gradients(
    name: str, model: SmallNet, batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = batch
    before = images.clone()
    loss, logits = defences.get(name)(model, images, labels, **options_of(name, batch))
    assert (loss.ndim, logits.shape) == (0, (16, 3))
    loss.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    assert model.training
    assert torch.equal(images, before)
    counted = {int(m.num_batches_tracked) for m in model.body if isinstance(m, torch.nn.BatchNorm2d)}
    assert counted == {2 if name == "trades" else 1}, "only passes of the loss count as batches"


@pytest.mark.parametrize("name", UNBOUNDED)
def test_the_same_random_state_is_the_same_loss(name: str, model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        twin = copy.deepcopy(model)
        losses.append(float(defences.get(name)(twin, *batch, **options_of(name, batch))[0].detach()))
    assert losses[0] == losses[1]
    assert (losses[0] == losses[2]) == (name in ("standard", "fgsm", "free"))


@pytest.mark.parametrize("name", ["fgsm-rs", "pgd", "trades", "mixup", "cutout", "gaussian"])
def test_two_steps_in_a_row_draw_anew(name: str, model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    """Attacks put the random state back: what a defence draws must not be put back with it."""
    losses = {float(defences.get(name)(model, *batch, **options_of(name, batch))[0].detach()) for _ in range(3)}
    assert len(losses) == 3


def test_autocast_training_step_is_close_to_full_precision(model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    twin = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = fgsm(model, images, labels, epsilon=0.05, clean_weight=0.5)
    loss.backward()
    full, _ = fgsm(twin, images, labels, epsilon=0.05, clean_weight=0.5)
    full.backward()
    assert float(loss) == pytest.approx(float(full), rel=0.02)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None
        assert F.cosine_similarity(ours.grad.flatten(), theirs.grad.flatten(), dim=0) > 0.9 or theirs.grad.norm() < 1e-3
