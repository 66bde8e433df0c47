"""Any model can be loaded: the same logits as the plain network, in pixel space, with a gradient."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

import trustcxr as tx
from foreign_models import CLASSES, FORMATS, IMAGENET, NETWORKS, SIDE, Computes, exported, normalised, onnx, small
from pack import Pack
from trustcxr.audit.formats import describe_file, load
from trustcxr.audit.formats.loading import _open_python
from trustcxr.audit.formats.onnx import OPERATORS, ConvertedNet
from trustcxr.data.phantom import render
from trustcxr.errors import UserError
from trustcxr.explain import grad_cam
from trustcxr.explain.cam import cells_of
from trustcxr.models import build

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def radiographs() -> Tensor:
    """Synthetic images (3, 1, SIDE, SIDE) in [0, 1]."""
    drawn = [render(kind, seed=k, size=SIDE).image for k, kind in enumerate(CLASSES)]
    return torch.from_numpy(np.stack(drawn)).float()[:, None].div(255)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return small()


def gradient(model: nn.Module, images: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(model(leaf).square().sum(), leaf)
    return found


def same_as_the_plain_network(model: nn.Module, net: nn.Module, radiographs: Tensor) -> None:
    wanted = net(normalised(radiographs)).detach()
    assert torch.allclose(model(radiographs), wanted, atol=1e-4, rtol=1e-4)
    leaf = radiographs.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(net(normalised(leaf)).square().sum(), leaf)
    assert torch.allclose(gradient(model, radiographs), slope, atol=1e-3 * float(slope.abs().max()))


@pytest.mark.parametrize(
    "name", ["test_resnet", *(pytest.param(n, marks=pytest.mark.slow) for n in list(NETWORKS)[1:])]
)
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_answers_as_the_plain_network(form: str, name: str, radiographs: Tensor, tmp_path: Path) -> None:
    net, (write, file) = NETWORKS[name](), FORMATS[form]
    given = load(write(net, tmp_path / file), classes=CLASSES, trust_code=True, **IMAGENET)
    same_as_the_plain_network(given.model, net, radiographs)
    assert (given.classes, given.size, len(given.origin.sha256)) == (CLASSES, SIDE, 64)


def test_weights_with_the_name_of_their_network(radiographs: Tensor, tmp_path: Path) -> None:
    net = timm.create_model("test_resnet", num_classes=3, in_chans=3).eval()
    save_file(net.state_dict(), tmp_path / "m.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "m.pth")
    for name in ("m.safetensors", "m.pth"):
        given = load(tmp_path / name, timm="test_resnet", classes=CLASSES, **IMAGENET)
        same_as_the_plain_network(given.model, net, radiographs)
    with pytest.raises(UserError, match="Say which network they are of with timm"):
        load(tmp_path / "m.pth", classes=CLASSES)
    with pytest.raises(UserError, match=r"not the weights of test_resnet with 4 classes.*of \(3, "):
        load(tmp_path / "m.pth", timm="test_resnet", classes=[*CLASSES, "other"], **IMAGENET)


@pytest.mark.parametrize("name", ["plain3", "evidence-33"])
def test_weights_of_our_own_networks(name: str, radiographs: Tensor, tmp_path: Path) -> None:
    net = build(name, classes=3).net.eval()
    save_file(net.state_dict(), tmp_path / "m.safetensors")
    given = load(tmp_path / "m.safetensors", timm=name, classes=CLASSES, size=SIDE)
    assert torch.allclose(given.model(radiographs), net(radiographs), atol=1e-5)
    with pytest.raises(UserError, match=f"{name} takes images of 1 channel: write input.channels: 1"):
        load(tmp_path / "m.safetensors", timm=name, classes=CLASSES, **IMAGENET)
    with pytest.raises(UserError, match=r"unknown model 'resnet18.nonsense': did you mean resnet18"):
        load(tmp_path / "m.safetensors", timm="resnet18.nonsense", classes=CLASSES, size=SIDE)


def test_parameters_are_weights_and_not_what_batchnorm_measured(net: nn.Module, tmp_path: Path) -> None:
    count = sum(p.numel() for p in net.parameters())
    for source in (net, exported(net, tmp_path / "m.pt2")):
        assert load(source, classes=CLASSES, trust_code=True, **IMAGENET).origin.parameters == count


def test_a_function_that_returns_the_model_runs_only_where_it_is_trusted(net: nn.Module, radiographs: Tensor) -> None:
    with pytest.raises(UserError, match="--trust-code"):
        load("foreign_models:a_network", classes=CLASSES, **IMAGENET)
    given = load("foreign_models:a_network", classes=CLASSES, trust_code=True, **IMAGENET)
    same_as_the_plain_network(given.model, net, radiographs)
    with pytest.raises(UserError, match="cannot be had"):
        load("foreign_models:no_network", classes=CLASSES, trust_code=True)


def test_code_beside_the_file_comes_first(radiographs: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, value in (("working", 0), ("handed", 1), ("other", 2)):
        (tmp_path / place).mkdir()
        code = f"def answers(images):\n    return {value} * images[..., 0, :3].flatten(1)\n"
        (tmp_path / place / "beside_it.py").write_text(code)
        text = f"python: beside_it:answers\ninput: {{size: {SIDE}}}\noutput: {{classes: [a, b, c]}}\n"
        (tmp_path / place / "model.yaml").write_text(text)
    monkeypatch.chdir(tmp_path / "working")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    for path in ("../handed/model.yaml", tmp_path / "handed" / "model.yaml"):
        given = load(path, trust_code=True)
        assert torch.allclose(given.model(radiographs), radiographs[..., 0, :3].flatten(1))
    with pytest.raises(UserError, match="another module named beside_it is loaded already"):
        load(tmp_path / "other" / "model.yaml", trust_code=True)
    (tmp_path / "other" / "model.yaml").write_text(text.replace("beside_it", "nowhere"))
    with pytest.raises(UserError, match=r"it was looked for in .*other and .*working"):
        load(tmp_path / "other" / "model.yaml", trust_code=True)
    monkeypatch.delitem(sys.modules, "beside_it")


def test_a_function_of_numpy_has_no_gradients_and_sigmoids_by_their_logarithm(radiographs: Tensor) -> None:
    for kind, answer in (("logits", nn.Identity()), ("sigmoid", torch.sigmoid)):
        given = load(lambda x: x.mean((2, 3)).numpy(), output=kind, classes=CLASSES, channels=3, size=SIDE)
        assert given.origin.gradients == "none"
        assert torch.allclose(answer(given.model(radiographs)), radiographs.mean((2, 3)).expand(-1, 3), atol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-1024, 1024), (-1, 1)])
def test_the_range_that_a_model_wants_is_made(low: float, high: float, net: nn.Module, radiographs: Tensor) -> None:
    given = load(net, classes=CLASSES, size=SIDE, channels=3, range=(low, high))
    wanted = net(radiographs.repeat(1, 3, 1, 1) * (high - low) + low)
    assert torch.allclose(given.model(radiographs), wanted, atol=1e-3)


@pytest.mark.slow
def test_the_densenet_of_torchxrayvision_has_its_own_answers(radiographs: Tensor) -> None:
    net = pytest.importorskip("torchxrayvision").models.DenseNet(num_classes=18, in_channels=1).eval()
    given = load(net, classes=[f"finding {n}" for n in range(18)], size=224, range=(-1024, 1024))
    images = nn.functional.interpolate(radiographs, 224)
    assert torch.allclose(given.model(images), net(images * 2048 - 1024), atol=1e-3)


def test_probabilities_become_what_went_into_the_softmax(net: nn.Module, radiographs: Tensor, tmp_path: Path) -> None:
    wanted, shares = net(normalised(radiographs)).log_softmax(1), nn.Sequential(net, nn.Softmax(1)).eval()
    for source in (shares, exported(shares, tmp_path / "m.pt2"), onnx(shares, tmp_path / "m.onnx")):
        given = load(source, output="probabilities", classes=CLASSES, trust_code=True, **IMAGENET)
        assert torch.allclose(given.model(radiographs), wanted, atol=1e-4)
        assert torch.allclose(given.model.answers(radiographs).sum(1), torch.ones(3))


def test_fourteen_sigmoids_become_fourteen_logits_with_their_operating_points(radiographs: Tensor) -> None:
    findings, net = [f"finding {n}" for n in range(14)], small(14)
    options: Any = {"output": "sigmoid", "classes": findings, "thresholds": np.array([0.3])} | IMAGENET
    given = load(lambda images: torch.sigmoid(net(images)), **options)
    assert torch.allclose(given.model(radiographs), net(normalised(radiographs)), atol=1e-4)
    assert given.output.operating_points == (0.3,) * 14
    one = load(lambda x: torch.sigmoid(x.mean((1, 2, 3))), output="sigmoid", classes=["pneumonia"], size=SIDE)
    assert torch.allclose(one.model(radiographs)[:, 0], radiographs.mean((1, 2, 3)), atol=1e-4)


class InPlace(nn.Module):
    """Finishes what its softmax or sigmoid made in place, as ensembles and corrections of prevalence are written."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.one, self.two = how, small(), nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 3))

    def forward(self, images: Tensor) -> Tensor:
        before = self.one(images)
        found = torch.sigmoid(before) if self.how == "switched off" else before.softmax(1)
        if self.how == "ensemble":
            found += self.two(images).softmax(1)
            found /= 2
        elif self.how == "switched off":
            found[:, 0] = 0.0
        elif self.how == "what went in":
            before.zero_()
        return found


@pytest.mark.parametrize("how", ["ensemble", "switched off", "what went in", "as it is"])
def test_probabilities_finished_in_place_are_the_answer(how: str, radiographs: Tensor, tmp_path: Path) -> None:
    net = InPlace(how).eval()
    kind = "sigmoid" if how == "switched off" else "probabilities"
    for source in (net, exported(net, tmp_path / "m.pt2")):
        given = load(source, output=kind, classes=CLASSES, trust_code=True, **IMAGENET)
        logits, wanted = given.model(radiographs).detach(), net(normalised(radiographs)).detach()
        found = torch.sigmoid(logits) if kind == "sigmoid" else logits.exp()
        assert torch.allclose(found, wanted, atol=1e-5)
        if how != "what went in":  # what takes away what its own gradient needs
            assert bool((gradient(given.model, radiographs) != 0).any())
    assert how != "as it is" or torch.allclose(logits, net.one(normalised(radiographs)).log_softmax(1), atol=1e-5)


def two_heads(logits: Tensor) -> Tensor:
    return torch.cat([torch.sigmoid(logits[:, :1]), torch.sigmoid(logits[:, 1:])], dim=1)


SURE: dict[str, Callable[[Tensor], Any]] = {
    "alone": torch.sigmoid,
    "tuple": lambda logits: (torch.sigmoid(logits),),
    "table": lambda logits: {"probabilities": torch.sigmoid(logits)},
    "two heads": two_heads,
    "sixteen bits": lambda logits: torch.sigmoid(logits.to(torch.bfloat16)),
    "softmax": lambda logits: logits.softmax(1),
}


@pytest.mark.parametrize("answer", SURE)
@pytest.mark.parametrize("batch", ["any", "two"])
def test_answers_that_round_to_1_have_logits(answer: str, batch: str, radiographs: Tensor, tmp_path: Path) -> None:
    factors, kind = torch.tensor([200.0, 300.0, 400.0]), "probabilities" if answer == "softmax" else "sigmoid"
    net = Computes(lambda images: SURE[answer](factors * images.mean((2, 3))))
    source = net if batch == "any" else exported(net, tmp_path / "m.pt2", batch=2)
    given = load(source, output=kind, classes=CLASSES, size=SIDE, channels=3, trust_code=True)
    found, wanted = given.model(radiographs), factors * radiographs.mean((2, 3))
    wanted = wanted.log_softmax(1) if answer == "softmax" else wanted
    assert found.dtype == torch.float32
    assert torch.allclose(found, wanted, rtol=0.01 if answer == "sixteen bits" else 1e-4)
    assert bool((gradient(given.model, radiographs).flatten(1).abs().amax(1) > 0).all())


@pytest.mark.parametrize("batch", [2, None])
def test_an_exported_program_of_two_outputs_is_refused_whatever_its_batch(batch: int | None, tmp_path: Path) -> None:
    two = Computes(lambda images: (-images.mean((2, 3)), images.mean((2, 3))))
    with pytest.raises(UserError, match="the model answers with tuple, not with a tensor"):
        load(exported(two, tmp_path / "m.pt2", batch=batch), classes=CLASSES, trust_code=True, **IMAGENET)


def test_a_model_that_takes_one_size_of_batch_takes_any(net: nn.Module, radiographs: Tensor, tmp_path: Path) -> None:
    exported(net, tmp_path / "m.pt2", batch=2)
    torch.onnx.export(net, (torch.randn(2, 3, SIDE, SIDE),), tmp_path / "m.onnx", dynamo=False)
    for name in ("m.pt2", "m.onnx"):
        given = load(tmp_path / name, classes=CLASSES, trust_code=True, **IMAGENET)
        same_as_the_plain_network(given.model, net, radiographs)


def test_onnx_that_is_not_converted_answers_without_gradients(
    net: nn.Module, radiographs: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = onnx(net, tmp_path / "m.onnx")
    monkeypatch.delitem(OPERATORS, "Relu")
    given = load(path, classes=CLASSES, **IMAGENET)
    assert given.origin.gradients == "none"
    assert "operator Relu" in given.origin.notes[0]
    assert torch.allclose(given.model(radiographs), net(normalised(radiographs)), atol=1e-4)
    monkeypatch.setitem(OPERATORS, "Relu", lambda i, a: i[0].abs())
    assert "answers otherwise" in load(path, classes=CLASSES, **IMAGENET).origin.notes[0]


def test_the_checksum_of_an_onnx_file_is_of_its_external_data_too(net: nn.Module, tmp_path: Path) -> None:
    library = pytest.importorskip("onnx")
    whole = library.load(onnx(net, tmp_path / "whole.onnx"))
    path, data = tmp_path / "m.onnx", tmp_path / "m.data"
    library.save(whole, path, save_as_external_data=True, location="m.data", size_threshold=0)
    first = load(path, classes=CLASSES, **IMAGENET).origin
    assert first.bytes == path.stat().st_size + data.stat().st_size
    weights = data.read_bytes()
    data.write_bytes(bytes([weights[0] ^ 1]) + weights[1:])
    assert load(path, classes=CLASSES, **IMAGENET).origin.sha256 != first.sha256
    alone = load(tmp_path / "whole.onnx", classes=CLASSES, **IMAGENET).origin
    assert alone.sha256 == hashlib.sha256((tmp_path / "whole.onnx").read_bytes()).hexdigest()


def test_an_onnx_file_with_channels_last_is_told_from_one_of_64_channels(net: nn.Module, tmp_path: Path) -> None:
    last = Computes(lambda images: net(images.permute(0, 3, 1, 2)), net).eval()
    path, images = tmp_path / "m.onnx", torch.rand(2, SIDE, SIDE, 3)
    torch.onnx.export(last, (images,), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "b"}})
    for call in (lambda: describe_file(path), lambda: load(path, classes=CLASSES, **IMAGENET)):
        with pytest.raises(UserError, match=r"takes images as .*32, 32, 3\), channels last; export it with channels"):
            call()


@pytest.mark.parametrize("channels", [1, 3])
def test_an_onnx_graph_keeps_its_maps_in_the_fast_memory_format(channels: int, tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Conv2d(channels, 8, 3), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(3)).eval()
    layers(torch.rand(1, channels, SIDE, SIDE))
    path, images = tmp_path / "m.onnx", torch.rand(2, channels, SIDE, SIDE)
    torch.onnx.export(layers, (images,), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "b"}})
    graph, maps = ConvertedNet(path), []
    pool, *rest = [step for step in graph._steps if step[0].__name__ == "_max_pool"]
    graph._steps[graph._steps.index(pool)] = (lambda x, a: maps.append(x[0]) or pool[0](x, a), *pool[1:])
    assert torch.allclose(graph(images), layers(images), atol=1e-6)
    assert not rest
    assert maps[0].is_contiguous(memory_format=torch.channels_last)
    assert not maps[0].is_contiguous()


def test_the_logarithm_of_a_softmax_in_onnx_stays_finite(tmp_path: Path) -> None:
    factors = torch.tensor([0.0, 600.0, -600.0])
    far = Computes(lambda images: ((images.mean((1, 2, 3)) - 0.5)[:, None] * factors).log_softmax(1))
    given = load(onnx(far, tmp_path / "m.onnx"), classes=CLASSES, size=SIDE, channels=3)
    white = torch.full((1, 1, SIDE, SIDE), 0.75)
    assert torch.allclose(given.model(white), torch.tensor([[-150.0, 0.0, -300.0]]), atol=1e-3)
    assert bool(gradient(given.model, white).isfinite().all())


def test_an_onnx_file_of_two_outputs_says_which_is_taken(net: nn.Module, radiographs: Tensor, tmp_path: Path) -> None:
    path = onnx(Computes(lambda images: (net(images), -net(images)), net).eval(), tmp_path / "m.onnx")
    given = load(path, classes=CLASSES, **IMAGENET)
    assert [note for note in given.origin.notes if note.startswith("it has 2 outputs, of which the first")]
    assert torch.allclose(given.model(radiographs), net(normalised(radiographs)), atol=1e-4)
    assert "has 2 outputs" in describe_file(path)
    one = load(onnx(net, tmp_path / "one.onnx"), classes=CLASSES, **IMAGENET)
    assert "outputs" not in " ".join(one.origin.notes)


def test_images_of_another_size_are_resized_inside_with_a_gradient(net: nn.Module) -> None:
    images = torch.rand(2, 1, 40, 48, requires_grad=True)
    for how, cut in (("squeeze", images), ("crop", images[..., 4:44])):
        given = load(net, classes=CLASSES, resize=how, **IMAGENET)
        small = nn.functional.interpolate(cut, (SIDE, SIDE), mode="bilinear", antialias=True)
        assert torch.allclose(given.model(images), net(normalised(small)), atol=1e-3)
    padded = load(net, classes=CLASSES, resize="pad", **IMAGENET).model.prepare(images)
    assert float(padded[..., 0, :].std()) < 0.3  # black above and below
    load(net, classes=CLASSES, **IMAGENET).model(images).sum().backward()
    assert bool((images.grad != 0).any())


@pytest.mark.parametrize(("size", "channels"), [(48, 3), (SIDE, 1)])
def test_a_program_takes_what_it_was_exported_for(size: int, channels: int, net: nn.Module, tmp_path: Path) -> None:
    path = exported(net, tmp_path / "m.pt2")
    why = rf"images of {channels} channels? and {size} pixels \(Guard failed.*input.size"
    with pytest.raises(UserError, match=why):
        load(path, classes=CLASSES, size=size, channels=channels, trust_code=True)


def test_saliency_reads_the_last_feature_map_of_any_model(net: nn.Module, radiographs: Tensor, tmp_path: Path) -> None:
    sources = (net, exported(net, tmp_path / "m.pt2"), onnx(net, tmp_path / "m.onnx"))
    models = [load(source, classes=CLASSES, trust_code=True, **IMAGENET).model for source in sources]
    maps = [grad_cam(model, radiographs, 0) for model in models]
    assert float(maps[0].amax()) == pytest.approx(1)
    assert all(torch.allclose(found, maps[0], atol=1e-3) for found in maps[1:])


@pytest.mark.parametrize("size", [1, 3])
def test_a_model_of_one_batch_size_has_a_map_for_each_image(size: int, net: nn.Module, tmp_path: Path) -> None:
    path = exported(net, tmp_path / "m.pt2", batch=size)
    radiographs, targets = torch.rand(4, 1, SIDE, SIDE), torch.tensor([0, 1, 2, 0])
    one, any_size = (load(source, classes=CLASSES, trust_code=True, **IMAGENET).model for source in (path, net))
    for target in (targets, 0, None):
        wanted = grad_cam(any_size, radiographs, target)
        assert torch.allclose(grad_cam(one, radiographs, target), wanted, atol=1e-3)
        first = grad_cam(one, radiographs[:1], 0 if target is targets else target)
        assert torch.allclose(first, wanted[:1], atol=1e-3)
    with pytest.raises(UserError, match="one for each of the 4 images"):
        grad_cam(one, radiographs, targets[:2])


@pytest.mark.parametrize("fused", [True, False])
def test_the_map_of_a_transformer_is_of_its_patches_and_not_of_attentions_tables(fused: bool, tmp_path: Path) -> None:
    # 26 tokens in heads of 26 channels: each table is square, as a map of this image is.
    vit = timm.create_model("vit_tiny_patch16_224", img_size=80, depth=2, embed_dim=52, num_heads=2, num_classes=3)
    for block in vit.blocks:
        block.attn.fused_attn = fused
    for source in (nn.Sequential(vit), exported(vit.eval(), tmp_path / "m.pt2", 80)):
        model = load(source, classes=CLASSES, size=80, channels=3, trust_code=True).model
        assert cells_of(model, torch.rand(1, 1, 80, 80), model.cam_layer) == (5, 5)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "test_convnext", "test_efficientnet", "test_vit2"])
def test_a_wrapped_network_is_read_where_its_last_map_is(name: str) -> None:
    small = {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)}
    net = timm.create_model(name, num_classes=3, **(small if "swin" in name else {})).eval()
    cells = {"swin": (8, 8), "test_vit2": (4, 4)}.get(name.split("_tiny")[0], (2, 2))
    model = load(nn.Sequential(net), classes=CLASSES, size=64, channels=3).model
    assert cells_of(model, torch.rand(1, 1, 64, 64), model.cam_layer) == cells


def test_a_network_left_in_training_mode_is_put_into_evaluation_mode(net: nn.Module, radiographs: Tensor) -> None:
    given = load(net.train(), classes=CLASSES, **IMAGENET)
    assert torch.equal(given.model(radiographs), given.model(radiographs))
    assert "training mode" in given.origin.notes[0]
    restless = load(nn.Sequential(Computes(nn.functional.dropout), net).eval(), classes=CLASSES, **IMAGENET)
    assert not torch.equal(restless.model(radiographs), restless.model(radiographs))


def test_a_table_of_scores_needs_no_model(tmp_path: Path) -> None:
    table = pd.DataFrame({"image": ["a", "b"], "COVID-19": [0.7, 0.1], "Non-COVID": [0.2, 0.1], "Normal": [0.1, 0.8]})
    table.to_csv(tmp_path / "scores.csv", index=False)
    given = load(tmp_path / "scores.csv", output="probabilities", classes=CLASSES)
    assert given.model is None
    assert list(given.predictions["sample_id"]) == ["a", "b"]
    assert np.allclose(np.exp(np.stack(given.predictions["logits"])), table[list(CLASSES)])
    for change, error in (
        ({"image": ["a", "a"]}, "a is there twice"),
        ({"Normal": [0.1, np.nan]}, "the score of b is missing"),
        ({"Normal": [0.1, "high"]}, "not a number"),
        ({"Normal": [0.9, 0.8]}, "sum to 1.8"),
        ({"Normal": [5.0, 0.8]}, "declare output.kind: logits"),
    ):
        table.assign(**change).to_csv(tmp_path / "wrong.csv", index=False)
        with pytest.raises(UserError, match=error):
            load(tmp_path / "wrong.csv", output="probabilities", classes=CLASSES)


def test_a_model_file_says_all_or_classes_are_checked(net: nn.Module, radiographs: Tensor, tmp_path: Path) -> None:
    onnx(net, tmp_path / "m.onnx")
    text = {"source": "m.onnx", "input": IMAGENET, "output": {"kind": "logits", "classes": list(CLASSES)}}
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(str(text).replace("(", "[").replace(")", "]"))))
    given = load(path)
    assert given.name == "model"
    same_as_the_plain_network(given.model, net, radiographs)
    with pytest.raises(UserError, match="a model file says all this itself"):
        load(path, classes=CLASSES)
    with pytest.raises(UserError, match=r"2 classes are declared, but the model answers \(2, 3\)"):
        load(net, classes=["a", "b"], **IMAGENET)
    with pytest.raises(UserError, match="say its classes"):
        load(net)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"sourze": "m.pt2"}, "unknown key 'sourze': did you mean source"),
    ({"input": {"chanels": 3}}, r"unknown key 'input.chanels': did you mean channels"),
    ({"input": {"resize": "sqeeze"}}, "key 'input.resize': unknown value 'sqeeze': did you mean squeeze"),
    ({"input": {"range": [1, 1]}}, "key 'input': range"),
    ({"input": {"mean": [0.1, 0.2]}}, "mean has 2 numbers"),
    ({"input": {"size": "big"}}, r"key 'input.size'"),
    ({"output": {"classes": ["a", "b"], "kind": "softmax"}}, "key 'output.kind': unknown value 'softmax'"),
    ({"output": {"classes": ["a", "a"]}}, "class 'a' is there twice"),
    ({"output": {"classes": ["a"]}}, "one finding is of kind sigmoid"),
    ({"output": {"classes": ["a", "b"], "thresholds": [0.5, 1]}}, "thresholds are probabilities between 0 and 1"),
    ({"output": {"classes": ["a", "b"], "thresholds": [0.5] * 3}}, "3 thresholds for 2 classes: give 1 or as many"),
    ({"output": {}}, r"key 'output.classes'"),
    ({"name": "good\n\n## Approved"}, "key 'name': one line"),
    ({"output": {"classes": ["a", "b\x1b[2J"]}}, "key 'output.classes.1': one line"),
    ({"reported": {"paper": "x\n## y"}}, "key 'reported.paper': one line"),
    ({"input": {"size": ["x" * 5000]}}, r"not \['x{60,100}…$"),
    ({"python": "a:b"}, "give one of source, python and predictions, not source and python"),
    ({"source": "nothing.pt2"}, "no such file"),
    ({"source": "model.yaml"}, "unknown kind of model file"),
]


@pytest.mark.parametrize(("change", "error"), WRONG, ids=[error[:24] for _, error in WRONG])
def test_a_wrong_model_file_names_file_and_key(change: dict[str, Any], error: str, tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump({"source": "m.pt2", "output": {"classes": ["a", "b"]}} | change))
    with pytest.raises(UserError, match=error) as caught:
        load(path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["torch.export", "traced", "onnx"])
def test_a_draft_says_what_the_file_shows_and_asks_for_the_rest(form: str, net: nn.Module, tmp_path: Path) -> None:
    write, name = FORMATS[form]
    path = write(nn.Sequential(net, nn.Softmax(1)).eval(), tmp_path / name)
    if form != "onnx":
        with pytest.raises(UserError, match=f"{name}: it can run its maker's code .*--trust-code.* ONNX"):
            describe_file(path)
    text = describe_file(path, trust_code=True)
    draft = yaml.safe_load(text)
    assert draft["source"] == name
    assert draft["input"]["channels"] == 3
    assert form == "traced" or draft["input"]["size"] == SIDE
    assert draft["output"]["kind"] == "probabilities"
    assert len(draft["output"]["classes"]) == 3
    assert "# ?" in text
    (tmp_path / "model.yaml").write_text(text)
    assert load(tmp_path / "model.yaml", trust_code=True).output.kind == "probabilities"


def test_a_draft_reads_the_names_that_onnx_carries(net: nn.Module, tmp_path: Path) -> None:
    import onnx as library

    path = onnx(net, tmp_path / "m.onnx")
    model = library.load(path)
    library.helper.set_model_props(model, {"names": "{0: 'COVID-19', 1: 'Non-COVID', 2: 'Normal'}", "author": "x"})
    library.save(model, path)
    text = describe_file(path)
    assert yaml.safe_load(text)["output"]["classes"] == list(CLASSES)
    assert "says of itself author: x" in text
    library.helper.set_model_props(model, {"classes": '["COVID-19", "Normal"]'})
    library.save(model, path)
    assert "2 names and has 3 outputs" in describe_file(path)


def test_a_draft_of_weights_asks_for_their_network(tmp_path: Path) -> None:
    net = timm.create_model("test_resnet", num_classes=3, in_chans=1)
    save_file(net.state_dict(), tmp_path / "m.safetensors")
    text = describe_file(tmp_path / "m.safetensors")
    assert "timm:  # ? which timm architecture" in text
    assert yaml.safe_load(text)["input"]["channels"] == 1
    pd.DataFrame({"image": ["a"], "x": [0.2], "y": [0.8]}).to_csv(tmp_path / "s.csv", index=False)
    assert yaml.safe_load(describe_file(tmp_path / "s.csv"))["output"]["classes"] == ["x", "y"]


def test_a_draft_is_not_written_by_what_the_file_says_of_itself(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    for names in (bomb, "[" * 5000):
        about = {"author": "x\npython: os:system\u2028output: 1\x1b[2J", "names": names}
        save_file({"w": torch.zeros(3, 2)}, tmp_path / "m.safetensors", metadata=about)
        text = describe_file(tmp_path / "m.safetensors")
        assert yaml.safe_load(text).keys() == {"source", "timm", "input", "output"}
        assert "author: x python: os:system output: 1 [2J\n" in text
    pd.DataFrame({"image": [], "x": [], "y": []}, dtype=float).to_csv(tmp_path / "s.csv", index=False)
    assert "0 rows" in describe_file(tmp_path / "s.csv")
    with pytest.raises(UserError, match="no row"):
        load(tmp_path / "s.csv", classes=("x", "y"), output="logits")


def test_load_model_takes_a_run_too(pack: Pack) -> None:
    assert type(tx.load_model(pack.run("standard"))).__name__ == "Classifier"
    with pytest.raises(UserError, match="a run says all this itself; leave out size"):
        tx.load_model(pack.run("standard"), size=64)
    given = tx.load_model(nn.Flatten(), classes=[str(n) for n in range(64)], size=8)
    assert given(torch.zeros(2, 1, 8, 8)).shape == (2, 64)
    assert (given.size, len(given.classes)) == (8, 64)


def test_a_function_whose_weights_are_random_or_cannot_be_compared(tmp_path: Path) -> None:
    code = "import torch\nfrom math import nan\ncalls = []\ndef network():\n    net = torch.nn.Linear(1, 3)"
    code += ".requires_grad_(False)\n    net.weight[:] = net.bias[:] = 1\n    {}\n    return net\n"
    bodies = {"missing": "net.weight[0] = nan", "once": "calls.append(0)\n    assert len(calls) == 1"}
    bodies |= {"random": "net.weight.normal_()", "failing": "raise OSError('no weights')"}
    for name, body in bodies.items():
        (tmp_path / f"{name}_weights.py").write_text(code.format(body))
    for name in ("missing", "once"):
        assert isinstance(_open_python(f"{name}_weights:network", True, tmp_path).net, nn.Linear)
    with pytest.raises(UserError, match="has other weights each time it is called: they are random"):
        _open_python("random_weights:network", True, tmp_path)
    with pytest.raises(UserError, match="failing_weights:network failed: OSError: no weights"):
        _open_python("failing_weights:network", True, tmp_path)
