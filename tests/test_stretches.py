"""Where and from what the runs of a study were trained, where that was not the machine and commit of its last start."""

import json
from pathlib import Path

from study_fixture import make_study
from trustcxr import report
from trustcxr.results import files, stretches

HERE, THERE = "Processor A", "Processor B"


def trained(run: Path, processor: str, commit: str, *more: str) -> None:
    about = {"versions": {"trustcxr": "1"}, "hardware": {"processor": processor}, "source": {"commit": commit}}
    content: dict[str, object] = {"name": run.name, **about}
    if more:
        later = [about | {"from_epoch": 2, "hardware": {"processor": name}} for name in more]
        content["stretches"] = [about | {"from_epoch": 0}, *later]
    files.write_yaml(run / "run.yaml", content)


def test_runs_that_were_trained_as_the_last_start_are_not_told(tmp_path: Path) -> None:
    trained(tmp_path / "a", HERE, "abcdef0123")
    (tmp_path / "b").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.yaml").write_text("[")
    runs = [tmp_path / name for name in ("a", "b", "damaged")]
    assert stretches.elsewhere(runs, HERE, {"commit": "abcdef0999"}) != {}
    assert stretches.elsewhere(runs, HERE, {"commit": "abcdef0123"}) == {}
    files.write_yaml(tmp_path / "b" / "run.yaml", {"name": "of an earlier version"})
    assert stretches.elsewhere(runs, HERE, {"commit": "abcdef0123"}) == {}, "nothing is known of it"


def test_the_page_says_where_its_runs_were_trained(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", models=("ResNet18",))
    document = json.loads((study / "study.json").read_text())
    document |= {"hardware": {"processor": HERE}, "source": {"commit": "abcdef0123"}}
    (study / "study.json").write_text(json.dumps(document))
    standard, robust = sorted((study / "runs").iterdir(), reverse=True)
    trained(standard, HERE, "abcdef0123")
    trained(robust, HERE, "abcdef0123")
    assert "Runs were trained" not in report.write(study).read_text(encoding="utf-8")
    trained(robust, HERE, "fedcba0123", THERE)
    page = report.write(study).read_text(encoding="utf-8")
    for told in (f"{HERE} (1), {HERE}, then {THERE} (1)", "abcdef0 (1), fedcba0 (1)"):
        assert page.count(told) == 2, "among the facts, and in the methods"
