"""Which stage of how many an audit is at: said before each, all of them, in their order."""

import re
from pathlib import Path

import pytest

from test_audit_command import CLASSES, Brightness, _short, greys, model_file  # noqa: F401
from trustcxr import console
from trustcxr.console import Stages
from trustcxr.study import audit as audits
from trustcxr.study import audit_stages as stages

ILL = {"dark": "Dark", "grey": "Dark|Bright", "bright": "Bright"}


@pytest.fixture(autouse=True)
def _watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stages, "QUIET", 0.0)


def told(capsys: pytest.CaptureFixture[str]) -> list[tuple[int, int, str, bool]]:
    """Each stage that was said: its number, of how many, what it is, and whether what is left was said."""
    lines = re.findall(r"^(\d+) of (\d+): (.*?)(; about .* left in all)?$", capsys.readouterr().err, re.MULTILINE)
    return [(int(number), int(count), what, bool(left)) for number, count, what, left in lines]


@pytest.mark.slow
def test_every_stage_of_an_audit_says_its_number_and_those_like_it_what_is_left(
    greys: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = model_file(tmp_path / "model", Brightness())
    audits.audit(model, greys, tmp_path / "whole", attacks=["worst-case"])
    dark, grey, bright = map(stages.at_threshold, CLASSES)
    said = [(2, 6, stages.CONDITIONS, False), (3, 6, dark, False), (4, 6, grey, True), (5, 6, bright, True)]
    assert told(capsys) == [*said, (6, 6, stages.FIGURES, False)]
    audits.audit(model, greys, tmp_path / "part", attacks=["fgsm"])
    assert told(capsys) == [(2, 3, stages.CONDITIONS, False), (3, 3, stages.FIGURES, False)]


def test_findings_that_are_judged_are_a_stage_each_and_of_scores_alone_nothing_is_said(
    greys: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ("Dark", "Bright", "Hernia")
    model = model_file(tmp_path / "model", Brightness(), names)
    model.write_text(model.read_text().replace("logits", "sigmoid"))
    audits.audit(model, greys, tmp_path / "out", labels=ILL, attacks=["fgsm"])
    first, second = map(stages.at_threshold, names[:2])
    said = [(2, 5, stages.WITHOUT_ATTACKS, False), (3, 5, first, False), (4, 5, second, True)]
    assert told(capsys) == [*said, (5, 5, stages.FIGURES, False)]
    rows = [f"{path.name},0.2,0.3,0.5" for path in sorted(greys.rglob("*.png"))]
    (tmp_path / "scores.csv").write_text("\n".join([f"image,{','.join(CLASSES)}", *rows]))
    text = f"predictions: scores.csv\ninput: {{size: 16}}\noutput: {{kind: probabilities, classes: {list(CLASSES)}}}\n"
    (tmp_path / "scores.yaml").write_text(text)
    audits.audit(tmp_path / "scores.yaml", greys, tmp_path / "scores")
    assert told(capsys) == []


@pytest.mark.slow
def test_where_nobody_watches_short_work_says_nothing(
    greys: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Stages, "QUIET", 3600.0)
    audits.audit(model_file(tmp_path / "model", Brightness()), greys, tmp_path / "out", attacks=["fgsm"])
    assert told(capsys) == []
    monkeypatch.setattr(console, "watched", lambda: True)
    audits.audit(model_file(tmp_path / "model", Brightness()), greys, tmp_path / "other", attacks=["fgsm"])
    assert [stage[:2] for stage in told(capsys)] == [(2, 3), (3, 3)]
