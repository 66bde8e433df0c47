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

from small_networks import SIDE, images_and_labels, write_onnx
from test_audit_command import CLASSES, few_steps, greys  # noqa: F401
from test_cli import run
from trustcxr.audit.entry_checks import EntryReport, run_entry_checks
from trustcxr.audit.formats import load, onnx
from trustcxr.audit.formats.loading import verify_conversion
from trustcxr.audit.run_audit import audit
from trustcxr.data.phantom import write_files
from trustcxr.errors import UserError

pytest.importorskip("onnxruntime")


class BrightAbove(nn.Module):
    """Tells dark, grey and bright images by their mean; bright by how far it lies above 0.6, which no noise reaches."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean((2, 3))
        return torch.cat([100 * (0.4 - mean), 0 * mean, 1000 * (mean - 0.6).relu()], 1)


def written(folder: Path, side: int) -> Path:
    return write_onnx(BrightAbove(), folder / "net.onnx", side)


@pytest.fixture
def misread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter that takes every Relu for nothing: right below the threshold, and so on noise."""
    monkeypatch.setitem(onnx.OPERATORS, "Relu", lambda inputs, attributes: inputs[0] * 0)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter that knows a Relu of nothing alone."""

    def relu(inputs: list[Any], attributes: Any) -> Tensor:
        if inputs[0].max() > 0:
            raise onnx.Unknown("Relu of more than nothing")
        return inputs[0].relu()

    monkeypatch.setitem(onnx.OPERATORS, "Relu", relu)


def radiographs() -> tuple[Tensor, Tensor]:
    """Images (30, 1, SIDE, SIDE) of three brightnesses, and their classes."""
    labels = torch.arange(30) % 3
    noise = 0.02 * torch.randn((30, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    return torch.tensor([0.3, 0.5, 0.7])[labels][:, None, None, None] + noise, labels


def door(path: Path) -> EntryReport:
    return run_entry_checks(load(path, classes=CLASSES, size=SIDE), *radiographs(), epsilon=0.05, planted=4)


def check(found: EntryReport, name: str) -> Any:
    return next(c for c in found.checks if c.check == name)


def test_a_conversion_that_answers_alike_on_images_gives_gradients(tmp_path: Path) -> None:
    found = door(written(tmp_path, SIDE))
    assert found.gradients
    assert check(found, "conversion").passed
    assert "on 30 images their answers are at most" in check(found, "conversion").text
    assert found.subject is not None
    assert found.subject.origin.gradients == "converted"


@pytest.mark.parametrize(("how", "why"), [("misread", "answers otherwise (by "), ("failing", "fails (Relu of more")])
def test_a_conversion_that_is_right_on_noise_alone_gives_none(
    how: str, why: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = written(tmp_path, SIDE)
    request.getfixturevalue(how)
    assert load(path, classes=CLASSES, size=SIDE).origin.gradients == "converted", "noise does not tell"
    found = door(path)
    assert not found.gradients
    assert check(found, "conversion").passed is False
    assert f"no gradients: on 30 images its conversion to torch {why}" in check(found, "conversion").text
    assert check(found, "conversion").text.endswith("robust accuracy can only be overestimated")
    assert found.subject is not None
    assert found.subject.origin.gradients == "none"
    images, _ = radiographs()
    assert found.evaluated_model is not None
    assert torch.allclose(found.evaluated_model(images), BrightAbove()(images), atol=1e-4)
    assert check(found, "declaration").text.startswith("accuracy on 30 images is 100.0%")


def test_a_fixed_batch_is_compared_in_its_batches(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / "net.onnx"
    torch.onnx.export(BrightAbove().eval(), (torch.rand(4, 1, SIDE, SIDE),), path, dynamo=False)
    given, differ = verify_conversion(load(path, classes=CLASSES, size=SIDE), radiographs()[0])
    assert differ is not None
    assert differ <= 1e-4
    assert given.origin.gradients == "converted"
    request.getfixturevalue("misread")
    given, _ = verify_conversion(load(path, classes=CLASSES, size=SIDE), radiographs()[0])
    assert given.model is not None
    assert torch.allclose(given.model(radiographs()[0]), BrightAbove()(radiographs()[0]), atol=1e-4)


def test_other_models_are_not_asked_twice() -> None:
    images, _ = images_and_labels(4)
    given = load(BrightAbove(), classes=CLASSES, size=SIDE)
    assert verify_conversion(given, images) == (given, None)


@pytest.mark.slow
def test_an_audit_attacks_such_a_file_without_gradients_and_says_so_at_the_top(
    greys: Path,  # noqa: F811
    tmp_path: Path,
    misread: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few_steps(monkeypatch)
    written(tmp_path, 16)
    model = tmp_path / "model.yaml"
    model.write_text(f"source: net.onnx\ninput: {{size: 16}}\noutput: {{classes: [{', '.join(CLASSES)}]}}\n")
    printed = run("audit", model, "--data", greys, "--out", tmp_path / "audit").stdout
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
    assert audit(model, greys, tmp_path / "audit").examination == document["examination"], "and not examined twice"


def test_images_that_onnxruntime_does_not_take_are_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = load(written(tmp_path, SIDE), classes=CLASSES, size=SIDE)
    assert given.original is not None
    monkeypatch.setattr(given.original.net, "input", "another")
    with pytest.raises(UserError, match=r"net.onnx: onnxruntime fails on images \(30, 1, 20, 20\)"):
        verify_conversion(given, radiographs()[0])


@pytest.mark.slow
def test_explain_looks_at_images_too_before_it_believes_a_conversion(
    greys: Path,  # noqa: F811
    tmp_path: Path,
    misread: None,
) -> None:
    radiographs = write_files.write(tmp_path / "images", {"Train": 1, "Test": 2}, size=64)
    path = tmp_path / "model.yaml"
    written(tmp_path, 64)
    names = "COVID-19, Non-COVID, Normal"
    path.write_text(f"source: net.onnx\ninput: {{size: 64}}\noutput: {{classes: [{names}]}}\n")
    for image in radiographs.rglob("Test/*/images/*.png"):  # bright, which noise is not
        Image.fromarray(np.full((64, 64), 220, np.uint8)).save(image)
    run("explain", path, "--data", radiographs, "--out", tmp_path / "out", "--method", "occlusion", "--sample", 1)
    table = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert np.stack(table[table["attack"] == "clean"]["logits"].tolist())[:, 2].min() > 100
    notes = json.loads((tmp_path / "out" / "metrics.json").read_text())["notes"]
    assert any("stability under FGSM and PGD is not measured" in note for note in notes)


class Pooled(nn.Module):
    """Rectified maps that are pooled, and others of which the rectified ones are used again."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        pooled = nn.functional.max_pool2d(self.first(images).relu(), 2)
        again = self.second(pooled).relu()
        return self.head(torch.cat([nn.functional.max_pool2d(again, 2).mean((2, 3)), again.mean((2, 3))], 1))


def test_a_file_of_one_image_is_run_in_batches_and_pooled_before_it_is_rectified(tmp_path: Path) -> None:
    images = torch.rand(3, 1, 20, 20, generator=torch.Generator().manual_seed(1))
    torch.onnx.export(Pooled().eval(), (images[:1],), tmp_path / "net.onnx", dynamo=False)
    external = load(tmp_path / "net.onnx", classes=("a", "b", "c"), size=20)
    assert external.model is not None
    assert external.original is not None
    assert (external.model.batch, external.original.batch) == (None, 1)
    with torch.no_grad():
        assert torch.allclose(external.model(images), external.original(images), atol=1e-5)
    names = {onnx.OPERATORS[name]: name for name in ("MaxPool", "Relu")}
    order = [names[step] for step, *_ in external.model.net._steps if step in names]
    assert order == ["MaxPool", "Relu", "Relu", "MaxPool"]  # the second is used again, so it stays before its pooling
    leaf = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(external.model(leaf)[:, 0].sum(), leaf)
    net, leaf = Pooled(), images.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)
    assert torch.allclose(gradient, expected, atol=1e-5)
