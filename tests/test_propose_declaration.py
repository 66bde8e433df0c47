"""The best declaration is proposed, with the accuracy of each and how sure it is; nothing is sure that is not."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from foreign_models import CLASSES, Computes
from test_cli import run
from trustcxr.audit import propose_declaration as proposals
from trustcxr.audit.declaration_check import check_declaration, list_inputs
from trustcxr.audit.formats import InputSpec, OutputSpec, describe_file, load
from trustcxr.audit.formats.wrapper import WrappedModel
from trustcxr.errors import UserError

SIDE = 16
WEIGHTS = {"conv.weight": torch.zeros(4, 3, 3, 3), "fc.weight": torch.zeros(3, 4)}
CENTRES = (0.2, 0.35, 0.5)  # of the grey values of each class: inverted images are like none


class ByMean(nn.Module):
    """Answers by the mean grey of an image, dark, darker than half or half, if it comes as `spec` says."""

    def __init__(self, spec: InputSpec, order: tuple[int, ...] = (0, 1, 2)) -> None:
        super().__init__()
        wanted = WrappedModel(nn.Identity(), spec, OutputSpec(classes=("a", "b")))
        self.register_buffer("scale", wanted.scale)
        self.register_buffer("shift", wanted.shift)
        self.register_buffer("order", torch.tensor(order))

    def forward(self, images: Tensor) -> Tensor:
        channels = (images - self.shift) / self.scale
        grey, spread = channels.mean(1), channels.amax(1) - channels.amin(1)
        means = grey.mean((1, 2))[:, None]
        outside = (grey < -0.01) | (grey > 1.01) | (spread > 0.02)
        bad = outside.float().mean((1, 2)) + (means[:, 0] > 0.58)  # always one answer
        scores = -((means - torch.tensor(CENTRES)) ** 2) * 100
        return torch.where(bad[:, None] > 0.1, torch.tensor([1.0, 0.0, 0.0]), scores)[:, self.order]


def radiographs(each: int = 40) -> tuple[Tensor, np.ndarray]:
    """Images of three brightnesses, in which all grey values occur; the class is the brightness."""
    random = torch.Generator().manual_seed(0)
    truth = np.arange(3 * each) % 3
    centres = torch.tensor(CENTRES)[truth][:, None, None, None]
    noise = torch.rand((3 * each, 1, SIDE, SIDE), generator=random)
    return centres + (noise - 0.5) * 0.4, truth


def wrapped(net: nn.Module, **options: Any) -> WrappedModel:
    return load(net, classes=CLASSES, size=SIDE, channels=3, **options).model


SPEC = InputSpec(size=SIDE, channels=3)
INPUTS = list_inputs(SPEC)


@pytest.mark.parametrize("number", range(len(INPUTS)))
def test_every_usual_declaration_is_found_with_its_order(number: int) -> None:
    best = proposals.try_readings(wrapped(ByMean(INPUTS[number], (2, 0, 1))), *radiographs(), 3, INPUTS)[0]
    # An image in [-1, 1] is one in mean 0.5 and std 0.5; of two inputs that are equally good the usual one is first.
    assert best.accuracy > 0.95
    assert best.input == INPUTS[number]
    assert best.outputs == (1, 2, 0)  # output 1 is of class 0


def test_two_errors_at_once_are_found_in_an_audit() -> None:
    images, truth = radiographs()
    for spec in (InputSpec(size=SIDE, channels=3, range=(255, 0)), INPUTS[0], INPUTS[5]):
        result = check_declaration(wrapped(ByMean(spec, (2, 0, 1))), CLASSES, images, torch.from_numpy(truth))
        assert "output.classes: [Normal, COVID-19, Non-COVID]" in result.remedy
        inverted = "input.range: [255, 0], as MONOCHROME1"
        assert (f"input.mean: {list(spec.mean)}" if spec.mean else inverted) in result.remedy


def test_a_network_is_asked_once_for_each_input() -> None:
    seen: list[int] = []
    model = wrapped(Computes(lambda images: seen.append(len(images)) or images.mean((2, 3))))
    proposals.try_readings(model, *radiographs(10), 3, INPUTS)
    assert sum(seen) == 2 + 2 + len(INPUTS) * 30  # two images of noise twice, when it is loaded


def test_the_interval_of_a_paired_difference() -> None:
    first, second = np.arange(100) < 80, np.arange(100) < 50
    gain, low, high = proposals.paired_interval(first, second, 0.95)
    assert gain == pytest.approx(0.3)
    assert low < 0.3 <= high == pytest.approx(0.3)
    assert low == pytest.approx(0.3 * (2 * 0.025 ** (1 / 30) - 1))  # Clopper and Pearson, of 30 in 30
    assert proposals.paired_interval(first, first, 0.95) == (0, 0, 0)
    swapped = proposals.paired_interval(first, ~first, 0.95)
    assert swapped[1] < 0.6 < swapped[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images of three brightnesses, split into Val and Test, and a network for `python:`."""
    images, truth = radiographs()
    rows = ["path,split,class,patient_id"]
    for number, (image, label) in enumerate(zip(images, truth, strict=True)):
        name = f"{number}.png"
        Image.fromarray((image[0] * 255).round().byte().numpy()).save(tmp_path / name)
        rows.append(f"{name},{'Val' if number % 4 else 'Test'},{CLASSES[label]},p{number}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    text = "python: test_propose_declaration:network\ninput: {size: 16, channels: 3}\noutput: {classes: [a, b, c]}\n"
    (tmp_path / "model.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRUSTCXR_CACHE", str(tmp_path / "cache"))
    return tmp_path


def network() -> nn.Module:
    """For `python: test_propose_declaration:network`: it wants [0, 255], and its classes are in another order."""
    return ByMean(InputSpec(size=SIDE, channels=3, range=(0, 255)), (2, 0, 1)).eval()


def chance() -> nn.Module:
    """For `python: test_propose_declaration:chance`: one answer to every image."""
    torch.manual_seed(0)  # an audit refuses weights that differ at each call
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 3), nn.Threshold(1e9, 0.0))


COMMAND = ("audit", "model.yaml", "--init", "--data", "list.csv", "--trust-code")


def test_a_model_is_declared_in_one_step(folder: Path) -> None:
    text = run(*COMMAND).stdout
    declared = yaml.safe_load(text)
    assert declared["input"]["range"] == [0, 255]
    assert declared["output"]["classes"] == ["Normal", "COVID-19", "Non-COVID"]
    assert "tried on 90 images of Val, one of each patient: 60 declarations" in text
    assert re.search(r"# +100\.0% +range \[0, 255\] +Normal, COVID-19, Non-COVID", text)
    assert len(re.findall(r"^# +\d+\.\d% ", text, re.M)) == 10, "each input"
    assert "surely better than the best with another order of the classes" in text
    assert "each at 99.92% (Bonferroni)" in text
    assert "# ?" not in text.replace("  # ? how an image becomes a square: squeeze, pad or crop", "")
    assert "tried on 30 images of Test" in run(*COMMAND, "--split", "Test").stdout


def test_a_model_at_chance_is_not_declared_for_sure(folder: Path) -> None:
    path = folder / "model.yaml"
    path.write_text(path.read_text().replace("network", "chance"))
    text = run(*COMMAND).stdout
    assert "range: [0, 1]  # ? no declaration is surely better than chance (33.3%)" in text
    assert re.search(r"classes: \[.*\]  # \? no declaration is surely", text)
    assert "is it the right model for these images?" in text
    assert "more images may settle it: --split with another split" in text


def test_what_cannot_be_asked_is_refused(folder: Path) -> None:
    (folder / "scores.csv").write_text("id,a,b\n0,0.5,0.5\n")
    torch.save(WEIGHTS, folder / "w.pth")
    for model in ("scores.csv", "w.pth"):
        assert "cannot be asked as it is" in run("audit", model, "--init", "--data", "list.csv", expect=2).stderr
    two = load(lambda images: images.mean((2, 3))[:, :2], classes=["a", "b"], size=SIDE, channels=3).model
    with pytest.raises(UserError, match="2 outputs for 3 classes"):
        proposals.try_readings(two, *radiographs(4), 3, INPUTS)


def test_weights_of_a_network_of_their_own_are_offered_a_function(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "w.pth")
    assert "# python: module:function  # of a network of its own" in describe_file(tmp_path / "w.pth")
    with pytest.raises(UserError, match="write python: module:function, a function that builds it"):
        load(tmp_path / "w.pth", classes=CLASSES)
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(UserError, match=r"nothing in it was run. Of a whole model .* torch.save\(model.state_dict\(\)"):
        describe_file(tmp_path / "whole.pth")
