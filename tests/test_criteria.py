"""Acceptance criteria: figures by their path, three results, how many images settle them, and the command."""

# ruff: noqa: F401, F811

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from test_audit_command import CLASSES, _short, greys
from test_audit_tables import Scores, answers, table
from test_cli import complaint, run
from trustcxr.audit import run_audit as audits
from trustcxr.audit.criteria import _independent_difference, count_needed, find_figures, judge
from trustcxr.errors import UserError
from trustcxr.recipes import criteria_file as recipes
from trustcxr.recipes.criteria_file import CriteriaRecipe, list_figures, parse_figure, read_criteria
from trustcxr.recipes.parsing import validate
from trustcxr.report.terminal import QUESTIONS
from trustcxr.statistics import wilson
from trustcxr.storage import atomic
from trustcxr.storage.schemas import AuditDocument, Share, read_schema


def document() -> AuditDocument:
    """An audit with accuracy 0.8 [0.7, 0.9] and three attacks."""
    figure = {"value": 0.8, "ci": [0.7, 0.9]}
    attacks = [
        {"attack": attack, "epsilon": epsilon, "n": 90, "accuracy": {"value": value, "ci": interval}}
        for attack, epsilon, value, interval in (
            ("pgd", 0.01, 0.6, [0.5, 0.7]),
            ("pgd", 0.02, 0.3, [0.2, 0.4]),
            ("worst-case", 0.02, None, None),
        )
    ]
    clean = {"n": 100, "accuracy": figure, "ece": figure, "constant_answer": 0.4}
    clean |= {"per_class": {"Lung Opacity": {"f1": figure}}}
    content = {"classes": ["A", "Lung Opacity"], "clean": clean, "attacks": attacks}
    return AuditDocument.model_validate(content | {"model": {"name": "m", "reported": {"clean": 0.85}}})


def criterion(**keys: Any) -> recipes.Criterion:
    rows = [{"name": "one", "figure": "clean.accuracy"} | keys]
    return validate(CriteriaRecipe, {"criteria": rows}, "test").criteria[0]


def result(keys: dict[str, Any], of: AuditDocument | None = None) -> Any:
    return judge(of or document(), [criterion(**keys)], Path())[0]


@pytest.mark.parametrize(
    ("keys", "met"),
    [
        ({"at_least": 0.7}, True),
        ({"at_least": 0.75}, None),
        ({"at_least": 0.9}, None),
        ({"at_least": 0.91}, False),
        ({"at_most": 0.9}, True),
        ({"at_most": 0.85}, None),
        ({"at_most": 0.69}, False),
        ({"at_least": 0.8, "by": "estimate"}, True),
        ({"at_least": 0.81, "by": "estimate"}, False),
        ({"at_most": 0.8, "by": "estimate"}, True),
        ({"not_worse_than": "claim", "margin": 0.15}, True),
        ({"not_worse_than": "claim", "margin": 0.07}, None),
        ({"figure": "clean.per_class[Lung Opacity].f1", "at_least": 0.7}, True),
        ({"figure": "attacks[attack=pgd, epsilon=0.01].accuracy", "at_least": 0.5}, True),
        ({"figure": "attacks[attack=pgd].accuracy", "at_least": 0.45}, False),
        ({"figure": "attacks[*].accuracy", "at_least": 0.2}, True),
        ({"figure": "attacks[attack=worst-case, epsilon=0.02].accuracy", "at_least": 0.0}, None),
        ({"figure": "clean.n", "at_least": 100, "by": "estimate"}, True),
        ({"figure": "clean.n", "at_least": 101, "by": "estimate"}, False),
    ],
)
def test_a_criterion_is_met_not_met_or_not_settled(keys: dict[str, Any], met: bool | None) -> None:
    row = result(keys)
    assert row.met is met, row.text
    assert (row.images_needed is not None) == (met is None and row.n is not None)
    if row.n is not None:
        assert row.figure in row.text


def test_of_several_figures_the_worst_decides_and_none_settles_nothing_without_a_value_or_an_interval() -> None:
    row = result({"figure": "attacks[attack=pgd].accuracy", "at_least": 0.55})
    assert (row.met, row.figure) == (False, "attacks[attack=pgd, epsilon=0.02].accuracy")
    assert "the worst of 2 figures" in row.text
    assert "a stronger one may leave less" in result({"figure": "attacks[attack=pgd].accuracy", "at_least": 0.1}).text
    missing = result({"figure": "attacks[attack=fgsm].accuracy", "at_least": 0.1})
    assert (missing.met, missing.n) == (None, None)
    assert "did you mean attacks[attack=pgd" in missing.text
    bare = document()
    bare.clean.accuracy.ci = None
    row = result({"at_least": 0.1}, bare)
    assert row.met is None
    assert "no interval" in row.text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"figure": "clean.acuracy", "at_least": 1}, "did you mean clean.accuracy"),
        ({"figure": "attack[attack=pgd].accuracy", "at_least": 1}, "did you mean attacks[attack=..., epsilon=...].acc"),
        ({"figure": "attacks[atack=pgd].accuracy", "at_least": 1}, "did you mean attack"),
        ({"figure": "clean..accuracy", "at_least": 1}, "no path in audit.json"),
        ({"figure": "clean.n", "at_least": 1}, "Write by: estimate"),
        ({}, "give one of at_least, at_most and not_worse_than, not none of them"),
        ({"at_least": 0.5, "at_most": 0.6}, "not at_least and at_most"),
        ({"at_least": 0.5, "margin": 0.1}, "margin belongs to not_worse_than"),
        ({"not_worse_than": "claim"}, "margin belongs to not_worse_than"),
        ({"figure": "clean.ece", "not_worse_than": "claim", "margin": 0}, "makers claim clean.accuracy"),
        ({"not_worse_than": "elsewhere", "margin": 0}, "no audit.json in"),
        ({"name": "robust", "at_least": 0.5}, "choose another name"),
        ({"at_leat": 0.5}, "did you mean at_least"),
        ({"at_least": "much"}, "criteria.0.at_least"),
        ({"at_least": 0.5, "by": "intervall"}, "did you mean interval"),
    ],
)
def test_a_wrong_criterion_is_refused_in_one_line(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    path = tmp_path / "criteria.yaml"
    path.write_text(yaml.safe_dump({"criteria": [{"name": "one", "figure": "clean.accuracy"} | content]}))
    with pytest.raises(UserError) as problem:
        read_criteria(path)
    assert words in str(problem.value)
    assert str(path) in str(problem.value)
    assert "\n" not in str(problem.value)


def test_every_figure_of_the_draft_exists_with_its_comments_taken_away() -> None:
    text = recipes.DRAFT.read_text()
    head, tail = text.split("criteria:\n", 1)
    assert all(line.startswith("#") for line in head.splitlines())
    keys = ("name", "figure", "at_least", "at_most", "not_worse_than", "margin", "prevalence")
    used = re.sub(rf"(?m)^(\s*)# (?=- name|  (?:{'|'.join(keys)}):|prevalence)", r"\1", tail)
    whole = yaml.safe_load("criteria:\n" + used)
    assert len(whole["criteria"]) == text.count("- name") == 10
    for one in whole["criteria"]:
        if not one.get("not_worse_than", "").startswith(".."):
            criterion(**one)
    assert whole["prevalence"]
    read_criteria(recipes.DRAFT)


def test_every_listed_figure_is_a_valid_path() -> None:
    figures = list(list_figures())
    assert len({path for path, _ in figures}) == len(figures) > 50
    for path, has_interval in figures:
        criterion(figure=path.replace("...", "1"), at_least=0, by="interval" if has_interval else "estimate")
    empty = AuditDocument().model_dump(mode="json", by_alias=True)
    for path in ("clean.accuracy", "clean.n"):
        assert [figure.path for figure in find_figures(empty, parse_figure(path))] in ([path], [])


@pytest.mark.parametrize(("true", "bound"), [(0.8, 0.75), (0.6, 0.65), (0.9, 0.86)])
def test_so_many_images_settle_a_criterion_four_times_in_five(true: float, bound: float) -> None:
    first = 200
    low, high = wilson(true, first)
    needed = count_needed(first, true, (low, high), bound)
    assert needed is not None
    hits = np.random.default_rng(0).binomial(needed, true, 4000) / needed
    ends = np.array([wilson(float(share), needed) for share in hits])
    settled = (ends[:, 0] >= bound) if true > bound else (ends[:, 1] < bound)
    assert settled.mean() == pytest.approx(0.8, abs=0.05)
    assert count_needed(first, true, (low, high), true) is None


def test_a_difference_of_independent_audits_is_newcombes() -> None:
    """Newcombe 1998, table II: 56/70 less 48/80 has the interval 0.0524 to 0.3339 by his method 10."""
    first, second = (Share(value=k / n, ci=tuple(wilson(k / n, n))) for k, n in ((56, 70), (48, 80)))
    difference = _independent_difference(first, second)
    assert difference.value == pytest.approx(0.2)
    assert difference.interval == pytest.approx((0.0524, 0.3339), abs=5e-5)


@pytest.fixture
def model(tmp_path: Path, answers: Scores) -> Path:
    return table(tmp_path / "model", answers)


def write(path: Path, *rows: dict[str, Any], **more: Any) -> Path:
    path.write_text(yaml.safe_dump({"criteria": list(rows)} | more))
    return path


EASY = {"name": "easy", "figure": "clean.accuracy", "at_least": 0.5}
HARD = {"name": "hard", "figure": "clean.accuracy", "at_least": 0.99}
OPEN = {"name": "open", "figure": "clean.accuracy", "at_least": 0.8}


@pytest.mark.slow
def test_the_command_judges_says_and_fails_only_where_it_is_wanted(model: Path, greys: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("audit", model, "--data", greys, "--out", out)
    path = write(tmp_path / "criteria.yaml", EASY, HARD, OPEN)
    said = run(*command, "--criteria", path).stdout
    found = read_schema(AuditDocument, out / "audit.json")
    rows = {row.question: row for row in found.verdict.model}
    for mark, word, name in (("yes", "MET", "easy"), ("NO", "NOT MET", "hard"), ("open", "NOT SETTLED", "open")):
        assert f"  {mark}: Criterion “{name}”: clean.accuracy is 83.3%" in said
        assert rows[name].text.endswith(f": {word}.")
    assert list(rows)[:-3] == list(QUESTIONS) == list(recipes.QUESTIONS)
    assert [(row.met, row.beforehand) for row in found.criteria] == [(True, True), (False, True), (None, True)]
    rounded = int(re.findall(r"about ([\d,]+) such images", said)[0].replace(",", ""))
    assert 0 <= rounded - found.criteria[2].images_needed < 100
    page = (out / "report.html").read_text()
    assert "Acceptance criteria: 3" in page
    assert "written after" not in page
    run(*command, "--criteria", path, "--fail", expect=3)
    run(*command, "--criteria", write(path, EASY), "--fail")
    assert "--init-criteria" in complaint(*command, "--fail")


@pytest.mark.slow
def test_criteria_that_were_written_after_the_figures_are_marked(model: Path, greys: Path, tmp_path: Path) -> None:
    out, path = tmp_path / "out", tmp_path / "criteria.yaml"
    for bound, beforehand in ((0.99, [True, True]), (0.6, [True, False]), (0.6, [True, False])):
        write(path, EASY, HARD | {"at_least": bound})
        run("audit", model, "--data", greys, "--out", out, "--criteria", path)
        found = read_schema(AuditDocument, out / "audit.json").criteria
        assert [row.beforehand for row in found] == beforehand
        assert ("written after the figures were known" in (out / "report.html").read_text()) == (bound == 0.6)


@pytest.mark.slow
def test_the_model_file_may_name_them_and_a_prevalence_is_added(model: Path, greys: Path, tmp_path: Path) -> None:
    write(model.parent / "mine.yaml", EASY, prevalence={"dark": 0.1})
    model.write_text(model.read_text() + "criteria: mine.yaml\n")
    run("audit", model, "--data", greys, "--out", tmp_path / "out", "--prevalence", "bright=0.2", "--fail")
    found = read_schema(AuditDocument, tmp_path / "out" / "audit.json")
    assert [row.name for row in found.criteria] == ["easy"]
    assert {(row.finding, row.prevalence) for row in found.predictive_values} == {("dark", 0.1), ("bright", 0.2)}


@pytest.mark.parametrize(
    ("row", "prevalence", "words"),
    [
        ({"figure": "attacks[attack=pdg].accuracy"}, (), "did you mean pgd"),
        ({"figure": "attacks[attack=pgd, epsilon=0.5].accuracy"}, (), "unknown epsilon of pgd '0.5'"),
        ({"figure": "clean.per_class[drak].f1"}, (), "did you mean dark"),
        ({"figure": "operating_points[finding=drak].auroc"}, (), "did you mean dark"),
        ({"figure": "predictive_values[finding=dark].ppv"}, (), "need a prevalence"),
        ({"not_worse_than": "claim", "margin": 0.1, "at_least": None}, (), "no claim to compare with"),
        ({}, ("--prevalence", "dark"), "write class=share"),
        ({}, ("--prevalence", "drak=0.1"), "did you mean dark"),
        ({}, ("--prevalence", "dark=2"), "less than 1"),
        ({}, ("--prevalence", "dark=x"), "a valid number"),
    ],
)
def test_what_the_audit_cannot_have_is_refused_before_it_is_computed(
    row: dict[str, Any], prevalence: tuple[str, ...], words: str, model: Path, greys: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "criteria.yaml", {k: v for k, v in (EASY | row).items() if v is not None})
    at = ("--data", greys, "--out", tmp_path / "out", "--criteria", path)
    assert words in complaint("audit", model, *at, *prevalence)
    assert not (tmp_path / "out" / "audit.json").exists()


@pytest.mark.slow
def test_another_audit_is_compared_image_by_image(model: Path, greys: Path, tmp_path: Path, answers: Scores) -> None:
    sure = {name: 0.1 + 0.7 * np.eye(3)[k] for k, name in enumerate(CLASSES)}
    better = {name: sure[name.rstrip(".png0123456789")] for name in answers}
    audits.audit(table(tmp_path / "better", better), greys, tmp_path / "used")
    same = {"name": "as good", "figure": "clean.accuracy", "not_worse_than": "used", "margin": 0.4}
    path = write(tmp_path / "criteria.yaml", same, same | {"name": "equal", "margin": 0})
    good, equal = audits.audit(model, greys, tmp_path / "out", criteria=read_criteria(path)).criteria
    assert (good.met, equal.met) == (True, False)
    assert "compared image by image" in good.text
    assert good.result.value == pytest.approx(-6 / 36)
    content = json.loads((tmp_path / "used" / "audit.json").read_text())
    content["data"] |= {"fingerprint": "other", "files": "other"}
    atomic.write_json(tmp_path / "used" / "audit.json", content)
    apart, _ = audits.audit(model, greys, tmp_path / "out", criteria=read_criteria(path)).criteria
    assert "as of independent images" in apart.text
    assert apart.result.interval[0] < good.result.interval[0]


def test_nothing_is_met_by_an_unsound_measurement(greys: Path, tmp_path: Path, answers: Scores) -> None:
    part = dict(list(answers.items())[:30])
    path = write(tmp_path / "criteria.yaml", EASY, HARD)
    found = audits.audit(table(tmp_path / "model", part), greys, tmp_path / "out", criteria=read_criteria(path))
    assert found.verdict.sound is False
    assert [row.met for row in found.criteria] == [None, False]
    assert "the measurement is not sound" in found.verdict.model[-2].text


def test_init_criteria_prints_the_draft_without_a_model() -> None:
    assert run("audit", "--init-criteria").stdout == recipes.DRAFT.read_text()
    assert "without --json" in complaint("audit", "--init-criteria", "--json")
    assert "without --attack, --fail" in complaint("audit", "net.onnx", "--init", "--attack", "fgsm", "--fail")
    assert "no model is given" in complaint("audit", "--data", "x")
