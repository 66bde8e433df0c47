"""Each class at its own threshold is attacked there: against PGD on that very decision, and against a toy by hand."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from foreign_models import Computes
from small_networks import SIDE, images_and_labels, trained, write_onnx
from trustcxr import attacks
from trustcxr.audit import attack_runner
from trustcxr.audit import run_audit as audits
from trustcxr.evaluation import operating_points
from trustcxr.evaluation.operating_points import Threshold
from trustcxr.recipes import protocol
from trustcxr.report.terminal import describe_audit

CLASSES = ("a", "b", "c")
EPSILON = 0.04


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    real = protocol.load_exam()
    attacked = [a for a in real.attacks if a.name != "square"]
    few = [{"epsilons": (EPSILON,), "queries": a.queries and 2, "steps": a.steps and 10} for a in attacked]
    changed: Any = {"attacks": tuple(a.model_copy(update=less) for a, less in zip(attacked, few, strict=True))}
    changed["corruptions"] = real.corruptions.model_copy(update={"names": ("gamma",)})
    changed["entry_checks"] = real.entry_checks.model_copy(update={"planted": 1, "images": 8})
    monkeypatch.setattr(audits, "load_exam", lambda *_: real.model_copy(update=changed | {"bootstrap": 200}))


def written(folder: Path, split: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    images, labels = images_and_labels(count, seed=seed)
    grey = (images * 255).round().to(torch.uint8)
    for number, (image, label) in enumerate(zip(grey, labels.tolist(), strict=True)):
        path = folder / split / CLASSES[label] / f"{split}{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    return grey.float() / 255, labels


def own_decision(net: nn.Module, k: int, threshold: float) -> nn.Module:
    """Whether an image is of class k, by the probability of that class and a threshold; written out once more."""

    def answer(images: Tensor) -> Tensor:
        probability = net(images).double().softmax(1)[:, k]
        margin = (probability.log() - torch.log1p(-probability) - np.log(threshold / (1 - threshold))).float()
        return torch.stack([torch.zeros_like(margin), margin], 1)

    return Computes(answer, net).eval()


@pytest.mark.slow
@pytest.mark.parametrize("given", [(), (0.2, 0.3, 0.6)])
def test_no_class_keeps_more_than_pgd_on_its_own_decision_leaves(given: tuple[float, ...], tmp_path: Path) -> None:
    images, labels = written(tmp_path / "images", "Test", 45, seed=5)
    written(tmp_path / "images", "Val", 45, seed=6)
    write_onnx(trained(), tmp_path / "net.onnx", SIDE)
    model = tmp_path / "model.yaml"
    output = f"classes: [{', '.join(CLASSES)}]" + (f", thresholds: {list(given)}" if given else "")
    model.write_text(f"source: net.onnx\ninput: {{size: {SIDE}}}\noutput: {{{output}}}\n")
    document = audits.audit(model, tmp_path / "images", tmp_path / "out")
    points = document.operating_points
    for k, name in enumerate(CLASSES):
        worst = next(p for p in points if (p.finding, p.attack) == (name, "worst-case"))
        assert not given or (worst.threshold, worst.origin) == (given[k], operating_points.GIVEN)
        decision, own = own_decision(trained(), k, worst.threshold), (labels == k).long()
        margins = decision(attacks.pgd(decision, images, own, epsilon=EPSILON, steps=10))[:, 1].detach().numpy()
        there, said = own.numpy() == 1, margins >= 0
        # Another random start may leave an image more or less.
        assert worst.sensitivity.value * there.sum() < said[there].sum() + 1.01
        assert worst.specificity.value * (~there).sum() < (~said[~there]).sum() + 1.01
        assert worst.auroc.value <= roc_auc_score(there, margins) + 0.01
        for other in (p for p in points if p.finding == name):
            for rate in ("sensitivity", "specificity", "auroc"):
                assert getattr(worst, rate).value <= getattr(other, rate).value, (rate, other.attack)
    aims = {"clean": "", "pgd": "answer", "worst-case": "threshold"}
    assert {(p.attack, p.aimed_at) for p in points if p.attack in aims} == set(aims.items())
    text = "\n".join(describe_audit(document))
    assert re.search(r"worst-case(-\d+/\d+)? at epsilon 0.04, made against this threshold, at most: sens", text)
    assert (tmp_path / "out" / "one_vs_rest.parquet").is_file()


@pytest.mark.parametrize("threshold", [Threshold(0.3), Threshold(None)])
def test_the_decision_of_a_class_is_that_of_its_operating_point(threshold: Threshold) -> None:
    images, _ = images_and_labels(40, seed=3)
    logits = trained()(images).detach()
    for k in range(3):
        said = attack_runner.decision(trained(), k, threshold)(images).argmax(1) == 1
        scores = logits.double().softmax(1)[:, k]
        expected = logits.argmax(1) == k if threshold.value is None else scores >= threshold.value
        assert torch.equal(said, expected)


def table(attack: str, epsilon: float, rows: list[list[float]], labels: list[int]) -> pd.DataFrame:
    names = [f"image{i}" for i in range(len(rows))]
    about = {"sample_id": names, "group": names, "label": labels, "steps": 1, "severity": 0}
    return pd.DataFrame(about | {"attack": attack, "epsilon": epsilon, "logits": [np.log(row) for row in rows]})


def test_a_image_counts_with_its_worst_score_under_any_attack_within_the_radius() -> None:
    labels = [0, 1]
    clean = table("clean", 0, [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]], labels)
    fgsm = table("fgsm", 0.02, [[0.4, 0.3, 0.3], [0.1, 0.4, 0.5]], labels)
    beyond = table("pgd", 0.05, [[0.01, 0.9, 0.09], [0.9, 0.05, 0.05]], labels)
    length = table("pgd-l2", 0.01, [[0.02, 0.9, 0.08], [0.9, 0.05, 0.05]], labels)
    worst = table("worst-case", 0.02, [[0.45, 0.5, 0.05], [0.25, 0.35, 0.4]], labels)
    aimed = table("pgd", 0.02, [[0.5, 0.2, 0.3], [0.6, 0.3, 0.1]], labels)
    predictions = pd.concat([clean, fgsm, beyond, length, worst], ignore_index=True)
    given = {"a": Threshold(0.42), "b": Threshold(0.5), "c": Threshold(None)}
    for extra, specificity in ((None, 1.0), (aimed, 0.0)):
        found = operating_points.measure_classes(predictions, CLASSES, given, aimed=extra, resamples=20)
        row = next(p for p in found if (p.finding, p.attack) == ("a", "worst-case"))
        assert (row.sensitivity.value, row.specificity.value) == (0.0, specificity), "0.4 under FGSM; 0.6 when aimed at"
        assert row.auroc.value == (0.0 if extra is not None else 1.0)
        assert row.aimed_at == ("answer" if extra is None else "threshold")
        other = next(p for p in found if (p.finding, p.attack) == ("c", "worst-case"))
        assert other.specificity.value == 0.5, "of one image c is the highest, under FGSM and worst case"
