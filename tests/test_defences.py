"""The loss of each defence, against the same loss written out by hand."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from small_networks import SmallNet, images_and_labels
from trustcxr import attacks, defences
from trustcxr.errors import UserError


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
    loss, logits = defences.standard(model, images, labels, epsilon=0.5, clean_share=0.0, mode="train")
    expected = model(images)
    assert torch.allclose(logits, expected)
    assert torch.allclose(loss, F.cross_entropy(expected, labels))


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_fgsm_shares_clean_and_adversarial_loss(
    mode: attacks.Mode, share: float, model: SmallNet, batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = batch
    twin = copy.deepcopy(model)
    loss, logits = defences.fgsm(model, images, labels, epsilon=0.05, clean_share=share, mode=mode)
    leaf = images.clone().requires_grad_(True)
    F.cross_entropy(copy.deepcopy(twin).train(mode == "train")(leaf), labels).backward()
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
    defences.fgsm(model, images, labels, epsilon=0.05)[0].backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
    counted = [int(m.num_batches_tracked) for m in model.body if isinstance(m, torch.nn.BatchNorm2d)]
    assert counted == [1, 1], "the attack's pass must not count as a batch"
    assert model.training


@pytest.mark.parametrize("name", defences.DEFENCES)
def test_label_smoothing_reaches_the_loss(name: str, model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    # With smoothing 1 the label no longer counts.
    loss, logits = defences.get(name)(
        model, images, labels, epsilon=0.02, clean_share=0.0, mode="eval", label_smoothing=1.0
    )
    assert torch.allclose(loss, -F.log_softmax(logits, dim=1).mean(), atol=1e-6)
    if name == "fgsm":
        both, _ = defences.fgsm(model, images, labels, epsilon=0.0, clean_share=0.5, label_smoothing=1.0)
        assert torch.allclose(both, -F.log_softmax(model(images), dim=1).mean(), atol=1e-6)


def test_autocast_training_step_is_close_to_full_precision(model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    twin = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = defences.fgsm(model, images, labels, epsilon=0.05, clean_share=0.5)
    loss.backward()
    full, _ = defences.fgsm(twin, images, labels, epsilon=0.05, clean_share=0.5)
    full.backward()
    assert float(loss) == pytest.approx(float(full), rel=0.02)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None
        assert F.cosine_similarity(ours.grad.flatten(), theirs.grad.flatten(), dim=0) > 0.9 or theirs.grad.norm() < 1e-3


def test_get_suggests_the_nearest_name() -> None:
    assert defences.get("fgsm") is defences.fgsm
    with pytest.raises(UserError, match="unknown defence 'standart': did you mean standard"):
        defences.get("standart")


@pytest.mark.parametrize("name", ["standard", "fgsm"])
def test_class_weights_reach_the_loss(name: str) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    from trustcxr.training import class_weights

    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    weights = class_weights(labels, 3)
    np.testing.assert_allclose(weights, compute_class_weight("balanced", classes=np.arange(3), y=labels), rtol=1e-6)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    images, target = torch.rand(8, 1, 8, 8), torch.from_numpy(labels)
    options = {"epsilon": 0.02, "clean_share": 0.0, "mode": "eval"}
    loss, logits = defences.get(name)(model, images, target, class_weights=weights, **options)
    assert float(loss) == pytest.approx(float(torch.nn.functional.cross_entropy(logits, target, weight=weights)))
    plain, _ = defences.get(name)(model, images, target, **options)
    assert float(loss) != pytest.approx(float(plain), abs=1e-4)
