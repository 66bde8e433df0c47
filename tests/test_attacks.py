"""Attacks against the libraries that do the same, and against what an attack must never do to a model."""

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from small_networks import SIDE, Meter, SmallNet, Wrapped, accuracy, images_and_labels, trained
from trustcxr import attacks
from trustcxr.errors import UserError

EPSILON, STEPS = 0.03, 10
# Those that take a mode, since training uses them.
IN_TRAINING = {name: attacks.get(name) for name in ("fgsm", "fgsm-rs", "pgd", "pgd-l2", "momentum")}
SMALL: dict[str, dict[str, Any]] = {name: {"steps": 5} for name in ("pgd-l2", "apgd-ce", "apgd-margin", "fab")}
SMALL |= {"square": {"queries": 20}, "worst-case": {"steps": 4, "queries": 10}}
# Every attack by name, with few steps.
EVERY: dict[str, Callable[..., Tensor]] = {
    name: partial(attack, **SMALL.get(name, {})) for name, attack in attacks.ATTACKS.items()
} | {"transfer": lambda model, *batch, **options: attacks.transfer(model, *batch, surrogate=model, **options)}


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    return images_and_labels(200, seed=5)


@pytest.fixture(params=["standard", "fgsm"])
def model(request: pytest.FixtureRequest) -> SmallNet:
    return trained(request.param)


def test_fgsm_is_identical_to_torchattacks_and_foolbox(model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    import foolbox
    import torchattacks

    theirs = torchattacks.FGSM(model, eps=EPSILON)(*batch)
    ours = attacks.fgsm(model.eval(), *batch, epsilon=EPSILON)
    assert torch.equal(ours, theirs)
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    _, theirs, _ = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), *batch, epsilons=EPSILON)
    # Foolbox clips the perturbation once more around the image, which may move the last bit.
    assert torch.allclose(ours, theirs, atol=1e-6, rtol=0)


def test_pgd_agrees_with_torchattacks_and_foolbox(model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    import foolbox
    import torchattacks

    images, labels = batch
    step = EPSILON / 4
    torch.manual_seed(0)
    theirs = torchattacks.PGD(model, eps=EPSILON, alpha=step, steps=STEPS, random_start=True)(images, labels)
    ours = attacks.pgd(model.eval(), images, labels, epsilon=EPSILON, steps=STEPS, step_size=step)
    assert abs(accuracy(model, ours, labels) - accuracy(model, theirs, labels)) <= 0.01
    torch.manual_seed(0)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=step, steps=STEPS, random_start=True)
    _, _, misled = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=EPSILON)
    assert abs(accuracy(model, ours, labels) - (1 - float(misled.float().mean()))) <= 0.01
    fixed = torchattacks.PGD(model, eps=EPSILON, alpha=step, steps=STEPS, random_start=False)(images, labels)
    model.eval()
    # Left out, the step is two and a half radii over the steps, which is the same.
    ours = attacks.pgd(model, images, labels, epsilon=EPSILON, steps=STEPS, random_start=False)
    # Where a gradient is about zero its sign may differ.
    assert float((ours - fixed).abs().gt(1e-5).float().mean()) < 0.002


def test_captum_needs_probabilities_where_ours_needs_logits(batch: tuple[Tensor, Tensor]) -> None:
    """Trap 4: Captum's FGSM takes the logarithm of a probability; ours takes logits, and refuses probabilities."""
    from captum.robust import FGSM

    model, (images, labels) = trained(), batch
    probabilities = nn.Sequential(model, nn.Softmax(dim=1)).eval()
    theirs = FGSM(probabilities, lower_bound=0, upper_bound=1).perturb(images, epsilon=EPSILON, target=labels)
    ours = attacks.fgsm(model, images, labels, epsilon=EPSILON)
    differ = (ours - theirs).abs().gt(1e-6).float().mean((1, 2, 3))
    unsure = probabilities(images).amax(1) < 0.99  # where the model is sure their gradient is rounded away
    assert int(unsure.sum()) > 10
    assert float(differ[unsure].max()) < 0.02
    assert float(differ[~unsure].mean()) > float(differ[unsure].mean())
    for attack in EVERY.values():
        with pytest.raises(UserError, match="returns probabilities"):
            attack(probabilities, images, labels, epsilon=EPSILON)


def test_stop_when_wrong_loses_no_victim_and_saves_gradients(model: SmallNet, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    seen, verdicts = [], []
    for stop in (False, True):
        meter = Meter(model).eval()
        found = attacks.pgd(meter, images, labels, epsilon=0.05, steps=STEPS, stop_when_wrong=stop)
        seen.append(meter.rows)
        verdicts.append(model(found).argmax(1) != labels)
        assert float((found - images).abs().max()) <= 0.05 + 1e-6
    assert bool((verdicts[1] | ~verdicts[0]).all())
    assert float((verdicts[1] ^ verdicts[0]).float().mean()) <= 0.01
    assert seen[1] < 0.9 * seen[0]


@pytest.mark.parametrize(
    ("name", "restarts", "options"),
    [
        ("pgd", (1, 2, 6), {"epsilon": 0.04, "steps": 2, "step_size": 0.01}),
        ("apgd-ce", (1, 8), {"epsilon": 0.04, "steps": 3}),
        ("fab", (1, 8), {"epsilon": 0.2, "steps": 1}),  # its first start is about as good as any within 0.04
    ],
)
def test_restarts_help_and_keep_what_was_found(name: str, restarts: tuple[int, ...], options: dict[str, Any]) -> None:
    images, labels = images_and_labels(300, seed=5)
    model = trained("fgsm")
    wrong = [
        model(attacks.get(name)(model, images, labels, restarts=n, **options)).argmax(1) != labels for n in restarts
    ]
    for fewer, more in itertools.pairwise(wrong):
        assert bool((more | ~fewer).all()), "an image that was misled is right again after more restarts"
    assert wrong[-1].sum() > wrong[0].sum()


def lengths(name: str, moved: Tensor) -> Tensor:
    """How far each image was moved, in the norm of the attack."""
    return moved.flatten(1).norm(dim=1) if name == "pgd-l2" else moved.flatten(1).abs().amax(1)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("epsilon", [0.02, 0.3, 1.0])
def test_result_is_within_epsilon_and_in_range(name: str, epsilon: float) -> None:
    epsilon *= 3 if name == "pgd-l2" else 1
    images, labels = images_and_labels(32)
    images = ((images - 0.5) * 4 + 0.5).clamp(0, 1)  # many pixels at 0 and 1
    assert bool((images == 0).any())
    assert bool((images == 1).any())
    found = EVERY[name](trained("fgsm"), images, labels, epsilon=epsilon)
    assert (found.shape, found.dtype) == (images.shape, images.dtype)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    length = float(lengths(name, found - images).max())
    assert length <= epsilon + 1e-6
    # The nearest point is closer, and a white lung stops at 1.
    assert length > epsilon * 0.9 or name in ("fab", "transfer", "worst-case")


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_any_precision_stay_within_epsilon(name: str, precision: torch.dtype) -> None:
    images, labels = images_and_labels(16)
    images = images.to(precision)
    epsilon = 0.4 if name == "pgd-l2" else 0.02
    found = EVERY[name](copy.deepcopy(trained("fgsm")).to(precision), images, labels, epsilon=epsilon)
    assert found.dtype == precision
    length = float(lengths(name, found.double() - images.double()).max())
    assert length <= epsilon + 1e-6
    assert length >= 0.8 * epsilon or name in ("fab", "worst-case")


@pytest.mark.parametrize("name", EVERY)
def test_caller_images_are_untouched_and_epsilon_zero_gives_them_back_without_gradient(name: str) -> None:
    images, labels = images_and_labels(100)
    before = images.clone()
    images.requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, same = (EVERY[name](trained(), images, labels, epsilon=epsilon) for epsilon in (EPSILON, 0.0))
    assert not found.requires_grad
    assert images.grad is None
    assert torch.equal(images.detach(), before)
    assert torch.equal(same, before)


class Stateful(nn.Module):
    """All that an attack can disturb: BatchNorm, a frozen one, InstanceNorm with statistics, dropout, a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.InstanceNorm2d(4, track_running_stats=True))
        self.frozen = nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * SIDE * SIDE, 3))
        self.register_buffer("calls", torch.zeros(()))
        self.frozen.weight.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.head(self.frozen(self.second(self.first(images))))


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "flags": {name: module.training for name, module in model.named_modules()},
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "same tensors": {name: value.data_ptr() for name, value in model.state_dict(keep_vars=True).items()},
        "needs gradient": {name: p.requires_grad for name, p in model.named_parameters()},
        "gradients": {name: p.grad is None for name, p in model.named_parameters()},
        "tracking": [getattr(m, "track_running_stats", None) for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", IN_TRAINING)
def test_model_is_left_as_it_was_found(name: str, mode: attacks.Mode) -> None:
    """Trap 2: a frozen BatchNorm stays so; no statistic, counter, gradient or random state moves, nor if it fails."""
    torch.manual_seed(0)
    model = Stateful().train()
    model.frozen.eval()
    images, labels = images_and_labels(8)
    before, state = snapshot(model), torch.get_rng_state()
    IN_TRAINING[name](model, images, labels, epsilon=EPSILON, mode=mode)
    with pytest.raises(UserError, match="3 classes"):
        IN_TRAINING[name](model, images, labels + 5, epsilon=EPSILON, mode=mode)
    after = snapshot(model)
    for key in before:
        if key != "state":
            assert before[key] == after[key], key
    for key, value in before["state"].items():
        assert torch.equal(value, after["state"][key]), key
    assert torch.equal(state, torch.get_rng_state())


def test_mode_train_attacks_batch_statistics() -> None:
    torch.manual_seed(0)
    model = SmallNet()
    images, labels = images_and_labels(16)
    moved = [attacks.fgsm(model, images, labels, epsilon=EPSILON, mode=mode) for mode in ("eval", "train")]
    assert not torch.equal(*moved)
    model.train()
    model.body[-1].p = 0.0
    leaf = images.clone().requires_grad_(True)
    F.cross_entropy(model(leaf), labels).backward()
    expected = (images + EPSILON * leaf.grad.sign()).clamp(0, 1)
    assert torch.equal(attacks.fgsm(model, images, labels, epsilon=EPSILON, mode="train"), expected)


@pytest.mark.expensive("no_grad-pgd", "no_grad-fab", "no_grad-worst-case")
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(name: str, context: Callable[[], Any], batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    expected = EVERY[name](trained(), images, labels, epsilon=EPSILON)
    with context():
        made_here = images * 1.0, labels.clone()
        found = EVERY[name](trained(), *made_here, epsilon=EPSILON)
    assert torch.equal(found.clone(), expected)


@pytest.mark.sample("pgd-inference_mode", "square-enable_grad", "worst-case-no_grad")
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", EVERY)
def test_works_under_autocast(name: str, context: Callable[[], Any], batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    model = trained("fgsm")
    with context(), torch.autocast("cpu", torch.bfloat16):
        model(images)  # fills autocast's cache of weights
        found = EVERY[name](model, images, labels, epsilon=0.05)
        # Judged where it was made: FAB's points lie so close to the boundary that rounding decides.
        half = accuracy(model, found, labels)
    assert found.dtype == torch.float32
    full = EVERY[name](model, images, labels, epsilon=0.05)
    assert abs(half - accuracy(model, full, labels)) <= 0.03


def test_gradient_survives_a_confident_model_in_half_precision() -> None:
    """A loss averaged over the batch underflows in float16 where a summed one does not."""
    images, labels = images_and_labels(64)
    model = trained()
    full = attacks.fgsm(model, images, labels, epsilon=EPSILON)
    half = attacks.fgsm(copy.deepcopy(model).half(), images.half(), labels, epsilon=EPSILON)
    assert half.dtype == torch.float16
    assert float(((half.float() - images).sign() == (full - images).sign()).float().mean()) > 0.98


class Watched(TorchDispatchMode):
    """Counts what the backward pass of a convolution or a linear layer computes."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.inputs, self.products = 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            inputs, weights, _ = args[-1]
            self.inputs += inputs
            self.weights += weights
        self.products += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


def test_the_attack_computes_no_weight_gradient(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    model = trained()
    with Watched() as attack:
        attacks.fgsm(model, images, labels, epsilon=EPSILON)
    # Two convolutions and a linear layer, each with the gradient of its input alone.
    assert (attack.inputs, attack.weights, attack.products) == (2, 0, 1)
    with Watched() as plain:
        gradients = torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))
    assert len(gradients) == 10
    assert (plain.weights, plain.products) == (2, 2)


def test_works_for_other_shapes() -> None:
    mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    assert attacks.fgsm(mean, torch.rand(2, 3, 7, 11), torch.tensor([0, 3]), epsilon=0.1).shape == (2, 3, 7, 11)


def bad_inputs() -> Iterator[Any]:
    images, labels = images_and_labels(4)
    hole = images.clone()
    hole[0, 0, 0, 0] = float("nan")
    yield pytest.param(images * 255, labels, 0.02, r"in \[0, 1\] \(pixel space\).*span \[.*\d\]$", id="grey levels")
    yield pytest.param((images - 0.5) * 2048, labels, 0.02, r"in \[0, 1\]", id="torchxrayvision's range (trap 6)")
    yield pytest.param(images.clamp(min=1) + 2e-7, labels, 0.02, r"span \[1\.0000002.*; clamp them", id="a bit outside")
    yield pytest.param(hole, labels, 0.02, r"in \[0, 1\].*nan", id="NaN")
    yield pytest.param(images[:, 0], labels, 0.02, r"\(B, 1, H, W\)", id="no channel")
    yield pytest.param((images * 255).to(torch.uint8), labels, 0.02, "floats", id="uint8")
    yield pytest.param(images, labels[:3], 0.02, "4 images but labels of shape", id="few labels")
    yield pytest.param(images, labels.float(), 0.02, "whole numbers", id="float labels")
    yield pytest.param(images, labels.clamp(min=3), 0.02, "3 classes", id="a label too large")
    yield pytest.param(images, labels - 3, 0.02, "3 classes", id="negative labels")
    yield pytest.param(images, labels, 4, r"outside \[0, 1\].*4/255 = 0.01569", id="epsilon in grey levels")
    yield pytest.param(images, labels, float("nan"), r"outside \[0, 1\]", id="epsilon NaN")


@pytest.mark.parametrize("name", [name for name in EVERY if name != "pgd-l2"])
@pytest.mark.parametrize(("images", "labels", "epsilon", "message"), [*bad_inputs()])
def test_wrong_input_is_one_line(name: str, images: Tensor, labels: Tensor, epsilon: float, message: str) -> None:
    with pytest.raises(UserError, match=message) as problem:
        EVERY[name](trained(), images, labels, epsilon=epsilon)
    assert "\n" not in str(problem.value)


def returns(what: Callable[[Tensor], Any]) -> nn.Module:
    return Wrapped(nn.Identity(), lambda _, images: what(images))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "what",
    [
        lambda x: x.flatten(2),
        lambda x: x.mean((1, 2, 3)),
        lambda x: x.mean((2, 3)),
        lambda x: (x.flatten(1), None),
        lambda x: x.flatten(1)[:2],
    ],
    ids=["three dimensions", "one dimension", "one class", "a tuple", "another batch"],
)
def test_model_that_gives_no_logits(name: str, what: Callable[[Tensor], Any]) -> None:
    images, labels = images_and_labels(4)
    with pytest.raises(UserError, match=r"must return logits \(B, 2 or more classes\)"):
        EVERY[name](returns(what), images, labels, epsilon=0.02)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 3, 20])
def test_probabilities_of_any_precision_are_no_logits(classes: int, precision: torch.dtype) -> None:
    images, labels = images_and_labels(64)
    logits = torch.randn(64, classes, generator=torch.Generator().manual_seed(0)) * 3
    sure = returns(lambda x: (logits + 0 * x.sum()).softmax(1).to(precision))
    with pytest.raises(UserError, match="returns probabilities"):
        attacks.fgsm(sure, images, labels.clamp(max=classes - 1), epsilon=0.02)
    spread = returns(lambda x: (logits.sigmoid() + 0 * x.sum()).to(precision))  # in [0, 1], of any sum
    attacks.fgsm(spread, images, labels.clamp(max=classes - 1), epsilon=0.02)
