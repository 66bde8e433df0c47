"""Saliency through captum and the controls: the contract of every method, and models whose answer is known."""

import sys

import pytest
import torch
from torch import Tensor, nn

from trustcxr import explain
from trustcxr.errors import UserError
from trustcxr.models import factory

CAPTUM = ["integrated-gradients", "smoothgrad", "occlusion"]
SHARED = [*CAPTUM, "random", "centre", "gradcam", "layercam"]


class Powers(nn.Module):
    """Logits are weighted sums of powers of the pixels: what each pixel adds, and its gradient, are known."""

    def __init__(self, weight: Tensor, power: int = 1) -> None:
        super().__init__()
        self.weight, self.power, self.cam_layer = nn.Parameter(weight), power, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,khw->bk", self.cam_layer(x) ** self.power, self.weight)


class Small(nn.Module):
    """A CNN with a BatchNorm and a Dropout to be disturbed."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))
        self.cam_layer, self.head = nn.Identity(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cam_layer(self.body(x)).mean(dim=(2, 3)))


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(3, 1, 16, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def small() -> Small:
    torch.manual_seed(0)
    return Small()


def scaled(maps: Tensor) -> Tensor:
    return maps / maps.amax(dim=(1, 2), keepdim=True)


@pytest.mark.parametrize(("power", "baseline"), [(1, 0.0), (1, 0.5), (6, 0.5)])
def test_integrated_gradients_are_what_each_pixel_adds(power: int, baseline: float, weight: Tensor, x: Tensor) -> None:
    model, wanted = Powers(weight, power), scaled((weight[2] * (x[:, 0] ** power - baseline**power)).abs())
    torch.testing.assert_close(explain.integrated_gradients(model, x, 2, baseline=baseline), wanted)
    coarse = explain.integrated_gradients(model, x, 2, baseline=baseline, steps=1)
    assert torch.allclose(coarse, wanted, atol=0.01) == (power == 1)


def test_smooth_grad_is_the_size_of_the_averaged_gradient(weight: Tensor, x: Tensor) -> None:
    maps = explain.smooth_grad(Powers(weight), x, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(maps, scaled(weight.abs()))
    # The gradient is twice the pixel: a mean over noise gives it back, a mean of sizes does not.
    model, dim = Powers(torch.ones(3, 16, 24), 2), torch.full_like(x, 0.01)
    dim[..., 0, 0] = 0.2
    maps = explain.smooth_grad(model, dim, 0, samples=400)
    assert maps[:, 4:, 4:].mean() < 0.1  # the mean size of the noise alone would be 0.4
    assert torch.equal(maps[:, 0, 0], torch.ones(3))
    noisy = explain.smooth_grad(model, dim, 0, samples=400, noise=0.3)
    assert noisy[:, 4:, 4:].mean() > maps[:, 4:, 4:].mean() * 1.3


def test_what_is_not_said_is_a_seed_of_0_and_squares_of_an_eighth_of_the_side(small: Small, x: Tensor) -> None:
    noisy, occluded = explain.smooth_grad(small, x, 0), explain.occlusion(small, x, 0)
    assert torch.equal(noisy, explain.smooth_grad(small, x, 0, seed=0))
    assert not torch.equal(noisy, explain.smooth_grad(small, x, 0, seed=1))
    assert torch.equal(occluded, explain.occlusion(small, x, 0, window=2, stride=1))
    assert not torch.equal(occluded, explain.occlusion(small, x, 0, window=4))


@pytest.mark.parametrize("name", [*CAPTUM, "gradcam"])
def test_the_map_of_a_image_does_not_hang_on_the_images_beside_it(name: str, small: Small, x: Tensor) -> None:
    method = explain.method(name)
    alone = torch.cat([method(small, image[None], 1) for image in x])
    torch.testing.assert_close(method(small, x, 1), alone, atol=1e-4, rtol=0)
    twice = method(small, x[:1].repeat(2, 1, 1, 1), 1)
    torch.testing.assert_close(twice[0], twice[1], atol=1e-4, rtol=0)


def test_an_occlusion_that_changes_the_answer_by_rounding_alone_has_a_null_map() -> None:
    torch.manual_seed(0)
    model, images = factory.build("test_resnet", classes=3).eval(), torch.full((3, 1, 60, 60), 0.1)
    images[1], images[2, :, 20:40, 20:40] = 0.7, 0.9
    told = [explain.occlusion(model, images, target, window=15).amax((1, 2)).tolist() for target in range(3)]
    assert [even for *even, _ in told] == [[0, 0]] * 3
    assert max(told)[-1] == 1, "an image with something on it has its map"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("occlusion", {"window": 17}, "window must be 1 to 16, the shorter side of the images; got 17"),
        ("occlusion", {"window": 0}, "window must be 1 to 16"),
        ("occlusion", {"window": 4, "stride": 5}, "stride must be 1 to 4, the window; got 5"),
        ("occlusion", {"window": 4, "stride": 0}, "stride must be 1 to 4"),
        ("integrated_gradients", {"steps": 0}, "steps must be 1 or more; got 0"),
        ("smooth_grad", {"samples": 0}, "samples must be 1 or more; got 0"),
        ("smooth_grad", {"noise": -0.1}, "noise must be 0 or more; got -0.1"),
    ],
)
def test_an_option_outside_its_bounds_is_named(name: str, options: dict, words: str, small: Small, x: Tensor) -> None:
    with pytest.raises(UserError, match=words):
        getattr(explain, name)(small, x, 0, **options)


def test_occlusion_finds_the_square_that_the_answer_hangs_on_and_hides_with_the_mean_grey(x: Tensor) -> None:
    weight = torch.zeros(3, 16, 24)
    weight[1, 8:12, 16:20] = 1.0
    bright = torch.full_like(x, 0.2)
    bright[..., 8:12, 16:20] = 0.9
    maps = explain.occlusion(Powers(weight), bright, 1, window=4, stride=2)
    torch.testing.assert_close(maps[:, 9:11, 17:19], torch.ones(3, 2, 2))
    assert not maps[:, :6].any()
    assert not maps[:, :, :14].any()
    # Evidence against a class is no saliency for it.
    assert torch.equal(explain.occlusion(Powers(-weight), bright, 1), torch.zeros(3, 16, 24))
    # To a model that adds up all pixels only what is brighter than the mean is evidence.
    halves = torch.full_like(x, 0.2)
    halves[..., 12:] = 0.8
    maps = explain.occlusion(Powers(torch.ones(3, 16, 24)), halves, 0)
    assert (maps[:, :, :10] == 0).all()
    assert (maps[:, :, 14:] > 0).all()


@pytest.mark.parametrize("name", SHARED)
def test_maps_are_in_the_unit_interval_and_always_the_same(name: str, small: Small, x: Tensor) -> None:
    method = explain.method(name)
    maps = method(small, x, 1)
    assert (maps.shape, maps.dtype, maps.requires_grad) == ((3, 16, 24), torch.float32, False)
    assert maps.min() >= 0
    assert set(maps.amax(dim=(1, 2)).tolist()) <= {0.0, 1.0}
    torch.manual_seed(99)
    assert torch.equal(method(small, x, 1), maps)
    assert method(small, x[:0], 1).shape == (0, 16, 24)
    with torch.no_grad():
        assert torch.equal(method(small, x, 1), maps)
    with torch.inference_mode():
        assert torch.equal(method(small, x * 1.0, 1), maps)


@pytest.mark.parametrize("name", SHARED)
def test_the_model_and_the_random_state_are_left_as_found(name: str, small: Small, x: Tensor) -> None:
    small.train()
    small.body[1].eval()
    small.head.weight.grad = torch.ones_like(small.head.weight)
    before = {k: v.clone() for k, v in small.state_dict().items()}
    flags, state, hooks = [m.training for m in small.modules()], torch.get_rng_state(), list(small.modules())
    explain.method(name)(small, x, 0)
    assert [m.training for m in small.modules()] == flags
    assert all(torch.equal(before[k], v) for k, v in small.state_dict().items())
    assert torch.equal(small.head.weight.grad, torch.ones_like(small.head.weight))
    assert small.head.bias.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in hooks)
    assert not x.requires_grad
    explain.method(name)(small, x.requires_grad_(), 0)
    assert x.requires_grad
    assert x.grad is None


@pytest.mark.parametrize("name", CAPTUM)
def test_target_none_is_the_predicted_class(name: str, small: Small, x: Tensor) -> None:
    with torch.no_grad():
        small.head.weight.mul_(20)
    predicted = small.eval()(x).argmax(dim=1)
    method = explain.method(name)
    assert torch.equal(method(small, x), method(small, x, predicted))
    assert not torch.equal(method(small, x), method(small, x, (predicted + 1) % 3))


@pytest.mark.parametrize("name", CAPTUM)
def test_bad_input_and_no_captum_are_told(name: str, small: Small, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    method = explain.method(name)
    with pytest.raises(UserError, match="target 3 is outside the model's 3 classes"):
        method(small, x, 3)
    with pytest.raises(UserError, match="must be float"):
        method(small, (x * 255).to(torch.uint8))
    for module in ("captum", "captum.attr"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"pip install 'trustcxr\[captum\]'"):
        method(small, x)


def test_controls_as_methods_do_not_know_the_model(small: Small, x: Tensor) -> None:
    random = explain.method("random")(small, x)
    assert torch.equal(random[1:2], explain.method("random")(small, x[1:2]))
    assert not torch.equal(random[0], random[1])
    assert torch.equal(explain.method("centre")(small, x), explain.centre_prior(16, 24).expand(3, 16, 24))
