"""The loss of each newer defence, against the paper's formula written out by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small_networks import SmallNet, images_and_labels
from trustcxr import attacks, defences
from trustcxr.defences import noise
from trustcxr.defences.adversarial import _divergence, free, pgd, trades

EPSILON = 0.05


@pytest.fixture
def model() -> SmallNet:
    torch.manual_seed(0)
    model = SmallNet().train()
    model.body[-1].p = 0.0  # no dropout, so that a loss can be computed twice
    return model


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    return images_and_labels(16, seed=2)


def seen_by(model: nn.Module) -> list[Tensor]:
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    return seen


def gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_(True)
    F.cross_entropy(copy.deepcopy(model).eval()(leaf), labels).backward()
    return leaf.grad


@pytest.mark.parametrize(("name", "balls"), [("fgsm-rs", 1), ("n-fgsm", 2)])
def test_one_step_from_a_start_even_over_the_ball_or_over_twice_it(
    name: str, balls: int, model: SmallNet, batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = batch
    images = images if balls == 1 else 0.2 + 0.6 * images  # so that [0, 1] cuts nothing off
    twin, seen = copy.deepcopy(model), seen_by(model)
    loss, logits = defences.get(name)(model, images, labels, epsilon=EPSILON)
    assert len(seen) == 2, "one gradient for the attack, one pass for the loss"
    start, adversarial = seen
    assert 0.45 * EPSILON * balls < float((start - images).abs().mean()) < 0.55 * EPSILON * balls
    slope = gradient(twin, start, labels).sign()
    if balls == 1:
        expected = (images + (start - images + 1.25 * EPSILON * slope).clamp(-EPSILON, EPSILON)).clamp(0, 1)
    else:
        expected = start + EPSILON * slope  # not brought back
        assert 2.5 * EPSILON < float((adversarial - images).abs().max()) <= 3 * EPSILON + 1e-6
    assert torch.allclose(adversarial, expected, atol=1e-6)
    assert torch.allclose(loss, F.cross_entropy(twin(expected), labels), atol=1e-6)
    assert torch.allclose(logits, twin(expected), atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_pgd_trains_on_what_pgd_finds(share: float, model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    twin, seen = copy.deepcopy(model), seen_by(model)
    torch.manual_seed(5)
    loss, _ = pgd(model, images, labels, epsilon=EPSILON, steps=4, clean_weight=share)
    assert len(seen) == 4 + 1 + (share > 0)
    torch.manual_seed(5)
    seed = int(torch.randint(2**31, ()))
    adversarial = attacks.pgd(twin, images, labels, epsilon=EPSILON, steps=4, seed=seed)
    assert torch.equal(seen[4], adversarial)
    hard = F.cross_entropy(twin(adversarial), labels)
    assert torch.allclose(loss, (1 - share) * hard + share * F.cross_entropy(twin(images), labels), atol=1e-6)
    assert float(hard) > float(F.cross_entropy(twin(images), labels))


@pytest.mark.parametrize("steps", [1, 5])
def test_trades_is_clean_loss_and_divergence(steps: int, model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    twin, seen = copy.deepcopy(model), seen_by(model)
    loss, logits = trades(model, images, labels, epsilon=EPSILON, beta=3.0, steps=steps)
    assert len(seen) == 1 + steps + 2, "the clean answer, the climb, and the two passes of the loss"
    adversarial = seen[-1]
    assert float((adversarial - images).abs().max()) <= EPSILON + 1e-6
    clean, hard = twin(images), twin(adversarial)
    p, q = clean.softmax(1), hard.softmax(1)
    divergence = (p * (p.log() - q.log())).sum(1).mean()
    assert torch.allclose(loss, F.cross_entropy(clean, labels) + 3.0 * divergence, atol=1e-5)
    assert torch.allclose(logits, hard, atol=1e-5)
    # It is the divergence that was climbed: more of it than at random points of the ball.
    judge = copy.deepcopy(twin).eval()
    with torch.no_grad():
        random = (images + EPSILON * (2 * torch.rand(images.shape) - 1)).clamp(0, 1)
        answer = judge(images).softmax(1)
        found, drawn = (_divergence(answer, judge(x)).mean() for x in (adversarial, random))
    assert found > 2 * drawn


def test_the_divergence_of_trades_reaches_the_weights_from_both_sides(batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    images, labels = batch
    model = nn.Sequential(nn.Flatten(), nn.Linear(400, 3))
    twin = copy.deepcopy(model)
    seen = seen_by(model)
    trades(model, images, labels, epsilon=EPSILON, beta=2.0)[0].backward()
    p, q = twin(images).softmax(1), twin(seen[-1]).softmax(1)
    (F.cross_entropy(twin(images), labels) + 2 * (p * (p.log() - q.log())).sum(1).mean()).backward()
    assert torch.allclose(model[1].weight.grad, twin[1].weight.grad, atol=1e-5)


def test_autocast_keeps_no_weights_of_trades_that_were_cast_without_gradients(
    model: SmallNet, batch: tuple[Tensor, Tensor]
) -> None:
    """In older torch the training pass would use them, and its weights have no gradients."""
    kept: list[tuple[bool, bool]] = []
    model.register_forward_hook(lambda *_: kept.append((torch.is_grad_enabled(), torch.is_autocast_cache_enabled())))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = trades(model, *batch, epsilon=EPSILON, steps=1)
        assert torch.is_autocast_cache_enabled()
    assert kept == [(False, False), (True, True), (True, True), (True, True)]
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.usefixtures("bfloat16")
def test_attack_precision_changes_the_attack_alone(model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    for name in ("fgsm", "fgsm-rs", "n-fgsm", "pgd", "trades"):
        twin, kinds = copy.deepcopy(model), []
        twin.head.register_forward_hook(lambda _, __, output, to=kinds: to.append(output.dtype))
        torch.manual_seed(0)
        loss, logits = defences.get(name)(twin, images, labels, epsilon=EPSILON, attack_precision="bf16")
        last = 2 if name == "trades" else 1
        assert set(kinds[:-last]) == {torch.bfloat16}
        assert set(kinds[-last:]) == {loss.dtype} == {logits.dtype} == {torch.float32}
        torch.manual_seed(0)
        full, _ = defences.get(name)(copy.deepcopy(model), images, labels, epsilon=EPSILON)
        assert float(loss) == pytest.approx(float(full), rel=0.02)


def test_radii_may_differ_from_pixel_to_pixel(model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    radii = torch.full_like(images, 0.01)
    radii[..., :5] = 0.08
    for name in ("fgsm", "fgsm-rs", "n-fgsm", "pgd", "trades", "free"):
        twin = copy.deepcopy(model)
        seen = seen_by(twin)
        kept = {"perturbation": torch.full_like(images, 1.0)} if name == "free" else {}
        defences.get(name)(twin, images, labels, epsilon=radii, **kept)
        moved, reach = (seen[-1] - images).abs(), 3 if name == "n-fgsm" else 1
        assert bool((moved <= reach * radii + 1e-6).all()), name
        assert float(moved[..., :5].max()) > 0.07, name


def test_free_moves_the_perturbation_by_the_gradient_of_its_own_backward(batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    images, labels = batch
    model = nn.Sequential(nn.Flatten(), nn.Linear(400, 3))
    passes = seen_by(model)
    perturbation = 0.01 * torch.randn(20, 1, 20, 20)  # of a larger batch
    before = perturbation.clone()
    loss, logits = free(model, images, labels, epsilon=EPSILON, perturbation=perturbation)
    assert torch.equal(perturbation, before), "until the loss is sent back"
    loss.backward()
    assert len(passes) == 1, "one forward pass for both gradients"
    twin = copy.deepcopy(model)
    twin.zero_grad()
    leaf = (images + before[:16]).clamp(0, 1).requires_grad_(True)
    expected = F.cross_entropy(twin(leaf), labels)
    expected.backward()
    assert torch.allclose(loss, expected)
    assert torch.allclose(logits, twin(leaf))
    assert torch.allclose(model[1].weight.grad, twin[1].weight.grad)
    moved = (before[:16] + EPSILON * leaf.grad.sign()).clamp(-EPSILON, EPSILON)
    assert torch.allclose(perturbation[:16], moved)
    assert torch.equal(perturbation[16:], before[16:])


def test_free_climbs_over_replays(model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    model.eval()
    perturbation = torch.zeros_like(images)
    losses = []
    for _ in range(4):
        loss, _ = free(model, images, labels, epsilon=EPSILON, perturbation=perturbation)
        loss.backward()
        losses.append(float(loss))
    assert losses[0] == pytest.approx(float(F.cross_entropy(model(images), labels)))
    assert losses[1] > losses[0]
    assert max(losses[1:]) == pytest.approx(losses[1], rel=0.2)
    with torch.no_grad():
        kept = perturbation.clone()
        free(model, images, labels, epsilon=EPSILON, perturbation=perturbation)
    assert torch.equal(kept, perturbation)


def test_free_survives_a_gradient_that_is_no_number(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    model = nn.Sequential(nn.Flatten(), nn.Linear(400, 3))
    nn.init.constant_(model[1].weight, float("inf"))
    perturbation = torch.zeros_like(images)
    free(model, images, labels, epsilon=EPSILON, perturbation=perturbation)[0].backward()
    assert bool(torch.isfinite(perturbation).all())


def test_mixup_mixes_images_and_losses_alike(model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    twin, seen = copy.deepcopy(model), seen_by(model)
    torch.manual_seed(4)
    loss, logits = noise.mixup(model, images, labels, alpha=2.0)
    torch.manual_seed(4)
    share = float(torch.distributions.Beta(2.0, 2.0).sample())
    other = torch.randperm(16)
    assert 0.05 < share < 0.95
    assert torch.allclose(seen[0], share * images + (1 - share) * images[other])
    expected = twin(seen[0])
    assert torch.allclose(logits, expected)
    mixed = share * F.one_hot(labels, 3) + (1 - share) * F.one_hot(labels[other], 3)
    assert torch.allclose(loss, F.cross_entropy(expected, mixed), atol=1e-6)


def test_cutout_hides_squares_in_pixel_space() -> None:
    torch.manual_seed(0)
    images = torch.rand(200, 1, 32, 32) * 0.5 + 0.5
    before = images.clone()
    changed = noise.cut(images, size=0.25)
    assert torch.equal(images, before)
    hidden = (changed == 0)[:, 0]
    assert torch.equal(changed[:, 0][~hidden], images[:, 0][~hidden])
    areas = hidden.sum((1, 2))
    assert int(areas.max()) == 64, "8 by 8 where the square is wholly inside"
    assert int(areas.min()) < 64, "and cut off at the edge"
    rows, columns = hidden.any(2).sum(1), hidden.any(1).sum(1)
    assert torch.equal(rows * columns, areas), "one rectangle each"
    assert len({tuple(map(int, h.nonzero()[0])) for h in hidden}) > 100, "each image its own"
    assert float(hidden.float().mean()) == pytest.approx(0.25**2, rel=0.2)


@pytest.mark.parametrize("name", ["cutout", "gaussian"])
def test_loss_of_changed_images_is_cross_entropy(name: str, model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    twin, seen = copy.deepcopy(model), seen_by(model)
    loss, logits = defences.get(name)(model, images, labels)
    assert len(seen) == 1
    assert 0 <= float(seen[0].min()) < float(seen[0].max()) <= 1
    assert not torch.equal(seen[0], images)
    assert torch.allclose(logits, twin(seen[0]))
    assert torch.allclose(loss, F.cross_entropy(logits, labels))


def test_gaussian_noise_has_its_standard_deviation() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(100, 2))
    seen, images = seen_by(model), torch.full((200, 1, 10, 10), 0.5)
    noise.gaussian(model, images, torch.zeros(200, dtype=torch.long), sigma=0.1)
    assert float((seen[0] - 0.5).std()) == pytest.approx(0.1, rel=0.03)
