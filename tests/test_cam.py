"""Saliency by class activation: against the grad-cam package, on networks whose answer is known, and on bad input."""

import threading
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

import known_cause
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
    torch.manual_seed(0)
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
    told = 0
    for mine, reference in zip(ours.numpy(), theirs, strict=True):
        if np.ptp(reference) == 0:
            assert mine.max() == 0
            continue
        told += 1
        assert np.corrcoef(mine.ravel(), reference.ravel())[0, 1] > 0.999
    return told


def check_against_package(model: nn.Module, x: Tensor, methods: list[str]) -> None:
    model.eval().requires_grad_(False)
    for name in methods:
        told = 0
        for target in range(3):  # a random network has no positive evidence for some classes
            ours = explain.METHODS[name](model, x, target)
            told += assert_agree(ours, oracle(name, model, model.cam_layer, x, [target] * len(x)))
            if told:
                break
        assert told, f"{name}: every map was null, so nothing was compared"


@pytest.mark.sample("resnet18", "DenseNet121")
@pytest.mark.parametrize("name", ["resnet18", "ResNet50", "DenseNet121", "EfficientNetB0", "VGG16"])
def test_grad_cam_agrees_with_the_package(name: str) -> None:
    torch.manual_seed(0)
    check_against_package(factory.build(name, classes=3), torch.rand(2, 1, 64, 80), ["gradcam"])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_agrees_with_the_package(name: str) -> None:
    torch.manual_seed(0)
    check_against_package(factory.build("resnet18", classes=3), torch.rand(3, 1, 96, 64), [name])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", list(factory.PAPER_MODELS))
def test_all_methods_agree_on_all_21(architecture: str) -> None:
    torch.manual_seed(0)
    check_against_package(factory.build(architecture, classes=3), torch.rand(2, 1, 160, 160), METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_an_earlier_layer_agrees_with_the_package(name: str) -> None:
    torch.manual_seed(0)
    model, x = factory.build("resnet18", classes=3).eval(), torch.rand(3, 1, 64, 64)
    ours = explain.METHODS[name](model, x, 1, layer="net.layer3")
    assert assert_agree(ours, oracle(name, model, model.net.layer3, x, [1, 1, 1]))
    assert not torch.allclose(ours, explain.METHODS[name](model, x, 1))


def test_a_feature_map_of_other_proportions_than_the_image_stays_channels_first() -> None:
    torch.manual_seed(0)
    model, x = Small(), torch.rand(3, 1, 32, 32)
    model.last = nn.Sequential(model.last, nn.AdaptiveAvgPool2d((2, 8)))
    model.relu = nn.ReLU()  # on a CPU the package reads what an in-place layer left of the feature map
    check_against_package(model, x, METHODS)


def assert_agrees_once_arranged(model: nn.Module, x: Tensor, arranged: Callable) -> None:
    theirs = [oracle("gradcam", model, model.cam_layer, x, [k] * len(x), reshape_transform=arranged) for k in range(3)]
    assert sum(assert_agree(explain.grad_cam(model, x, target), found) for target, found in enumerate(theirs))


def test_channels_last_feature_maps_agree_with_the_package() -> None:
    torch.manual_seed(0)
    import timm

    net = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=(64, 96), window_size=4, embed_dim=24, depths=(1, 1), num_heads=(2, 2),
        in_chans=1, num_classes=3,
    )  # fmt: skip
    model, x = Classifier(net, mean=0.5, std=0.25).eval(), torch.rand(2, 1, 64, 96)
    assert_agrees_once_arranged(model, x, lambda t: t.permute(0, 3, 1, 2))


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_patch_tokens_agree_with_the_package(pool: str) -> None:
    torch.manual_seed(0)
    import timm

    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=(64, 96), embed_dim=24, depth=2, num_heads=2, in_chans=1, num_classes=3,
        global_pool=pool,
    )  # fmt: skip
    model, x = Classifier(net, mean=0.5, std=0.25).eval(), torch.rand(2, 1, 64, 96)
    assert (model.cam_layer is net.blocks[-1].norm1) == (pool == "token")
    assert find_layer(model, None) is find_layer(model, "cam_layer") is model.cam_layer
    assert not [name for name in model.state_dict() if "cam_layer" in name]
    copied = deepcopy(model)
    assert torch.equal(explain.grad_cam(copied, x, 0, layer=copied.cam_layer), explain.grad_cam(model, x, 0)), (
        "a copy reads its own layer"
    )
    assert_agrees_once_arranged(
        model, x, lambda t: t[:, net.num_prefix_tokens :].reshape(len(t), 4, 6, -1).permute(0, 3, 1, 2)
    )


@pytest.mark.parametrize("name", ["cait_xxs24_224", "xcit_nano_12_p16_224", "tnt_s_legacy_patch16_224"])
def test_networks_with_a_late_or_a_hidden_class_token_have_a_map_of_their_patches(name: str) -> None:
    torch.manual_seed(0)
    import timm

    net = timm.create_model(name, img_size=64, depth=2, embed_dim=48, in_chans=1, num_classes=3)
    model, x = Classifier(net, mean=0.5, std=0.25).eval(), torch.rand(2, 1, 64, 64)
    features, gradient = cam.feature_map_and_gradient(model, x, 0, find_layer(model, None))
    patches = arrangement(gradient, 64, 64, model)(gradient)
    assert patches.shape[2:] == cam.cells_of(model, x, find_layer(model, None)) == (4, 4)
    assert (patches.flatten(2).norm(dim=1) > 0).all(), "every patch has a say"
    assert features.shape == gradient.shape


@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_patches_that_hiera_keeps_in_another_order_are_put_in_their_places(layer: int) -> None:
    torch.manual_seed(0)
    import timm

    net = timm.create_model("hiera_tiny_224", img_size=128, stages=(1, 1, 1, 1), in_chans=1, num_classes=3)
    model, flat = Classifier(net, mean=0.5, std=0.25).eval(), torch.full((1, 1, 128, 128), 0.5)
    changed, seen = flat.clone(), []
    changed[..., 96:128, 32:64] = 1.0
    hook = find_layer(model, layer).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        model(flat), model(changed)
    hook.remove()
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
    if name == "Xception":
        assert found == ["net.block1", "net.block2", "net.block11"]
    elif name.startswith("xception41"):
        assert found == ["net.blocks.0", "net.blocks.1", "net.blocks.10"]
    else:
        assert found == [f"net.{stage['module']}" for stage in model.net.feature_info[-4:-1]]


def test_grad_cam_plus_plus_without_stabiliser_is_the_equation_of_the_paper(small: Small, x: Tensor) -> None:
    small.eval()
    features = small.last(small.stem(x)).detach().requires_grad_()
    score = small.head(features.relu().mean(dim=(2, 3)))[:, 2].sum()
    gradient = torch.autograd.grad(score, features)[0].numpy().astype(float)
    maps = features.detach().numpy().astype(float)
    expected = np.zeros((4, 8, 8))
    for image in range(4):
        for channel in range(16):
            g, total = gradient[image, channel], maps[image, channel].sum()
            alpha = np.divide(g**2, 2 * g**2 + total * g**3, out=np.zeros_like(g), where=g != 0)
            expected[image] += (alpha * np.maximum(g, 0)).sum() * maps[image, channel]
    ours = explain.grad_cam_plus_plus(small, x, 2, stabiliser=0.0)
    large = nn.functional.interpolate(torch.from_numpy(expected)[:, None].relu(), (32, 32), mode="bilinear")[:, 0]
    torch.testing.assert_close(ours, (large / large.amax((1, 2), keepdim=True)).float(), rtol=1e-3, atol=1e-4)


def untrained(name: str) -> Classifier:
    torch.manual_seed(0)
    return factory.build(name, classes=2)


def corner_maps(network: Classifier, place: tuple[slice, slice]) -> Tensor:
    flat, corner = known_cause.grey_but_for(224, place)
    return explain.hires_cam(known_cause.CornerReader(network, corner, flat), corner, 0)[0]


CORNERS = known_cause.corners(224)


def assert_lands_in(maps: Tensor, corner: str) -> None:
    sums = {other: maps[place].sum().item() for other, place in CORNERS.items()}
    assert sums[corner] > 1.2 * max(v for other, v in sums.items() if other != corner), sums


@pytest.mark.sample("resnet18-top left", "EfficientNetB0-bottom right")
@pytest.mark.parametrize("corner", list(CORNERS))
@pytest.mark.parametrize("name", ["resnet18", "EfficientNetB0"])
def test_the_map_lands_in_the_corner_where_the_image_differs(name: str, corner: str) -> None:
    assert_lands_in(corner_maps(untrained(name), CORNERS[corner]), corner)


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
    torch.manual_seed(0)
    model, x = CornerHead(factory.build(name, classes=2)), torch.rand(1, 1, 192, 256)
    for method in ("hirescam", "layercam"):
        maps = explain.METHODS[method](model, x, 0)[0]
        rows, columns = torch.nonzero(maps, as_tuple=True)
        # Two cells, and the half cell into which bilinear upsampling reaches.
        assert rows.min() >= 192 * (1 - 2.5 / model.cells[0]) - 1
        assert columns.max() <= 256 * 2.5 / model.cells[1] + 1
        assert rows.max() == 191
        assert columns.min() == 0


@pytest.mark.parametrize("name", METHODS)
def test_a_map_is_float32_in_the_unit_interval_with_its_maximum_at_one(name: str, small: Small, x: Tensor) -> None:
    maps = torch.cat([explain.METHODS[name](small, x, target) for target in range(3)])
    assert maps.shape == (12, 32, 32)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
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
    for model, batch, target in (
        (Fixed(), image, 1),
        (Fixed(), torch.full_like(image, 0.7), 0),
        (Fixed(float("nan")), image, 0),
        (Fixed(float("inf")), image, 0),
    ):
        assert torch.equal(cam(model, batch, target), torch.zeros(1, 8, 8))


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


def test_an_empty_batch_has_no_maps(small: Small) -> None:
    assert explain.grad_cam(small, torch.zeros(0, 1, 32, 32)).shape == (0, 32, 32)


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


def test_a_training_model_is_explained_in_eval_mode(small: Small, x: Tensor) -> None:
    wanted = explain.grad_cam(small.eval(), x, 0)
    assert torch.equal(explain.grad_cam(small.train(), x, 0), wanted)


class Noisy(Small):
    """ImageRandom random numbers in eval mode too, as Monte Carlo dropout does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x))


def test_the_same_result_twice(small: Small, x: Tensor) -> None:
    assert torch.equal(explain.grad_cam(small, x), explain.grad_cam(small, x))
    noisy = Noisy()
    state = torch.get_rng_state()
    assert torch.equal(explain.grad_cam(noisy, x), explain.grad_cam(noisy, x))
    assert torch.equal(torch.get_rng_state(), state)


class Spy(Small):
    """Notes whether the network before the layer was recorded for differentiation."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.last(self.stem(x))
        logits = self.head(self.relu(self.cam_layer(features)).mean(dim=(2, 3)))
        self.recorded = (features.requires_grad, logits.requires_grad)
        return logits


def test_only_the_head_is_differentiated(x: Tensor) -> None:
    spy = Spy()
    explain.grad_cam(spy, x)
    assert spy.recorded == (False, True)


def test_callers_without_gradients_get_the_same_map_and_stay_without(small: Small, x: Tensor) -> None:
    wanted = explain.grad_cam(small, x, 1)
    with torch.no_grad():
        assert torch.equal(explain.grad_cam(small, x, 1), wanted)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert torch.equal(explain.grad_cam(small, x * 1.0, 1), wanted)
        # Here the feature map is the image itself, an inference tensor.
        assert explain.grad_cam(Fixed(), x * 1.0, 0).max() == 1
        assert torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


class CacheSpy(Small):
    """Notes whether autocast may keep the weights that it casts."""

    def forward(self, x: Tensor) -> Tensor:
        self.cached = torch.is_autocast_cache_enabled()
        return super().forward(x)


def test_autocast_gives_nearly_the_same_map_and_training_goes_on(x: Tensor) -> None:
    torch.manual_seed(0)
    model, pair = CacheSpy(), torch.cat([x, x**2], dim=1)
    wanted, exact = explain.grad_cam(model, x, 1), explain.grad_cam(Fixed(), pair, 0)
    with torch.autocast("cpu", torch.bfloat16):
        maps = explain.grad_cam(model, x, 1)
        assert not model.cached  # in older torch a training step would use weights that were cast without gradients
        assert torch.is_autocast_cache_enabled()
        assert torch.equal(explain.grad_cam(Fixed(), pair, 0), exact)  # the map itself is made in full precision
        model(x).sum().backward()
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, wanted, atol=0.05, rtol=0)
    assert all(p.grad is not None for n, p in model.named_parameters() if not n.startswith("unused"))


@pytest.mark.parametrize(("name", "gain"), [*((name, 1e-5) for name in METHODS), ("gradcam", 2e4)])
def test_half_precision_loses_neither_small_nor_large_gradients(
    name: str, gain: float, small: Small, x: Tensor
) -> None:
    with torch.no_grad():
        small.head.weight.mul_(gain)
    cam = explain.METHODS[name]
    wanted = torch.cat([cam(small, x, target) for target in range(3)])
    assert (wanted.amax(dim=(1, 2)) == 1).any()
    small, x = small.half(), x.half()
    torch.testing.assert_close(torch.cat([cam(small, x, target) for target in range(3)]), wanted, atol=0.1, rtol=0)


def test_half_precision_takes_its_scale_out_again(small: Small, x: Tensor) -> None:
    # Unlike the others, Grad-CAM++ changes with the size of the gradient.
    wanted = explain.grad_cam_plus_plus(small, x, 2, stabiliser=0.0)
    maps = explain.grad_cam_plus_plus(small.half(), x.half(), 2, stabiliser=0.0)
    torch.testing.assert_close(maps, wanted, atol=0.05, rtol=0)


def test_another_thread_may_use_the_model_meanwhile(small: Small, x: Tensor) -> None:
    small.eval()
    wanted, seen = explain.grad_cam(small, x, 1), []

    def predict() -> None:
        with torch.no_grad():
            small(x)
            seen.append(torch.is_grad_enabled())

    def meanwhile(*_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            other = threading.Thread(target=predict)
            other.start()
            other.join()

    handle = small.last.register_forward_hook(meanwhile)
    assert torch.equal(explain.grad_cam(small, x, 1), wanted)
    handle.remove()
    assert seen == [False]


class InPlace(Small):
    """Normalises what it is given in place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5).div_(0.25))


def test_a_model_that_works_in_place_leaves_the_callers_image(x: Tensor) -> None:
    torch.manual_seed(0)
    model, before = InPlace(), x.clone()
    maps = explain.grad_cam(model, x)
    assert torch.equal(x, before)
    assert torch.equal(explain.grad_cam(model, x), maps)


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
    del small.cam_layer
    small.cam_layer = None
    with pytest.raises(UserError, match="no cam_layer: say which layer to read, such as stem"):
        explain.grad_cam(small, x)


class Pair(Small):
    """Gives two outputs, and a layer that no logit hangs on."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x


class Deaf(Small):
    """Runs a layer that no logit hangs on."""

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        return super().forward(x)


def test_models_and_images_that_do_not_fit_are_named(x: Tensor) -> None:
    with pytest.raises(UserError, match=r"must return logits \(B, C\)"):
        explain.grad_cam(Pair(), x)
    with pytest.raises(UserError, match="do not depend on the layer"):
        explain.grad_cam(Deaf(), x, layer="unused")
    with pytest.raises(UserError, match=r"must be float, \(B, 1, H, W\).*uint8"):
        explain.grad_cam(Small(), (x * 255).to(torch.uint8))
    with pytest.raises(UserError, match=r"\(32, 32\)"):
        explain.grad_cam(Small(), x[0, 0])


def test_methods_are_found_by_name() -> None:
    assert explain.method("GradCAM") is explain.grad_cam
    with pytest.raises(UserError, match=r"unknown saliency method 'gradcam\+': did you mean gradcam"):
        explain.method("gradcam+")


def test_random_maps_are_the_same_for_the_same_seed_and_know_no_place() -> None:
    state = torch.get_rng_state()
    maps = explain.random_map(400, 42, 56, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert maps.shape == (400, 42, 56)
    assert torch.equal(maps, explain.random_map(400, 42, 56, seed=3))
    assert not torch.equal(maps, explain.random_map(400, 42, 56, seed=4))
    assert torch.equal(maps.amax(dim=(1, 2)), torch.ones(400))
    assert maps.min() >= 0
    halves = [maps[:, :21].mean(), maps[:, 21:].mean(), maps[:, :, :28].mean(), maps[:, :, 28:].mean()]
    assert max(halves) - min(halves) < 0.02


def test_the_centre_prior_is_a_gaussian_with_a_quarter_of_each_side() -> None:
    prior = explain.centre_prior(81, 41)
    assert prior.shape == (81, 41)
    assert prior[40, 20] == prior.max() == 1
    assert prior[40 + 20, 20] == pytest.approx(np.exp(-0.5 * (20 / 20.25) ** 2), rel=1e-5)
    assert prior[40, 20 + 10] == pytest.approx(np.exp(-0.5 * (10 / 10.25) ** 2), rel=1e-5)
    assert torch.allclose(prior, prior.flip(0, 1))


def test_grad_cam_is_that_of_captum(small: Small, x: Tensor) -> None:
    from captum.attr import LayerGradCam

    small.eval()
    small.relu.inplace = False  # captum reads the layer's output after what follows has worked in it
    raw = LayerGradCam(small, small.cam_layer).attribute(x, target=1, relu_attributions=True)
    large = nn.functional.interpolate(raw, x.shape[-2:], mode="bilinear")[:, 0]
    peak = large.amax(dim=(1, 2), keepdim=True)
    assert (peak > 0).any()
    wanted = torch.where(peak > 0, large / peak.clamp(min=1e-12), 0.0).detach()
    torch.testing.assert_close(explain.grad_cam(small, x, 1), wanted, atol=1e-5, rtol=1e-4)


def test_several_methods_at_once_are_each_as_alone(small: Small, x: Tensor) -> None:
    found = cam_methods.maps(small, x, 1, [name for name in explain.METHODS if not name.startswith("evidence")])
    for name, maps in found.items():
        torch.testing.assert_close(maps, explain.METHODS[name](small, x, 1), msg=name)


@pytest.mark.parametrize("layer", ["layer2", "layer2.0.conv2"])  # after a ReLU, and of both signs
def test_the_activation_is_the_layer_alone(layer: str) -> None:
    torch.manual_seed(0)
    model = factory.build("test_resnet", classes=3).eval()
    images = torch.rand((3, 1, 64, 64), generator=torch.Generator().manual_seed(1))
    control = cam_methods.method(f"activation@{layer}")(model, images, 1)
    with torch.no_grad():
        features = []
        handle = model.net.get_submodule(layer).register_forward_hook(lambda *passed: features.append(passed[2]))
        model(images)
        handle.remove()
    summed = features[0].clamp(min=0).sum(1, keepdim=True)
    wanted = torch.nn.functional.interpolate(summed, (64, 64), mode="bilinear")[:, 0]
    torch.testing.assert_close(control, wanted / wanted.amax((1, 2), keepdim=True))
    assert torch.equal(control, cam_methods.method(f"activation@{layer}")(model, images, 2)), (
        "whichever class is asked for"
    )
    pixels = cam_methods.method("activation@gate")(model, images, 1)
    torch.testing.assert_close(pixels, images[:, 0] / images[:, 0].amax((1, 2), keepdim=True), msg="without a gate")
    smooth = cam_methods.method("activation-smooth@gate")(model, images, 1)
    assert torch.equal(smooth, cam.smoothed(pixels))
    assert not torch.allclose(pixels, cam_methods.method("layercam@gate")(model, images, 1), atol=0.1)
    with pytest.raises(UserError, match="outside the model's 3 classes"):
        cam_methods.method("activation")(model, images, 3)


def test_smoothed_layercam_is_a_gaussian_of_layercam() -> None:
    torch.manual_seed(0)
    model = factory.build("test_resnet", classes=3).eval()
    images = torch.rand((3, 1, 64, 64), generator=torch.Generator().manual_seed(1))
    plain, smooth = (cam_methods.method(name)(model, images, 1) for name in ("layercam@gate", "layercam-smooth@gate"))
    for before, after in zip(plain.double().numpy(), smooth.numpy(), strict=True):
        wanted = gaussian_filter(before, 0.02 * 64, mode="mirror", truncate=4 / (0.02 * 64))
        np.testing.assert_allclose(after, wanted / wanted.max(), atol=1e-5)
    together = cam_methods.maps(model, images, 1, ["layercam@gate", "layercam-smooth@gate"])
    assert torch.equal(together["layercam@gate"], plain)
    assert torch.equal(together["layercam-smooth@gate"], smooth)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cam.smoothed(plain), smooth), "in full precision all the same"


def test_a_null_map_stays_null_and_a_tiny_one_as_it_is() -> None:
    assert torch.equal(cam.smoothed(torch.zeros(2, 64, 64)), torch.zeros(2, 64, 64))
    tiny = torch.rand(2, 1, 1)
    assert torch.equal(cam.smoothed(tiny), tiny)
    assert cam.smoothed(torch.zeros(0, 64, 64)).shape == (0, 64, 64)
