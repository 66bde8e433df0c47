"""The loss of each defence, against the paper's formula written out by hand."""

import copy
import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small_networks import SmallNet, images_and_labels
from trustcxr import attacks, defences, registry
from trustcxr.defences import noise
from trustcxr.defences.adversarial import _divergence, fgsm, free, pgd, trades
from trustcxr.recipes.training_recipe import DefenceRecipe

# Those that train on a bound need a network that can be bounded: see test_certify_defences.
UNBOUNDED = [name for name, entry in registry.DEFENCES.items() if not entry.certifies]
EPSILON = 0.05
BATCH = IMAGES, LABELS = images_and_labels(16, seed=2)


@pytest.fixture
def model() -> SmallNet:
    model = SmallNet().train()
    model.body[-1].p = 0.0  # no dropout, so that a loss can be computed twice
    return model


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_fgsm_shares_clean_and_adversarial_loss(share: float, model: SmallNet) -> None:
    twin = copy.deepcopy(model)
    loss, logits = fgsm(model, IMAGES, LABELS, epsilon=EPSILON, clean_weight=share)
    adversarial = (IMAGES + EPSILON * gradient(twin, IMAGES, LABELS).sign()).clamp(0, 1)
    expected = twin(adversarial)
    assert torch.allclose(logits, expected, atol=1e-6)
    whole = share * F.cross_entropy(twin(IMAGES), LABELS) + (1 - share) * F.cross_entropy(expected, LABELS)
    assert torch.allclose(loss, whole, atol=1e-6)
    if share < 1:
        assert bool(loss > F.cross_entropy(twin(IMAGES), LABELS))


def test_fgsm_loss_reaches_the_weights_but_not_through_the_attack(model: SmallNet) -> None:
    twin = copy.deepcopy(model)
    adversarial = attacks.fgsm(twin, IMAGES, LABELS, epsilon=0.05)
    F.cross_entropy(twin(adversarial), LABELS).backward()
    fgsm(model, IMAGES, LABELS, epsilon=0.05)[0].backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


def options_of(name: str) -> dict[str, Any]:
    options: dict[str, Any] = {"epsilon": 0.02} if "epsilon" in registry.DEFENCES[name].options else {}
    return options | ({"perturbation": torch.zeros_like(IMAGES)} if name == "free" else {})


def test_the_recipe_knows_what_each_defence_takes() -> None:
    """A key that a defence does not use is an error: the table in recipes.py and the signatures must agree."""
    assert registry.DEFENCES.keys() == defences.DEFENCES.keys()
    not_the_loss = {"ramp", "replays"}  # of training
    not_options = {"label_smoothing", "perturbation", "grown", "with_crown"}
    for name, defence in defences.DEFENCES.items():
        options = registry.DEFENCES[name].options
        parameters = inspect.signature(defence).parameters
        takes = parameters.keys() - {"model", "images", "labels", *not_options}
        if name != "standard":
            assert takes == set(options) - not_the_loss, name
        assert ("perturbation" in parameters) == ("replays" in options), name
        for key in takes & DefenceRecipe.model_fields.keys() - {"epsilon"} if name != "standard" else ():
            assert parameters[key].default == DefenceRecipe.model_fields[key].default, (name, key)


@pytest.mark.parametrize("name", UNBOUNDED)
def test_label_smoothing_reaches_the_loss(name: str, model: SmallNet) -> None:
    options = options_of(name)
    options |= {"beta": 0.0} if name == "trades" else {}
    loss, logits = defences.get(name)(model, IMAGES, LABELS, **options, label_smoothing=1.0)
    if name == "trades":  # its cross-entropy is of the clean images
        logits = model(IMAGES)
    assert torch.allclose(loss, -F.log_softmax(logits, dim=1).mean(), atol=1e-6)
    if name == "fgsm":
        both, _ = fgsm(model, IMAGES, LABELS, epsilon=0.0, clean_weight=0.5, label_smoothing=1.0)
        assert torch.allclose(both, -F.log_softmax(model(IMAGES), dim=1).mean(), atol=1e-6)


@pytest.mark.parametrize("name", UNBOUNDED)
def test_every_defence_leaves_the_model_training_and_its_weights_with_gradients(name: str, model: SmallNet) -> None:
    before = IMAGES.clone()
    loss, logits = defences.get(name)(model, IMAGES, LABELS, **options_of(name))
    assert (loss.ndim, logits.shape) == (0, (16, 3))
    loss.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    assert model.training
    assert torch.equal(IMAGES, before)
    counted = {int(m.num_batches_tracked) for m in model.body if isinstance(m, torch.nn.BatchNorm2d)}
    assert counted == {2 if name == "trades" else 1}, "only passes of the loss count as batches"


@pytest.mark.parametrize("name", UNBOUNDED)
def test_the_same_random_state_is_the_same_loss(name: str, model: SmallNet) -> None:
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        twin = copy.deepcopy(model)
        losses.append(float(defences.get(name)(twin, *BATCH, **options_of(name))[0].detach()))
    assert losses[0] == losses[1]
    assert (losses[0] == losses[2]) == (name in ("standard", "fgsm", "free"))


@pytest.mark.parametrize("name", ["fgsm-rs", "pgd", "trades", "mixup", "cutout", "gaussian"])
def test_two_steps_in_a_row_draw_anew(name: str, model: SmallNet) -> None:
    """Attacks put the random state back: what a defence draws must not be put back with it."""
    losses = {float(defences.get(name)(model, *BATCH, **options_of(name))[0].detach()) for _ in range(3)}
    assert len(losses) == 3


def test_autocast_training_step_is_close_to_full_precision(model: SmallNet) -> None:
    twin = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = fgsm(model, IMAGES, LABELS, epsilon=0.05, clean_weight=0.5)
    loss.backward()
    full, _ = fgsm(twin, IMAGES, LABELS, epsilon=0.05, clean_weight=0.5)
    full.backward()
    assert float(loss) == pytest.approx(float(full), rel=0.02)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None
        assert F.cosine_similarity(ours.grad.flatten(), theirs.grad.flatten(), dim=0) > 0.9 or theirs.grad.norm() < 1e-3


def seen_by(model: nn.Module) -> list[Tensor]:
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    return seen


def gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_(True)
    F.cross_entropy(copy.deepcopy(model).eval()(leaf), labels).backward()
    return leaf.grad


@pytest.mark.parametrize(("name", "balls"), [("fgsm-rs", 1), ("n-fgsm", 2)])
def test_one_step_from_a_start_even_over_the_ball_or_over_twice_it(name: str, balls: int, model: SmallNet) -> None:
    images = IMAGES if balls == 1 else 0.2 + 0.6 * IMAGES  # so that [0, 1] cuts nothing off
    twin, seen = copy.deepcopy(model), seen_by(model)
    loss, logits = defences.get(name)(model, images, LABELS, epsilon=EPSILON)
    assert len(seen) == 2, "one gradient for the attack, one pass for the loss"
    start, adversarial = seen
    assert 0.45 * EPSILON * balls < float((start - images).abs().mean()) < 0.55 * EPSILON * balls
    slope = gradient(twin, start, LABELS).sign()
    if balls == 1:
        expected = (images + (start - images + 1.25 * EPSILON * slope).clamp(-EPSILON, EPSILON)).clamp(0, 1)
    else:
        expected = start + EPSILON * slope  # not brought back
        assert 2.5 * EPSILON < float((adversarial - images).abs().max()) <= 3 * EPSILON + 1e-6
    assert torch.allclose(adversarial, expected, atol=1e-6)
    assert torch.allclose(loss, F.cross_entropy(twin(expected), LABELS), atol=1e-6)
    assert torch.allclose(logits, twin(expected), atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_pgd_trains_on_what_pgd_finds(share: float, model: SmallNet) -> None:
    twin, seen = copy.deepcopy(model), seen_by(model)
    torch.manual_seed(5)
    loss, _ = pgd(model, IMAGES, LABELS, epsilon=EPSILON, steps=4, clean_weight=share)
    assert len(seen) == 4 + 1 + (share > 0)
    torch.manual_seed(5)
    seed = int(torch.randint(2**31, ()))
    adversarial = attacks.pgd(twin, IMAGES, LABELS, epsilon=EPSILON, steps=4, seed=seed)
    assert torch.equal(seen[4], adversarial)
    hard = F.cross_entropy(twin(adversarial), LABELS)
    assert torch.allclose(loss, (1 - share) * hard + share * F.cross_entropy(twin(IMAGES), LABELS), atol=1e-6)
    assert float(hard) > float(F.cross_entropy(twin(IMAGES), LABELS))


@pytest.mark.parametrize("steps", [1, 5])
def test_trades_is_clean_loss_and_divergence(steps: int, model: SmallNet) -> None:
    twin, seen = copy.deepcopy(model), seen_by(model)
    loss, logits = trades(model, IMAGES, LABELS, epsilon=EPSILON, beta=3.0, steps=steps)
    assert len(seen) == 1 + steps + 2, "the clean answer, the climb, and the two passes of the loss"
    adversarial = seen[-1]
    assert float((adversarial - IMAGES).abs().max()) <= EPSILON + 1e-6
    clean, hard = twin(IMAGES), twin(adversarial)
    p, q = clean.softmax(1), hard.softmax(1)
    divergence = (p * (p.log() - q.log())).sum(1).mean()
    assert torch.allclose(loss, F.cross_entropy(clean, LABELS) + 3.0 * divergence, atol=1e-5)
    assert torch.allclose(logits, hard, atol=1e-5)
    # It is the divergence that was climbed: more of it than at random points of the ball.
    judge = copy.deepcopy(twin).eval()
    with torch.no_grad():
        random = (IMAGES + EPSILON * (2 * torch.rand(IMAGES.shape) - 1)).clamp(0, 1)
        answer = judge(IMAGES).softmax(1)
        found, drawn = (_divergence(answer, judge(x)).mean() for x in (adversarial, random))
    assert found > 2 * drawn


def test_the_divergence_of_trades_reaches_the_weights_from_both_sides() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(400, 3))
    twin = copy.deepcopy(model)
    seen = seen_by(model)
    trades(model, IMAGES, LABELS, epsilon=EPSILON, beta=2.0)[0].backward()
    p, q = twin(IMAGES).softmax(1), twin(seen[-1]).softmax(1)
    (F.cross_entropy(twin(IMAGES), LABELS) + 2 * (p * (p.log() - q.log())).sum(1).mean()).backward()
    assert torch.allclose(model[1].weight.grad, twin[1].weight.grad, atol=1e-5)


def test_autocast_keeps_no_weights_of_trades_that_were_cast_without_gradients(model: SmallNet) -> None:
    """In older torch the training pass would use them, and its weights have no gradients."""
    kept: list[tuple[bool, bool]] = []
    model.register_forward_hook(lambda *_: kept.append((torch.is_grad_enabled(), torch.is_autocast_cache_enabled())))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = trades(model, *BATCH, epsilon=EPSILON, steps=1)
        assert torch.is_autocast_cache_enabled()
    assert kept == [(False, False), (True, True), (True, True), (True, True)]
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.usefixtures("bfloat16")
def test_attack_precision_changes_the_attack_alone(model: SmallNet) -> None:
    for name in ("fgsm", "fgsm-rs", "n-fgsm", "pgd", "trades"):
        twin, kinds = copy.deepcopy(model), []
        twin.head.register_forward_hook(lambda _, __, output, to=kinds: to.append(output.dtype))
        torch.manual_seed(0)
        loss, logits = defences.get(name)(twin, IMAGES, LABELS, epsilon=EPSILON, attack_precision="bf16")
        last = 2 if name == "trades" else 1
        assert set(kinds[:-last]) == {torch.bfloat16}
        assert set(kinds[-last:]) == {loss.dtype} == {logits.dtype} == {torch.float32}
        torch.manual_seed(0)
        full, _ = defences.get(name)(copy.deepcopy(model), IMAGES, LABELS, epsilon=EPSILON)
        assert float(loss) == pytest.approx(float(full), rel=0.02)


def test_radii_may_differ_from_pixel_to_pixel(model: SmallNet) -> None:
    radii = torch.full_like(IMAGES, 0.01)
    radii[..., :5] = 0.08
    for name in ("fgsm", "fgsm-rs", "n-fgsm", "pgd", "trades", "free"):
        twin = copy.deepcopy(model)
        seen = seen_by(twin)
        kept = {"perturbation": torch.full_like(IMAGES, 1.0)} if name == "free" else {}
        defences.get(name)(twin, IMAGES, LABELS, epsilon=radii, **kept)
        moved, reach = (seen[-1] - IMAGES).abs(), 3 if name == "n-fgsm" else 1
        assert bool((moved <= reach * radii + 1e-6).all()), name
        assert float(moved[..., :5].max()) > 0.07, name


def test_free_moves_the_perturbation_by_the_gradient_of_its_own_backward() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(400, 3))
    passes = seen_by(model)
    perturbation = 0.01 * torch.randn(20, 1, 20, 20)  # of a larger batch
    before = perturbation.clone()
    loss, logits = free(model, IMAGES, LABELS, epsilon=EPSILON, perturbation=perturbation)
    assert torch.equal(perturbation, before), "until the loss is sent back"
    loss.backward()
    assert len(passes) == 1, "one forward pass for both gradients"
    twin = copy.deepcopy(model)
    twin.zero_grad()
    leaf = (IMAGES + before[:16]).clamp(0, 1).requires_grad_(True)
    expected = F.cross_entropy(twin(leaf), LABELS)
    expected.backward()
    assert torch.allclose(loss, expected)
    assert torch.allclose(logits, twin(leaf))
    assert torch.allclose(model[1].weight.grad, twin[1].weight.grad)
    moved = (before[:16] + EPSILON * leaf.grad.sign()).clamp(-EPSILON, EPSILON)
    assert torch.allclose(perturbation[:16], moved)
    assert torch.equal(perturbation[16:], before[16:])


def test_free_climbs_over_replays(model: SmallNet) -> None:
    model.eval()
    perturbation = torch.zeros_like(IMAGES)
    losses = []
    for _ in range(4):
        loss, _ = free(model, IMAGES, LABELS, epsilon=EPSILON, perturbation=perturbation)
        loss.backward()
        losses.append(float(loss))
    assert losses[0] == pytest.approx(float(F.cross_entropy(model(IMAGES), LABELS)))
    assert losses[1] > losses[0]
    assert max(losses[1:]) == pytest.approx(losses[1], rel=0.2)
    with torch.no_grad():
        kept = perturbation.clone()
        free(model, IMAGES, LABELS, epsilon=EPSILON, perturbation=perturbation)
    assert torch.equal(kept, perturbation)


def test_free_survives_a_gradient_that_is_no_number() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(400, 3))
    nn.init.constant_(model[1].weight, float("inf"))
    perturbation = torch.zeros_like(IMAGES)
    free(model, IMAGES, LABELS, epsilon=EPSILON, perturbation=perturbation)[0].backward()
    assert bool(torch.isfinite(perturbation).all())


def test_mixup_mixes_images_and_losses_alike(model: SmallNet) -> None:
    twin, seen = copy.deepcopy(model), seen_by(model)
    torch.manual_seed(4)
    loss, logits = noise.mixup(model, IMAGES, LABELS, alpha=2.0)
    torch.manual_seed(4)
    share = float(torch.distributions.Beta(2.0, 2.0).sample())
    other = torch.randperm(16)
    assert 0.05 < share < 0.95
    assert torch.allclose(seen[0], share * IMAGES + (1 - share) * IMAGES[other])
    expected = twin(seen[0])
    assert torch.allclose(logits, expected)
    mixed = share * F.one_hot(LABELS, 3) + (1 - share) * F.one_hot(LABELS[other], 3)
    assert torch.allclose(loss, F.cross_entropy(expected, mixed), atol=1e-6)


def test_cutout_hides_squares_in_pixel_space() -> None:
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


@pytest.mark.parametrize("name", ["standard", "cutout", "gaussian"])
def test_loss_of_changed_images_is_cross_entropy(name: str, model: SmallNet) -> None:
    twin, seen = copy.deepcopy(model), seen_by(model)
    loss, logits = defences.get(name)(model, IMAGES, LABELS)
    assert len(seen) == 1
    assert 0 <= float(seen[0].min()) < float(seen[0].max()) <= 1
    assert torch.equal(seen[0], IMAGES) == (name == "standard")
    assert torch.allclose(logits, twin(seen[0]))
    assert torch.allclose(loss, F.cross_entropy(logits, LABELS))


def test_gaussian_noise_has_its_standard_deviation() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(100, 2))
    seen, images = seen_by(model), torch.full((200, 1, 10, 10), 0.5)
    noise.gaussian(model, images, torch.zeros(200, dtype=torch.long), sigma=0.1)
    assert float((seen[0] - 0.5).std()) == pytest.approx(0.1, rel=0.03)
