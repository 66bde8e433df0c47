"""Bounds of small networks against points of the ball, against each other and against a linear program."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from small_runs import recipe
from trustcxr.certify import Effort, prove, verify
from trustcxr.data import load_dataset
from trustcxr.data.phantom import write_files
from trustcxr.errors import UserError
from trustcxr.evaluation import certified
from trustcxr.evaluation.trained_run import Run
from trustcxr.models import factory
from trustcxr.models.classifier import Classifier, Ensemble
from trustcxr.models.preserve_state import without_tf32

EPSILON = 0.03
Bound = Callable[..., Tensor]
BOUNDS: dict[str, Bound] = {
    "ibp": verify.interval_margins,
    "crown": verify.crown_margins,
    "crown all the way": partial(verify.crown_margins, neurons=10_000),
    "crown with slopes sought": partial(verify.crown_margins, neurons=10_000, steps=5),
}


def convolutional(seed: int = 0) -> nn.Sequential:
    """Every kind of layer that can be bounded, on images of 12 pixels; BatchNorm with statistics of its own."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(4)
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    nn.init.uniform_(norm.weight, -2, 2)
    nn.init.normal_(norm.bias)
    return nn.Sequential(
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        norm,
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(54, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    ).eval()


def together(members: int = 3) -> Classifier:
    """Networks that answer together, with weights of their own and biases that are not 0, on images of 32 pixels."""
    torch.manual_seed(0)
    model = factory.build("plain3", classes=3, weights="none", members=members).eval()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(weight, std=0.05)
    return model


SETUP: dict[Callable[[], nn.Module], tuple[int, float]] = {convolutional: (12, EPSILON), together: (32, 0.01)}


def some(count: int, size: int = 12) -> tuple[Tensor, Tensor]:
    """Images and labels; a few pixels at black and at white, where the ball is cut."""
    torch.manual_seed(1)
    images = (torch.rand(count, 1, size, size) * 1.4 - 0.2).clamp(0, 1)
    return images, torch.arange(count) % 3


def interval(images: Tensor, epsilon: float = EPSILON) -> verify.Interval:
    return verify.Interval.from_ends(*verify.box(images.double(), epsilon))


@pytest.mark.parametrize(
    ("build", "bound"), [*((convolutional, name) for name in BOUNDS), (together, "ibp"), (together, "crown")]
)
def test_no_point_of_the_ball_has_a_smaller_margin_than_the_bound(build: Callable[[], nn.Module], bound: str) -> None:
    (size, epsilon), count, dtype = SETUP[build], 10_000, torch.double
    if build is together:  # it is larger
        count, dtype = 4_000, torch.float
    net, (images, labels) = build().to(dtype), some(2, size)
    least = BOUNDS[bound](verify.exact(net), interval(images, epsilon), labels)
    corners = torch.rand(count, 2, 1, size, size)
    corners[::2] = corners[::2].round()  # half of them at the corners of the ball, where a network errs soonest
    sought = images.to(dtype).requires_grad_(True)
    logits = net(sought)
    (gradient,) = torch.autograd.grad((logits.gather(1, labels[:, None]) * 2 - logits).sum(), sought)
    corners = torch.cat([corners, (gradient < 0).float()[None]])  # no random point is near where margins fall soonest
    points = (images + epsilon * (2 * corners - 1)).clamp(0, 1)
    with torch.no_grad():
        logits = net(points.flatten(0, 1).to(dtype)).double().unflatten(0, (count + 1, 2))
    margins = logits.gather(2, labels.expand(count + 1, 2)[..., None]) - logits
    assert (margins >= least - 1e-6).all()
    assert (margins.amin(0) - least < 3).all()  # and the bound says something


def test_crown_is_never_below_the_intervals_and_sometimes_well_above() -> None:
    net, (images, labels) = verify.exact(convolutional()), some(6)
    at = interval(images, 0.2)
    rising = [bound(net, at, labels) for bound in BOUNDS.values()]
    for lower, higher in zip(rising[:1] * 3 + rising[2:3], [*rising[1:], rising[3]], strict=True):
        assert (higher >= lower - 1e-9).all()
    assert (rising[1] - rising[0]).max() > 0.01
    assert (rising[3] - rising[2]).max() > 1e-4


def test_without_a_relu_every_bound_is_the_exact_minimum() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3))
    images, labels = some(3, 6)
    low, high = verify.box(images.double(), EPSILON)
    assert (float(low.min()), float(high.max())) == (0, 1), "the ball is cut at black and white"
    weights = torch.stack([torch.autograd.functional.jacobian(net.double(), x[None]).squeeze((0, 2)) for x in low])
    at_low = net(low)
    for bound in BOUNDS.values():
        found = bound(verify.exact(net), verify.Interval.from_ends(low, high), labels)
        for row, label in enumerate(labels):
            slope = (weights[row][label] - weights[row]).flatten(1)
            exact = at_low[row][label] - at_low[row] + (slope.clamp(max=0) * (high - low)[row].flatten()).sum(1)
            assert torch.allclose(found[row], exact, atol=1e-9)


def toy() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def program(net: nn.Sequential, found: list[verify.Interval], row: np.ndarray, slopes: verify.Slopes | None) -> float:
    """The least value of `row` times the logits, with each ReLU between its lines: variables are all layers' values.

    With `slopes` a ReLU has one lower line, a z; without, both z and 0: the triangle.
    """
    weights = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in net if isinstance(m, nn.Linear)]
    sizes = [9, 7, 7, 6, 6, 3]  # image, z1, y1, z2, y2, logits
    starts = np.cumsum([0, *sizes])
    total, upper, limits, equal, fixed = starts[-1], [], [], [], []
    place = {i: slice(starts[i], starts[i + 1]) for i in range(6)}
    for i, (weight, bias) in enumerate(weights):
        block = np.zeros((len(bias), total))
        block[:, place[2 * i]], block[:, place[2 * i + 1]] = -weight, np.eye(len(bias))
        equal.append(block)
        fixed.append(bias)
    for i, at in ((1, 2), (3, 4)):  # z in variables i, after layers[at]
        low, high = (t[0].numpy() for t in (found[at].low, found[at].high))
        for j in range(sizes[i]):
            if low[j] < 0 < high[j]:
                top = high[j] / (high[j] - low[j])
                lowest = [0.0, 1.0] if slopes is None else [float(slopes[at][0, 0, j])]
            else:
                top, lowest = float(low[j] >= 0), [float(low[j] >= 0)]
            limit = -low[j] * top if low[j] < 0 < high[j] else 0.0
            for sign, slope in [(1, top), *((-1, slope) for slope in lowest)]:
                line = np.zeros(total)
                line[starts[i + 1] + j], line[starts[i] + j] = sign, -sign * slope
                upper.append(line)
                limits.append(limit if sign == 1 else 0.0)
    cost = np.zeros(total)
    cost[place[5]] = row
    box = list(zip(found[0].low.flatten().tolist(), found[0].high.flatten().tolist(), strict=True))
    solved = linprog(
        cost, np.stack(upper), limits, np.concatenate(equal), np.concatenate(fixed), box + [(None, None)] * (total - 9)
    )
    assert solved.status == 0
    return float(solved.fun)


def test_one_hidden_layer_s_intervals_are_the_program_s_own() -> None:
    """Before the first ReLU intervals are exact: nothing that a linear program knows of is lost."""
    net, (images, _) = toy(), some(1, 3)
    found = verify.intervals(verify.exact(net), interval(images, 0.3))
    weight, bias = net[1].weight.detach(), net[1].bias.detach()
    for j in range(7):
        box = list(zip(found[0].low.flatten().tolist(), found[0].high.flatten().tolist(), strict=True))
        least = linprog(weight[j].numpy(), bounds=box).fun + float(bias[j])
        assert float(found[2].low[0, j]) == pytest.approx(least, abs=1e-9)


@pytest.mark.parametrize("neurons", [0, 100])
def test_crown_is_the_linear_program_over_its_own_lines(neurons: int) -> None:
    net, (images, labels) = toy(), some(3, 3)
    layers = verify.exact(net)
    for image, label in zip(images, labels, strict=True):
        at, one = interval(image[None], 0.3), label[None]
        found = verify.tightened(layers, at, neurons=neurons)
        assert any(((x.low < 0) & (x.high > 0)).any() for x in found)
        rows, slopes = verify.margins(3, one, found[-1].centre), verify.first_slopes(layers, found)
        bound = verify.backward(layers, found, rows, slopes)
        for k in range(3):
            assert float(bound[0, k]) == pytest.approx(program(net, found, rows[0, k].numpy(), slopes), abs=1e-7)


def test_slopes_that_are_sought_come_to_the_triangle_relaxation_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "RATE", 0.1)
    net, (images, labels) = toy(), some(3, 3)
    layers = verify.exact(net)
    found = verify.tightened(layers, interval(images[:1], 0.3))
    rows = verify.margins(3, labels[:1], found[-1].centre)
    sought = verify.climbed(layers, found, rows, verify.first_slopes(layers, found), steps=60)
    for k in range(3):
        best = program(net, found, rows[0, k].numpy(), None)
        assert best - 0.01 < float(sought[0, k]) < best + 1e-7


def test_batchnorm_is_bounded_as_if_folded_into_the_convolution() -> None:
    net, (images, labels) = convolutional(), some(4)
    folded = nn.Sequential(net[0], torch.nn.utils.fuse_conv_bn_eval(net[1], net[2]), *net[3:]).eval()
    for bound in BOUNDS.values():
        both = [bound(verify.exact(each), interval(images), labels) for each in (net, folded)]
        assert torch.allclose(*both, atol=1e-5)


def test_layers_give_the_model_s_own_answer() -> None:
    net, (images, _) = convolutional(), some(4)
    answer = images.double()
    for layer in verify.exact(net):
        answer = layer.apply(answer) if isinstance(layer, verify.Affine) else answer.relu()
    assert torch.allclose(answer, net.double()(images.double()), atol=1e-12)


@pytest.mark.parametrize("build", SETUP)
def test_the_allowance_for_rounding_covers_float32_and_is_small(build: Callable[[], nn.Module]) -> None:
    net, (size, epsilon) = build(), SETUP[build]
    images, layers = some(50, size)[0], verify.exact(net)
    allowed = verify.rounding(layers, verify.intervals(layers, interval(images, epsilon)))
    with torch.no_grad():
        apart = (net(images).double() - build().double()(images.double())).abs()
    assert (apart <= allowed).all()
    assert 0 < allowed.max() < 1e-3


class Residual(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        return images + super().forward(images)


def squared(kind: type[nn.Module], *given: object) -> nn.Module:
    """A layer of that kind, by its class and its name, that squares what the kind gives."""
    return type(kind.__name__, (kind,), {"forward": lambda self, x: kind.forward(self, x) ** 2})(*given)


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (Residual(nn.Conv2d(4, 4, 1), nn.ReLU()), "Residual"),
        (squared(nn.Identity), "Identity"),
        (squared(nn.Dropout), "Dropout"),
        (squared(nn.AvgPool2d, 2), "AvgPool2d"),
        (squared(nn.AdaptiveAvgPool2d, 2), "AdaptiveAvgPool2d"),
        (squared(nn.Flatten), "Flatten"),
        (nn.MaxPool2d(2), "MaxPool2d"),
        (nn.Sigmoid(), "Sigmoid"),
        (nn.GroupNorm(1, 4), "GroupNorm"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padded with 'reflect'"),
        (nn.BatchNorm2d(4, track_running_stats=False), "BatchNorm2d"),
    ],
)
def test_a_layer_that_cannot_be_bounded_is_named(layer: nn.Module, named: str) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(nn.ReLU(), layer), nn.Flatten())
    with pytest.raises(UserError, match="cannot be bounded") as refused:
        verify.layers(net)
    assert "'1.1'" in str(refused.value)
    assert named in str(refused.value)


@pytest.mark.parametrize(("scale", "epsilon"), [(1.0, -0.1), (1.0, 1.5), (255.0, 0.02), (1.0, float("nan"))])
def test_no_proof_outside_of_what_was_proved(scale: float, epsilon: float) -> None:
    with pytest.raises(UserError, match="0, 1"):
        prove(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.full((1, 1, 2, 2), scale), epsilon=epsilon)


def test_hooks_and_a_replaced_forward_are_refused_in_one_line() -> None:
    before, after, replaced, whole = (toy() for _ in range(4))
    before[1].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    after[5].register_forward_hook(lambda module, args, output: -output)
    replaced[1].forward = lambda x: torch.zeros(len(x), 7)
    whole.register_forward_hook(lambda module, args, output: -output)
    for model, name in ((before, "'1'"), (after, "'5'"), (replaced, "'1'"), (whole, "'Sequential'")):
        with pytest.raises(UserError, match=f"^certify: module {name} has forward hooks") as problem:
            verify.exact(model)
        assert "\n" not in str(problem.value)
    assert len(verify.exact(toy())) == 6


def test_tf32_is_off_inside_and_as_before_outside() -> None:
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    try:
        matmul.allow_tf32 = convolution.allow_tf32 = True
        with without_tf32():
            assert (matmul.allow_tf32, convolution.allow_tf32) == (False, False)
        assert (matmul.allow_tf32, convolution.allow_tf32) == (True, True)
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before


def test_of_networks_together_intervals_prove_the_mean_and_crown_looks_at_all_at_once() -> None:
    model, (images, labels) = together(), some(6, 32)
    at, members = interval(images, 0.01), [verify.exact(one) for one in model.members()]
    each = torch.stack([verify.interval_margins(layers, at, labels) for layers in members])
    assert torch.allclose(verify.interval_margins(verify.exact(model), at, labels), each.mean(0), atol=1e-9)
    assert (each[0] - each[1]).abs().max() > 1e-3, "they are not the same network"
    mean = torch.stack([verify.crown_margins(layers, at, labels) for layers in members]).mean(0)
    found = verify.crown_margins(verify.exact(model), at, labels)
    assert (found >= mean - 1e-9).all()
    assert (found - mean).max() > 1e-6, "the worst image of one is not the worst of another"


@pytest.mark.slow
def test_neurons_are_counted_in_each_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real = [], verify.crown_margins
    monkeypatch.setattr(
        verify, "crown_margins", lambda *a, neurons, **rest: asked.append(neurons) or real(*a, neurons=neurons, **rest)
    )
    images = load_dataset(write_files.write(tmp_path / "phantom", {"Test": 2}, size=32), split="Test", size=32)
    for members in (1, 3):
        run = Run(Path("run"), together(members), tuple(images.classes), recipe())
        certified.prove(run, images, [0.3], effort=Effort(neurons=128))
    assert asked == [128, 384]


def test_unlike_networks_are_refused_with_the_reason() -> None:
    one, deeper = together(1).net, factory.build("plain5", classes=3, weights="none").net
    for nets, means in (([one, deeper], (0.5, 0.5)), ([one, one], (0.5, 0.4))):
        model = Classifier(Ensemble(nets, means, (0.25, 0.25)), mean=0.5, std=0.25)
        with pytest.raises(UserError, match=r"networks of the ensemble 'net' differ.*model\.members"):
            verify.layers(model)
