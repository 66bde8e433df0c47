"""The loss of `ibp` and `crown-ibp` against the papers' formulas, and what such training proves against attacks."""

import copy
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small_networks import images_and_labels, one_thread
from trustcxr import attacks
from trustcxr.certify import verify
from trustcxr.certify.verify import Effort, least_margins
from trustcxr.defences import bound_training
from trustcxr.models.classifier import PixelScale
from trustcxr.models.factory import Plain, PlainNet, draw_even

EPSILON = 0.05
RADIUS = 0.02  # of training
PLAIN = Plain(((6, 4, 2), (12, 3, 2)), grid=5, hidden=16)


@pytest.fixture
def model() -> nn.Sequential:
    """One convolution, one hidden layer, on images of 20 pixels."""
    scale, convolution = PixelScale(torch.tensor(0.5), torch.tensor(0.25)), nn.Conv2d(1, 4, 4, 4)
    return nn.Sequential(scale, convolution, nn.ReLU(), nn.Flatten(), nn.Linear(100, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    return images_and_labels(16, seed=2)


def worst_logits(model: nn.Sequential, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Interval bounds by their ends, with the positive and the negative weights apart; then the worst margins."""
    scale, conv, _, _, hidden, _, last = model
    low, high = scale(images - epsilon), scale(images + epsilon)
    low, high = (
        F.conv2d(a, conv.weight.clamp(min=0), conv.bias, 4) + F.conv2d(b, conv.weight.clamp(max=0), None, 4)
        for a, b in ((low, high), (high, low))
    )
    low, high = low.relu().flatten(1), high.relu().flatten(1)
    low, high = (
        a @ hidden.weight.clamp(min=0).T + b @ hidden.weight.clamp(max=0).T + hidden.bias
        for a, b in ((low, high), (high, low))
    )
    low, high = low.relu(), high.relu()
    margins = torch.zeros(len(images), 3)
    for i, label in enumerate(labels):
        for other in range(3):
            weight = last.weight[other] - last.weight[label]
            ends = weight.clamp(min=0) @ high[i] + weight.clamp(max=0) @ low[i]
            margins[i, other] = ends + last.bias[other] - last.bias[label]
    return margins


def test_ibp_is_the_cross_entropy_of_the_worst_logits(model: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    loss, logits = bound_training.ibp(model, images, labels, epsilon=EPSILON)
    worst = worst_logits(model, images, labels, EPSILON)
    assert torch.allclose(logits, worst, atol=1e-5)
    assert torch.allclose(loss, F.cross_entropy(worst, labels), atol=1e-5)
    gradients = [torch.autograd.grad(each, list(model.parameters())) for each in (loss, F.cross_entropy(worst, labels))]
    assert all(torch.allclose(*pair, atol=1e-5) and pair[0].any() for pair in zip(*gradients, strict=True))


def test_a_radius_for_each_image_gives_its_bounds(model: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    edited = torch.arange(len(images)) % 2 == 0
    radii = torch.where(edited, EPSILON, EPSILON / 2).view(-1, 1, 1, 1)
    _, logits = bound_training.ibp(model, images, labels, epsilon=radii)
    whole, half = (bound_training.ibp(model, images, labels, epsilon=e)[1] for e in (EPSILON, EPSILON / 2))
    assert torch.allclose(logits, torch.where(edited[:, None], whole, half), atol=1e-5)


def test_a_share_of_clean_images_stands_beside_the_bound(model: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    loss, _ = bound_training.ibp(model, images, labels, epsilon=EPSILON, clean_weight=0.2)
    bound, clean = (F.cross_entropy(e, labels) for e in (worst_logits(model, images, labels, EPSILON), model(images)))
    assert torch.allclose(loss, 0.8 * bound + 0.2 * clean, atol=1e-5)


def test_crown_ibp_goes_from_crown_to_the_intervals(model: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    half, start, end = (
        bound_training.crown_ibp(model, images, labels, epsilon=EPSILON, grown=grown)[1] for grown in (0.5, 0.0, 1.0)
    )
    layers = verify.layers(model)
    found = verify.intervals(layers, verify.Interval(images, torch.full_like(images, EPSILON)))
    rows = verify.margins(3, labels, images)
    for each in (start, half):
        assert all(g.any() for g in torch.autograd.grad(each.logsumexp(1).sum(), list(model.parameters())))
    by_crown = -verify.backward(layers, found, rows, verify.first_slopes(layers, found))
    assert torch.allclose(start, by_crown, atol=1e-5)
    assert torch.allclose(end, worst_logits(model, images, labels, EPSILON), atol=1e-5)
    assert torch.allclose(half, (start + end) / 2, atol=1e-5)
    assert (start - end).abs().max() > 1e-3


def test_regularisers_are_shi_s_until_epsilon_is_grown(model: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    with torch.no_grad():
        model[1].weight.mul_(9)  # a radius that grows too fast, so that the first regulariser has something to say
        model[1].bias.add_(1.0)  # most values before the ReLU surely active, so that the second has too
    plain, _ = bound_training.ibp(model, images, labels, epsilon=0.01, grown=0.25)
    loss, _ = bound_training.ibp(model, images, labels, epsilon=0.01, grown=0.25, regulariser=2.0)
    tightness, balance = [], []
    low, high = model[0](images - 0.01), model[0](images + 0.01)
    first = float((high - low).mean())
    for layers in (list(model)[1:2], list(model)[1:5]):
        at = verify.intervals(verify.layers(nn.Sequential(*layers)), verify.Interval.from_ends(low, high))[-1]
        tightness.append(max(0.0, 0.5 - first / float(2 * at.radius.mean())) / 0.5)
        centre, active, inactive = at.centre, at.low > 0, at.high < 0
        mean = float(centre[active].sum() / -centre[inactive].sum())
        spread = (centre - centre.mean()) ** 2
        spread = float(spread[active].sum() / spread[inactive].sum())
        balance.append(sum(max(0.0, 0.5 - min(r, 1 / r)) / 0.5 for r in (mean, spread)))
    expected = sum(tightness) / 2 + sum(balance) / 2
    assert tightness[0] > 0
    assert sum(balance) > 0
    assert float(loss - plain) == pytest.approx(2.0 * 0.75 * expected, rel=1e-3)
    ended, _ = bound_training.ibp(model, images, labels, epsilon=0.01, grown=1.0, regulariser=2.0)
    assert float(ended) == pytest.approx(float(bound_training.ibp(model, images, labels, epsilon=0.01)[0]))


def test_weights_are_drawn_so_that_the_radius_stays(batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(400, 400), nn.ReLU())), nn.Linear(400, 400))
    images = batch[0].flatten(1)
    radii = []
    for drawn in (False, True):
        if drawn:
            draw_even(net)
        found = verify.intervals(verify.layers(net), verify.Interval(images, torch.full_like(images, EPSILON)))
        radii.append(float(found[-2].radius.detach().mean()))
    assert radii[0] > 100 * EPSILON, "torch's own weights let it explode"
    assert 0.2 * EPSILON < radii[1] < 5 * EPSILON
    assert float(net[0].weight.detach().std()) == pytest.approx(math.sqrt(2 * math.pi) / 400, rel=0.02)


def test_the_loss_leaves_the_model_as_it_was(model: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    bound_training.crown_ibp(model, *batch, epsilon=EPSILON, clean_weight=0.2, grown=0.5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert model.training


@lru_cache
def trained(defence: Callable[..., tuple[Tensor, Tensor]] | None = bound_training.ibp) -> nn.Module:
    """A plain network trained by bounds, or without a defence, in evaluation mode. Shared: leave it as it is."""
    images, labels = images_and_labels(192, seed=5)
    with one_thread(), torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        net = nn.Sequential(PixelScale(torch.tensor(0.5), torch.tensor(0.25)), PlainNet(PLAIN, 3))
        optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
        for step in range(80):
            grown = min(1.0, step / 50)
            bound = {"epsilon": RADIUS * grown, "clean_weight": 0.5, "grown": grown}
            loss = defence(net, images, labels, **bound)[0] if defence else F.cross_entropy(net(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval()


def proved(images: Tensor, epsilon: float, effort: Effort | None = None) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        said = trained()(images).argmax(1)
    return least_margins(verify.exact(trained()), images, said, epsilon, effort or Effort()) > 0, said


def broken(images: Tensor, answers: Tensor, epsilon: float, **budget: int) -> Tensor:
    """Whether `worst-case` finds another answer within epsilon."""
    found = attacks.worst_case(trained(), images, answers, epsilon=epsilon, seed=3, **budget)
    assert float((found - images).abs().max()) <= epsilon + 1e-6
    with torch.no_grad():
        return trained()(found).argmax(1) != answers


@pytest.mark.sample("ibp")
@pytest.mark.parametrize("defence", [(), (bound_training.crown_ibp,)], ids=["ibp", "crown_ibp"])
def test_training_by_bounds_proves_what_standard_training_cannot(defence: tuple[Callable[..., Any], ...]) -> None:
    images, labels = images_and_labels(96, seed=5)
    at = verify.Interval.from_ends(*verify.box(images.double(), RADIUS))
    shares = []
    for net in (trained(None), trained(*defence)):
        least = verify.interval_margins(verify.exact(net), at, labels)
        shares.append(float((least + F.one_hot(labels, 3) > 0).all(1).float().mean()))
    assert shares[0] < 0.3
    assert shares[1] > 0.7


@pytest.mark.sample("0.04")
@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.02, 0.04])
def test_what_is_proved_is_never_broken_and_most_of_the_rest_is(epsilon: float) -> None:
    images, _ = images_and_labels(40, seed=9)
    held, said = proved(images, epsilon)
    lost = broken(images, said, epsilon, steps=15, queries=50)
    assert not (held & lost).any()
    assert held.any()
    assert lost.any()
    assert float((~held & ~lost).float().mean()) < 0.25, "between proof and attack"


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [pytest.param(0.02, marks=pytest.mark.full), 0.03])
def test_ten_times_the_budget_breaks_nothing_that_is_proved(epsilon: float) -> None:
    images, _ = images_and_labels(100, seed=10)
    held, said = proved(images, epsilon, Effort(steps=30))
    assert held.sum() > 10
    assert not broken(images[held], said[held], epsilon, steps=500, queries=10_000).any()
    assert broken(images[~held], said[~held], epsilon, steps=15, queries=50).any()


def test_a_larger_epsilon_proves_less_and_crown_proves_more() -> None:
    images, _ = images_and_labels(40, seed=9)
    shares = [float(proved(images, epsilon)[0].float().mean()) for epsilon in (0.0, 0.01, 0.03, 0.3)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0
    assert shares[-1] == 0.0
    by_intervals, _ = proved(images, 0.03, Effort(crown=False))
    by_crown, _ = proved(images, 0.03)
    assert not (by_intervals & ~by_crown).any()
    assert (by_crown & ~by_intervals).any()
