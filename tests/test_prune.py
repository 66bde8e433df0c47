"""What takes room is listed with size and age, removed only when asked, and never while a command uses it."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from test_cli import complaint, run
from trustcxr.data import in_use
from trustcxr.errors import UserError
from trustcxr.results import locks
from trustcxr.study import pruning

READ = """
import sys
from pathlib import Path
from trustcxr.data import in_use
in_use.mark(Path(sys.argv[1]))
print("read", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRUSTCXR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def store(cache: Path, name: str, *, days: float = 100, size: int = 4096) -> Path:
    """A pixel store as it lies there, last used so many days ago."""
    folder = cache / "stores" / name
    folder.mkdir(parents=True)
    (folder / "images.u8").write_bytes(b"x" * size)
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
    listed = json.loads(run("prune", "--json").stdout)
    assert {one["path"]: one["why"] for one in listed["found"]} == {str(old): "", str(young): "used within 30 days"}
    assert listed["found"][0]["what"] == "4 images of 32 pixels"
    assert listed["removable"] == pytest.approx(4096, abs=600)
    assert old.is_dir()
    shown = run("prune")
    assert "--remove removes them" in shown.stdout
    assert old.is_dir(), "listing removes nothing"
    assert json.loads(run("prune", "--remove", "--json").stdout)["freed"] == listed["removable"]
    assert (old.exists(), young.exists()) == (False, True)
    run("prune", "--remove", "--older-than", 1)
    assert not young.exists()


@pytest.mark.parametrize("days", [float("nan"), -3.0])
def test_days_that_are_none_remove_nothing(cache: Path, days: float) -> None:
    old = store(cache, "a" * 40)
    with pytest.raises(UserError, match="0 or more"):
        pruning.prune(older_than=days, remove=True)
    assert old.is_dir()


def test_a_store_that_another_process_reads_stays(cache: Path) -> None:
    read = store(cache, "c" * 40)
    reader = subprocess.Popen(
        [sys.executable, "-c", READ, str(read)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert reader.stdout is not None
    assert reader.stdout.readline().strip() == "read"
    (one,) = pruning.prune(older_than=0, remove=True).found
    assert (one.held, one.removed, read.is_dir()) == ("a command that reads it", False, True)
    reader.kill()
    reader.wait()
    (one,) = pruning.prune(remove=True).found
    assert (one.removed, one.why) == (False, "used within 30 days"), "it was read just now"
    (one,) = pruning.prune(older_than=0, remove=True).found
    assert (one.removed, read.exists()) == (True, False)


def test_a_process_that_goes_through_many_stores_keeps_few_files_open(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_use, "_read", {})
    monkeypatch.setattr(in_use, "_MOST", 2)
    stores = [store(cache, letter * 40) for letter in "def"]
    for folder in stores:
        in_use.mark(folder)
    free = []
    for folder in stores:
        with in_use.alone(folder) as alone:
            free.append(alone)
    assert free == [True, False, False]


def test_where_the_disk_knows_no_locks_nothing_is_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    old = store(cache, "a" * 40)

    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    (one,) = pruning.prune(remove=True).found
    assert (one.removed, old.is_dir()) == (False, True)


def test_a_checkpoint_that_is_being_replaced_is_listed(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = checkpoint(tmp_path / "run", finished=False, days=1)
    real = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: [*real(self, pattern), self / ".gone.1.ckpt"])
    (one,) = pruning.prune([tmp_path / "run"]).found
    assert (one.path, one.bytes) == (str(kept), 100)


def test_a_store_is_marked_when_it_is_opened(cache: Path, tmp_path: Path) -> None:
    from trustcxr.data import load_dataset
    from trustcxr.data.phantom import writing

    films = load_dataset(writing.write(tmp_path / "films", {"Train": 1}, size=32), size=32, workers=1)
    with in_use.alone(films._store.folder) as free:
        assert not free
    found = [one for one in pruning.prune(older_than=0, remove=True).found if one.kind == "store"]
    assert [one.removed for one in found] == [False]
    assert films.batch([0]).shape == (1, 1, 32, 32)


def test_checkpoints_of_finished_trainings_go_and_those_of_others_wait(cache: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    finished = checkpoint(study / "runs" / "a", finished=True, days=0)
    recent = checkpoint(study / "runs" / "b", finished=False, days=2)
    forgotten = checkpoint(study / "runs" / "c" / "validated", finished=False, days=90)
    assert "old" in run("prune", study).stdout
    assert all(path.is_dir() for path in (finished, recent, forgotten))
    with locks.holding(study / "runs" / "c"):
        held = {one.path: one.held for one in pruning.prune([study]).found}
        assert f"process {os.getpid()}" in held[str(forgotten)]
    pruning.prune([study], remove=True)
    assert [path.exists() for path in (finished, recent, forgotten)] == [False, True, False]
    assert "no such folder" in complaint("prune", tmp_path / "gone")
