"""The strong attacks: Auto-PGD, FAB, Square, L2, momentum, transfer, worst-case and the smallest epsilon."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from small_networks import SmallNet, accuracy, images_and_labels, trained
from trustcxr import attacks
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


@pytest.mark.sample("standard-0.05")
@pytest.mark.parametrize("epsilon", [0.03, 0.05])
def test_apgd_agrees_with_torchattacks(epsilon: float, model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    import torchattacks

    images, labels = batch
    other = theirs(torchattacks.APGD(model, eps=epsilon, steps=20, loss="ce"), model, images, labels)
    ours = attacks.apgd(model, images, labels, epsilon=epsilon, steps=20)
    assert abs(accuracy(model, ours, labels) - accuracy(model, other, labels)) <= 0.01


@pytest.mark.sample("standard-0.05")
@pytest.mark.parametrize("epsilon", [0.03, 0.05])
def test_fab_is_no_weaker_than_torchattacks(epsilon: float, model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    import torchattacks

    images, labels = (t[:150] for t in batch)
    attack = torchattacks.FAB(model, eps=epsilon, steps=20, n_classes=3, multi_targeted=True)
    other = theirs(attack, model, images, labels)
    ours = attacks.fab(model, images, labels, epsilon=epsilon, steps=20)
    assert accuracy(model, ours, labels) <= accuracy(model, other, labels) + 0.01


@pytest.mark.sample("standard")
def test_square_is_no_weaker_than_torchattacks(model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    import torchattacks

    images, labels = (t[:150] for t in batch)
    other = theirs(torchattacks.Square(model, eps=0.04, n_queries=200), model, images, labels)
    ours = attacks.square(model, images, labels, epsilon=0.04, queries=200)
    assert accuracy(model, ours, labels) <= accuracy(model, other, labels) + 0.01


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
    import torchattacks

    model = trained("fgsm", classes=classes)
    images, labels = images_and_labels(150, classes=classes, seed=8)
    options = {"eps": 0.04, "n_restarts": 1}
    suite = [
        torchattacks.APGD(model, steps=20, loss="ce", **options),
        torchattacks.FAB(model, steps=20, n_classes=classes, multi_targeted=True, **options),
        torchattacks.Square(model, n_queries=200, **options),
    ]
    stands = torch.ones(len(labels), dtype=torch.bool)
    for attack in suite:
        stands &= model(theirs(attack, model, images, labels)).argmax(1) == labels
    ours = attacks.worst_case(model, images, labels, epsilon=0.04, steps=20, queries=200)
    assert 0.05 < float(stands.float().mean()) < 0.95
    assert accuracy(model, ours, labels) <= float(stands.float().mean()) + 0.01


def test_it_works_for_three_classes_where_the_standard_suite_fails(batch: tuple[Tensor, Tensor]) -> None:
    """Trap 1: the DLR loss and the targets of AutoAttack's standard version need four classes or more."""
    import torchattacks

    model, (images, labels) = trained("fgsm"), (t[:32] for t in batch)
    suite = torchattacks.AutoAttack(model, eps=0.03, n_classes=3, version="standard")
    with pytest.raises(IndexError):
        theirs(suite, model, images, labels)
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


@pytest.mark.sample("standard-apgd-ce", "standard-square", "fgsm-fab")
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-margin", "fab", "square", "worst-case", "momentum", "fgsm-rs"])
def test_accuracy_falls_with_epsilon_to_about_zero(name: str, model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    """Trap 7."""
    images, labels = (t[:100] for t in batch)
    options = {
        k: v for k, v in QUICK.items() if name == "worst-case" or k == ("queries" if name == "square" else "steps")
    }
    if name == "fgsm-rs":
        options = {}
    falls = [accuracy(model, images, labels)]
    for epsilon in (0.01, 0.03, 0.06, 0.3):
        falls.append(accuracy(model, attacks.get(name)(model, images, labels, epsilon=epsilon, **options), labels))
    assert all(after <= before + 0.02 for before, after in itertools.pairwise(falls)), falls
    assert falls[0] > 0.95
    assert falls[-1] <= 0.02


def test_restarts_help(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    model = trained("fgsm")
    # FAB's first start is about as good as any within 0.04, so it is given more room.
    for name, steps, epsilon in (("apgd-ce", 3, 0.04), ("fab", 1, 0.2)):
        few, many = (
            accuracy(model, attacks.get(name)(model, images, labels, epsilon=epsilon, steps=steps, restarts=n), labels)
            for n in (1, 8)
        )
        assert many < few, name


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

    class Rounded(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return (trained()(images) * 4).round()

    images, labels = (t[:80] for t in batch)
    model = Rounded()
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


class Meter(nn.Module):
    """Counts the images that pass forward, and whether a gradient was asked for."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.rows, self.with_gradient = inner, 0, 0

    def forward(self, images: Tensor) -> Tensor:
        self.rows += len(images)
        self.with_gradient += len(images) if torch.is_grad_enabled() else 0
        return self.inner(images)


@pytest.mark.expensive("fab", "worst-case")
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-margin", "fab", "square", "worst-case"])
def test_broken_images_leave_the_batch(name: str, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = (t[:80] for t in batch)
    option = {"queries": 100} if name == "square" else {"steps": 20}
    option |= {"queries": 100} if name == "worst-case" else {}
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
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a black box has no gradient")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    monkeypatch.setattr(torch.Tensor, "backward", refuse)
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
    options = {"worst-case": QUICK, "square": {"queries": 20}, "fgsm": {}, "fgsm-rs": {}}.get(name, {"steps": 5})
    attack = attacks.get(name)
    single = attack(model, images, labels, epsilon=0.03, **options)
    assert torch.equal(attack(model, images, labels, epsilon=torch.full((12, 1, 1, 1), 0.03), **options), single)
    radius = torch.full_like(images, 0.02)
    radius[:, :, :10] = 0.08
    change = (attack(model, images, labels, epsilon=radius, **options) - images).abs()
    assert bool((change <= radius + 1e-6).all())
    if name != "fab":  # it looks for the nearest point, wherever that is
        assert float(change.max()) > 0.07
    for wrong, text in ((torch.full((5, 1, 1, 1), 0.1), "broadcast"), (radius + 1, "outside"), (-radius, "outside")):
        with pytest.raises(UserError, match=text):
            attack(model, images, labels, epsilon=wrong, **options)


def test_l2_stays_in_the_l2_ball_and_in_range(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    images = ((images - 0.5) * 4 + 0.5).clamp(0, 1)
    for radius in (0.5, 3.0):
        change = attacks.pgd_l2(trained(), images, labels, epsilon=radius) - images
        length = change.flatten(1).norm(dim=1)
        assert float(length.max()) <= radius + 1e-5
        assert float(length.median()) > 0.5 * radius
        assert float((change + images).min()) >= 0
        assert float((change + images).max()) <= 1
    for wrong in (-0.1, 21.0, float("nan")):
        with pytest.raises(UserError, match=r"L2 radius lies in \[0, 20\]"):
            attacks.pgd_l2(trained(), images, labels, epsilon=wrong)


@pytest.mark.parametrize(
    ("has", "computes"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, True),
        ({"architecture": "arm64", "neon": True, "bf16": True}, True),
        ({"architecture": "arm64", "neon": True, "bf16": False}, False),
    ],
)
def test_a_processor_that_imitates_bfloat16_is_not_taken_for_one_that_computes_in_it(
    has: dict[str, Any], computes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert attacks.computes_in_bfloat16("cpu") == computes
    assert attacks.computes_in_bfloat16("cuda")
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    asked = {
        "x86_64": (torch.cpu, "_is_avx512_bf16_supported"),
        "aarch64": (torch.ops.mkldnn, "_is_mkldnn_bf16_supported"),
    }
    for machine, (where, name) in asked.items():
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        for older in (True, False):
            monkeypatch.setattr(where, name, lambda older=older: older, raising=False)
            assert attacks.computes_in_bfloat16("cpu") == older


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("name", ["fgsm", "fgsm-rs"])
def test_a_pass_in_bf16_gives_the_same_signs(name: str, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    model = trained("fgsm")
    full, half = (attacks.get(name)(model, images, labels, epsilon=0.03, precision=p) for p in (None, "bf16"))
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    assert float(((full - images).sign() == (half - images).sign()).float().mean()) > 0.95
    assert abs(accuracy(model, full, labels) - accuracy(model, half, labels)) <= 0.01


@pytest.mark.sample("apgd-ce-0.01")
@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize(("name", "loss"), [("pgd", 0.01), ("apgd-ce", 0.01), ("apgd-margin", 0.01), ("square", 0.04)])
def test_a_search_in_bf16_claims_nothing_that_is_not_so(name: str, loss: float, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = (t[:150] for t in batch)
    model = trained("fgsm")
    option: dict[str, Any] = {"queries": 100} if name == "square" else {"steps": 20}
    option |= {"stop_when_wrong": True} if name == "pgd" else {}
    full, half = (attacks.get(name)(model, images, labels, epsilon=0.04, precision=p, **option) for p in (None, "bf16"))
    assert not torch.equal(full, half)
    assert accuracy(model, half, labels) <= accuracy(model, full, labels) + loss
    report = attacks.worst_case_report(model, images, labels, epsilon=0.04, precision="bf16", **QUICK)
    assert report.accuracy == pytest.approx(accuracy(model, report.images, labels))


@pytest.mark.parametrize("name", ["fgsm-rs", "pgd", "pgd-l2", "apgd-ce", "apgd-margin", "fab", "square", "worst-case"])
def test_the_same_seed_gives_the_same_images(name: str) -> None:
    images, labels = images_and_labels(40, seed=5)
    options: dict[str, Any] = {"pgd-l2": {"steps": 2}, "fgsm-rs": {}, "square": {"queries": 20}}.get(name, {"steps": 3})
    options |= {"steps": 1, "restarts": 3} if name == "fab" else {}
    options |= {"queries": 20} if name == "worst-case" else {}
    made = []
    for global_seed, seed in ((0, 3), (1, 3), (0, 4)):
        torch.manual_seed(global_seed)
        made.append(attacks.get(name)(trained("fgsm"), images, labels, epsilon=0.03, seed=seed, **options))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize(
    ("call", "text"),
    [
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
    for name, attack in attacks.ATTACKS.items():
        options = {"surrogate": trained()} if name == "transfer" else {}
        assert attack(trained(), images[:0], labels[:0], epsilon=0.02, **options).shape == (0, *images.shape[1:])
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
