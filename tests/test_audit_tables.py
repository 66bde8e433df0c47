"""A table of scores in a model's place: whose images it leaves out, what its answers are worth, what they are."""

# ruff: noqa: F401, F811

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from test_audit_command import CLASSES, _short, greys
from test_cli import run
from trustcxr.audit import run_audit as audits
from trustcxr.audit.formats import describe_file
from trustcxr.audit.subject import load_subject
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


def test_who_leaves_out_images_leads_no_board(greys: Path, tmp_path: Path, answers: dict[str, np.ndarray]) -> None:
    right = {name: row for name, row in answers.items() if CLASSES[int(row.argmax())] in name}
    whole = audits.audit(table(tmp_path / "a", answers), greys, tmp_path / "out" / "whole")
    part = audits.audit(table(tmp_path / "b", right), greys, tmp_path / "out" / "part")
    assert (whole.data.n, whole.data.total, whole.verdict.sound) == (36, 36, True)
    assert (part.data.n, part.data.total, part.verdict.sound) == (30, 36, False)
    assert part.clean.accuracy.value == 1
    assert "30 of 36 images have a score" in part.verdict.reasons[0]
    said = describe_audit(part)
    assert [line for line in said if line.startswith("Tested on: 30 of 36 images of “images”")]
    assert [line for line in describe_audit(whole) if line.startswith("Tested on: 36 images of “images”")]
    found = leaderboard.gather_audits(tmp_path / "out")
    assert [name for name, *_ in found.entries] == ["whole", "part"]
    assert found.n == 36
    for pair in (("whole", "part"), ("part", "whole")):
        said = run("compare", *(tmp_path / "out" / name for name in pair)).stdout.splitlines()
        assert "Compared on 30 of 36 images at most" in "\n".join(said)
    assert "at most" not in run("compare", tmp_path / "out" / "whole", tmp_path / "out" / "whole").stdout


def test_validation_images_that_are_examined_choose_no_threshold_and_that_is_said(
    greys: Path, tmp_path: Path, answers: dict[str, np.ndarray]
) -> None:
    lines = ["path,class,split"]
    for k, name in enumerate(answers):
        shade = name.rstrip(".png0123456789")
        lines.append(f"{greys}/{shade}/{name},{shade},{'Test' if k % 3 else 'Val'}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    scores = {name: row[2:] for name, row in answers.items()}
    model = table(tmp_path / "model", scores, kind="sigmoid", classes=["Ill"])
    for split, origin in {
        "Test": "chosen on validation images",
        "Val": "taken for want of another: the model file has none, and validation images are the images looked at",
    }.items():
        document = audits.audit(model, tmp_path / "list.csv", tmp_path / split, split=split, labels=ILL)
        assert document.findings[0].origin.startswith(origin)


@pytest.mark.parametrize("kind", ["probabilities", "sigmoid"])
def test_columns_that_are_not_judged_are_named_in_the_audit(
    greys: Path, tmp_path: Path, answers: dict[str, np.ndarray], kind: str
) -> None:
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


def test_of_findings_only_images_with_a_score_are_counted(
    greys: Path, tmp_path: Path, answers: dict[str, np.ndarray]
) -> None:
    scored = {name: row[2:] for name, row in answers.items() if not name.startswith("bright1")}
    document = audits.audit(table(tmp_path / "a", scored, **ONE_FINDING), greys, tmp_path / "out", labels=ILL)
    assert (document.data.n, document.data.total) == (33, 36)
    (ill,) = document.findings
    assert (ill.n, ill.positives, ill.unknown) == (33, 9, 0)


QUARTERS = ("A", "B", "C", "D")


def four(folder: Path, count: int) -> Path:
    """`count` images of each of four classes; what is in them does not matter to scores."""
    for k, name in enumerate(QUARTERS):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.full((16, 16), 60 * k + number, np.uint8)).save(folder / name / f"{name}{number}.png")
    return folder


def told(document: AuditDocument) -> tuple[bool | None, str]:
    """What is said of the declaration."""
    (found,) = [check for check in document.entry_checks if check.check == "declaration"]
    return found.passed, found.text


def scores_of(header: Sequence[str], count: int, *, right: float = 1.0, beside: int = 1) -> dict[str, np.ndarray]:
    """Scores under a header of images A to D: the answer is the true class where the header is `QUARTERS`.

    So many are `right`; the others are of the class so many places `beside`.
    """
    found = {}
    for k, name in enumerate(QUARTERS):
        for number in range(count):
            said = k if number < right * count else (k + beside) % 4
            found[f"{name}{number}.png"] = np.where(np.arange(4) == said, 0.7, 0.1)[[QUARTERS.index(h) for h in header]]
    return found


def test_exchanged_names_of_columns_are_noticed_and_the_remedy_helps(tmp_path: Path) -> None:
    images, scores = four(tmp_path / "images", 15), scores_of(QUARTERS, 15)
    wrong = audits.audit(
        table(tmp_path / "a", scores, classes=["A", "C", "B", "D"]), images, tmp_path / "out" / "wrong"
    )
    assert wrong.clean.accuracy.value == 0.5
    passed, text = told(wrong)
    assert passed is False
    assert text == (
        "accuracy on 60 images is 50.0% as declared, and 100.0% with another declaration: write as names of columns in "
        "scores.csv: B in place of C, C in place of B"
    )
    assert wrong.verdict.reasons == [f"declaration: {text}"]
    # Another order in the model file changes nothing, for columns are found by their names; those names must change.
    for name, head, classes, accuracy in (("same", "A,C,B,D", QUARTERS, 0.5), ("right", "A,B,C,D", QUARTERS, 1)):
        model = table(tmp_path / name, scores, classes=list(classes))
        file = model.parent / "scores.csv"
        file.write_text(file.read_text().replace("image,A,B,C,D", f"image,{head}"))
        found = audits.audit(model, images, tmp_path / "out" / name)
        assert found.clean.accuracy.value == accuracy
        assert told(found)[0] == (accuracy == 1)


@pytest.mark.parametrize(
    ("count", "header", "right", "passed", "words"),
    [
        (15, QUARTERS, 0.8, True, "80.0% as declared; no other class order surely does better"),
        (15, ("B", "D", "A", "C"), 0.8, True, "80.0% as declared; no other class order surely does better"),
        (4, QUARTERS, 1, None, "16 images are too few to tell a wrong order of the classes"),
    ],
)
def test_nothing_is_said_of_an_honest_table_nor_of_few_images(
    count: int, header: Sequence[str], right: float, passed: bool | None, words: str, tmp_path: Path
) -> None:
    scores = scores_of(header, count, right=right)
    document = audits.audit(
        table(tmp_path / "a", scores, classes=list(header)), four(tmp_path / "images", count), tmp_path / "out"
    )
    assert told(document)[0] is passed
    assert words in told(document)[1]
    assert "range" not in told(document)[1]
    assert (document.verdict.sound, document.clean.accuracy.value) == (passed is True, right)


def test_exchanged_names_of_findings_are_told_apart_from_an_order(tmp_path: Path) -> None:
    images, scores = four(tmp_path / "images", 15), scores_of(QUARTERS, 15)
    output = {"kind": "sigmoid", "thresholds": 0.5}
    wrong = audits.audit(table(tmp_path / "a", scores, classes=["A", "C", "B", "D"], **output), images, tmp_path / "b")
    assert told(wrong)[0] is False
    assert told(wrong)[1].endswith("as names of columns in scores.csv: B in place of C, C in place of B")
    right = audits.audit(table(tmp_path / "c", scores, classes=list(QUARTERS), **output), images, tmp_path / "d")
    assert told(right) == (True, "of 4 findings none is ranked worse than by chance; no other order surely does better")


def drawn(name: str, row: np.ndarray) -> np.ndarray:
    """Scores that have nothing to do with the image."""
    return np.roll(row, int(name.strip("abdeghikrty.pn")) % 3)


def shifted(name: str, row: np.ndarray) -> np.ndarray:
    """A finding ranked as before, and said to be there of nearly all images."""
    return row**0.2


@pytest.mark.parametrize(
    ("change", "finding", "words"),
    [
        (drawn, False, "one constant answer has 33.3%: no other figure"),
        (drawn, True, "no finding is shown to be ranked better than by chance"),
        (shifted, True, ""),
    ],
)
def test_answers_worth_no_more_than_one_answer_to_all_may_not_be_relied_on(
    change: Callable[[str, np.ndarray], np.ndarray],
    finding: bool,
    words: str,
    greys: Path,
    tmp_path: Path,
    answers: dict[str, np.ndarray],
) -> None:
    changed = {name: change(name, row)[2 if finding else 0 :] for name, row in answers.items()}
    output, labels = (ONE_FINDING, ILL) if finding else ({}, None)
    document = audits.audit(table(tmp_path, changed, **output), greys, tmp_path / "out", labels=labels)
    assert document.clean.accuracy.interval[0] < document.clean.constant_answer
    assert document.verdict.sound == (not words)
    assert words in "".join(document.verdict.reasons)
    assert describe_audit(document)[0].startswith("Is the measurement sound? NO:") == bool(words)
    assert "\n".join(describe_audit(document)).count(words or "ranked better") == bool(words), "said once"


def test_probabilities_are_taken_as_such_where_nothing_or_something_else_is_said(
    greys: Path, tmp_path: Path, answers: dict[str, np.ndarray]
) -> None:
    wanted = audits.audit(table(tmp_path / "a", answers), greys, tmp_path / "out" / "a")
    for kind in (None, "logits"):
        found = audits.audit(table(tmp_path / str(kind), answers, kind=kind), greys, tmp_path / "out" / str(kind))
        assert found.clean.plain() == wanted.clean.plain()
        (said,) = [line for line in describe_audit(found) if "write output.kind: probabilities" in line]
        assert said.startswith("  note: its scores sum to 1 for each image, so they were taken as probabilities")
    assert "output.kind" not in "\n".join(describe_audit(wanted))


def test_scores_that_are_not_what_is_declared_are_taken_as_declared_and_it_is_said(
    tmp_path: Path, answers: dict[str, np.ndarray]
) -> None:
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


def test_exchanged_columns_of_a_model_that_is_often_wrong_are_noticed_on_all_images(tmp_path: Path) -> None:
    """The 120 images of the entry checks would not tell."""
    images, header = four(tmp_path / "images", 60), ("B", "A", "C", "D")
    scores = scores_of(header, 60, right=0.55, beside=2)
    document = audits.audit(table(tmp_path / "a", scores, classes=list(QUARTERS)), images, tmp_path / "out")
    passed, text = told(document)
    assert passed is False
    assert text.startswith("accuracy on 240 images is ")
    assert "write as names of columns in scores.csv: B in place of A, A in place of B" in text
    assert text.endswith(", unless it takes the one for the other on these images")
    assert not document.verdict.sound
