"""A table of scores in a model's place: whose scores they are, what it leaves out, and what its answers are worth."""

# ruff: noqa: F401, F811

import itertools
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from test_audit_command import CLASSES, _short, greys
from test_cli import run
from trustcxr.audit import run_audit as audits
from trustcxr.audit.formats import describe_file
from trustcxr.audit.subject import load_subject
from trustcxr.errors import UserError
from trustcxr.evaluation import operating_points
from trustcxr.report import leaderboard
from trustcxr.report.terminal import describe_audit
from trustcxr.storage.schemas import AuditDocument, read_schema

ILL = {"dark": "Normal", "grey": "Normal", "bright": "Ill"}
Scores = Mapping[str, np.ndarray]
ONE_FINDING = {"kind": "sigmoid", "classes": ["Ill"], "thresholds": 0.5}


@pytest.fixture
def answers() -> dict[str, np.ndarray]:
    """Probabilities (3,) of every image by its file's name: right but for two images of each class."""
    found = {}
    for k, name in enumerate(CLASSES):
        for number in range(12):
            said = (k + 1) % 3 if number < 2 else k
            found[f"{name}{number}.png"] = np.where(np.arange(3) == said, 0.6 + 0.01 * number, 0.2 - 0.005 * number)
    return found


def table(folder: Path, scores: Scores, **output: Any) -> Path:
    """A model file of a table of scores; `output` beside probabilities of the three classes."""
    said = {"kind": "probabilities", "classes": list(CLASSES)} | output
    said = {key: value for key, value in said.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    rows = [",".join([name, *map(repr, map(float, row))]) for name, row in scores.items()]
    (folder / "scores.csv").write_text("\n".join([",".join(["image", *said["classes"]]), *rows]))
    model = {"predictions": "scores.csv", "input": {"size": 16}, "output": said}
    (folder / "model.yaml").write_text(yaml.safe_dump(model))
    return folder / "model.yaml"


def test_who_leaves_out_images_leads_no_board(greys: Path, tmp_path: Path, answers: Scores) -> None:
    right = {name: row for name, row in answers.items() if CLASSES[int(row.argmax())] in name}
    whole = audits.audit(table(tmp_path / "a", answers), greys, tmp_path / "out" / "whole")
    part = audits.audit(table(tmp_path / "b", right), greys, tmp_path / "out" / "part")
    assert (whole.data.n, whole.data.total, whole.verdict.sound) == (36, 36, True)
    assert (part.data.n, part.data.total, part.verdict.sound) == (30, 36, False)
    assert (part.clean.accuracy.value, part.clean.n, part.attacks) == (1, 30, [])
    assert "nothing was attacked" in "\n".join(describe_audit(part))
    assert "30 of 36 images have a score" in part.verdict.reasons[0]
    for document, count in ((part, "30 of 36"), (whole, "36")):
        assert any(line.startswith(f"Tested on: {count} images of “images”") for line in describe_audit(document))
    found = leaderboard.gather_audits(tmp_path / "out")
    assert [name for name, *_ in found.entries] == ["whole", "part"]
    assert found.n == 36
    for pair in (("whole", "part"), ("part", "whole")):
        said = run("compare", *(tmp_path / "out" / name for name in pair)).stdout
        assert "Compared on 30 of 36 images at most" in said
    assert "at most" not in run("compare", tmp_path / "out" / "whole", tmp_path / "out" / "whole").stdout
    scored = {name: row[2:] for name, row in answers.items() if not name.startswith("bright1")}
    few = audits.audit(table(tmp_path / "c", scored, **ONE_FINDING), greys, tmp_path / "few", labels=ILL)
    assert (few.data.n, few.data.total) == (33, 36)
    assert [(ill.n, ill.positives, ill.unknown) for ill in few.findings] == [(33, 9, 0)]


@pytest.mark.parametrize("kind", ["probabilities", "sigmoid"])
def test_columns_that_are_not_judged_are_named(greys: Path, tmp_path: Path, answers: Scores, kind: str) -> None:
    lines, many = ["path,class,ward,maker,scanner,diagnosis"], kind == "probabilities"
    for k, name in enumerate(answers):
        shade = name.rstrip(".png0123456789")
        ward, said = "south" if k % 3 else "north", shade if many else ILL[shade]
        lines.append(f"{greys}/{shade}/{name},{shade},{ward},{ward} and sons,s{k // 4},{said} image")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    scores = answers if many else {name: row[2:] for name, row in answers.items()}
    model, out = table(tmp_path / "model", scores, **({} if many else ONE_FINDING)), tmp_path / "out"
    labels = [] if many else [part for old, new in ILL.items() for part in ("--label", f"{old}={new}")]
    run("audit", model, "--data", tmp_path / "list.csv", "--out", out, *labels)
    document = read_schema(AuditDocument, out / "audit.json")
    maker, scanner, diagnosis = document.subgroups
    assert (maker.column, maker.same_groups) == ("maker", ["ward"])
    assert scanner.text.startswith("by scanner: no two groups have 20 images")
    assert "by diagnosis: not judged, since each of its values belongs to one class" in diagnosis.text
    card, page = (out / "model_card.md").read_text(), (out / "report.html").read_text()
    for division in document.subgroups:
        assert any(line.endswith(division.text) for line in describe_audit(document))
        assert f"- {division.text}" in card
        assert f"<h3>{division.column}</h3><p>{division.text}.</p>" in page
    assert "- Factors: maker\n" in card


def four(folder: Path, count: int) -> Path:
    """`count` images of each of four classes; what is in them does not matter to scores."""
    for k, name in enumerate("ABCD"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.full((16, 16), 60 * k + number, np.uint8)).save(folder / name / f"{name}{number}.png")
    return folder


def scores_of(header: str, count: int, right: float = 1.0, beside: int = 1) -> dict[str, np.ndarray]:
    """Scores of images A to D under a header; so many are `right`, the others of the class so many places `beside`."""
    found, columns = {}, ["ABCD".index(name) for name in header]
    for k, number in itertools.product(range(4), range(count)):
        said = k if number < right * count else (k + beside) % 4
        found[f"{'ABCD'[k]}{number}.png"] = np.where(np.arange(4) == said, 0.7, 0.1)[columns]
    return found


SIGMOID = {"kind": "sigmoid", "thresholds": 0.5}
BETTER = r"accuracy on 60 images is 50\.0% as declared, and 100\.0% with another declaration: "
HONEST = r"accuracy on 60 images is 80\.0% as declared; no other class order surely does better"
RANKED = "of 4 findings none is ranked worse than by chance; no other order surely does better"
REMEDY = "write as names of columns in scores.csv: {0} in place of {1}, {1} in place of {0}"
OFTEN = (
    "accuracy on 240 images is .*" + REMEDY.format("B", "A") + ", unless it takes the one for the other on these images"
)
# The order of scores, their names, so many images of a class of which so many are right, and what is said.
ORDERS: dict[str, tuple[str, str, dict[str, Any], tuple[Any, ...], bool | None, str]] = {
    "exchanged": ("ABCD", "ACBD", {}, (15,), False, BETTER + REMEDY.format("B", "C")),
    "honest": ("ABCD", "ABCD", {}, (15, 0.8), True, HONEST),
    "honest in another order": ("BDAC", "BDAC", {}, (15, 0.8), True, HONEST),
    "few": ("ABCD", "ABCD", {}, (4,), None, ".*16 images are too few to tell a wrong order of the classes.*"),
    "exchanged findings": ("ABCD", "ACBD", SIGMOID, (15,), False, ".*" + REMEDY.format("B", "C")),
    "findings": ("ABCD", "ABCD", SIGMOID, (15,), True, RANKED),
    "often wrong": ("BACD", "ABCD", {}, (60, 0.55, 2), False, OFTEN),  # the 120 images of the entry checks cannot tell
}


@pytest.mark.parametrize("case", ORDERS)
def test_exchanged_names_of_columns_are_noticed_and_honest_ones_are_not(case: str, tmp_path: Path) -> None:
    order, names, output, (count, *right), passed, words = ORDERS[case]
    images, scores = four(tmp_path / "images", count), scores_of(order, count, *right)
    model = table(tmp_path / "model", scores, classes=list(names), **output)
    document = audits.audit(model, images, tmp_path / "out")
    (check,) = [check for check in document.entry_checks if check.check == "declaration"]
    assert check.passed is passed
    assert re.fullmatch(words, check.text), check.text
    assert document.verdict.sound == (passed is True)
    if passed is False:
        assert f"declaration: {check.text}" in document.verdict.reasons
    elif not output:
        assert document.clean.accuracy.value == (right or [1])[0]
        assert "range" not in check.text


def test_another_order_in_the_model_file_changes_nothing_but_other_names_in_the_table_do(tmp_path: Path) -> None:
    images = four(tmp_path / "images", 15)
    for name, head, accuracy in (("same", "A,C,B,D", 0.5), ("right", "A,B,C,D", 1)):
        model = table(tmp_path / name, scores_of("ABCD", 15), classes=list("ABCD"))
        file = model.parent / "scores.csv"
        file.write_text(file.read_text().replace("image,A,B,C,D", f"image,{head}"))
        found = audits.audit(model, images, tmp_path / "out" / name)
        assert found.clean.accuracy.value == accuracy
        assert (not found.verdict.reasons) == (accuracy == 1)


# Scores that have nothing to do with the image.
DRAWN = lambda name, row: np.roll(row, int(name.strip("abdeghikrty.pn")) % 3)  # noqa: E731


@pytest.mark.parametrize(
    ("change", "finding", "words"),
    [
        (DRAWN, False, "one constant answer has 33.3%: no other figure"),
        (DRAWN, True, "no finding is shown to be ranked better than by chance"),
        (lambda _, row: row**0.2, True, ""),  # ranked as before, and said to be there of nearly all images
    ],
)
def test_answers_worth_no_more_than_one_answer_to_all_may_not_be_relied_on(
    change: Callable[..., np.ndarray], finding: bool, words: str, greys: Path, tmp_path: Path, answers: Scores
) -> None:
    changed = {name: change(name, row)[2 if finding else 0 :] for name, row in answers.items()}
    output, labels = (ONE_FINDING, ILL) if finding else ({}, None)
    document = audits.audit(table(tmp_path, changed, **output), greys, tmp_path / "out", labels=labels)
    assert document.clean.accuracy.interval[0] < document.clean.constant_answer
    assert document.verdict.sound == (not words)
    assert words in "".join(document.verdict.reasons)
    assert describe_audit(document)[0].startswith("Is the measurement sound? NO:") == bool(words)
    assert "\n".join(describe_audit(document)).count(words or "ranked better") == bool(words), "said once"


def test_probabilities_are_taken_as_such_whatever_is_declared(greys: Path, tmp_path: Path, answers: Scores) -> None:
    wanted = audits.audit(table(tmp_path / "a", answers), greys, tmp_path / "out" / "a")
    for kind in (None, "logits"):
        found = audits.audit(table(tmp_path / str(kind), answers, kind=kind), greys, tmp_path / "out" / str(kind))
        assert found.clean.plain() == wanted.clean.plain()
        (said,) = [line for line in describe_audit(found) if "write output.kind: probabilities" in line]
        assert said.startswith("  note: its scores sum to 1 for each image, so they were taken as probabilities")
    assert "output.kind" not in "\n".join(describe_audit(wanted))


def test_scores_that_are_not_as_declared_are_taken_so_and_it_is_said(tmp_path: Path, answers: Scores) -> None:
    as_findings = load_subject(table(tmp_path / "a", answers, kind="sigmoid"))
    assert "sum to 1 for each image, as those of classes do" in as_findings.origin.notes[1]
    halved = load_subject(table(tmp_path / "b", {name: row / 2 for name, row in answers.items()}, kind="logits"))
    assert "all lie in [0, 1]" in halved.origin.notes[1]
    assert np.allclose(np.stack(halved.predictions["logits"]), np.stack(list(answers.values())) / 2)
    logits = {name: np.log(row) for name, row in answers.items()}
    assert len(load_subject(table(tmp_path / "c", logits, kind="logits")).origin.notes) == 1


def test_ids_keep_their_zeros(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("Image,low,high\n00216,0.2,0.8\n1e3,0.5,0.5\n")
    given = load_subject(tmp_path / "scores.csv", classes=["low", "high"], output="probabilities")
    assert list(given.predictions["sample_id"]) == ["00216", "1e3"]
    (tmp_path / "scores.csv").write_text("Image,low,high\n00216,0.2,0.8\n00217,0.5,0.5\n")
    assert 'classes: ["low", "high"]' in describe_file(tmp_path / "scores.csv")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of each class in each of two splits; the files of both splits have the same names."""
    root, random = tmp_path_factory.mktemp("scored") / "images", np.random.default_rng(0)
    for path in paths("Test") + paths("Val"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (16, 16), dtype=np.uint8)).save(root / path)
    return root


def scored(images: Path, out: Path, kind: str, ids: list[str]) -> AuditDocument:
    """The audit of a table that scores each Ill image 0.3 and each other 0.1."""
    scores = {name: np.array([0.3, 0.7] if "Ill" in name else [0.1, 0.9]) for name in ids}
    classes = ["Ill", "Other" if kind == "sigmoid" else "Normal"]
    return audits.audit(table(out, scores, kind=kind, classes=classes), images, out / "audit")


def paths(split: str) -> list[str]:
    return [f"{split}/{name}/{name}{number}.png" for name in ("Ill", "Normal") for number in range(12)]


def test_a_path_names_its_image_and_a_name_of_images_of_two_splits_none(images: Path, tmp_path: Path) -> None:
    bare = [Path(path).name for path in paths("Test")]
    with pytest.raises(UserError, match=r"24 are named as several images are: give their ids or paths"):
        scored(images, tmp_path / "bare", "probabilities", bare)
    some = scored(images, tmp_path / "some", "probabilities", paths("Test")[:14] + bare[14:])
    text = next(check.text for check in some.entry_checks if check.check == "scores")
    assert text.startswith("14 of 24 images have a score")
    assert "10 are named as several images are" in text
    assert {point.threshold for point in some.operating_points} == {None}, "no validation image has a score"
    whole = scored(images, tmp_path / "whole", "probabilities", [str(images / path) for path in paths("Test")])
    assert whole.clean.n == 24


@pytest.mark.parametrize("kind", ["probabilities", "sigmoid"])
def test_scores_of_validation_images_choose_the_thresholds(kind: str, images: Path, tmp_path: Path) -> None:
    document = scored(images, tmp_path / "both", kind, paths("Test") + paths("Val"))
    ill = next(point for point in document.operating_points if point.finding == "Ill")
    assert ill.origin == operating_points.CHOSEN
    assert ill.threshold == pytest.approx(0.2, abs=1e-3)
    assert (ill.sensitivity.value, ill.specificity.value) == (1, 1)
    looked = audits.audit(tmp_path / "both" / "model.yaml", images, tmp_path / "val", split="Val").operating_points
    ill = next(point for point in looked if point.finding == "Ill")
    assert ill.threshold == (0.5 if kind == "sigmoid" else None), "validation images that are examined choose nothing"
    why = "taken for want of another: the model file has none, and validation images are the images looked at"
    assert kind != "sigmoid" or ill.origin.startswith(why)
    alone = scored(images, tmp_path / "alone", kind, paths("Test"))
    ill = next(point for point in alone.operating_points if point.finding == "Ill")
    assert ill.threshold == (0.5 if kind == "sigmoid" else None)
    assert ill.sensitivity.value == 0
    assert kind != "sigmoid" or "no validation image has an answer" in ill.origin


@pytest.mark.parametrize(("kind", "thresholds"), [("probabilities", [0.3]), ("logits", [0.3, 0.2, 0.6])])
def test_a_class_is_judged_at_its_point_in_the_model_file(kind: str, thresholds: list[float], tmp_path: Path) -> None:
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
    cuts = thresholds * (3 // len(thresholds))
    for place, (point, cut) in enumerate(zip(document.operating_points, cuts, strict=True)):
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
    scored(images, tmp_path / "model", "probabilities", paths("Test"))
    head, *lines = (tmp_path / "model" / "scores.csv").read_text().splitlines()
    lines = [head.replace("Ill,", "Ill,probability Ill,"), *(line.replace(",", ",0.5,", 1) for line in lines)]
    (tmp_path / "model" / "scores.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match="two columns of the class 'Ill'"):
        audits.audit(tmp_path / "model" / "model.yaml", images, tmp_path / "again")


def test_validation_images_of_other_labels_do_not_stop_an_audit(images: Path, tmp_path: Path, capsys: Any) -> None:
    listed = [f"{name},{name.split('/')[1]},Test" for name in paths("Test")] + ["Val/Ill/Ill0.png,Unsure,Val"]
    listing = shutil.copytree(images, tmp_path / "images") / "list.csv"
    listing.write_text("\n".join(["path,class,split", *listed]))
    scored(images, tmp_path / "model", "probabilities", paths("Test"))
    labels = {"Unsure": None}
    document = audits.audit(tmp_path / "model" / "model.yaml", listing, tmp_path / "again", split="Test", labels=labels)
    assert document.clean.n == len(paths("Test"))
    assert "validation images are not used: " in capsys.readouterr().err
