"""Models with one sigmoid a finding: unknown labels, label maps, and attacks on the decision in both directions."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from foreign_models import Computes
from small_networks import write_onnx
from trustcxr import attacks
from trustcxr.audit import multilabel, subgroups
from trustcxr.audit import run_audit as audits
from trustcxr.audit.formats.loading import _logits
from trustcxr.audit.formats.model_file import OutputSpec
from trustcxr.audit.formats.wrapper import logits_of_probabilities
from trustcxr.errors import UserError
from trustcxr.evaluation import operating_points
from trustcxr.evaluation.operating_points import Threshold
from trustcxr.recipes import protocol
from trustcxr.report.terminal import describe_audit
from trustcxr.storage import atomic

NAMES = ("Bright", "Dark", "Edema", "Hernia")


def sigmoids(scale: float = 1.0) -> nn.Module:
    """Bright above a mean of a half, Dark below, two findings more; as probabilities. Images are scaled first."""
    layer = nn.Linear(1, 4)
    layer.weight.data = torch.tensor([[40.0], [-40.0], [40.0], [1.0]])
    layer.bias.data = torch.tensor([-20.0, 20.0, -20.0, 0.0])
    return Computes(lambda images: torch.sigmoid(layer((images * scale).mean((2, 3)))), layer)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    real = protocol.load_exam()
    few = [a.model_copy(update={"steps": a.steps and 3, "queries": a.queries and 3}) for a in real.attacks]
    entry_checks = real.entry_checks.model_copy(update={"planted": 2, "images": 16})
    light = real.corruptions.model_copy(update={"names": ("gamma",)})
    changed = {"attacks": tuple(few), "entry_checks": entry_checks, "bootstrap": 200, "corruptions": light}
    monkeypatch.setattr(audits, "load_exam", lambda *_: real.model_copy(update=changed))


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three classes, by brightness, and a list that says of some findings what is known of each image."""
    root, random = tmp_path_factory.mktemp("sigmoids"), np.random.default_rng(0)
    rows = []
    for name, grey in (("COVID-19", 0.62), ("Normal", 0.38), ("Non-COVID", 0.58)):
        (root / "images" / name).mkdir(parents=True)
        for number in range(10):
            pixels = 255 * (grey + 0.03 * random.standard_normal() + 0.05 * random.standard_normal((16, 16)))
            file = f"images/{name}/{name}{number}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / file)
            bright = "" if number == 9 else "-1.0" if number == 8 else "0.0" if name == "Normal" else "1.0"
            rows.append({"path": file, "label": name, "Bright": bright, "sex": "FM"[number % 2]})
    pd.DataFrame(rows).to_csv(root / "list.csv", index=False)
    return root


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_file(tmp_path, sigmoids(), f"classes: [{', '.join(NAMES)}], thresholds: [0.7, 0.5, 0.5, 0.5]")


def model_file(folder: Path, net: nn.Module, output: str) -> Path:
    write_onnx(net, folder / "net.onnx", 16)
    text = f"source: net.onnx\ninput: {{size: 16}}\noutput: {{kind: sigmoid, {output}}}\n"
    (folder / "model.yaml").write_text(text)
    return folder / "model.yaml"


MAP = {"COVID-19": "Bright|Edema", "Non-COVID": "Bright"}


def test_what_is_known_of_a_image() -> None:
    table = pd.DataFrame({"class": ["Edema|Hernia", "No Finding", "Edema", "Bright"]})
    expected = [[0, np.nan, 1, 1], [0, np.nan, 0, 0], [0, np.nan, 1, 0], [1, np.nan, 0, 0]]
    np.testing.assert_array_equal(multilabel.labelled_findings(table, NAMES), expected)
    stated = pd.DataFrame({"class": ["x"] * 4, "edema": ["1", "0.0", "-1", None]})
    found = multilabel.labelled_findings(stated, NAMES)
    np.testing.assert_array_equal(found[:, [0, 2]].T, [[np.nan] * 4, [1, 0, np.nan, np.nan]])
    with pytest.raises(UserError, match=r"finding 'bronchitis'.*--label 'bronchitis=Bright'"):
        multilabel.labelled_findings(pd.DataFrame({"class": ["Bronchitis"]}), NAMES)


def test_a_decision_is_attacked_in_both_directions_by_every_attack() -> None:
    logits = Computes(lambda images: 40 * images.mean((2, 3)) - 20 + torch.zeros(1, 4))
    decision = multilabel.Decision(logits, 1, 0.7)
    images = torch.tensor([0.50, 0.53]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4).contiguous()
    labels = decision(images).argmax(1)
    assert labels.tolist() == [0, 1], "the threshold lies at a probability of 0.7, a mean of 0.521"
    for name in ("fgsm", "pgd", "worst-case"):
        options: dict[str, Any] = {"queries": 5, "steps": 5} if name == "worst-case" else {}
        found = attacks.get(name)(decision, images, labels, epsilon=0.03, **options)
        assert decision(found).argmax(1).tolist() == [1, 0], name
        assert float((found - images).abs().max()) <= 0.03 + 1e-6


@pytest.mark.slow
def test_findings_are_judged_each_by_itself(radiographs: Path, model: Path, tmp_path: Path) -> None:
    document = audits.audit(model, radiographs / "images", tmp_path / "out", labels=MAP)
    about = {found.name: found for found in document.findings}
    assert [found.judged for found in document.findings] == [True, False, True, False]
    assert "no image has a label" in about["Dark"].why
    assert (about["Bright"].positives, about["Edema"].positives, about["Bright"].n) == (20, 10, 30)
    points = {(p.finding, p.attack, p.epsilon): p for p in document.operating_points}
    clean = points["Bright", "clean", 0.0]
    assert (clean.threshold, clean.origin) == (0.7, "of the model file")
    table = atomic.read_table(tmp_path / "out" / "predictions.parquet")
    shown = table[(table["attack"] == "clean") & (table["finding"] == "Bright")]
    said = np.stack(shown["logits"]).argmax(1)
    assert clean.sensitivity.value == pytest.approx(said[shown["label"] == 1].mean())
    robust = points["Bright", "worst-case", 0.02]
    assert robust.sensitivity.value <= points["Bright", "pgd", 0.02].sensitivity.value
    assert robust.auroc.value <= clean.auroc.value
    assert robust.auroc.interval is not None
    assert robust.sensitivity_at_specificity.interval is not None
    assert document.clean.n == 60, "a decision an image and finding"
    clean_rows = table[table["attack"] == "clean"]
    answers = np.stack(clean_rows["logits"]).argmax(1)
    assert document.clean.accuracy.value == pytest.approx((answers == clean_rows["label"]).mean())
    text = "\n".join(describe_audit(document))
    assert "Bright, from 0.7 on (of the model file): sensitivity" in text
    assert "Hernia: not evaluated" in text
    assert document.protocol == "exam-1"
    assert {row.corruption for row in document.corruptions} == {"gamma"}


def test_unknown_labels_are_left_out_and_counted(
    radiographs: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subgroups, "SMALLEST", 10)
    document = audits.audit(model, radiographs / "list.csv", tmp_path / "out", attacks=["fgsm"])
    bright = document.findings[0]
    assert (bright.n, bright.positives, bright.unknown) == (24, 16, 6)
    assert [p.n for p in document.operating_points] == [24] * 3
    assert "not known: Bright 6" in "\n".join(describe_audit(document))
    assert {group.name for division in document.subgroups for group in division.groups} >= {"F", "M"}
    assert "Bright" not in {division.column for division in document.subgroups}, "that is what the model is asked for"


def test_findings_answered_the_wrong_way_round_are_noticed(radiographs: Path, model: Path, tmp_path: Path) -> None:
    turned = {"Normal": "Bright", "COVID-19": "Normal", "Non-COVID": "Normal"}
    document = audits.audit(model, radiographs / "images", tmp_path / "out", labels=turned, attacks=["fgsm"])
    declared = next(check for check in document.entry_checks if check.check == "declaration")
    assert declared.passed is False
    assert "Bright is ranked worse than by chance" in declared.text
    assert not document.verdict.sound
    labels = dict.fromkeys(MAP, "Normal")  # so that nothing can be judged
    with pytest.raises(UserError, match="Say with --label"):
        audits.audit(model, radiographs / "images", tmp_path / "none", labels=labels, attacks=["fgsm"])


@pytest.mark.slow
def test_a_binary_model_is_one_finding(radiographs: Path, tmp_path: Path) -> None:
    one = Computes(lambda images: torch.sigmoid(40 * images.mean((2, 3)) - 20))
    model = model_file(tmp_path, one, "classes: [Ill]")
    ill = {"COVID-19": "Ill", "Non-COVID": "Ill"}
    document = audits.audit(model, radiographs / "images", tmp_path / "out", labels=ill, epsilons=[0.1])
    points = {(p.attack, p.epsilon): p for p in document.operating_points}
    clean = points["clean", 0.0]
    assert clean.auroc.value > 0.9
    assert clean.threshold == 0.5
    assert points["pgd", 0.1].auroc.value < clean.auroc.value


def test_the_worst_score_of_any_attack_ranks_the_images() -> None:
    def rows(attack: str, epsilon: float, margins: list[float]) -> pd.DataFrame:
        logits: Any = [np.array([0.0, m]) for m in margins]
        common = {"sample_id": ["a", "b"], "label": [1, 0], "attack": attack, "epsilon": epsilon, "severity": 0}
        return pd.DataFrame(common | {"logits": logits})

    clean, driven = rows("clean", 0, [2, -2]), [rows("pgd", 0.01, [-3, 1]), rows("pgd", 0.05, [-9, 9])]
    table = pd.concat([clean, *driven, rows("worst-case", 0.02, [-1, 2])], ignore_index=True)
    found = multilabel.worst_scores(table)
    assert [float(pair[1]) for pair in found["logits"].iloc[-2:]] == [-3, 2]
    assert found["logits"].iloc[:6].tolist() == table["logits"].iloc[:6].tolist()


def test_a_threshold_is_given_or_chosen_on_validation_or_a_half() -> None:
    logits, truth = np.array([[-2.0, -1.0, 1.0, 2.0, 9.0]]).T, np.array([[0, 0, 1, 1, np.nan]]).T
    plain, stated = (OutputSpec(kind="sigmoid", classes=("a",), thresholds=given) for given in (None, (0.3,)))
    assert multilabel.threshold_of(stated, 0, (logits, truth)) == Threshold(0.3, "of the model file")
    assert multilabel.threshold_of(plain, 0, (logits, truth)).value == pytest.approx(0.5)
    assert "validation" in multilabel.threshold_of(plain, 0, (logits, truth)).origin
    assert "want of another" in multilabel.threshold_of(plain, 0, None).origin


@pytest.mark.parametrize("threshold", [0.001, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_a_score_at_the_threshold_is_a_finding_wherever_it_is_judged(threshold: float, precision: Any) -> None:
    scores = np.array([threshold, threshold - 2e-5, threshold + 2e-5], dtype=precision)
    given, _ = _logits(scores[:, None].astype(float), OutputSpec(kind="sigmoid", classes=("a",)), Path("scores.csv"))
    logits = logits_of_probabilities(torch.tensor(scores[:, None], dtype=torch.float32), "sigmoid")
    about = {"sample_id": list("xyz"), "group": list("xyz"), "attack": "clean", "epsilon": 0.0, "steps": 0}
    table = pd.DataFrame(about | {"severity": 0, "logits": list(given.astype(np.float32))})
    decided = multilabel.as_decisions(table, "a", 0, threshold, dict.fromkeys("xyz", 1.0))
    expected = [True, False, True]
    assert (np.stack(decided["logits"]).argmax(1) == 1).tolist() == expected
    decision = multilabel.Decision(Computes(lambda _: logits), 0, threshold)
    assert (decision(torch.zeros(3, 1, 2, 2)).argmax(1) == 1).tolist() == expected
    (point,) = operating_points.measure_finding(decided, "a", Threshold(threshold), resamples=20)
    assert point.sensitivity.value == pytest.approx(2 / 3)


@pytest.mark.slow
def test_a_wrong_declaration_is_noticed_with_the_remedy(radiographs: Path, model: Path, tmp_path: Path) -> None:
    honest = audits.audit(model, radiographs / "images", tmp_path / "honest", labels=MAP, attacks=["fgsm"])
    assert {c.check: c.passed for c in honest.entry_checks}["declaration"]
    write_onnx(sigmoids(1 / 255), tmp_path / "net.onnx", 16)
    document = audits.audit(model, radiographs / "images", tmp_path / "out", labels=MAP, attacks=["fgsm"])
    said = {check.check: check for check in document.entry_checks}
    assert said["declaration"].passed is False
    assert said["declaration"].text.endswith("write input.range: [0, 255]")
    assert said["better than one answer"].passed is False
    assert "Bright 33.3% (always present: 66.7%)" in said["better than one answer"].text
    assert not document.verdict.sound
