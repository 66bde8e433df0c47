"""A stronger attack, handed in as images: checked, and counted where it is the worse of the two."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from foreign_models import Computes
from pack import Pack
from small_networks import write_onnx
from test_audit_command import Brightness, _short, model_file  # noqa: F401
from test_cli import complaint
from trustcxr.audit import run_audit as audits
from trustcxr.audit.audit_data import read_submitted
from trustcxr.audit.measure import worst_with_submitted
from trustcxr.data import load_dataset
from trustcxr.errors import UserError
from trustcxr.report import audit_html, leaderboard
from trustcxr.report.terminal import describe_audit
from trustcxr.storage import atomic

Images = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def images(pack: Pack) -> Images:
    """The images, each moved toward the next brightness: for this model the strongest that there is."""
    images = load_dataset(pack.greys(), size=16, classes=("dark", "grey", "bright"))
    pixels = torch.from_numpy(np.array(images.images)).float() / 255
    ways = torch.tensor([1.0, 1.0, -1.0])[torch.from_numpy(np.asarray(images.labels))]
    moved = (pixels + 0.2 * ways[:, None, None, None]).clamp(0, 1)
    return dict(zip(images.sample_ids.tolist(), moved, strict=True))


def written(path: Path, images: Images, **about: str) -> Path:
    save_file(images, str(path), metadata={"epsilon": "0.2", "by": "somebody"} | about)
    return path


@pytest.mark.slow
def test_the_worse_of_both_counts(pack: Pack, tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = model_file(tmp_path / "model", Brightness()), {"attacks": ["worst-case"], "epsilons": [0.2]}
    weak = audits.load_exam().changed(("worst-case",), (0.2,))
    short = weak.attacks[0].model_copy(update={"epsilons": (0.2,), "steps": 1, "queries": 1})
    monkeypatch.setattr(audits, "load_exam", lambda *_: weak.model_copy(update={"attacks": (short,)}))
    monkeypatch.setattr("trustcxr.audit.attack_runner.AttackRunner.__call__", lambda self, a, x, *rest: x)
    alone = audits.audit(model, pack.greys(), tmp_path / "alone", **asked)
    stronger = written(tmp_path / "a.safetensors", images)
    both = audits.audit(model, pack.greys(), tmp_path / "both", adversarial=stronger, **asked)
    ours, theirs = alone.attacks[0].accuracy.value, both.attacks[0].accuracy.value
    assert theirs < ours - 0.5
    assert leaderboard.own_accuracy(both) == leaderboard.own_accuracy(alone) == ours, "by it a leaderboard ranks both"
    found = both.submitted[0]
    assert (found.by, found.epsilon, found.n, found.missed) == ("somebody", 0.2, 36, pytest.approx(0, abs=3))
    assert both.attacks[0].broken_by["somebody"] == found.found_alone
    table = atomic.read_table(tmp_path / "both" / "predictions.parquet")
    worst = table[table["attack"] == "worst-case"]
    assert theirs == pytest.approx((np.stack(worst["logits"]).argmax(1) == worst["label"]).mean())
    assert "adversarial images of somebody at epsilon 0.2" in "\n".join(describe_audit(both))
    assert both.plain()["protocol"] is None
    assert both.plain()["examination"] != alone.plain()["examination"]


@pytest.mark.parametrize(
    ("change", "about", "words"),
    [
        (lambda name, image: {name: image * 0 + 1.0}, {}, "beyond the epsilon of 0.2"),
        (lambda name, image: {name: image + 1}, {}, "leaves"),
        (lambda name, image: {name: image[:, 1:]}, {}, "but the image is a float image"),
        (lambda name, image: {name: (image * 255).byte()}, {}, "torch.uint8"),
        (lambda name, image: {"another": image}, {}, "is none of these images"),
        (lambda name, image: {name: image}, {"epsilon": "a fifth"}, "must say epsilon"),
        (lambda name, image: {name: image}, {"by": "team\n\n## Certified"}, "by: one line"),
        (lambda name, image: {f"{name}#dark": image}, {}, "behind an image's id may stand nothing"),
        (lambda name, image: {name: image}, {"epsilon": "0.9"}, "worst-case is tried at 0.02"),
    ],
)
def test_each_file_is_checked(change: Any, about: Any, words: str, pack: Pack, tmp_path: Path, images: Images) -> None:
    name = next(iter(images))
    path = written(tmp_path / "bad.safetensors", change(name, images[name]), **about)
    model = model_file(tmp_path / "model", Brightness())
    assert words in complaint("audit", model, "--data", pack.greys(), "--out", tmp_path / "out", "--adversarial", path)


def test_a_file_that_is_none_is_refused(pack: Pack, tmp_path: Path) -> None:
    (tmp_path / "no.safetensors").write_bytes(b"no")
    model = model_file(tmp_path / "model", Brightness())
    given = ["audit", model, "--data", pack.greys(), "--out", tmp_path / "out", "--adversarial"]
    for name in ("no.safetensors", "missing.safetensors"):
        assert "no safetensors file" in complaint(*given, tmp_path / name)


def test_images_of_a_finding_count_for_it_and_those_of_a_image_for_all_its_others(pack: Pack, tmp_path: Path) -> None:
    present = Computes(lambda images: (images.mean((1, 2, 3)) - 0.5)[:, None] * torch.tensor([0, 10]))  # if bright
    images = load_dataset(pack.greys(), size=16, classes=("dark", "grey", "bright"))
    names = [str(name) for name, label in zip(images.sample_ids, images.labels, strict=True) if label == 2][:2]
    light, dark = torch.full((1, 16, 16), 0.9), torch.full((1, 16, 16), 0.1)
    found = {names[0]: dark, f"{names[0]}#Edema": light, f"{names[1]}#Edema": dark.clone()}
    given = read_submitted(written(tmp_path / "a.safetensors", found, epsilon="1"), images, ("Bright", "Edema"))
    table = pd.DataFrame({"sample_id": [f"{n}#{finding}" for n in names for finding in ("Bright", "Edema")]})
    table = table.assign(attack="worst-case", epsilon=1.0, label=1, broken_by="", logits=[np.array([0.0, 4.0])] * 4)
    table["group"] = np.repeat(names, 2)
    worse, (counted,) = worst_with_submitted(table, given, present, torch.device("cpu"))
    wrong = [bool(logits.argmax() != 1) for logits in worse["logits"]]
    assert wrong == [True, False, False, True], "the image's image for Bright, its own for Edema"
    assert list(worse["broken_by"]) == ["somebody", "", "", "somebody"]
    assert (counted.n, counted.found_alone, counted.missed) == (3, 2, 0)
    only = {f"{names[0]}#Edema": dark.clone()}
    other = read_submitted(written(tmp_path / "c.safetensors", only, epsilon="1"), images, ("Bright", "Edema"))
    table = table[table["sample_id"].str.endswith("#Bright")]
    same, none = worst_with_submitted(table, other, present, torch.device("cpu"))
    assert same is table
    assert none == []
    mistyped = written(tmp_path / "e.safetensors", {f"{names[0]}#Edma": dark.clone()}, epsilon="1")
    with pytest.raises(UserError, match="#Edma: behind an image's id may stand one of its findings, Bright, Edema"):
        read_submitted(mistyped, images, ("Bright", "Edema"))
    with pytest.raises(UserError, match="holds no image"):
        read_submitted(written(tmp_path / "d.safetensors", {}, epsilon="1"), images)
    with pytest.raises(UserError, match="nobody#Edema is none of these images"):
        read_submitted(written(tmp_path / "b.safetensors", {"nobody#Edema": dark.clone()}, epsilon="1"), images)


@pytest.mark.slow
def test_images_of_a_finding_alone_are_judged_of_it_or_refused(pack: Pack, tmp_path: Path, images: Images) -> None:
    findings = Computes(lambda images: torch.sigmoid((images.mean((2, 3)) - 0.5) * torch.tensor([40.0, -40.0])))
    write_onnx(findings, tmp_path / "net.onnx", 16)
    model, greys = tmp_path / "model.yaml", pack.greys()
    output = "{kind: sigmoid, classes: [Bright, Dark], thresholds: 0.5}"
    model.write_text(f"source: net.onnx\ninput: {{size: 16}}\noutput: {output}\n")
    asked: Any = {"attacks": ["worst-case"], "epsilons": [0.2]}
    given = {f"{name}#Dark": image.contiguous() for name, image in list(images.items())[:6]}
    path = written(tmp_path / "a.safetensors", given, by="<script>alert(1)</script>")
    labels = {"bright": "Bright", "dark": "Dark", "grey": "Normal"}
    document = audits.audit(model, greys, tmp_path / "out", labels=labels, adversarial=path, **asked)
    (found,) = document.submitted
    assert (found.by, found.n) == ("<script>alert(1)</script> (Dark)", 6)
    card = audit_html.render_card(document)
    assert "<script>" not in card
    assert "&lt;script>alert(1)&lt;/script> (Dark) at epsilon 0.2" in card
    assert "<script>alert" not in audit_html.render(document)
    labels["dark"] = "Normal"  # so that Dark is not judged
    with pytest.raises(UserError, match="no image of a finding that is judged"):
        audits.audit(model, greys, tmp_path / "none", labels=labels, adversarial=path, **asked)
