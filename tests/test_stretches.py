"""Where and from what the runs of a study were trained, where that was not the machine and commit of its last start."""

import json
from pathlib import Path

from study_fixture import make_study
from trustcxr import report
from trustcxr.storage import atomic, segments

HERE, THERE = "Processor A", "Processor B"


def trained(run: Path, processor: str, commit: str, *more: str, accelerator: str = "none") -> None:
    hardware = {"processor": processor, "accelerator": accelerator}
    about = {"versions": {"trustcxr": "1"}, "hardware": hardware, "source": {"commit": commit}}
    later = [about | {"from_epoch": 2, "hardware": hardware | {"processor": name}} for name in more]
    atomic.write_yaml(run / "run.yaml", {"name": run.name, "segments": [about | {"from_epoch": 0}, *later]})


def test_runs_that_were_trained_as_the_last_start_are_not_told(tmp_path: Path) -> None:
    trained(tmp_path / "a", HERE, "abcdef0123")
    (tmp_path / "b").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.yaml").write_text("[")
    runs = [tmp_path / name for name in ("a", "b", "damaged")]
    here, commit = {"processor": HERE, "accelerator": "none"}, {"commit": "abcdef0123"}
    assert segments.elsewhere(runs, here, {"commit": "fedcba0123"}) == {"from": "abcdef0 (1)"}
    assert segments.elsewhere(runs, here, commit) == {}
    assert segments.elsewhere(runs, here | {"accelerator": "a card"}, commit) == {"on": f"{HERE} (1)"}
    atomic.write_yaml(tmp_path / "b" / "run.yaml", {"name": "never trained"})
    assert segments.elsewhere(runs, here, commit) == {}, "nothing is known of it"
    trained(tmp_path / "a" / "before_refit", THERE, "abcdef0123")  # before its refit
    assert segments.elsewhere(runs, here, commit) == {"on": f"{THERE}, then {HERE} (1), not noted (1)"}


def test_the_page_says_where_its_runs_were_trained(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", models=("ResNet18",))
    document = json.loads((study / "study.json").read_text())
    document |= {"hardware": {"processor": HERE, "accelerator": "none"}, "source": {"commit": "abcdef0123"}}
    (study / "study.json").write_text(json.dumps(document))
    standard, robust = sorted((study / "runs").iterdir(), reverse=True)
    trained(standard, HERE, "abcdef0123")
    trained(robust, HERE, "abcdef0123")
    assert "Runs were trained" not in report.write(study).read_text(encoding="utf-8")
    trained(robust, HERE, "fedcba0123", THERE)
    page = report.write(study).read_text(encoding="utf-8")
    on, commits = f"{HERE} (1), {HERE}, then {THERE} (1)", "abcdef0 (1), fedcba0 (1)"
    assert page.count(on) == page.count(commits) == 2, "among the facts, and in the methods"
    assert f"this is the last start, and runs were trained on {on}, from {commits}." in page
