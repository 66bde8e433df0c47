"""Whose audits stand on a leaderboard: every one is found, and what does not compare is named, with the reason."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from test_cli import complaint, run
from trustcxr.report import leaderboard
from trustcxr.storage import atomic


def audit(folder: Path, **changes: Any) -> Path:
    """An audit of 40 images, its name that of its folder; without what is None among the changes."""
    content = {
        "protocol": "exam-1",
        "classes": ["x", "y"],
        "data": {"name": "images", "fingerprint": "1", "n": 40},
        "model": {"name": folder.name, "kind": "run"},
        "clean": {"accuracy": {"value": 0.9, "ci": [0.8, 1.0]}, "n": 40},
        "attacks": [{"attack": "pgd", "epsilon": 0.02, "steps": 20, "accuracy": {"value": 0.8}, "n": 40}],
    }
    kept = {key: value for key, value in (content | changes).items() if value is not None}
    atomic.write_json(folder / "audit.json", kept)
    return folder


def on_board(folder: Path) -> list[str]:
    return sorted(name for name, *_ in leaderboard.gather_audits(folder).entries)


def test_audits_behind_links_are_found_each_once_and_circles_end(tmp_path: Path) -> None:
    audit(tmp_path / "elsewhere" / "fair")
    audit(tmp_path / "elsewhere" / "deep" / "down")
    audit(tmp_path / "audits" / "own")
    links = {"a link": "../elsewhere/fair", "another link": "../elsewhere/fair", "deep": "../elsewhere/deep"}
    for name, target in (links | {"a circle": ".", "before": "own", "nowhere": "../gone"}).items():
        (tmp_path / "audits" / name).symlink_to(target)
    assert on_board(tmp_path / "audits") == ["a link", "deep/down", "own"]
    (tmp_path / "board").symlink_to("audits")
    assert on_board(tmp_path / "board") == ["a link", "deep/down", "own"]


def test_folders_that_may_not_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit(tmp_path / "open")
    audit(tmp_path / "shut" / "inside")
    real = os.scandir

    def scandir(path: str) -> Any:
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = leaderboard.gather_audits(tmp_path)
    assert [name for name, *_ in found.entries] == ["open"]
    assert found.refused == (("shut", "this folder cannot be read: permission denied"),)


def test_unknown_images_are_nobodys(tmp_path: Path) -> None:
    for name in ("one", "two"):
        audit(tmp_path / name, data=None)
    assert "unknown images" in complaint("leaderboard", tmp_path)
    audit(tmp_path / "known")
    found = leaderboard.gather_audits(tmp_path)
    assert [name for name, *_ in found.entries] == ["known"]
    assert dict(found.refused) == dict.fromkeys(("one", "two"), "unknown images: no checksum of them in its audit.json")


def test_a_place_that_is_no_folder_is_called_what_it_is(tmp_path: Path) -> None:
    path = audit(tmp_path / "one") / "audit.json"
    advice = "Give the folder that contains the folders of audits."
    assert f"{tmp_path / 'nowhere'}: no such folder. {advice}" in complaint("leaderboard", tmp_path / "nowhere")
    assert f"{path}: this is a file. {advice}" in complaint("leaderboard", path)


def test_a_place_that_cannot_be_written_to_is_named_as_by_other_commands(tmp_path: Path) -> None:
    audit(tmp_path / "audits" / "one")
    (tmp_path / "file").write_text("mine")
    said = complaint("leaderboard", tmp_path / "audits", "--out", tmp_path / "file")
    assert f"{tmp_path / 'file'}/leaderboard.html: cannot be written: a file is where a folder should be" in said
    assert (tmp_path / "file").read_text() == "mine"


CLEAN = {"accuracy": {"value": 0.9, "ci": [0.8, 1.0]}, "n": 40}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": []}, "no classes in it"),
        ({"clean": {}}, "no clean accuracy in it"),
        (
            {"clean": CLEAN | {"accuracy": {"value": 0.9, "ci": [0.8, 95]}}},
            "a clean accuracy of 95, which is no share of one",
        ),
        ({"clean": CLEAN | {"accuracy": {"value": float("nan")}}}, "no clean accuracy in it"),
        ({"attacks": [{"attack": "pgd", "accuracy": {"value": 2}}]}, "a pgd accuracy of 2, which is no share"),
        ({"attacks": [{"attack": "pgd", "epsilon": "x"}]}, "attacks.0.epsilon: Input should be a valid number"),
    ],
)
def test_damaged_audits_are_named_with_the_reason(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    audit(tmp_path / "whole")
    path = audit(tmp_path / "damaged", **changes) / "audit.json"
    if changes.get("clean"):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))  # NaN as it is
    found = leaderboard.gather_audits(tmp_path)
    assert [name for name, *_ in found.entries] == ["whole"]
    ((name, why),) = found.refused
    assert name == "damaged"
    assert why.startswith(f"{path}: damaged: {words}")
    assert why.endswith(("; audit the model again, into a new folder", atomic.REMAKE))
    assert f"{path}: damaged: {words}" in complaint("compare", tmp_path / "whole", tmp_path / "damaged")


def test_audits_of_one_name_are_told_apart_in_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, sha256 in (("ada", "1"), ("bo", "2")):
        audit(tmp_path / place / "good", model={"name": "good", "sha256": sha256})
    audit(tmp_path / "other")
    rows = leaderboard.terminal_table(leaderboard.gather_audits(tmp_path)).rows
    assert {row[0].text for row in rows} == {"good (ada/good)", "good (bo/good)", "other"}
    monkeypatch.setenv("COLUMNS", "200")
    done = run("leaderboard", tmp_path)
    assert "good (ada/good)" in done.stdout
    assert "good (bo/good)" in done.stdout
    assert "same figures" not in done.stdout + (tmp_path / "leaderboard.html").read_text()


def test_a_copied_audit_is_said_to_be_one(tmp_path: Path) -> None:
    for name, more in {"one": {}, "two": {}, "worse": {"clean": CLEAN | {"accuracy": {"value": 0.85}}}}.items():
        audit(tmp_path / name, model={"name": name, "sha256": "1"}, **more)
    for name in ("unknown", "nor this"):
        audit(tmp_path / name)
    line = "one and two: the same model with the same figures, so 2 rows are one audit"
    assert leaderboard.list_remarks(leaderboard.gather_audits(tmp_path)) == [line]
    assert line in run("leaderboard", tmp_path).stdout
    assert f"<p>{line}.</p>" in (tmp_path / "leaderboard.html").read_text()
    assert json.loads(run("leaderboard", tmp_path, "--json").stdout)["copies"] == [["one", "two"]]
