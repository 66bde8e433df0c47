"""Proofs against attacks: what is certified is never broken, and what is left between both is small."""

from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

from small_networks import SIDE, images_and_labels, one_thread
from trustcxr import attacks
from trustcxr.certify import verify
from trustcxr.certify.verify import Effort, least_margins
from trustcxr.defences import bound_training
from trustcxr.models.classifier import PixelScale
from trustcxr.models.factory import Plain, PlainNet

RADIUS = 0.02  # of training
PLAIN = Plain(((6, 4, 2), (12, 3, 2)), grid=5, hidden=16)


@lru_cache
def trained() -> nn.Module:
    """A plain network trained by interval bounds, in evaluation mode. Shared: leave it as it is."""
    images, labels = images_and_labels(192, seed=5)
    with one_thread(), torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        net = nn.Sequential(PixelScale(torch.tensor(0.5), torch.tensor(0.25)), PlainNet(PLAIN, 3))
        optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
        for step in range(80):
            grown = min(1.0, step / 50)
            loss, _ = bound_training.ibp(net, images, labels, epsilon=RADIUS * grown, clean_weight=0.5, grown=grown)
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
@pytest.mark.parametrize("epsilon", [0.02, 0.03])
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


def test_a_proof_holds_for_images_cut_at_black_and_white() -> None:
    images = images_and_labels(30, seed=4)[0].mul(4).sub(1.5).clamp(0, 1)
    assert (images == 0).any()
    assert (images == 1).any()
    held, said = proved(images, 0.1, Effort(crown=False))
    noise = 0.1 * (2 * torch.rand(200, len(images), 1, SIDE, SIDE).round() - 1)
    with torch.no_grad():
        answers = trained()((images + noise).clamp(0, 1).flatten(0, 1)).argmax(1).view(200, -1)
    assert held.any()
    assert (answers == said)[:, held].all()
