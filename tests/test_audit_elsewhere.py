"""Other images and models through an audit: CT slices, images that are not square, the model file of the documents."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from pydantic import BaseModel
from safetensors.torch import save_file

from foreign_models import small
from test_audit_command import CLASSES, GREYS, Brightness, few_steps, model_file
from test_cli import run
from trustcxr.audit.formats import InputSpec, ModelFile, OutputSpec
from trustcxr.audit.run_audit import audit
from trustcxr.storage.schemas import AuditDocument, read_schema

SIDE, BEYOND = 16, 8
TEXT = (Path(__file__).parents[1] / "docs" / "reference" / "audit.md").read_text()


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "classes"), [("external-cxr", ["COVID-19", "Non-COVID", "Normal"]), ("ct-mini", ["COVID", "NonCOVID"])]
)
def test_another_hospitals_images_and_ct_slices_through_a_whole_audit(
    name: str, classes: list[str], real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm's network for tests, random, as its makers would hand it in: RGB, ImageNet's mean and std."""
    few_steps(monkeypatch)
    net, out = small(len(classes)), tmp_path / "audit"
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, tmp_path / "net.safetensors")
    (tmp_path / "model.yaml").write_text(
        "source: net.safetensors\ntimm: test_resnet\n"
        "input: {size: 32, channels: 3, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}\n"
        f"output: {{kind: logits, classes: [{', '.join(classes)}]}}\n"
    )
    run("audit", tmp_path / "model.yaml", "--data", real_data / name, "--out", out, "--json")
    assert (out / "model_card.md").is_file()
    found = read_schema(AuditDocument, out / "audit.json")
    assert (found.protocol, found.data.name, found.classes) == ("exam-1", name, classes)
    assert found.clean.n == found.data.n
    assert len(found.corruptions) == 15
    left = {(row.attack, row.epsilon): row.accuracy.value or 0.0 for row in found.attacks}
    assert left["worst-case", 0.02] <= min(left["pgd", 0.02], left["square", 0.02], left["fgsm", 0.02])
    assert [point.finding for point in found.operating_points if point.attack == "clean"] == classes
    declared = [check.passed for check in found.entry_checks if check.check == "declaration"]
    assert False in declared or found.alarms
    said = run("leaderboard", tmp_path).stdout + (out / "report.html").read_text()
    assert f"{found.data.n} images of {name}" in said


@pytest.mark.parametrize("resize", ["squeeze", "pad", "crop"])
def test_an_audit_resizes_as_the_model_file_says(resize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of 16 by 32 pixels: the middle has the grey of its class, the rest that of the next."""
    few_steps(monkeypatch)
    images, path, random = tmp_path / "images", model_file(tmp_path / "model", Brightness()), np.random.default_rng(0)
    for k, name in enumerate(CLASSES):
        (images / name).mkdir(parents=True)
        for number in range(8):
            image = np.full((SIDE + 2 * BEYOND, SIDE), GREYS[(k + 1) % 3])
            image[BEYOND:-BEYOND] = GREYS[k] + 0.02 * random.standard_normal((SIDE, SIDE))
            Image.fromarray((255 * image).astype(np.uint8)).save(images / name / f"{name}{number}.png")
    path.write_text(path.read_text().replace("{size: 16}", f"{{size: 16, resize: {resize}}}"))
    found = audit(path, images, tmp_path / "audit", attacks=["fgsm"])
    assert found.clean.accuracy.value is not None
    assert (found.clean.accuracy.value == 1) == (resize == "crop"), "what lies beyond the middle misleads"
    assert "resize" not in {check.check for check in found.entry_checks}
    if resize == "crop":
        table = pd.read_parquet(tmp_path / "audit" / "predictions.parquet")
        row = table[table["attack"] == "clean"].set_index("sample_id").filter(like="bright3", axis=0)
        middle = np.asarray(Image.open(images / "bright" / "bright3.png"))[BEYOND:-BEYOND]
        wanted = Brightness()(torch.from_numpy(middle / 255).float()[None, None])[0]
        assert np.allclose(row["logits"].iloc[0], wanted.detach(), atol=1e-3)


@pytest.mark.full
def test_torchxrayvisions_densenet_goes_through_an_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchxrayvision.models")
    starts = ("yaml", 'python title="theirs.py"')
    text, code = (re.findall(rf"```{start}\n(.*?)```", TEXT, re.S)[0] for start in starts)
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
    few_steps(monkeypatch)
    options = {"labels": {"COVID-19": "Pneumonia|Lung Opacity"}, "attacks": ["fgsm"], "epsilons": [0.02]}
    document = audit(tmp_path / "model.yaml", tmp_path / "images", tmp_path / "out", trust_code=True, **options)
    assert [found.name for found in document.findings if found.judged] == ["Pneumonia", "Lung Opacity"]
    assert {(p.finding, p.attack) for p in document.operating_points} >= {("Pneumonia", "fgsm"), ("Pneumonia", "clean")}
    logits = next(check for check in document.entry_checks if check.check == "logits")
    assert logits.passed is None
    assert "taken for the logit of its finding" in logits.text


@pytest.mark.parametrize(("kind", "under"), [(ModelFile, ""), (InputSpec, "input."), (OutputSpec, "output.")])
def test_every_key_of_a_model_file_is_explained(kind: type[BaseModel], under: str) -> None:
    for name in kind.model_fields:
        assert f"`{under}{name}`" in TEXT or (not under and name in ("input", "output")), name
