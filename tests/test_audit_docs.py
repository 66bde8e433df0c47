"""docs/reference/audit.md: the model file that stands there runs, and every key of a model file is explained."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import BaseModel

from trustcxr.audit import run_audit as audits
from trustcxr.audit.formats import InputSpec, ModelFile, OutputSpec
from trustcxr.recipes import protocol

TEXT = (Path(__file__).parents[1] / "docs" / "reference" / "audit.md").read_text()


def block(start: str) -> str:
    """Return the content of the first code block of the page that starts so."""
    found = re.search(rf"```{start}\n(.*?)```", TEXT, re.S)
    assert found is not None
    return found.group(1)


@pytest.mark.full
def test_torchxrayvisions_densenet_goes_through_an_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchxrayvision.models")
    text, code = block("yaml"), block('python title="theirs.py"')
    assert len(text.splitlines()) <= 12
    assert len(yaml.safe_load(text)["output"]["classes"]) == len(models.DenseNet().targets or range(18)) == 18
    # As it stands but for the side: 224 pixels would take a minute.
    (tmp_path / "model.yaml").write_text(text.replace("size: 224", "size: 32"))
    # The weights of the page are downloaded; these are drawn, alike each time.
    seeded = "    import torch\n    torch.manual_seed(0)\n"
    code = code.replace('weights="densenet121-res224-all"', "").replace("network():\n", f"network():\n{seeded}")
    (tmp_path / "theirs.py").write_text(code)
    random = np.random.default_rng(0)
    for name in ("COVID-19", "Normal"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3):
            image = Image.fromarray(random.integers(0, 255, (32, 32)).astype(np.uint8))
            image.save(tmp_path / "images" / name / f"{name}{number}.png")
    real = protocol.load_exam().changed(("fgsm",), (0.02,))
    light = real.model_copy(
        update={
            "bootstrap": 100,
            "entry_checks": real.entry_checks.model_copy(update={"images": 6, "planted": 1}),
            "corruptions": real.corruptions.model_copy(update={"names": ("gamma",)}),
        }
    )
    monkeypatch.setattr(audits, "load_exam", lambda *_: light)
    document = audits.audit(
        tmp_path / "model.yaml",
        tmp_path / "images",
        tmp_path / "out",
        labels={"COVID-19": "Pneumonia|Lung Opacity"},
        trust_code=True,
    )
    assert [found.name for found in document.findings if found.judged] == ["Pneumonia", "Lung Opacity"]
    assert {(p.finding, p.attack) for p in document.operating_points} >= {("Pneumonia", "fgsm"), ("Pneumonia", "clean")}
    logits = next(check for check in document.entry_checks if check.check == "logits")
    assert logits.passed is None
    assert "taken for the logit of its finding" in logits.text


@pytest.mark.parametrize(("kind", "under"), [(ModelFile, ""), (InputSpec, "input."), (OutputSpec, "output.")])
def test_every_key_of_a_model_file_is_explained(kind: type[BaseModel], under: str) -> None:
    for name in kind.model_fields:
        assert f"`{under}{name}`" in TEXT or (not under and name in ("input", "output")), name
