"""The strong attacks: Auto-PGD, FAB, Square, L2, momentum, transfer, worst-case and the smallest epsilon."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from small_networks import Meter, SmallNet, Wrapped, accuracy, images_and_labels, trained
from test_attacks import EVERY
from trustcxr import attacks
from trustcxr.attacks.adaptive import adaptive
from trustcxr.attacks.apgd import _check, _Climbers, _note, _to_plane
from trustcxr.errors import UserError

QUICK: dict[str, Any] = {"steps": 10, "queries": 60}


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    return images_and_labels(300, seed=5)


@pytest.fixture(params=["standard", "fgsm"])
def model(request: pytest.FixtureRequest) -> SmallNet:
    return trained(request.param)


def theirs(attack: Any, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """What a torchattacks attack finds; it thaws the model, which is put back."""
    found = attack(images, labels)
    model.eval()
    return found


def suite(model: nn.Module, epsilon: float, classes: int = 3) -> dict[str, Any]:
    """Attacks of torchattacks by the names of ours, with 20 steps or 200 queries."""
    import torchattacks

    return {
        "apgd-ce": torchattacks.APGD(model, eps=epsilon, steps=20, loss="ce"),
        "fab": torchattacks.FAB(model, eps=epsilon, steps=20, n_classes=classes, multi_targeted=True),
        "square": torchattacks.Square(model, eps=epsilon, n_queries=200),
    }


def left_by_suite(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> float:
    """Accuracy of the model on the worst that the three find for each image."""
    attacks_of_theirs = suite(model, epsilon, int(labels.max()) + 1).values()
    right = [model(theirs(attack, model, images, labels)).argmax(1) == labels for attack in attacks_of_theirs]
    return float(torch.stack(right).all(0).float().mean())


@pytest.mark.sample("standard-apgd-ce-0.05", "standard-fab-0.05", "standard-square-0.04")
@pytest.mark.parametrize(
    ("name", "epsilon"), [("apgd-ce", 0.03), ("apgd-ce", 0.05), ("fab", 0.03), ("fab", 0.05), ("square", 0.04)]
)
def test_as_strong_as_torchattacks(name: str, epsilon: float, model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch if name == "apgd-ce" else (t[:150] for t in batch)
    other = theirs(suite(model, epsilon)[name], model, images, labels)
    budget = {"queries": 200} if name == "square" else {"steps": 20}
    ours = attacks.get(name)(model, images, labels, epsilon=epsilon, **budget)
    gap = accuracy(model, ours, labels) - accuracy(model, other, labels)
    assert gap <= 0.01
    assert gap >= -0.01 or name != "apgd-ce", "they agree"


@pytest.mark.sample("fgsm-0.5")
@pytest.mark.parametrize("radius", [0.3, 0.5])
def test_pgd_in_l2_agrees_with_foolbox(radius: float, model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    import foolbox

    images, labels = batch
    torch.manual_seed(0)
    attack = foolbox.attacks.L2PGD(steps=20, rel_stepsize=2.5 / 20)
    _, _, hits = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=radius)
    ours = attacks.pgd(model, images, labels, epsilon=radius, norm="l2")
    assert abs(accuracy(model, ours, labels) - (1 - float(hits.float().mean()))) <= 0.0101


def test_momentum_is_identical_to_torchattacks(model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    import torchattacks

    images, labels = batch
    other = theirs(torchattacks.MIFGSM(model, eps=0.03, alpha=0.003, steps=10), model, images, labels)
    ours = attacks.momentum(model, images, labels, epsilon=0.03, steps=10)
    # Where a summed gradient is about zero its sign may differ.
    assert float((ours - other).abs().gt(1e-5).float().mean()) < 0.002


def test_fgsm_rs_is_one_step_of_pgd(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    single = attacks.pgd(trained(), images, labels, epsilon=0.03, steps=1, step_size=1.25 * 0.03, seed=4)
    assert torch.allclose(attacks.fgsm_rs(trained(), images, labels, epsilon=0.03, seed=4), single, atol=1e-7)


@pytest.mark.sample("3")
@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3])
def test_worst_case_is_at_most_a_point_above_the_others_taken_together(classes: int) -> None:
    """torchattacks' APGD (cross-entropy), FAB and Square, the worst per image, at one budget, on a robust model."""
    model = trained("fgsm", classes=classes)
    images, labels = images_and_labels(150, classes=classes, seed=8)
    other = left_by_suite(model, images, labels, 0.04)
    ours = attacks.worst_case(model, images, labels, epsilon=0.04, steps=20, queries=200)
    assert 0.05 < other < 0.95
    assert accuracy(model, ours, labels) <= other + 0.01


def test_it_works_for_three_classes_where_the_standard_suite_fails(batch: tuple[Tensor, Tensor]) -> None:
    """Trap 1: the DLR loss and the targets of AutoAttack's standard version need four classes or more."""
    import torchattacks

    model, (images, labels) = trained("fgsm"), (t[:32] for t in batch)
    standard = torchattacks.AutoAttack(model, eps=0.03, n_classes=3, version="standard")
    with pytest.raises(IndexError):
        theirs(standard, model, images, labels)
    model.eval()
    found = attacks.worst_case(model, images, labels, epsilon=0.03, **QUICK)
    assert accuracy(model, found, labels) < accuracy(model, images, labels)


@pytest.mark.slow
def test_worst_case_is_the_worst(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = (t[:150] for t in batch)
    model = trained("fgsm")
    report = attacks.worst_case_report(model, images, labels, epsilon=0.04, steps=20, queries=100)
    stands = accuracy(model, report.images, labels)
    for name in ("fgsm", "pgd", "momentum", "apgd-ce", "apgd-margin", "fab", "square"):
        options = {"fgsm": {}, "square": {"queries": 100}}.get(name, {"steps": 20})
        found = attacks.get(name)(model, images, labels, epsilon=0.04, **options)
        assert stands <= accuracy(model, found, labels) + 0.005, name
    assert report.accuracy == pytest.approx(stands)


@pytest.mark.sample("standard-fgsm", "fgsm-pgd", "standard-apgd-ce", "standard-square", "fgsm-fab")
@pytest.mark.parametrize("name", [name for name in attacks.ATTACKS if name not in ("pgd-l2", "transfer")])
def test_accuracy_falls_with_epsilon_to_about_zero(name: str, model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    """Trap 7; PGD is at least as strong as FGSM."""
    images, labels = batch if name in ("fgsm", "pgd") else (t[:100] for t in batch)
    slack = 0.005 if name in ("fgsm", "pgd") else 0.02
    few: dict[str, Any] = {"worst-case": QUICK, "square": {"queries": 60}, "fgsm": {}, "fgsm-rs": {}, "pgd": {}}
    options = few.get(name, {"steps": 10})
    falls = [accuracy(model, images, labels)]
    for epsilon in (0.01, 0.03, 0.06, 0.1, 0.2, 0.3):
        falls.append(accuracy(model, attacks.get(name)(model, images, labels, epsilon=epsilon, **options), labels))
        weaker = attacks.fgsm(model, images, labels, epsilon=epsilon)
        assert name != "pgd" or falls[-1] <= accuracy(model, weaker, labels)
    assert all(after <= before + slack for before, after in itertools.pairwise(falls)), falls
    assert falls[0] > 0.95
    assert falls[-1] <= 0.02


def test_white_box_is_at_least_as_strong_as_transfer(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    victim, source = trained("fgsm"), trained("standard")
    for name in ("momentum", "pgd"):
        carried = attacks.transfer(victim, images, labels, epsilon=0.05, surrogate=source, attack=name)
        assert torch.equal(carried, attacks.get(name)(source, images, labels, epsilon=0.05))
        white = attacks.get(name)(victim, images, labels, epsilon=0.05)
        assert accuracy(victim, white, labels) < accuracy(victim, carried, labels) < accuracy(victim, images, labels)


def test_the_margin_reaches_the_class_that_it_is_sent_to(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    model = trained()
    for step in (1, 2):
        target = (labels + step) % 3
        found = attacks.apgd(model, images, labels, epsilon=0.1, loss="margin", target=target, steps=20)
        assert float((model(found).argmax(1) == target).float().mean()) > 0.95


def test_square_breaks_a_model_without_gradients(batch: tuple[Tensor, Tensor]) -> None:
    """Rounded logits have a gradient of zero everywhere: white-box attacks see nothing, the black box breaks it."""
    images, labels = (t[:80] for t in batch)
    model = Wrapped(trained(), lambda net, x: (net(x) * 4).round())
    assert accuracy(model, attacks.pgd(model, images, labels, epsilon=0.05), labels) > 0.8
    assert accuracy(model, attacks.square(model, images, labels, epsilon=0.05, queries=1000), labels) < 0.3
    report = attacks.worst_case_report(model, images, labels, epsilon=0.05, steps=5, queries=1000)
    assert Counter(report.broken_by)["square"] > 40


def test_many_classes_and_two(batch: tuple[Tensor, Tensor]) -> None:
    for classes in (2, 5):
        model = trained(classes=classes)
        images, labels = images_and_labels(40, classes=classes, seed=9)
        for name in ("pgd", "apgd-ce", "apgd-margin", "fab", "square", "worst-case"):
            found = attacks.get(name)(model, images, labels, epsilon=0.15)
            assert accuracy(model, found, labels) <= 0.1, (classes, name)


@pytest.mark.expensive("fab", "worst-case")
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-margin", "fab", "square", "worst-case"])
def test_broken_images_leave_the_batch(name: str, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = (t[:80] for t in batch)
    budget = {"steps": 20, "queries": 100}
    option = {"square": {"queries": 100}, "worst-case": budget}.get(name, {"steps": 20})
    rows = []
    for epsilon in (0.001, 0.15):
        meter = Meter(trained()).eval()
        attacks.get(name)(meter, images, labels, epsilon=epsilon, **option)
        rows.append(meter.rows)
    assert rows[0] > 20 * len(images)  # hardly any can be broken: the whole budget is spent
    assert rows[1] < 12 * len(images)


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-margin", "fab", "square", "worst-case"])
def test_images_that_the_model_gets_wrong_cost_one_look(name: str, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    meter = Meter(trained()).eval()
    found = attacks.get(name)(meter, images, (labels + 1) % 3, epsilon=0.001)
    right = accuracy(meter.inner, images, (labels + 1) % 3)
    assert right < 0.02
    assert meter.rows <= len(images) * (1 if right == 0 else 3)
    assert torch.equal(found, images)


def test_square_never_asks_for_a_gradient(batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.autograd, "grad")
    monkeypatch.delattr(torch.Tensor, "backward")
    images, labels = batch
    meter = Meter(trained()).eval()
    attacks.square(meter, images, labels, epsilon=0.01, queries=50)
    assert meter.with_gradient == 0
    assert 45 * len(images) < meter.rows <= 51 * len(images)  # one look at the images as they are, then the queries


def test_the_budget_of_a_climb_is_its_steps(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = (t[:50] for t in batch)
    for name, climbs in (("apgd-ce", 1), ("apgd-margin", 2), ("fab", 2)):
        meter = Meter(trained()).eval()
        attacks.get(name)(meter, images, labels, epsilon=1e-6, steps=10)
        right = int((trained()(images).argmax(1) == labels).sum())
        assert meter.with_gradient == climbs * 10 * right, name


def test_the_report_says_what_broke_each_image(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch[0].clone(), batch[1].clone()
    labels[:3] = (labels[:3] + 1) % 3
    model = trained("fgsm")
    report = attacks.worst_case_report(model, images, labels, epsilon=0.04, **QUICK)
    right = model(report.images).argmax(1) == labels
    assert [name is None for name in report.broken_by] == right.tolist()
    assert report.broken_by[:3] == ("clean",) * 3
    assert torch.equal(report.images[:3], images[:3])
    parts = {"apgd-margin", "apgd-ce", "pgd-8bit", "fab", "square"}
    assert set(report.broken_by) <= {None, "clean", *parts, *(f"{part}, 8-bit" for part in parts)}
    assert Counter(report.broken_by)["apgd-margin"] > 50
    # Those that hold out come back as the worst input seen, not as they were.
    before, after = (nn.functional.cross_entropy(model(x), labels, reduction="none") for x in (images, report.images))
    assert bool((after[right] > before[right]).all())
    assert torch.equal(report.images, attacks.worst_case(model, images, labels, epsilon=0.04, **QUICK))


def test_what_is_known_is_kept(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    model = trained("fgsm")
    before = attacks.worst_case_report(model, images, labels, epsilon=0.04, **QUICK)
    meter = Meter(model).eval()
    after = attacks.worst_case_report(
        meter, images, labels, epsilon=0.045, start=[images, before.images], steps=1, queries=1
    )
    broken = [name is not None for name in before.broken_by]
    assert [name for name, was in zip(after.broken_by, broken, strict=True) if was] == ["start"] * sum(broken)
    assert torch.equal(after.images[broken], before.images[broken])
    assert after.accuracy <= before.accuracy
    assert meter.rows < 3 * len(images) + 26 * (len(images) - sum(broken))


def test_a_start_outside_the_ball_is_refused(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    for start, text in ((images + 0.05, "within epsilon"), (images[:3], "shape"), (images * float("nan"), "within")):
        with pytest.raises(UserError, match=f"worst-case: start must .*{text}"):
            attacks.worst_case(trained(), images, labels, epsilon=0.02, start=start)


def test_apgd_counts_the_steps_that_rose_and_no_more() -> None:
    """Croce and Hein's first condition: the step is halved where fewer than 3 of 4 steps since the last look rose."""
    start = torch.rand(2, 1, 4, 4)
    labels, ends = torch.zeros(2, dtype=torch.long), torch.zeros_like(start)
    climbers = _Climbers(labels, labels, ends, ends + 1, torch.full((2, 1, 1, 1), 0.2), start)
    for values in ([0.0, 0.0], [1.0, 1.0], [0.5, 2.0], [2.0, 3.0], [3.0, 4.0]):  # the start, and four steps
        _note(climbers, torch.tensor(values), torch.zeros_like(start))
    assert climbers.gains.tolist() == [3, 4]
    _note(climbers, torch.tensor([2.0, 3.5]), torch.zeros_like(start))
    _check(climbers, torch.zeros_like(start), 5)
    assert climbers.step.flatten().tolist() == pytest.approx([0.1, 0.2]), "3 of 5 rose, and 4 of 5"
    _note(climbers, torch.tensor([3.5, 5.0]), torch.zeros_like(start))
    assert climbers.gains.tolist() == [1, 1], "the first is compared with the best, where it goes on from"


def test_smallest_epsilon_of_a_linear_model_is_known() -> None:
    """Two classes, logit difference w.x + b: the distance is |w.x + b| / sum |w| while no pixel meets 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(36, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.randn((2, 36), generator=generator))
    model = nn.Sequential(nn.Flatten(), linear).eval()
    images = 0.4 + 0.2 * torch.rand((64, 1, 6, 6), generator=generator)
    logits = model(images).detach()
    labels = logits.argmax(1)
    labels[:4] = 1 - labels[:4]
    gap = (logits[:, 0] - logits[:, 1]).abs()
    exact = gap / (linear.weight[0] - linear.weight[1]).abs().sum().detach()
    assert float(exact.max()) < 0.35
    found = attacks.minimal_perturbation(model, images, labels, highest=0.3, tolerance=1e-3)
    assert found.shape == (64,)
    assert bool((found[:4] == 0).all())
    reachable = exact[4:] <= 0.295
    assert bool((found[4:][reachable] >= exact[4:][reachable] - 1e-5).all())
    assert float((found[4:] - exact[4:])[reachable].max()) <= 1.5e-3
    assert bool(found[4:][exact[4:] > 0.3].isinf().all())
    near = attacks.minimal_perturbation(model, images, labels, highest=float(exact[4:].median()), tolerance=1e-3)
    assert 20 < int(near.isinf().sum()) < 40


def test_a_search_that_begins_at_what_another_attack_found_never_ends_further_off() -> None:
    images, labels = images_and_labels(40, seed=5)
    model = trained("fgsm")
    start = attacks.pgd(model, images, labels, epsilon=0.1, steps=5)
    reached = (start - images).flatten(1).abs().amax(1)
    begun, radiographs = attacks.nearest(model, images, labels, start=start, steps=3, tolerance=0.02)
    right = model(images).argmax(1) == labels
    misled = right & (model(start).argmax(1) != labels)
    assert int(misled.sum()) > 20
    assert bool((begun[misled] <= reached[misled] + 1e-6).all())
    assert bool((begun[misled] < 0.6 * reached[misled]).any()), "it goes down from there"
    assert bool((model(radiographs)[misled].argmax(1) != labels[misled]).all())
    assert bool((begun[~right] == 0).all())
    kept, _ = attacks.nearest(model, images, labels, start=start, steps=3, tolerance=1.0)
    assert torch.allclose(kept[misled], reached[misled]), "with nothing left to look for it is what was given"
    alone = attacks.minimal_perturbation(model, images, labels, steps=3, tolerance=0.05)
    useless, _ = attacks.nearest(model, images, labels, start=images, steps=3, tolerance=0.05)
    assert torch.equal(useless, alone), "a start that misleads nobody changes nothing"


def mean_above(threshold: float) -> nn.Module:
    """Class 0 where an image is brighter than the threshold: its distance is that of its mean."""
    linear = nn.Linear(1024, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1000.0], [-1000.0]]).expand(2, 1024) / 1024)
        linear.bias.copy_(torch.tensor([-1000.0, 1000.0]) * threshold)
    return nn.Sequential(nn.Flatten(), linear).eval()


@pytest.mark.parametrize("distance", [3e-4, 1e-3, 2.5e-3])
@pytest.mark.parametrize("attack", ["fgsm", "pgd", "apgd-ce"])
def test_a_small_distance_is_found_whatever_float32_rounds(attack: str, distance: float) -> None:
    images = torch.randint(128, 250, (1, 1, 32, 32), generator=torch.Generator().manual_seed(0)) / 255
    model = mean_above(float(images.mean()) - distance)
    found = attacks.minimal_perturbation(model, images, torch.tensor([0]), attack=attack, tolerance=1e-4)
    assert distance - 1e-5 <= float(found) <= distance + 1.5e-4


def test_a_tolerance_below_what_float32_can_tell_apart_ends_where_nothing_lies_between() -> None:
    images = torch.full((1, 1, 32, 32), 0.5)
    found = attacks.minimal_perturbation(mean_above(0.4), images, torch.tensor([0]), attack="fgsm", tolerance=1e-12)
    assert float(found) == pytest.approx(0.1, abs=1e-5)


@pytest.mark.sample("fgsm")
@pytest.mark.parametrize("attack", ["fgsm", "apgd-margin", "fab"])
def test_smallest_epsilon_with_other_attacks(attack: str) -> None:
    images, labels = images_and_labels(200, seed=5)  # of 40 a median says too little
    model = trained("fgsm")
    options = {} if attack == "fgsm" else {"steps": 20}
    found = attacks.minimal_perturbation(model, images, labels, attack=attack, tolerance=2e-3, **options)
    assert bool(found.isfinite().all())
    # The distribution says what the sweep says.
    for epsilon in (0.03, 0.05):
        swept = accuracy(model, attacks.get(attack)(model, images, labels, epsilon=epsilon, **options), labels)
        assert float((found > epsilon).float().mean()) == pytest.approx(swept, abs=0.1)
    stronger = attacks.minimal_perturbation(model, images, labels, tolerance=2e-3)
    assert float(stronger.median()) <= float(found.median()) + 0.003


def test_smallest_epsilon_refuses_what_has_no_meaning(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = (t[:4] for t in batch)
    for options, text in (
        ({"attack": "pgd-l2"}, "no L-infinity radius"),
        ({"attack": "pdg"}, "did you mean pgd"),
        ({"highest": 4.0}, r"outside \[0, 1\]"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"attack": "transfer"}, "transfer needs surrogate"),
        ({"stepz": 1}, "unknown option of pgd 'stepz': did you mean steps"),
        ({"attack": "worst-case", "foo": 1}, "unknown option of worst-case 'foo'.*queries"),
        ({"attack": "apgd-margin", "foo": 1}, "unknown option of apgd-margin 'foo'.*restarts"),
    ):
        with pytest.raises(UserError, match=text):
            attacks.minimal_perturbation(trained(), images, labels, **options)
    for options in (
        {"attack": "transfer", "surrogate": trained("fgsm"), "steps": 2},
        {"attack": "worst-case", "steps": 2, "queries": 2, "seed": 1},
        {"attack": "square", "queries": np.int64(3)},
    ):
        assert attacks.minimal_perturbation(trained(), images, labels, tolerance=0.1, **options).shape == (4,)


@pytest.mark.parametrize("name", sorted(set(attacks.ATTACKS) - {"pgd-l2", "transfer"}))
def test_an_epsilon_for_each_image_or_pixel(name: str) -> None:
    images, labels = images_and_labels(12)
    model = trained("fgsm")
    attack = EVERY[name]
    single = attack(model, images, labels, epsilon=0.03)
    assert torch.equal(attack(model, images, labels, epsilon=torch.full((12, 1, 1, 1), 0.03)), single)
    radius = torch.full_like(images, 0.02)
    radius[:, :, :10] = 0.08
    change = (attack(model, images, labels, epsilon=radius) - images).abs()
    assert bool((change <= radius + 1e-6).all())
    if name != "fab":  # it looks for the nearest point, wherever that is
        assert float(change.max()) > 0.07
    for wrong, text in ((torch.full((5, 1, 1, 1), 0.1), "broadcast"), (radius + 1, "outside"), (-radius, "outside")):
        with pytest.raises(UserError, match=text):
            attack(model, images, labels, epsilon=wrong)


@pytest.mark.parametrize("name", ["fgsm-rs", "pgd", "pgd-l2", "apgd-ce", "apgd-margin", "fab", "square", "worst-case"])
def test_the_same_seed_gives_the_same_images(name: str) -> None:
    images, labels = images_and_labels(40, seed=5)
    options: dict[str, Any] = {"steps": 1, "restarts": 3} if name == "fab" else {}
    made = []
    for global_seed, seed in ((0, 3), (1, 3), (0, 4)):
        torch.manual_seed(global_seed)
        made.append(EVERY[name](trained("fgsm"), images, labels, epsilon=0.03, seed=seed, **options))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda *a: attacks.pgd_l2(*a, epsilon=-0.1), r"L2 radius lies in \[0, 20\]"),
        (lambda *a: attacks.pgd_l2(*a, epsilon=21.0), r"L2 radius lies in \[0, 20\]"),
        (lambda *a: attacks.pgd_l2(*a, epsilon=float("nan")), r"L2 radius lies in \[0, 20\]"),
        (lambda *a: attacks.pgd(*a, epsilon=0.02, norm="Linf"), "unknown norm 'Linf': did you mean linf"),
        (lambda m, x, y: attacks.pgd_l2(m, x[:, :, :4, :4], y, epsilon=torch.ones(4)), r"\(B, 1, 1, 1\), not \(4,\)"),
        (lambda *a: attacks.pgd(*a, epsilon=0.02, mode="Train"), "unknown mode 'Train': did you mean train"),
        (lambda *a: attacks.square(*a, epsilon=0.02, queries=1.5), "square: queries must be a whole number, not 1.5"),
        (lambda *a: attacks.pgd(*a, epsilon=0.02, steps=2.5), "pgd: steps must be a whole number, not 2.5"),
        (lambda *a: attacks.apgd(*a, epsilon=0.02, steps=0), "apgd: steps must be at least 1, not 0"),
        (lambda *a: attacks.pgd(*a, epsilon=0.02, restarts=0), "pgd: restarts"),
        (lambda *a: attacks.pgd(*a, epsilon=0.02, step_size=0.0), "pgd: "),
        (lambda *a: attacks.pgd(*a, epsilon=0.02, stop_when_wrong=True, mode="train"), "pgd: "),
        (lambda *a: attacks.apgd(*a, epsilon=0.02, loss="dlr"), "'ce' or 'margin', not 'dlr'"),
        (lambda *a: attacks.apgd(*a, epsilon=0.02, target=a[2] + 1), "needs the margin"),
        (lambda *a: attacks.apgd(*a, epsilon=0.02, loss="margin", target=a[2]), "wrong class"),
        (lambda *a: attacks.apgd(*a, epsilon=0.02, loss="margin", target=a[2] + 3), "the model has 3 classes"),
        (lambda *a: attacks.apgd(*a, epsilon=0.02, loss="margin", target=a[2][:1]), "a class for each image"),
        (lambda *a: attacks.square(*a, epsilon=0.02, queries=0), "square: queries"),
        (lambda *a: attacks.worst_case(*a, epsilon=0.02, queries=0), "worst-case: queries"),
        (lambda *a: attacks.momentum(*a, epsilon=0.02, decay=-1.0), "momentum: decay"),
        (lambda *a: attacks.fgsm(*a, epsilon=0.02, precision="fp8"), "'bf16' or None"),
        (lambda *a: attacks.transfer(*a, epsilon=0.02, surrogate=trained(classes=5)), "3 classes and the surrogate 5"),
        (lambda *a: attacks.transfer(*a, epsilon=0.02, surrogate=trained(), attack="pdg"), "did you mean pgd"),
    ],
)
def test_options_that_make_no_attack(call: Callable[..., Tensor], text: str) -> None:
    images, labels = images_and_labels(4)
    with pytest.raises(UserError, match=text) as problem:
        call(trained(), images, labels)
    assert "\n" not in str(problem.value)


def test_no_images_at_all() -> None:
    images, labels = images_and_labels(4)
    for attack in (*EVERY.values(), adaptive):
        assert attack(trained(), images[:0], labels[:0], epsilon=0.02).shape == (0, *images.shape[1:])
    assert attacks.minimal_perturbation(trained(), images[:0], labels[:0]).shape == (0,)


def test_the_move_to_a_plane_is_the_smallest() -> None:
    """Against a linear program: minimise t with |d| <= t, w.d = need, and the pixels in [0, 1]."""
    from scipy.optimize import linprog

    generator = torch.Generator().manual_seed(3)
    point = torch.rand((6, 1, 3, 4), generator=generator)
    weights = torch.randn(point.shape, generator=generator)
    weights[:, :, 0, 0] = 0
    need = torch.tensor([0.5, -0.5, 2.0, -2.0, 0.0, 1e6])
    move = _to_plane(point, weights, need)
    assert bool((point + move >= -1e-6).all() & (point + move <= 1 + 1e-6).all())
    for k in range(5):
        w, x = weights[k].flatten().double().numpy(), point[k].flatten().double().numpy()
        n = len(w)
        bounds = [*zip(-x, 1 - x, strict=True), (0, None)]
        above = [[*(s if i == j else 0.0 for i in range(n)), -1.0] for j in range(n) for s in (1.0, -1.0)]
        best = linprog([0.0] * n + [1.0], above, [0.0] * (2 * n), [[*w, 0.0]], [float(need[k])], bounds)
        assert best.success
        assert float((weights[k] * move[k]).sum()) == pytest.approx(float(need[k]), abs=1e-4)
        assert float(move[k].abs().max()) == pytest.approx(best.fun, abs=1e-4)
    # What cannot be reached is approached as far as the pixels go.
    ends = torch.where(weights[5] > 0, 1.0, 0.0).where(weights[5] != 0, point[5])
    assert torch.allclose((point + move)[5], ends, atol=1e-6)
