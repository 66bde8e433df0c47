"""The functions of `import trustcxr as tx`: they give what the commands give, as tables that a notebook shows."""

from pathlib import Path

import numpy as np
import pytest
import torch

import trustcxr as tx
from pack import Pack
from trustcxr.api import Answers
from trustcxr.attacks.adaptive import probe_gradients
from trustcxr.errors import UserError
from trustcxr.storage import schemas
from trustcxr.version import NOTICE

FGSM = {"attacks": ["fgsm"], "epsilons": [0.02]}


@pytest.fixture
def good(pack: Pack) -> schemas.AuditDocument:
    return schemas.read_schema(schemas.AuditDocument, pack.audits() / "good" / "audit.json")


@pytest.mark.slow
def test_train_evaluate_and_predict_in_three_lines(pack: Pack, tmp_path: Path) -> None:
    options = {"model": "test_resnet", "weights": "none", "size": 32, "training": {"epochs": 1}}
    run = tx.train(pack.images(), tmp_path / "run", **options)
    result = tx.evaluate(run.folder, pack.images(), attacks=["fgsm"])
    answers = tx.predict(run.folder, next(pack.images().rglob("*.png")), out=tmp_path / "maps")
    table = result.table()
    assert list(table["condition"]) == ["clean", "fgsm"]
    assert table["accuracy"][0] == result.clean.accuracy.value
    assert ((table["low"] <= table["accuracy"]) & (table["accuracy"] <= table["high"])).all()
    assert (result.folder / "metrics.json").is_file()
    assert answers.table()["class"][0] in run.classes
    for shown in (result._repr_html_(), answers._repr_html_()):
        assert "<table" in shown
        assert NOTICE in shown


def test_compare_shows_both_models_and_the_difference(pack: Pack) -> None:
    pair = tx.compare(pack.audits() / "good", pack.audits() / "bad")
    table = pair.table()
    assert {"condition", "good", "bad", "difference", "low", "high", "p, corrected", "n"} == set(table.columns)
    assert np.allclose(table["bad"] - table["good"], table["difference"], atol=1e-6)


def test_an_audit_says_first_whether_its_figures_can_be_relied_on(good: schemas.AuditDocument) -> None:
    good.verdict = schemas.Verdict(sound=False, reasons=["a planted example was missed"])
    for shown in (good._repr_html_(), str(good)):
        assert shown.index("NOT sound") < shown.index("planted example") < shown.index("clean") < shown.index(NOTICE)
    good.verdict.sound = True
    assert "is sound" in str(good)


@pytest.mark.parametrize("scripted", [False, True])
def test_no_image_is_left_out_of_a_loaded_data_set(scripted: bool, pack: Pack) -> None:
    data = tx.load_dataset(pack.images(), split="Test", size=32)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32 * 32, len(data.classes)))
    audit = tx.audit.run(torch.jit.script(model) if scripted else model, data, **FGSM)
    assert audit.clean.n == len(data)
    assert [(step.n, step.left_out or 0) for step in audit.facts.flow] == [(len(data), 0)] * len(audit.facts.flow)


def test_a_robustness_figure_has_the_lowest_accuracy_at_each_epsilon(good: schemas.AuditDocument) -> None:
    (line,) = tx.plot.robustness(good).axes[0].lines
    radii = sorted({row.epsilon for row in good.attacks})
    lowest = [min(row.accuracy.value for row in good.attacks if row.epsilon == radius) for radius in radii]
    assert list(line.get_xdata()) == [0.0, *radii]
    assert list(line.get_ydata()) == [good.clean.accuracy.value, *lowest]
    with pytest.raises(UserError, match="no accuracy under nothing"):
        tx.plot.robustness(good, attack="nothing")
    good.attacks.append(good.attacks[-1].model_copy(update={"attack": "pgd-l2", "epsilon": 0.5}))
    assert list(tx.plot.robustness(good).axes[0].lines[0].get_xdata()) == [0.0, *radii], "L2 is not L-infinity"


def test_an_answer_near_the_border_is_a_doubt_in_the_table() -> None:
    near = schemas.ImageAnswer(
        image="a.png", probabilities={"ill": 0.51, "well": 0.49}, border="near the decision border"
    )
    assert Answers([near]).table()["doubts"][0] == "near the decision border"


class Flipped(torch.nn.Module):
    """Answers by the brightness; `flip` is no weight."""

    def __init__(self, flip: bool, offset: float = 0.0, noise: float = 0.0) -> None:
        super().__init__()
        self.flip, self.offset, self.noise = flip, offset, noise

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean((1, 2, 3)) - 0.5
        logits = torch.stack([mean, -mean, 0 * mean], 1) * (-4 if self.flip else 4)
        return logits + self.noise * torch.randn_like(logits) + self.offset


def test_an_audit_of_another_object_of_the_same_class_is_not_that_of_the_first(pack: Pack, tmp_path: Path) -> None:
    data = tx.load_dataset(pack.images(), split="Test", size=32)
    one, other = (tx.audit.run(Flipped(flip), data, out=tmp_path / "audit", **FGSM) for flip in (False, True))
    assert one.examination != other.examination


def test_what_all_logits_share_is_no_random_answer_of_classes_and_hides_none() -> None:
    class Moody(Flipped):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) + 3 * torch.randn(len(images), 1)

    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not probe_gradients(Moody(False), images).random
    assert probe_gradients(Moody(False), images, sigmoids=True).random, "of findings it is a change of each"
    assert probe_gradients(Flipped(False, offset=300_000.0, noise=2.0), images).random
    assert not probe_gradients(Flipped(False, offset=300_000.0), images).random


def test_a_saliency_figure_has_the_map_and_the_outline() -> None:
    image, heat, mask = torch.rand(1, 16, 16), torch.rand(16, 16), torch.zeros(16, 16)
    mask[4:9, 4:9] = 1
    figure = tx.plot.saliency(image, heat, mask)
    assert [len(axes.images) for axes in figure.axes] == [1, 2]
    assert all(axes.collections for axes in figure.axes)
    assert figure._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="the saliency map has shape"):
        tx.plot.saliency(image, heat[:8])


def test_a_roc_figure_has_scikit_learns_areas() -> None:
    from sklearn.metrics import roc_auc_score

    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], len(labels))
    figure = tx.plot.roc(labels, probabilities, ["a", "b", "c"])
    words = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    for k, name in enumerate("abc"):
        assert f"{name}, AUROC {roc_auc_score(labels == k, probabilities[:, k]):.3f}" in words
    with pytest.raises(UserError, match="do not fit"):
        tx.plot.roc(labels, probabilities, ["a", "b"])


def brightness() -> torch.nn.Module:
    """A model that answers by the mean grey."""
    last = torch.nn.Linear(1, 3)
    last.load_state_dict({"weight": torch.tensor([[-8.0], [0.0], [8.0]]), "bias": torch.tensor([2.4, 0.0, -3.6])})
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), last)


@pytest.mark.slow
def test_an_audit_of_a_module_is_the_document_of_the_command(pack: Pack, tmp_path: Path) -> None:
    data = tx.load_dataset(pack.greys(), size=32)
    document = tx.audit.run(brightness(), data, out=tmp_path / "audit", **FGSM)
    assert (tmp_path / "audit" / "audit.json").is_file()
    assert document.folder == tmp_path / "audit"
    assert list(document.table()["condition"][:2]) == ["clean", "fgsm"]
    assert "<table" in document._repr_html_()
    checks = {check.check: check.passed for check in document.entry_checks}
    assert checks["same answer in another order"] is True, "a copy of the module is the second instance"
    by_path = brightness()
    by_path.classes, by_path.size = data.classes, 32
    assert tx.audit.run(by_path, pack.greys(), **FGSM).clean == document.clean
    with pytest.raises(UserError, match="classes or image size are unknown"):
        tx.audit.run(brightness(), pack.greys())
    with pytest.raises(UserError, match="its size 16 is not the model's"):
        tx.audit.run(by_path, tx.load_dataset(pack.greys(), size=16))


@pytest.mark.slow
def test_a_module_that_has_no_copy_is_not_called_sound(pack: Pack) -> None:
    class Uncopied(torch.nn.Sequential):
        def __deepcopy__(self, memo: object) -> object:
            raise RuntimeError

    document = tx.audit.run(Uncopied(*brightness()), tx.load_dataset(pack.greys(), size=32), **FGSM)
    checks = {check.check: check.passed for check in document.entry_checks}
    assert checks["same answer in another order"] is None
    assert document.verdict.sound is False
