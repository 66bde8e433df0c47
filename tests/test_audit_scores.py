"""Tables of scores in a model's place: whose scores they are, and where thresholds come from."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from test_audit_tables import table
from trustcxr.audit import run_audit as audits
from trustcxr.errors import UserError
from trustcxr.evaluation import operating_points
from trustcxr.evaluation.operating_points import CHOSEN
from trustcxr.recipes import protocol
from trustcxr.storage.schemas import AuditDocument

CLASSES = ("Ill", "Normal")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    short = protocol.load_exam().model_copy(update={"bootstrap": 100})
    monkeypatch.setattr(audits, "load_exam", lambda *_: short)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of each class in each of two splits; the files of both splits have the same names."""
    root, random = tmp_path_factory.mktemp("scored") / "images", np.random.default_rng(0)
    for split in ("Test", "Val"):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in range(12):
                pixels = random.integers(0, 255, (16, 16), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{name}{number}.png")
    return root


def audited(images: Path, out: Path, kind: str, ids: list[str]) -> AuditDocument:
    """The audit of a table that scores each Ill image 0.3, but for a few, and each other 0.1."""
    rows = [f"{name},{0.3 if 'Ill' in name else 0.1},{0.7 if 'Ill' in name else 0.9}" for name in ids]
    columns = ("Ill", "Other") if kind == "sigmoid" else CLASSES
    out.mkdir()
    (out / "scores.csv").write_text("\n".join([f"image,{','.join(columns)}", *rows]))
    text = f"predictions: scores.csv\ninput: {{size: 16}}\noutput: {{kind: {kind}, classes: [{', '.join(columns)}]}}\n"
    (out / "model.yaml").write_text(text)
    return audits.audit(out / "model.yaml", images, out / "audit")


def paths(split: str) -> list[str]:
    return [f"{split}/{name}/{name}{number}.png" for name in CLASSES for number in range(12)]


def test_a_name_that_images_of_two_splits_have_says_of_none_which_it_is(images: Path, tmp_path: Path) -> None:
    bare = [Path(path).name for path in paths("Test")]
    with pytest.raises(UserError, match=r"24 are named as several images are: give their ids or paths"):
        audited(images, tmp_path / "bare", "probabilities", bare)
    some = audited(images, tmp_path / "some", "probabilities", paths("Test")[:14] + bare[14:])
    text = next(check.text for check in some.entry_checks if check.check == "scores")
    assert text.startswith("14 of 24 images have a score")
    assert "10 are named as several images are" in text
    assert {point.threshold for point in some.operating_points} == {None}, "no validation image has a score"


def test_a_path_of_a_file_in_the_data_names_its_image(images: Path, tmp_path: Path) -> None:
    whole = audited(images, tmp_path / "whole", "probabilities", [str(images / path) for path in paths("Test")])
    assert whole.clean.n == 24


@pytest.mark.parametrize("kind", ["probabilities", "sigmoid"])
def test_scores_of_validation_images_choose_the_thresholds(kind: str, images: Path, tmp_path: Path) -> None:
    document = audited(images, tmp_path / "both", kind, paths("Test") + paths("Val"))
    ill = next(point for point in document.operating_points if point.finding == "Ill")
    assert ill.origin == CHOSEN
    assert ill.threshold == pytest.approx(0.2, abs=1e-3)
    assert (ill.sensitivity.value, ill.specificity.value) == (1, 1)
    alone = audited(images, tmp_path / "alone", kind, paths("Test"))
    ill = next(point for point in alone.operating_points if point.finding == "Ill")
    assert ill.threshold == (0.5 if kind == "sigmoid" else None)
    assert ill.sensitivity.value == 0
    assert kind != "sigmoid" or "no validation image has an answer" in ill.origin


@pytest.mark.parametrize(("kind", "thresholds"), [("probabilities", [0.3]), ("logits", [0.3, 0.2, 0.6])])
def test_a_class_is_judged_at_the_point_that_the_model_file_gives_it(
    kind: str, thresholds: list[float], tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    names, images = ("A", "B", "C"), tmp_path / "images"
    scores = {}
    for name in names:
        (images / name).mkdir(parents=True)
        for n in range(20):
            Image.fromarray(random.integers(0, 255, (16, 16), dtype=np.uint8)).save(images / name / f"{name}{n}.png")
            scores[f"{name}{n}.png"] = random.dirichlet([1 + 2 * (other == name) for other in names])
    scores["A0.png"] = np.array([0.3, 0.2, 0.5])  # at the thresholds themselves
    given = {key: np.log(row) + 1 if kind == "logits" else row for key, row in scores.items()}
    model = table(tmp_path / "model", given, kind=kind, classes=list(names), thresholds=thresholds)
    document = audits.audit(model, images, tmp_path / "audit")
    truth = np.repeat(np.arange(3), 20)
    ordered = np.stack([scores[f"{name}{n}.png"] for name in names for n in range(20)])
    for place, (point, cut) in enumerate(
        zip(document.operating_points, thresholds * (3 // len(thresholds)), strict=True)
    ):
        said = ordered[:, place] >= cut
        assert (point.threshold, point.origin) == (cut, operating_points.GIVEN)
        assert point.sensitivity.value == pytest.approx(said[truth == place].mean())
        assert point.specificity.value == pytest.approx((~said[truth != place]).mean())
    assert document.clean.accuracy.value == pytest.approx((ordered.argmax(1) == truth).mean()), "the highest class"


def test_a_given_threshold_goes_before_validation() -> None:
    held = pd.DataFrame({"label": [0, 1], "logits": [np.array([2.0, 0.0]), np.array([0.0, 2.0])]})
    assert operating_points.choose(held, ("a", "b"), (0.4,))["b"].value == 0.4
    assert operating_points.choose(held, ("a", "b"))["b"].origin == operating_points.CHOSEN


def test_two_columns_of_one_class_are_refused(images: Path, tmp_path: Path) -> None:
    audited(images, tmp_path / "model", "probabilities", paths("Test"))
    text = (tmp_path / "model" / "scores.csv").read_text().replace("image,Ill,", "image,Ill,probability Ill,", 1)
    lines = [line if k == 0 else line.replace(",", ",0.5,", 1) for k, line in enumerate(text.splitlines())]
    (tmp_path / "model" / "scores.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match="two columns of the class 'Ill'"):
        audits.audit(tmp_path / "model" / "model.yaml", images, tmp_path / "again")


def test_validation_images_that_all_have_another_label_do_not_stop_an_audit(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [f"{name},{name.split('/')[1]},Test" for name in paths("Test")] + ["Val/Ill/Ill0.png,Unsure,Val"]
    listing = shutil.copytree(images, tmp_path / "images") / "list.csv"
    listing.write_text("\n".join(["path,class,split", *listed]))
    audited(images, tmp_path / "model", "probabilities", paths("Test"))
    labels = {"Unsure": None}
    document = audits.audit(tmp_path / "model" / "model.yaml", listing, tmp_path / "again", split="Test", labels=labels)
    assert document.clean.n == len(paths("Test"))
    assert "validation images are not used: " in capsys.readouterr().err
