"""Right for the right reasons: the penalty, against the paper's formula written out by hand, and emptied lungs."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small_networks import SIDE, SmallNet, images_and_labels, one_thread
from trustcxr import catalogue, defences
from trustcxr.defences import contract, lung_losses

DEFENCE_OPTIONS = {name: entry.options for name, entry in catalogue.DEFENCES.items()}

OUTSIDE = torch.zeros(16, 1, 20, 20)
OUTSIDE[..., :7] = 1


@pytest.fixture
def model() -> SmallNet:
    torch.manual_seed(0)
    model = SmallNet().train()
    model.body[-1].p = 0.0
    return model


def by_hand(model: nn.Module, images: Tensor) -> Tensor:
    """Ross et al. 2017, the second term of equation 1, over the number of images."""
    leaf = images.detach().clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(F.log_softmax(model(leaf), 1).sum(), leaf, create_graph=True)
    return (OUTSIDE * slope).pow(2).sum() / len(images)


def test_the_penalty_of_a_linear_model_is_known() -> None:
    """Sum of log-probabilities: its gradient in the logits is 1 - C p, so that in the images is W^T (1 - C p)."""
    torch.manual_seed(0)
    linear = nn.Linear(400, 3)
    model, (images, _) = nn.Sequential(nn.Flatten(), linear), images_and_labels(16)
    with lung_losses.recorded(model) as passes:
        logits = model(images)
    slope = ((1 - 3 * logits.softmax(1)) @ linear.weight).view_as(images)
    expected = (slope.square() * OUTSIDE).sum() / 16
    found = lung_losses.penalty(passes, logits, OUTSIDE)
    assert torch.allclose(found, expected)
    (ours,) = torch.autograd.grad(found, linear.weight, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, linear.weight)
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("name", [n for n, entry in catalogue.DEFENCES.items() if n != "mixup" and not entry.certifies])
def test_it_goes_with_any_defence_and_costs_no_pass(name: str, model: SmallNet) -> None:
    images, labels = images_and_labels(16)
    options: dict[str, Any] = {"epsilon": 0.05} if "epsilon" in DEFENCE_OPTIONS[name] else {}
    perturbation = torch.zeros_like(images)
    options |= {"perturbation": perturbation} if name == "free" else {}
    seen: list[Tensor] = []
    twin = copy.deepcopy(model)
    torch.manual_seed(1)
    plain, _ = defences.get(name)(copy.deepcopy(model), images, labels, **options)
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    torch.manual_seed(1)
    with lung_losses.recorded(model) as passes:
        loss, logits = defences.get(name)(model, images, labels, **options)
    count = len(seen)
    penalty = lung_losses.penalty(passes, logits, OUTSIDE)
    assert len(seen) == count
    assert torch.allclose(loss, plain, atol=1e-6), "recording changes nothing"
    expected = by_hand(twin, seen[-1])
    assert torch.allclose(penalty, expected, rtol=1e-4), "taken on the images that the loss was taken on"
    (loss + 2 * penalty).backward()
    if name == "trades":  # its clean pass comes between
        twin = copy.deepcopy(model)
        twin.zero_grad()
        return
    (F.cross_entropy(twin(seen[-1]), labels) + 2 * expected).backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=2e-4, rtol=1e-3)
    assert not model._forward_pre_hooks or len(model._forward_pre_hooks) == 1, "its own hooks are gone"
    assert not model._forward_hooks
    if name == "free":
        assert float(perturbation.abs().max()) == pytest.approx(0.05), "one step, by the whole loss"


def test_training_on_it_takes_the_gradient_off_what_is_outside() -> None:
    """A class that is shown by both halves alike: with the penalty the model answers by the half that counts."""
    shares = {}
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(400, 32), nn.ReLU(), nn.Linear(32, 2))
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(100):
            labels = torch.randint(2, (16,))
            images = (0.4 + 0.2 * labels.view(-1, 1, 1, 1) + 0.1 * torch.randn(16, 1, 20, 20)).clamp(0, 1)
            with lung_losses.recorded(model) as passes:
                loss, logits = contract.standard(model, images, labels)
            (loss + weight * lung_losses.penalty(passes, logits, OUTSIDE)).backward()
            optimiser.step()
            optimiser.zero_grad()
        leaf = images.requires_grad_(True)
        logits = model(leaf)
        (slope,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), leaf)
        shares[weight] = float((slope.abs() * OUTSIDE).sum() / slope.abs().sum())
        assert float((logits.argmax(1) == labels).float().mean()) == 1.0
    assert shares[0.0] == pytest.approx(0.35, abs=0.1), "the area's share"
    assert shares[10.0] < 0.5 * shares[0.0]


def test_nothing_is_recorded_where_it_is_not_wanted(model: SmallNet) -> None:
    with lung_losses.recorded(model, wanted=False) as passes:
        model(images_and_labels(4)[0])
        assert not model._forward_pre_hooks
    assert passes == []
    with lung_losses.recorded(model) as passes, torch.no_grad():
        model(images_and_labels(4)[0])
    assert passes == []


# --- emptied lungs ---------------------------------------------------------------------------------------------------


def test_emptied_lungs_are_one_grey_and_the_rest_is_as_it_was() -> None:
    torch.manual_seed(3)
    images, lungs = torch.rand(12, 1, 8, 8), torch.zeros(12, 1, 8, 8)
    lungs[2:, :, 2:6, 1:7] = 1
    emptied = lung_losses.emptied(images, lungs)
    assert emptied.shape == (3, 1, 8, 8), "a quarter of the batch"
    inside = lungs[2:5].bool()
    assert torch.equal(emptied[~inside], images[2:5][~inside]), "the first that have lungs"
    greys = emptied[inside].view(3, -1)
    assert torch.equal(greys, greys[:, :1].expand_as(greys))
    assert len(greys[:, 0].unique()) == 3
    assert lung_losses.emptied(images, torch.zeros_like(lungs)).shape == (0, 1, 8, 8)
    assert lung_losses.emptied(images[:1], lungs[:1] + 1).shape == (1, 1, 8, 8), "one at least"


def test_a_learner_answers_for_emptied_lungs_apart_and_in_training_alone() -> None:
    torch.manual_seed(0)
    learner = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    images, emptied = torch.rand(6, 1, 8, 8), torch.rand(2, 1, 8, 8)
    beside = lung_losses.WithEmptiedLungs(learner.train(), emptied)
    logits = beside(images)
    whole = learner(torch.cat([images, emptied]))
    assert torch.allclose(logits, whole[:6], atol=1e-6)
    assert torch.allclose(beside.answer, whole[6:], atol=1e-6)
    even = torch.full((2, 3), 1 / 3)
    wanted = F.kl_div(beside.answer.log_softmax(1), even, reduction="batchmean")
    assert torch.allclose(beside.confusion_loss(), wanted, atol=1e-6)
    beside.answer = torch.full((2, 3), 4.0)
    assert float(beside.confusion_loss()) == pytest.approx(0, abs=1e-6)
    shown: list[int] = []
    hook = learner.register_forward_pre_hook(lambda _, given: shown.append(len(given[0])))
    assert torch.equal(beside.eval()(images), learner(images))
    assert shown == [6, 6], "an attack's passes cost nothing more"
    hook.remove()
    assert lung_losses.WithEmptiedLungs(learner.eval(), emptied).training is False, "as the learner is"


def test_what_lies_beside_the_lungs_no_longer_tells_the_class() -> None:
    """A spot in the corner gives the class away, and so does a pattern in the lungs: which is the answer by?"""
    inside = torch.zeros(1, 1, SIDE, SIDE)
    inside[..., 4:16, 4:16] = 1

    def marked(count: int, seed: int) -> tuple[Tensor, Tensor]:
        images, labels = images_and_labels(count, seed=seed)
        images = inside * images + (1 - inside) * 0.5
        for k in range(3):
            images[labels == k, :, :3, 6 * k : 6 * k + 3] = 1.0
        return images, labels

    confidence, right = {}, {}
    for background in ("full", "emptied"):
        torch.manual_seed(0)
        with one_thread():
            model = SmallNet().train()
            optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
            for step in range(60):
                images, labels = marked(48, seed=step)
                lungs = inside.expand_as(images)
                learner = lung_losses.WithEmptiedLungs(model, lung_losses.emptied(images, lungs))
                loss, _ = contract.standard(model if background == "full" else learner, images, labels)
                loss = loss if background == "full" else loss + learner.confusion_loss()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            images, labels = marked(90, seed=99)
            empty = images * (1 - inside) + 0.3 * inside
            with torch.no_grad():
                confidence[background] = float(model.eval()(empty).softmax(1).amax(1).mean())
                right[background] = float((model(images).argmax(1) == labels).float().mean())
    assert confidence["full"] > 0.8
    assert confidence["emptied"] < 0.5
    assert min(right.values()) > 0.9
