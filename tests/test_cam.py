"""Saliency by class activation: against the grad-cam package, on networks whose answer is known, and on bad input."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from trustcxr import explain
from trustcxr.errors import UserError
from trustcxr.explain import cam
from trustcxr.explain import methods as cam_methods
from trustcxr.models import factory
from trustcxr.models.classifier import Classifier
from trustcxr.models.feature_maps import arrangement, find_layer

ORACLES = {"gradcam": GradCAM, "gradcam++": GradCAMPlusPlus, "hirescam": HiResCAM, "layercam": LayerCAM}
METHODS = list(ORACLES)


class Small(nn.Module):
    """A CNN with everything that can be left changed: BatchNorm, Dropout, an in-place ReLU right after cam_layer."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.last = nn.Conv2d(8, 16, 3, 2, 1)
        self.cam_layer = nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        self.unused = nn.Conv2d(1, 1, 1)
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.cam_layer(self.last(self.stem(x)))).mean(dim=(2, 3)))


@pytest.fixture
def small() -> Small:
    return Small()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def oracle(
    name: str, model: nn.Module, layer: nn.Module, x: Tensor, target: list[int], **options: Callable
) -> np.ndarray:
    # The package differentiates everything; where the weights are frozen only the image keeps its graph alive.
    with ORACLES[name](model, [layer], **options) as cam:
        return cam(x.clone().requires_grad_(), [ClassifierOutputTarget(t) for t in target])


def assert_agree(ours: Tensor, theirs: np.ndarray) -> int:
    """Every map correlates above 0.999, or is null in both; returns how many were not null."""
    null = np.ptp(theirs, axis=(1, 2)) == 0
    assert ours.numpy()[null].max(initial=0) == 0
    for mine, reference in zip(ours.numpy()[~null], theirs[~null], strict=True):
        assert np.corrcoef(mine.ravel(), reference.ravel())[0, 1] > 0.999
    return int((~null).sum())


def check_against_package(model: nn.Module, x: Tensor, layer: str | None = None) -> None:
    model.eval().requires_grad_(False)
    read = model.get_submodule(layer) if layer else model.cam_layer
    for name in METHODS:
        told = 0
        for target in range(3):  # a random network has no positive evidence for some classes
            ours = explain.METHODS[name](model, x, target, layer=layer)
            told += assert_agree(ours, oracle(name, model, read, x, [target] * len(x)))
            if told:
                break
        assert told, f"{name}: every map was null, so nothing was compared"


QUICK = [("resnet18", (96, 64), None), ("resnet18", (64, 64), "net.layer3"), ("DenseNet121", (64, 80), None)]
ALL = [pytest.param(name, (160, 128), None, marks=pytest.mark.slow, id=f"all-{name}") for name in factory.PAPER_MODELS]


@pytest.mark.parametrize(("architecture", "shape", "layer"), [*QUICK, *ALL])
def test_every_method_agrees_with_the_package(architecture: str, shape: tuple[int, int], layer: str | None) -> None:
    check_against_package(factory.build(architecture, classes=3), torch.rand(2, 1, *shape), layer)


def test_a_feature_map_of_other_proportions_than_the_image_stays_channels_first(small: Small, x: Tensor) -> None:
    small.last = nn.Sequential(small.last, nn.AdaptiveAvgPool2d((2, 8)))
    small.relu = nn.ReLU()  # on a CPU the package reads what an in-place layer left of the feature map
    check_against_package(small, x)


def assert_agrees_once_arranged(model: nn.Module, x: Tensor, arranged: Callable) -> None:
    theirs = [oracle("gradcam", model, model.cam_layer, x, [k] * len(x), reshape_transform=arranged) for k in range(3)]
    assert sum(assert_agree(explain.grad_cam(model, x, target), found) for target, found in enumerate(theirs))


def of_timm(name: str, size: int | tuple[int, int], **options: Any) -> tuple[Classifier, Tensor]:
    """A small network of timm's, and two images."""
    net = timm.create_model(name, img_size=size, in_chans=1, num_classes=3, **options)
    sides = size if isinstance(size, tuple) else (size, size)
    return Classifier(net, mean=0.5, std=0.25).eval(), torch.rand(2, 1, *sides)


def test_channels_last_feature_maps_agree_with_the_package() -> None:
    small: dict[str, Any] = {"window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)}
    model, x = of_timm("swin_tiny_patch4_window7_224", (64, 96), **small)
    assert_agrees_once_arranged(model, x, lambda t: t.permute(0, 3, 1, 2))


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_patch_tokens_agree_with_the_package(pool: str) -> None:
    model, x = of_timm("vit_tiny_patch16_224", (64, 96), embed_dim=24, depth=2, num_heads=2, global_pool=pool)
    assert (model.cam_layer is model.net.blocks[-1].norm1) == (pool == "token")
    assert find_layer(model, None) is find_layer(model, "cam_layer") is model.cam_layer
    assert not [name for name in model.state_dict() if "cam_layer" in name]
    copied = deepcopy(model)
    own = explain.grad_cam(copied, x, 0, layer=copied.cam_layer)
    assert torch.equal(own, explain.grad_cam(model, x, 0)), "a copy reads its own layer"
    first = model.net.num_prefix_tokens
    assert_agrees_once_arranged(model, x, lambda t: t[:, first:].reshape(len(t), 4, 6, -1).permute(0, 3, 1, 2))


@pytest.mark.parametrize("name", ["cait_xxs24_224", "xcit_nano_12_p16_224", "tnt_s_legacy_patch16_224"])
def test_networks_with_a_late_or_a_hidden_class_token_have_a_map_of_their_patches(name: str) -> None:
    model, x = of_timm(name, 64, depth=2, embed_dim=48)
    features, gradient = cam.feature_map_and_gradient(model, x, 0, find_layer(model, None))
    patches = arrangement(gradient, 64, 64, model)(gradient)
    assert patches.shape[2:] == cam.cells_of(model, x, find_layer(model, None)) == (4, 4)
    assert (patches.flatten(2).norm(dim=1) > 0).all(), "every patch has a say"
    assert features.shape == gradient.shape


@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_patches_that_hiera_keeps_in_another_order_are_put_in_their_places(layer: int) -> None:
    (model, _), flat = of_timm("hiera_tiny_224", 128, stages=(1, 1, 1, 1)), torch.full((1, 1, 128, 128), 0.5)
    changed, seen = flat.clone(), []
    changed[..., 96:128, 32:64] = 1.0
    find_layer(model, layer).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        model(flat), model(changed)
    difference = seen[1] - seen[0]
    cells = arrangement(difference, 128, 128, model)(difference).norm(dim=1)[0]
    part = cells.unflatten(0, (4, -1)).unflatten(2, (4, -1)).sum((1, 3))
    assert divmod(int(part.argmax()), 4) == (3, 1)


@pytest.mark.parametrize("name", [*factory.PAPER_MODELS, "xception41", "xception41p"])
def test_a_stage_ends_where_timm_says_but_not_inside_a_block_of_xception(name: str) -> None:
    with torch.device("meta"):
        model = factory.build(name, classes=3, weights="none")
    names = {module: dotted for dotted, module in model.named_modules()}
    found = [names[find_layer(model, place)] for place in (-4, -3, -2)]
    blocks = {"Xception": ("block1", "block2", "block11")}
    blocks |= dict.fromkeys(("xception41", "xception41p"), ("blocks.0", "blocks.1", "blocks.10"))
    wanted = blocks.get(name) or [stage["module"] for stage in model.net.feature_info[-4:-1]]
    assert found == [f"net.{part}" for part in wanted]


def test_grad_cam_plus_plus_without_stabiliser_is_the_equation_of_the_paper(small: Small, x: Tensor) -> None:
    small.eval()
    features = small.last(small.stem(x)).detach().requires_grad_()
    score = small.head(features.relu().mean(dim=(2, 3)))[:, 2].sum()
    g, maps = torch.autograd.grad(score, features)[0].double(), features.detach().double()
    alpha = g**2 / (2 * g**2 + maps.sum((2, 3), keepdim=True) * g**3)
    weight = (alpha.where(g != 0, 0.0) * g.relu()).sum((2, 3), keepdim=True)
    expected = (weight * maps).sum(1, keepdim=True).relu()
    ours = explain.grad_cam_plus_plus(small, x, 2, stabiliser=0.0)
    large = nn.functional.interpolate(expected, (32, 32), mode="bilinear")[:, 0]
    torch.testing.assert_close(ours, (large / large.amax((1, 2), keepdim=True)).float(), rtol=1e-3, atol=1e-4)


class CornerHead(nn.Module):
    """A real architecture whose head sees the bottom left cells of the last feature map only."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier, self.cam_layer = classifier, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        cells = self.cam_layer(self.classifier.net.forward_features(self.classifier.normalise(x)))
        self.cells, seen = cells.shape[2:], cells[:, :, -2:, :2]
        energy = (seen * seen.detach()).sum(dim=(1, 2, 3))
        return torch.stack([energy, -energy], dim=1)


@pytest.mark.parametrize(
    "name",
    ["resnet18", *(pytest.param(n, marks=[pytest.mark.slow] * (n != "DenseNet121")) for n in factory.PAPER_MODELS)],
)
def test_a_model_that_can_only_look_at_one_corner_has_its_map_there(name: str) -> None:
    model, x = CornerHead(factory.build(name, classes=2)), torch.rand(1, 1, 192, 256)
    for method in ("hirescam", "layercam"):
        maps = explain.METHODS[method](model, x, 0)[0]
        rows, columns = torch.nonzero(maps, as_tuple=True)
        # Two cells, and the half cell into which bilinear upsampling reaches.
        assert rows.min() >= 192 * (1 - 2.5 / model.cells[0]) - 1
        assert columns.max() <= 256 * 2.5 / model.cells[1] + 1
        assert (rows.max(), columns.min()) == (191, 0)


@pytest.mark.parametrize("name", METHODS)
def test_a_map_is_float32_in_the_unit_interval_with_its_maximum_at_one(name: str, small: Small, x: Tensor) -> None:
    maps = torch.cat([explain.METHODS[name](small, x, target) for target in range(3)])
    assert (maps.shape, maps.dtype, maps.requires_grad) == ((12, 32, 32), torch.float32, False)
    peaks = maps.amax(dim=(1, 2))
    assert maps.min() >= 0
    assert set(peaks.tolist()) <= {0.0, 1.0}
    assert (peaks == 1).sum() >= 4


class Fixed(nn.Module):
    """The feature map is the image; class 0 likes brightness, class 1 darkness."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.cam_layer, self.gain = nn.Identity(), gain

    def forward(self, x: Tensor) -> Tensor:
        bright = self.cam_layer(x).mean(dim=(1, 2, 3)) * self.gain
        return torch.stack([bright, -bright], dim=1)


@pytest.mark.parametrize("name", METHODS)
def test_no_evidence_a_flat_map_and_an_overflow_are_null_maps_of_zeros(name: str) -> None:
    cam, image = explain.METHODS[name], torch.rand(1, 1, 8, 8) + 0.1
    assert cam(Fixed(), image, 0).max() == 1
    assert torch.equal(cam(Fixed(), image, 1), torch.zeros(1, 8, 8))
    assert torch.equal(cam(Fixed(), torch.full_like(image, 0.7), 0), torch.zeros(1, 8, 8))
    for gain in (float("nan"), float("inf")):
        assert torch.equal(cam(Fixed(gain), image, 0), torch.zeros(1, 8, 8))


def test_a_layer_of_one_cell_has_a_null_map_and_warns() -> None:
    model, images = factory.build("resnet10t", classes=3).eval(), torch.rand(2, 1, 32, 32)
    with pytest.warns(UserWarning, match=r"one cell, so the map is null: give an earlier one, such as layer=-2"):
        maps = explain.grad_cam(model, images)
    assert not maps.any()
    assert cam_methods.cells(model, images, "gradcam@-2") == (2, 2)


def test_target_none_is_the_predicted_class_and_a_tensor_is_one_each(small: Small, x: Tensor) -> None:
    small.eval()
    predicted = small(x).argmax(dim=1)
    assert torch.equal(explain.grad_cam(small, x), explain.grad_cam(small, x, predicted))
    each = torch.tensor([0, 2, 1, 0])
    mixed = explain.grad_cam(small, x, each)
    for i, target in enumerate(each.tolist()):
        torch.testing.assert_close(mixed[i], explain.grad_cam(small, x[i : i + 1], target)[0])
    assert not torch.equal(explain.grad_cam(small, x, 0), explain.grad_cam(small, x, 1))
    assert explain.grad_cam(small, x[:0]).shape == (0, 32, 32)


@pytest.mark.parametrize("target", [0, 99])
def test_the_model_is_left_exactly_as_found(target: int, small: Small, x: Tensor) -> None:
    small.train()
    small.stem[1].eval()  # a frozen BatchNorm inside a training model must not thaw (ANCHORS, trap 2)
    small.stem[0].weight.requires_grad_(False)
    small.head.weight.grad = torch.ones_like(small.head.weight)
    before = {k: v.clone() for k, v in small.state_dict().items()}
    flags = [m.training for m in small.modules()]
    random, hooks = torch.get_rng_state(), len(small.cam_layer._forward_hooks)
    if target == 99:
        with pytest.raises(UserError, match="target"):
            explain.grad_cam(small, x, target)
    else:
        explain.grad_cam(small, x, target)
    assert [m.training for m in small.modules()] == flags
    assert all(torch.equal(before[k], v) for k, v in small.state_dict().items())
    assert torch.equal(small.head.weight.grad, torch.ones_like(small.head.weight))
    assert all(p.grad is None for name, p in small.named_parameters() if name != "head.weight")
    assert [n for n, p in small.named_parameters() if not p.requires_grad] == ["stem.0.weight"]
    assert torch.equal(torch.get_rng_state(), random)
    assert len(small.cam_layer._forward_hooks) == hooks
    assert torch.is_grad_enabled()


def test_the_same_result_twice_of_a_model_that_draws_random_numbers(small: Small, x: Tensor) -> None:
    """In eval mode too, as Monte Carlo dropout does."""
    small.register_forward_pre_hook(lambda _model, given: given[0] + 0.1 * torch.randn_like(given[0]))
    state = torch.get_rng_state()
    assert torch.equal(explain.grad_cam(small, x), explain.grad_cam(small, x))
    assert torch.equal(torch.get_rng_state(), state)


def test_only_the_head_is_differentiated(small: Small, x: Tensor) -> None:
    recorded: list[bool] = []
    for part in (small.last, small.head):
        part.register_forward_hook(lambda _part, _given, output: recorded.append(output.requires_grad))
    explain.grad_cam(small, x)
    assert recorded == [False, True]


def test_callers_in_training_or_without_gradients_get_the_same_map_and_stay_so(small: Small, x: Tensor) -> None:
    wanted = explain.grad_cam(small.eval(), x, 1)
    assert torch.equal(explain.grad_cam(small.train(), x, 1), wanted)
    with torch.no_grad():
        assert torch.equal(explain.grad_cam(small, x, 1), wanted)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert torch.equal(explain.grad_cam(small, x * 1.0, 1), wanted)
        # Here the feature map is the image itself, an inference tensor.
        assert explain.grad_cam(Fixed(), x * 1.0, 0).max() == 1
        assert torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_autocast_gives_nearly_the_same_map_and_training_goes_on(small: Small, x: Tensor) -> None:
    pair, cached = torch.cat([x, x**2], dim=1), []
    wanted, exact = explain.grad_cam(small, x, 1), explain.grad_cam(Fixed(), pair, 0)
    small.register_forward_pre_hook(lambda *_: cached.append(torch.is_autocast_cache_enabled()))
    with torch.autocast("cpu", torch.bfloat16):
        maps = explain.grad_cam(small, x, 1)
        assert cached == [False]  # in older torch a training step would use weights that were cast without gradients
        assert torch.is_autocast_cache_enabled()
        assert torch.equal(explain.grad_cam(Fixed(), pair, 0), exact)  # the map itself is made in full precision
        small(x).sum().backward()
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, wanted, atol=0.05, rtol=0)
    assert all(p.grad is not None for n, p in small.named_parameters() if not n.startswith("unused"))


# Unlike the others, Grad-CAM++ changes with the size of the gradient: its scale must be taken out again.
HALF = [*((name, 1e-5, 0.1, {}) for name in METHODS), ("gradcam", 2e4, 0.1, {})]


@pytest.mark.parametrize(("name", "gain", "most", "options"), [*HALF, ("gradcam++", 1.0, 0.05, {"stabiliser": 0.0})])
def test_half_precision_loses_neither_small_nor_large_gradients(
    name: str, gain: float, most: float, options: dict[str, float], small: Small, x: Tensor
) -> None:
    with torch.no_grad():
        small.head.weight.mul_(gain)

    def maps() -> Tensor:
        return torch.cat([explain.METHODS[name](small, x, target, **options) for target in range(3)])

    wanted = maps()
    assert (wanted.amax(dim=(1, 2)) == 1).any()
    small, x = small.half(), x.half()
    torch.testing.assert_close(maps(), wanted, atol=most, rtol=0)


def test_another_thread_may_use_the_model_meanwhile(small: Small, x: Tensor) -> None:
    small.eval()
    wanted, seen = explain.grad_cam(small, x, 1), []

    def predict() -> None:
        with torch.no_grad():
            small(x)
            seen.append(torch.is_grad_enabled())

    def meanwhile(*_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            with ThreadPoolExecutor() as pool:
                pool.submit(predict).result()

    small.last.register_forward_hook(meanwhile)
    assert torch.equal(explain.grad_cam(small, x, 1), wanted)
    assert seen == [False]


def test_a_model_that_works_in_place_leaves_the_callers_image(small: Small, x: Tensor) -> None:
    before = x.clone()
    small.register_forward_pre_hook(lambda _model, given: given[0].sub_(0.5).div_(0.25))
    maps = explain.grad_cam(small, x)
    assert torch.equal(x, before)
    assert torch.equal(explain.grad_cam(small, x), maps)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (3, "target 3 is outside the model's 3 classes: 0 to 2"),
        (-1, "target -1 is outside"),
        (torch.tensor([0, 1, 5, 0]), "target 5 is outside"),
        (torch.tensor([0, 1]), "one for each of the 4 images"),
        (1.0, "a target is a class number, 0 to 2"),
    ],
)
def test_a_wrong_target_is_named(target: int | Tensor, words: str, small: Small, x: Tensor) -> None:
    with pytest.raises(UserError, match=words):
        explain.grad_cam(small, x, target)


def test_a_wrong_layer_is_named_with_the_nearest_valid_ones(small: Small, x: Tensor) -> None:
    for layer, words in (
        ("lst", "unknown layer 'lst': did you mean last.*valid: stem, stem.0"),
        (nn.Conv2d(1, 1, 1), "Conv2d.*not part of the model"),
        ("unused", "not run"),
        ("head", "not a feature map|no feature map"),
    ):
        with pytest.raises(UserError, match=words):
            explain.grad_cam(small, x, layer=layer)
    small.cam_layer = None
    with pytest.raises(UserError, match="no cam_layer: say which layer to read, such as stem"):
        explain.grad_cam(small, x)


def test_models_and_images_that_do_not_fit_are_named(small: Small, x: Tensor) -> None:
    with pytest.raises(UserError, match=r"must be float, \(B, 1, H, W\).*uint8"):
        explain.grad_cam(small, (x * 255).to(torch.uint8))
    with pytest.raises(UserError, match=r"\(32, 32\)"):
        explain.grad_cam(small, x[0, 0])
    small.register_forward_hook(lambda model, given, output: (output, model.unused(given[0]))[0])
    with pytest.raises(UserError, match="do not depend on the layer"):
        explain.grad_cam(small, x, layer="unused")
    small.register_forward_hook(lambda _model, given, output: (output, given[0]))
    with pytest.raises(UserError, match=r"must return logits \(B, C\)"):
        explain.grad_cam(small, x)


def test_random_maps_are_the_same_for_the_same_seed_and_know_no_place() -> None:
    state = torch.get_rng_state()
    maps = explain.random_map(400, 42, 56, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert maps.shape == (400, 42, 56)
    assert torch.equal(maps, explain.random_map(400, 42, 56, seed=3))
    assert not torch.equal(maps, explain.random_map(400, 42, 56, seed=4))
    assert torch.equal(maps.amax(dim=(1, 2)), torch.ones(400))
    assert maps.min() >= 0
    halves = [half.mean() for axis in (1, 2) for half in maps.chunk(2, axis)]
    assert max(halves) - min(halves) < 0.02


def test_the_centre_prior_is_a_gaussian_with_a_quarter_of_each_side() -> None:
    prior = explain.centre_prior(81, 41)
    rows, columns = (torch.exp(-0.5 * ((torch.arange(n) - n // 2) / (n / 4)) ** 2) for n in (81, 41))
    torch.testing.assert_close(prior, torch.outer(rows, columns), rtol=1e-5, atol=0)


def test_grad_cam_is_that_of_captum(small: Small, x: Tensor) -> None:
    from captum.attr import LayerGradCam

    small.eval()
    small.relu.inplace = False  # captum reads the layer's output after what follows has worked in it
    raw = LayerGradCam(small, small.cam_layer).attribute(x, target=1, relu_attributions=True)
    large = nn.functional.interpolate(raw, x.shape[-2:], mode="bilinear")[:, 0].detach()
    peak = large.amax(dim=(1, 2), keepdim=True)
    assert (peak > 0).any()
    torch.testing.assert_close(explain.grad_cam(small, x, 1), large / peak.clamp(min=1e-12), atol=1e-5, rtol=1e-4)


def test_several_methods_at_once_are_each_as_alone(small: Small, x: Tensor) -> None:
    found = cam_methods.maps(small, x, 1, [name for name in explain.METHODS if not name.startswith("evidence")])
    for name, maps in found.items():
        torch.testing.assert_close(maps, explain.METHODS[name](small, x, 1), msg=name)


@pytest.fixture
def resnet() -> tuple[Classifier, Tensor]:
    """A network with stages, and three images."""
    images = torch.rand((3, 1, 64, 64), generator=torch.Generator().manual_seed(1))
    return factory.build("test_resnet", classes=3).eval(), images


@pytest.mark.parametrize("layer", ["layer2", "layer2.0.conv2"])  # after a ReLU, and of both signs
def test_the_activation_is_the_layer_alone(layer: str, resnet: tuple[Classifier, Tensor]) -> None:
    model, images = resnet

    def shown(name: str, target: int = 1) -> Tensor:
        return cam_methods.method(name)(model, images, target)

    features: list[Tensor] = []
    with model.net.get_submodule(layer).register_forward_hook(lambda *passed: features.append(passed[2])):
        model(images)
    summed = features[0].detach().clamp(min=0).sum(1, keepdim=True)
    wanted = nn.functional.interpolate(summed, (64, 64), mode="bilinear")[:, 0]
    control = shown(f"activation@{layer}")
    torch.testing.assert_close(control, wanted / wanted.amax((1, 2), keepdim=True))
    assert torch.equal(control, shown(f"activation@{layer}", 2)), "whichever class is asked for"
    pixels = shown("activation@gate")
    torch.testing.assert_close(pixels, images[:, 0] / images[:, 0].amax((1, 2), keepdim=True), msg="without a gate")
    assert torch.equal(shown("activation-smooth@gate"), cam.smoothed(pixels))
    assert not torch.allclose(pixels, shown("layercam@gate"), atol=0.1)
    with pytest.raises(UserError, match="outside the model's 3 classes"):
        shown("activation", 3)


def test_smoothed_layercam_is_a_gaussian_of_layercam(resnet: tuple[Classifier, Tensor]) -> None:
    model, images = resnet
    plain, smooth = (cam_methods.method(name)(model, images, 1) for name in ("layercam@gate", "layercam-smooth@gate"))
    for before, after in zip(plain.double().numpy(), smooth.numpy(), strict=True):
        wanted = gaussian_filter(before, 0.02 * 64, mode="mirror", truncate=4 / (0.02 * 64))
        np.testing.assert_allclose(after, wanted / wanted.max(), atol=1e-5)
    together = cam_methods.maps(model, images, 1, ["layercam@gate", "layercam-smooth@gate"])
    assert torch.equal(together["layercam@gate"], plain)
    assert torch.equal(together["layercam-smooth@gate"], smooth)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cam.smoothed(plain), smooth), "in full precision all the same"

    # A null map stays null, and a tiny one as it is.
    assert torch.equal(cam.smoothed(torch.zeros(2, 64, 64)), torch.zeros(2, 64, 64))
    tiny = torch.rand(2, 1, 1)
    assert torch.equal(cam.smoothed(tiny), tiny)
    assert cam.smoothed(torch.zeros(0, 64, 64)).shape == (0, 64, 64)
