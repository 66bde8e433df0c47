"""TFLite files: the answers of LiteRT, quantised or not, without gradients; damaged files end in one line."""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from foreign_models import Computes, refused
from trustcxr import attacks
from trustcxr.audit import entry_checks
from trustcxr.audit.entry_checks import check_kind
from trustcxr.audit.formats import ModelFile, describe_file, load, tflite
from trustcxr.errors import UserError

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
CLASSES = ("COVID-19", "Normal", "Non-COVID")
PAGE = Path(__file__).parents[1] / "docs" / "howto" / "public-models.md"


@pytest.fixture
def theirs(real_data: Path) -> Path:
    """The folder of models of strangers."""
    folder = real_data / "external-models"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: set TRUSTCXR_DATA")
    return folder


def opened(path: Path, size: int, kind: str) -> Any:
    return load(path, classes=CLASSES, output=kind, size=size, channels=3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "kind"), [("covidcnn", 256, "probabilities"), ("semobile", 224, "logits")])
def test_the_answers_are_those_of_litert(name: str, size: int, kind: str, theirs: Path) -> None:
    external = opened(theirs / f"{name}.tflite", size, kind)
    images = torch.rand((20, 1, size // 8, size // 8), generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(images, (size, size), mode="bilinear").mul(255).round() / 255
    net = interpreter.Interpreter(str(theirs / f"{name}.tflite"))
    net.allocate_tensors()
    (taken,), (made,) = net.get_input_details(), net.get_output_details()
    expected = []
    for image in images.numpy():
        rgb = np.repeat(image.transpose(1, 2, 0), 3, axis=2)[None]
        net.set_tensor(taken["index"], np.round(rgb * 255).astype(np.uint8) if name == "semobile" else rgb)
        net.invoke()
        answer = net.get_tensor(made["index"])[0]
        scale, zero = made["quantization"]
        expected.append((answer.astype(float) - zero) * scale if name == "semobile" else answer)
    answers = external.model.answers(images).numpy()
    assert np.ptp(expected, axis=0).max() > 1e-3, "the answers differ between images"
    assert np.abs(answers - np.array(expected)).max() < 1e-4
    assert (external.origin.kind, external.origin.gradients) == ("TFLite", "none")
    assert any("quantised: its input is uint8" in note for note in external.origin.notes) == (name == "semobile")


@pytest.mark.slow
def test_a_draft_has_what_the_file_tells(theirs: Path, tmp_path: Path) -> None:
    text = describe_file(theirs / "covidcnn.tflite")
    assert "size: 256\n" in text
    assert "kind: probabilities\n" in text
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("labels.txt", "sick\nwell\nother\n")
    (tmp_path / "m.tflite").write_bytes((theirs / "semobile.tflite").read_bytes() + content.getvalue())
    text = describe_file(tmp_path / "m.tflite")  # its range is from the scale and the zero point of its input
    for part in ("range: [0, 1]\n", "kind: logits\n", 'classes: ["sick", "well", "other"]\n', "# seen: quantised"):
        assert part in text


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_file_cut_short(share: float, theirs: Path, tmp_path: Path) -> None:
    content = (theirs / "semobile.tflite").read_bytes()
    (tmp_path / "m.tflite").write_bytes(content[: int(share * len(content))])
    refused(tmp_path / "m.tflite", "LiteRT does not take it")


ENDINGS = {
    "import os; os.abort()": r"LiteRT crashed on it \(signal 6\): it is damaged",
    "import time; time.sleep(60)": "LiteRT runs longer than 1 s on one image",
    "x = bytearray(10 ** 15)": "LiteRT does not take it",
}


@pytest.mark.parametrize("program", ENDINGS)
def test_a_file_that_ends_or_holds_its_process(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflite, "_FIRST_RUN", program)
    monkeypatch.setattr(tflite, "_SECONDS", 1 if "sleep" in program else 100)
    (tmp_path / "m.tflite").write_bytes(b"\0\0\0\0TFL3" + b"\0" * 100)
    refused(tmp_path / "m.tflite", ENDINGS[program])


def test_another_size_is_refused(theirs: Path) -> None:
    with pytest.raises(UserError, match=r"it takes images of \(channels, height, width\) \(3, 224, 224\), not \(3, 64"):
        opened(theirs / "semobile.tflite", 64, "logits")


@pytest.mark.slow
def test_attacks_without_gradients_reach_it(theirs: Path) -> None:
    model = opened(theirs / "semobile.tflite", 224, "logits").model
    images = torch.rand((2, 1, 224, 224), generator=torch.Generator().manual_seed(0))
    labels = model(images).argmax(1)
    adversarial = attacks.square(model, images, labels, epsilon=0.2, queries=20)
    assert (adversarial - images).abs().amax() <= 0.2 + 1e-6
    assert not torch.equal(model(adversarial), model(images))


def test_probabilities_that_are_rounded_to_8_bits_are_probabilities() -> None:
    """Three of them can sum to 1.004: they are not taken for the sigmoids of three findings."""

    factors = torch.tensor([3.0, 1.0, 2.0])
    rounded = Computes(lambda images: ((images.mean((2, 3)) * factors).softmax(1) * 256).round() / 256)
    model = load(rounded, classes=CLASSES, output="probabilities", size=8, channels=3).model
    images = torch.rand((32, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    assert float((model.answers(images).sum(1) - 1).abs().max()) > 1e-3
    check_kind(model, images, "m")
    (check,), examined = entry_checks._check_kind(model, images)
    assert examined.output_spec.kind == "probabilities", check.text


def test_every_model_file_of_the_page_is_short_and_valid() -> None:
    names = {"C": "COVID-19", "N": "Normal", "P": "Non-COVID", "O": "Lung Opacity"}
    row = r"^\| \S+/\S+ \| `(\S+)` \| [^|]+ \| (\d+), (\d) channels?, (\[[^|]+\]) \| (\w+), ([CNPO ]+) \|$"
    rows = re.findall(row, PAGE.read_text(), re.M)
    assert len(rows) == 9
    texts = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.S)
    for name, size, channels, span, kind, letters in rows:
        classes = ", ".join(names[letter] for letter in letters.split())
        # The weights of the last row are read by the page's function.
        source = "python: theirs:network" if name.endswith(".pt") else f"source: {name}"
        taken = f"input: {{size: {size}, channels: {channels}, range: {span}}}"
        texts.append(f"{source}\n{taken}\noutput: {{kind: {kind}, classes: [{classes}]}}")
    for text in texts:
        assert set(ModelFile.model_validate(yaml.safe_load(text)).output.classes) >= set(CLASSES)
