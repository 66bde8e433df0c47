"""A model that answers at random: judged by the mean over draws, and in the worst case by the worst of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pack import Pack
from test_audit_command import CLASSES, GREYS, Brightness, _short  # noqa: F401
from test_cli import run
from trustcxr.audit import run_audit as audits
from trustcxr.data import load_dataset
from trustcxr.evaluation.predictions import OverDraws, predict_logits
from trustcxr.report.terminal import describe_audit
from trustcxr.storage import atomic
from trustcxr.storage.schemas import read_schema


class Restless(Brightness):
    """Brightness, of images that are made darker or brighter by chance."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images + 0.06 * torch.randn_like(images[:, :, :1, :1]))


class OneSigmoid(Restless):
    def forward(self, images: Tensor) -> Tensor:
        moved = images + 0.06 * torch.randn_like(images[:, :, :1, :1])
        return torch.sigmoid(20 * (moved.mean((2, 3)) - 0.6))


def restless(folder: Path, net: nn.Module, output: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.jit.trace(net.eval(), torch.rand(2, 1, 16, 16), check_trace=False).save(str(folder / "net.pt"))
    (folder / "model.yaml").write_text(f"source: net.pt\ninput: {{size: 16}}\noutput: {output}\n")
    return folder / "model.yaml"


LOGITS = f"{{kind: logits, classes: [{', '.join(CLASSES)}]}}"


def test_the_worst_draw_of_each_image_counts_and_how_many_are_right() -> None:
    images, labels = torch.rand(6, 1, 8, 8) * 0.2 + 0.4, torch.tensor([0, 1, 2, 1, 0, 2])
    model = OverDraws(Restless())
    torch.manual_seed(3)
    first = model.model(images).detach()
    with torch.no_grad():
        torch.manual_seed(3)
        drawn = model.each(images)
        torch.manual_seed(3)
        mean, share = predict_logits(model, images, labels, at_worst=False)
        torch.manual_seed(3)
        worst, again = predict_logits(model, images, labels, at_worst=True)
    assert drawn.shape == (16, 6, 3)
    assert len(drawn.unique(dim=0)) == 16
    assert not (drawn == first).all((1, 2)).any(), "an attack that begins with this random state has seen none of them"
    assert torch.allclose(mean, drawn.mean(0))
    assert np.array_equal(share, again)
    assert 0 < share.mean() < 1
    for place, label in enumerate(labels):
        margins = [float(one[label] - max(v for k, v in enumerate(one) if k != label)) for one in drawn[:, place]]
        assert torch.equal(worst[place], drawn[int(np.argmin(margins)), place])
        assert share[place] == np.mean([margin > 0 for margin in margins])
        assert (int(worst[place].argmax()) == label) == (share[place] == 1)


@pytest.mark.slow
def test_what_counts_in_the_worst_case_stands_beside_what_one_answer_is_worth(pack: Pack, tmp_path: Path) -> None:
    model = restless(tmp_path / "model", Restless(), LOGITS)
    asked = ["--attack", "fgsm", "--attack", "worst-case", "--epsilon", "0.02"]
    done = run("audit", model, "--data", pack.greys(), "--out", tmp_path / "audit", "--trust-code", *asked, "--json")
    found = json.loads(done.stdout)
    assert "see the same draw" not in done.stderr
    worst = next(row for row in found["attacks"] if row["attack"] == "worst-case")
    steady = next(row for row in found["attacks"] if row["attack"] == "fgsm")
    assert worst["draws"]["count"] == found["clean"]["draws"]["count"] == 16
    each, one = (worst["draws"][name]["value"] for name in ("each", "one"))
    assert worst["accuracy"]["value"] == each < one < found["clean"]["draws"]["one"]["value"]
    assert steady["draws"]["each"]["value"] < steady["draws"]["one"]["value"]
    assert steady["accuracy"]["value"] > steady["draws"]["each"]["value"], "of one attack the mean of the draws counts"
    assert found["clean"]["accuracy"]["value"] > found["clean"]["draws"]["each"]["value"]
    table = atomic.read_table(tmp_path / "audit" / "predictions.parquet")
    rows = table[table["attack"] == "worst-case"]
    assert rows["right_share"].mean() == pytest.approx(one)
    right = np.stack(rows["logits"].tolist()).argmax(1) == rows["label"].to_numpy()
    assert np.array_equal(right, rows["right_share"].to_numpy() == 1)
    text = "\n".join(describe_audit(read_schema(audits.AuditDocument, tmp_path / "audit" / "audit.json")))
    shown = f"{100 * one:.1f} %"
    assert f"its answers are random: accuracy of one draw {shown}" in text.replace("%", " %").replace("  %", " %")
    assert "the mean of 16 draws, under worst-case the worst of 16" in text
    assert "under FGSM but" not in text, "the one is judged by the mean of its draws, the other by the worst"


@pytest.mark.slow
def test_submitted_images_meet_the_worst_draw_too(pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load_dataset(pack.greys(), size=16, classes=CLASSES)
    pixels = torch.from_numpy(np.array(images.images)).float() / 255
    save_file(
        {name: (pixels[row] + 0.05).clamp(0, 1) for row, name in enumerate(images.sample_ids.tolist())},
        str(tmp_path / "a.safetensors"),
        metadata={"epsilon": "0.05", "by": "somebody"},
    )
    monkeypatch.setattr("trustcxr.audit.attack_runner.AttackRunner.__call__", lambda self, a, x, *rest: x)
    asked = {"attacks": ["worst-case"], "epsilons": [0.05], "trust_code": True}
    model = restless(tmp_path / "model", Restless(), LOGITS)
    found = audits.audit(model, pack.greys(), tmp_path / "out", adversarial=tmp_path / "a.safetensors", **asked)  # type: ignore[arg-type]
    again = audits.audit(model, pack.greys(), tmp_path / "again", adversarial=tmp_path / "a.safetensors", **asked)  # type: ignore[arg-type]
    assert again.submitted[0].plain() == found.submitted[0].plain()
    assert again.attacks[0].plain() == found.attacks[0].plain()
    table = atomic.read_table(tmp_path / "out" / "predictions.parquet")
    rows = table[(table["attack"] == "worst-case").to_numpy()]
    theirs = rows[(rows["broken_by"] == "somebody").to_numpy()]
    assert len(theirs) == found.submitted[0].found_alone > 0
    assert (theirs["right_share"] < 1).all()
    assert (np.stack(theirs["logits"].tolist()).argmax(1) != theirs["label"].to_numpy()).all()
    assert found.attacks[0].accuracy.value == found.attacks[0].draws.each.value  # type: ignore[union-attr]
    assert found.clean.accuracy.value == 1
    assert found.submitted[0].accuracy.value < 0.6, "their mean over draws is right, and not each draw"  # type: ignore[operator]


@pytest.mark.slow
def test_of_findings_each_decision_has_its_draws(pack: Pack, tmp_path: Path) -> None:
    model = restless(tmp_path / "model", OneSigmoid(), "{kind: sigmoid, classes: [bright], thresholds: [0.5]}")
    labels: dict[str, str | None] = {"dark": "Normal", "grey": "Normal", "bright": "bright"}
    asked: Any = {"attacks": ["worst-case"], "epsilons": [0.02], "trust_code": True}
    found = audits.audit(model, pack.greys(), tmp_path / "out", labels=labels, **asked)
    assert found.clean.draws is None, "images as they are were answered for all findings at once"
    assert found.attacks[0].accuracy.value == found.attacks[0].draws.each.value
    assert GREYS[2] > 0.6 > GREYS[1]


def test_a_model_without_chance_has_no_such_figures(pack: Pack, tmp_path: Path) -> None:
    asked: Any = {"attacks": ["fgsm"], "epsilons": [0.02], "trust_code": True}
    found = audits.audit(restless(tmp_path / "model", Brightness(), LOGITS), pack.greys(), tmp_path / "out", **asked)
    assert "draws" not in found.plain()["clean"]
    assert "draws" not in found.plain()["attacks"][0]
    assert "right_share" not in atomic.read_table(tmp_path / "out" / "predictions.parquet")
    assert "at random" not in "\n".join(describe_audit(found))


@pytest.mark.slow
def test_the_same_command_draws_the_same(pack: Pack, tmp_path: Path) -> None:
    model = restless(tmp_path / "model", Restless(), LOGITS)
    tables = []
    for place in ("one", "two"):
        torch.rand(7)  # whatever was drawn before
        audits.audit(model, pack.greys(), tmp_path / place, attacks=["fgsm"], epsilons=[0.02], trust_code=True)
        tables.append(atomic.read_table(tmp_path / place / "predictions.parquet"))
    for column in ("logits", "right_share", "moved"):
        assert np.array_equal(*(np.stack(table[column].tolist()) for table in tables), equal_nan=True), column
    first, second = np.split(np.stack(tables[0]["logits"].tolist())[:32], 2)
    assert not np.array_equal(first, second)
