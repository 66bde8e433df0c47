"""What takes room is listed with size and age, removed only when asked, and never while a command uses it."""

import json
import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from test_cli import complaint, run
from trustcxr.data import load_dataset
from trustcxr.data.phantom import write_files
from trustcxr.errors import UserError
from trustcxr.storage import locks
from trustcxr.study import cache_prune


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRUSTCXR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def store(cache: Path, name: str, *, days: float = 100) -> Path:
    """A pixel store as it lies there, last used so many days ago."""
    folder = cache / "stores" / name
    folder.mkdir(parents=True)
    (folder / "images.u8").write_bytes(b"x" * 4096)
    (folder / "index.json").write_text(json.dumps({"count": 4, "size": 32}))
    return aged(folder, days)


def aged(folder: Path, days: float) -> Path:
    then = time.time() - days * 86400
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then, then))
    return folder


def checkpoint(run_folder: Path, *, finished: bool, days: float) -> Path:
    folder = run_folder / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").write_bytes(b"y" * 100)
    if finished:
        (run_folder / "training.json").write_text("{}")
    return aged(folder, days)


def test_old_stores_are_listed_and_removed_only_when_asked(cache: Path) -> None:
    old, young = store(cache, "a" * 40), store(cache, "b" * 40, days=3)
    listed = json.loads(run("cache", "prune", "--json").stdout)
    assert {one["path"]: one["why"] for one in listed["entries"]} == {str(old): "", str(young): "used within 30 days"}
    assert listed["entries"][0]["what"] == "4 images of 32 pixels"
    assert listed["removable"] == pytest.approx(4096, abs=600)
    assert json.loads(run("cache", "list", "--json").stdout)["entries"] == listed["entries"]
    assert "2 entries" in run("cache", "list").stdout
    assert "--remove removes them" in run("cache", "prune").stdout
    for days in (float("nan"), -3.0):
        with pytest.raises(UserError, match="0 or more"):
            cache_prune.prune(older_than=days, remove=True)
    assert old.is_dir(), "listing removes nothing"
    assert json.loads(run("cache", "prune", "--remove", "--json").stdout)["freed"] == listed["removable"]
    assert (old.exists(), young.exists()) == (False, True)
    run("cache", "prune", "--remove", "--older-than", 1)
    assert not young.exists()


def test_opening_a_store_uses_it(cache: Path, tmp_path: Path) -> None:
    images = write_files.write(tmp_path / "images", {"Train": 1}, size=32)
    aged(load_dataset(images, size=32, workers=1)._store.folder, 100)
    assert [one.old for one in cache_prune.prune().entries] == [True]
    load_dataset(images, size=32, workers=1)
    assert [one.why for one in cache_prune.prune().entries] == ["used within 30 days"]


def test_a_store_that_is_being_built_stays(cache: Path) -> None:
    work = store(cache, "c" * 40 + ".123.building")
    with FileLock(work.with_name("c" * 40 + ".lock")):
        (one,) = cache_prune.prune(remove=True).entries
        assert (one.user, one.removed, work.is_dir()) == ("a command that decodes into it", False, True)
    (one,) = cache_prune.prune(remove=True).entries
    assert (one.removed, work.exists()) == (True, False)


def test_a_checkpoint_being_replaced_is_listed(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = checkpoint(tmp_path / "run", finished=False, days=1)
    real = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: [*real(self, pattern), self / ".gone.1.ckpt"])
    (one,) = cache_prune.prune([tmp_path / "run"]).entries
    assert (one.path, one.bytes) == (str(kept), 100)


def test_checkpoints_of_finished_trainings_go_and_those_of_others_wait(cache: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    finished = checkpoint(study / "runs" / "a", finished=True, days=0)
    recent = checkpoint(study / "runs" / "b", finished=False, days=2)
    forgotten = checkpoint(study / "runs" / "c" / "before_refit", finished=False, days=90)
    assert "old" in run("cache", "prune", study).stdout
    assert all(path.is_dir() for path in (finished, recent, forgotten))
    with locks.folder_lock(study / "runs" / "c"):
        held = {one.path: one.user for one in cache_prune.prune([study]).entries}
        assert f"process {os.getpid()}" in held[str(forgotten)]
    cache_prune.prune([study], remove=True)
    assert [path.exists() for path in (finished, recent, forgotten)] == [False, True, False]
    assert "no such folder" in complaint("cache", "prune", tmp_path / "gone")
