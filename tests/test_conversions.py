"""ONNX is attacked with gradients only where its conversion to torch answers on real images as onnxruntime does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from foreign_models import Computes
from pack import Pack
from small_networks import SIDE, write_onnx
from test_audit_command import CLASSES, few_steps
from test_cli import run
from trustcxr.audit.entry_checks import Check, EntryReport, run_entry_checks
from trustcxr.audit.formats import load, onnx
from trustcxr.audit.formats.loading import verify_conversion
from trustcxr.audit.run_audit import audit
from trustcxr.data.phantom import write_files
from trustcxr.errors import UserError

pytest.importorskip("onnxruntime")


def bright_above(images: Tensor) -> Tensor:
    """Tell dark, grey and bright images by their mean; bright if it is above 0.6, which no noise reaches."""
    mean = images.mean((2, 3))
    return torch.cat([100 * (0.4 - mean), 0 * mean, 1000 * (mean - 0.6).relu()], 1)


def written(folder: Path, side: int) -> Path:
    return write_onnx(Computes(bright_above), folder / "net.onnx", side)


def misread(inputs: list[Any], attributes: Any) -> Tensor:
    """Take every Relu for nothing: right below the threshold, and so on noise."""
    return inputs[0] * 0


def failing(inputs: list[Any], attributes: Any) -> Tensor:
    """Know a Relu of nothing alone."""
    if inputs[0].max() > 0:
        raise onnx.Unknown("Relu of more than nothing")
    return inputs[0].relu()


def radiographs() -> tuple[Tensor, Tensor]:
    """Images (30, 1, SIDE, SIDE) of three brightnesses, and their classes."""
    labels = torch.arange(30) % 3
    noise = 0.02 * torch.randn((30, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    return torch.tensor([0.3, 0.5, 0.7])[labels][:, None, None, None] + noise, labels


def door(path: Path) -> tuple[EntryReport, dict[str, Check]]:
    """Return the report of the entry checks, and its checks by name."""
    found = run_entry_checks(load(path, classes=CLASSES, size=SIDE), *radiographs(), epsilon=0.05, planted=4)
    return found, {check.check: check for check in found.checks}


def test_a_conversion_that_answers_alike_on_images_gives_gradients(tmp_path: Path) -> None:
    found, checks = door(written(tmp_path, SIDE))
    assert found.gradients
    assert checks["conversion"].passed
    assert "on 30 images their answers are at most" in checks["conversion"].text
    assert found.subject.origin.gradients == "converted"
    given = load(Computes(bright_above), classes=CLASSES, size=SIDE)
    assert verify_conversion(given, radiographs()[0]) == (given, None), "other models are not asked twice"


@pytest.mark.parametrize(("relu", "why"), [(misread, "answers otherwise (by "), (failing, "fails (Relu of more")])
def test_right_on_noise_alone_gives_none(relu: Any, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, (images, _) = written(tmp_path, SIDE), radiographs()
    monkeypatch.setitem(onnx.OPERATORS, "Relu", relu)
    assert load(path, classes=CLASSES, size=SIDE).origin.gradients == "converted", "noise does not tell"
    found, checks = door(path)
    assert not found.gradients
    assert checks["conversion"].passed is False
    assert f"no gradients: on 30 images its conversion to torch {why}" in checks["conversion"].text
    assert checks["conversion"].text.endswith("robust accuracy can only be overestimated")
    assert found.subject.origin.gradients == "none"
    assert torch.allclose(found.evaluated_model(images), bright_above(images), atol=1e-4)
    assert checks["declaration"].text.startswith("accuracy on 30 images is 100.0%")


def test_a_fixed_batch_is_compared_in_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    torch.onnx.export(Computes(bright_above).eval(), (torch.rand(4, 1, SIDE, SIDE),), path, dynamo=False)
    given, differ = verify_conversion(load(path, classes=CLASSES, size=SIDE), radiographs()[0])
    assert differ <= 1e-4
    assert given.origin.gradients == "converted"
    monkeypatch.setitem(onnx.OPERATORS, "Relu", misread)
    given, _ = verify_conversion(load(path, classes=CLASSES, size=SIDE), radiographs()[0])
    assert torch.allclose(given.model(radiographs()[0]), bright_above(radiographs()[0]), atol=1e-4)


@pytest.mark.slow
def test_an_audit_attacks_it_without_gradients_and_says_so_at_the_top(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_steps(monkeypatch)
    monkeypatch.setitem(onnx.OPERATORS, "Relu", misread)
    written(tmp_path, 16)
    model = tmp_path / "model.yaml"
    model.write_text(f"source: net.onnx\ninput: {{size: 16}}\noutput: {{classes: [{', '.join(CLASSES)}]}}\n")
    printed = run("audit", model, "--data", pack.greys(), "--out", tmp_path / "audit").stdout
    document = json.loads((tmp_path / "audit" / "audit.json").read_text())
    note = "no gradients: on 36 images its conversion to torch answers otherwise"
    assert document["model"]["gradients"] == "none"
    assert document["model"]["notes"][0].startswith(note)
    assert printed.index(note) < printed.index("declaration")
    page = (tmp_path / "audit" / "report.html").read_text()
    assert page.index(note) < page.index("<h3>Results")
    assert {row["attack"] for row in document["attacks"]} == {"square", "worst-case"}
    assert "attacks without gradients can only overestimate" in "; ".join(document["verdict"]["reasons"])
    # Images as they are have onnxruntime's answers: the conversion takes no image for a bright one.
    table = pd.read_parquet(tmp_path / "audit" / "predictions.parquet")
    clean = table[table["attack"] == "clean"]
    assert document["clean"]["accuracy"]["value"] > 0.9
    assert sum(np.argmax(logits) == 2 for logits in clean["logits"]) >= 10
    again = audit(model, pack.greys(), tmp_path / "audit")
    assert again.examination == document["examination"], "not examined twice"


def test_images_that_onnxruntime_refuses_are_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = load(written(tmp_path, SIDE), classes=CLASSES, size=SIDE)
    monkeypatch.setattr(given.original.net, "input", "another")
    with pytest.raises(UserError, match=r"net.onnx: onnxruntime fails on images \(16, 1, 20, 20\)"):
        verify_conversion(given, radiographs()[0])


@pytest.mark.slow
def test_explain_looks_at_images_before_it_believes_a_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(onnx.OPERATORS, "Relu", misread)
    radiographs = write_files.write(tmp_path / "images", {"Train": 1, "Test": 2}, size=64)
    path = tmp_path / "model.yaml"
    written(tmp_path, 64)
    path.write_text("source: net.onnx\ninput: {size: 64}\noutput: {classes: [COVID-19, Non-COVID, Normal]}\n")
    for image in radiographs.rglob("Test/*/images/*.png"):  # bright, which noise is not
        Image.fromarray(np.full((64, 64), 220, np.uint8)).save(image)
    run("explain", path, "--data", radiographs, "--out", tmp_path / "out", "--method", "occlusion", "--sample", 1)
    table = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert np.stack(table[table["attack"] == "clean"]["logits"].tolist())[:, 2].min() > 100
    notes = json.loads((tmp_path / "out" / "metrics.json").read_text())["notes"]
    assert any("stability under FGSM and PGD is not measured" in note for note in notes)


def test_a_file_of_one_image_is_run_in_batches_and_pooled_before_it_is_rectified(tmp_path: Path) -> None:
    first, second, head, pool = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(8, 3), nn.MaxPool2d(2)

    def answer(images: Tensor) -> Tensor:
        again = second(pool(first(images).relu())).relu()
        return head(torch.cat([pool(again).mean((2, 3)), again.mean((2, 3))], 1))

    net, images = Computes(answer, first, second, head).eval(), torch.rand(3, 1, 20, 20)
    torch.onnx.export(net, (images[:1],), tmp_path / "net.onnx", dynamo=False)
    external = load(tmp_path / "net.onnx", classes=("a", "b", "c"), size=20)
    assert (external.model.batch, external.original.batch) == (None, 1)
    with torch.no_grad():
        assert torch.allclose(external.model(images), external.original(images), atol=1e-5)
    names = {onnx.OPERATORS[name]: name for name in ("MaxPool", "Relu")}
    order = [names[step] for step, *_ in external.model.net._steps if step in names]
    assert order == ["MaxPool", "Relu", "Relu", "MaxPool"]  # the second is used again, so it stays before its pooling
    leaf = images.clone().requires_grad_(True)
    ((gradient,), (expected,)) = (torch.autograd.grad(n(leaf)[:, 0].sum(), leaf) for n in (external.model, net))
    assert torch.allclose(gradient, expected, atol=1e-5)


GEOMETRIES: tuple[dict[str, Any], ...] = (
    {},
    {"stride": 2, "padding": 1},
    {"dilation": 2},
    {"padding": (2, 1), "stride": (1, 2)},
)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_gradient_through_a_convolution_of_grey_images_is_that_of_torch(
    channels: int, geometry: dict[str, Any], tmp_path: Path
) -> None:
    layers = [
        nn.Conv2d(channels, onnx._FEWEST_MAPS, 3, **geometry),
        nn.ReLU(),
        nn.Conv2d(onnx._FEWEST_MAPS, 4, 3),
        nn.Flatten(),
    ]
    net = nn.Sequential(*layers, nn.LazyLinear(3)).eval()
    images = torch.rand(3, 1, SIDE, SIDE)
    net(grey := (2 * images - 1).expand(-1, channels, -1, -1))
    torch.onnx.export(
        net, (grey,), tmp_path / "net.onnx", dynamo=False, dynamic_axes={"input": {0: "batch"}}, input_names=["input"]
    )
    model = load(tmp_path / "net.onnx", classes=CLASSES, size=SIDE, channels=channels, range=(-1, 1)).model
    weights = torch.tensor([1.0, -2.0, 3.0])
    ours, theirs = (images.clone().requires_grad_(True) for _ in range(2))
    with torch.no_grad():
        torch.testing.assert_close(model(images), net(grey))
    (model(ours) * weights).sum().backward()
    (net((2 * theirs - 1).expand(-1, channels, -1, -1)) * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    ours.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        (model(ours) * weights).sum().backward()
    assert float((ours.grad - theirs.grad).norm()) < 0.1 * float(theirs.grad.norm()), "rectifiers near 0 switch"
