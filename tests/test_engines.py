"""Engines, Ray and SLURM too: the same bits however a study is worked on; a run or node that dies fails alone."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from engine_work import held_on_its_node, holding, note, taken_away_once
from pack import Pack
from test_cli import complaint
from test_study import RECIPE, tiny
from trustcxr.data import load_dataset, read_manifest, remote
from trustcxr.errors import CannotWrite, UserError
from trustcxr.recipes.study_recipe import StudyRecipe
from trustcxr.storage import atomic, locks
from trustcxr.study import engines, run_study
from trustcxr.study.engines import Engine, EngineOptions, Failure, Needs, Task, read_failure
from trustcxr.study.engines import ray as of_ray
from trustcxr.study.engines.slurm import SlurmEngine
from trustcxr.study.run_study import Study
from trustcxr.training.environment import use_threads

HERE = Path(__file__).parent
BITS = ("model.safetensors", "validation.parquet", "predictions.parquet", "saliency.parquet", "metrics.json")


@pytest.fixture(scope="module")
def images(pack: Pack) -> Path:
    return pack.images()


def small(**changes: object) -> StudyRecipe:
    explanation = {"methods": ["layercam@-3"], "corruptions": [], "sample": 0, "panels": 1}
    return tiny(**({"explanation": explanation} | changes))


@pytest.fixture(scope="module")
def alone(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That study with its runs one after another in this process, which has two threads, by one of them."""
    out, threads = tmp_path_factory.mktemp("alone") / "out", torch.get_num_threads()
    torch.set_num_threads(2)
    Study(small(), images, out, engines.get("local"), threads=1).run()
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    return out


def bits(study: Path) -> dict[str, bytes]:
    found = {f"{p.parent.name}/{p.name}": p.read_bytes() for name in BITS for p in study.glob(f"runs/*/{name}")}
    assert found
    return found


def tasks_of(study: Path, *runs: str, steps: tuple[str, ...] = ("train",)) -> list[Task]:
    return [Task(study, run, step) for step in steps for run in runs]


def check_failures(engine: Engine, study: Path) -> list[list[str]]:
    """Let two runs of four fail; the run, step and process of each task that was done."""
    ticks: list[int] = []
    tasks = tasks_of(study, "wrong", "a", "faulty", "b", steps=("train", "test"))
    outcomes = engine.map(note, tasks, lambda: ticks.append(1))
    wrong, faulty = Failure("wrong", "train: cannot be done"), Failure("faulty", "train: ZeroDivisionError: of nothing")
    assert outcomes == [wrong, None, faulty, None] * 2
    lines = [line.split() for line in (study / "log").read_text().splitlines()]
    assert sorted((run, step) for run, step, _ in lines) == [(r, s) for r in "ab" for s in ("test", "train")]
    assert [step for run, step, _ in lines if run == "a"] == ["train", "test"], "a run's steps in their order"
    assert len(ticks) == 6, "after each task that was tried"
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_task_that_fails_fails_its_run_alone(jobs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = check_failures(engines.get("local", jobs), tmp_path)
    assert (len({process for *_, process in lines} - {str(os.getpid())}) > 0) == (jobs > 1)
    assert "did a" in capsys.readouterr().err


def test_a_process_that_is_killed_fails_its_run_alone_and_that_is_recorded_at_once(tmp_path: Path) -> None:
    recorded: list[str | None] = []
    tasks = tasks_of(tmp_path, "killed", "a", "b", steps=("train", "test"))
    killed = tmp_path / "runs" / "killed"
    outcomes = engines.get("local", 2).map(note, tasks, lambda: recorded.append(read_failure(killed)))
    assert [bool(outcome) for outcome in outcomes] == [True, False, False] * 2
    assert "ended with code -9" in str(outcomes[0])
    assert len(recorded) == 5
    assert str(recorded[-1]).startswith("train: its process ended with code -9")


def test_a_task_whose_node_was_lost_once_too_often_is_recorded_at_once(tmp_path: Path) -> None:
    """By Ray's own error, without its cluster."""

    class Lost(Exception):
        pass

    get = Mock(side_effect=Lost("the node is gone\nwith much detail"))
    ray = SimpleNamespace(get=get, exceptions=SimpleNamespace(RayError=Lost))
    said = "test: lost 4 times: Lost: the node is gone"
    assert of_ray._outcome(ray, None, Task(tmp_path, "a", "test")) == Failure("a", said)
    assert read_failure(tmp_path / "runs" / "a") == said


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_disk_that_is_full_stops_all(jobs: int, tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="no space"):
        engines.get("local", jobs).map(note, tasks_of(tmp_path, "full", "a"))


@pytest.mark.slow
def test_two_runs_at_once_give_the_same_bits(images: Path, alone: Path, tmp_path: Path) -> None:
    Study(small(), images, tmp_path, engines.get("local", 2)).run()
    assert bits(tmp_path) == bits(alone)
    for run in (*alone.glob("runs/*/run.yaml"), *tmp_path.glob("runs/*/run.yaml")):
        assert atomic.read_yaml(run)["segments"][-1]["hardware"]["threads"] == 1
    first, second = (atomic.read_json(folder / "study.json") for folder in (alone, tmp_path))
    for key in ("selection", "comparisons", "alarms", "data"):
        assert first[key] == second[key]


def test_a_study_keeps_the_threads_that_it_began_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def threads(jobs: int, asked: int | None) -> int | None:
        study = Study(small(), tmp_path, tmp_path, engines.get("local", jobs), threads=asked)
        study._fix_threads()
        return study.threads

    assert (threads(2, None), threads(1, None), threads(2, 3)) == (1, torch.get_num_threads(), 3)
    atomic.write_yaml(tmp_path / "study.yaml", {"threads": 3})
    assert (threads(2, None), threads(1, None)) == (3, 3)
    assert capsys.readouterr().err == ""
    assert threads(1, 2) == 2
    assert "--threads 2: the study began with 3, so from here on bits may differ" in capsys.readouterr().err
    with pytest.raises(UserError, match="--threads 0: a run needs a thread"), use_threads(0):
        pass


def test_the_protocol_does_not_know_the_engine(images: Path, alone: Path, tmp_path: Path) -> None:
    """Any engine will do: this one does the tasks of the runs backwards, each run's own in order."""

    def backwards(work: Any, tasks: list[Task], after: object = None) -> list[None]:
        engines.LocalEngine().map(work, sorted(tasks, key=lambda task: task.run, reverse=True))
        return [None] * len(tasks)

    engine: Any = SimpleNamespace(threads=1, preflight=Mock(), map=backwards)
    Study(small(), images, tmp_path, engine).run()
    assert bits(tmp_path) == bits(alone)


def test_the_second_is_told_who_holds_a_folder_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    with holding(tmp_path) as holder:
        said = rf"in use by process {holder} on \S+ since \d{{4}}-"
        with pytest.raises(UserError, match=said), locks.folder_lock(tmp_path):
            pass
    with locks.folder_lock(tmp_path), locks.folder_lock(tmp_path):
        assert atomic.read_json(tmp_path / locks.HOLDER_FILE)["pid"] == os.getpid()


def test_files_that_a_killed_process_left_half_written_are_swept(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = (".metrics", "checkpoint/.last", "evaluations/images/.predictions", "report-tables/.table")
    half = [*(f"{name}.{gone.pid}.parquet" for name in names), f".predictions.{os.getpid()}.parquet"]
    kept = [f".report.{os.getppid()}.html", "timings.json", "data.yaml", "model.safetensors"]
    for name in (*half, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with locks.folder_lock(tmp_path):
        pass
    assert not [name for name in half if (tmp_path / name).exists()]
    assert all((tmp_path / name).exists() for name in kept), "and nothing that another living process writes"


SLEEPING = """
import os, sys, time
from pathlib import Path
from trustcxr.study import engines
def sleep(task):
    Path(task.study, task.run).write_text(str(os.getpid()))
    time.sleep(600)
if __name__ == "__main__":
    engines.get("local", 2).map(sleep, [engines.Task(Path(sys.argv[1]), run, "train") for run in "ab"])
"""


def wait_until(done: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not done():
        time.sleep(0.1)
    assert done()


@pytest.mark.full
def test_a_worker_ends_with_a_study_that_was_killed(tmp_path: Path) -> None:
    (script := tmp_path / "script.py").write_text(SLEEPING)
    study = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    wait_until(lambda: all((tmp_path / run).is_file() for run in "ab"), 240)
    processes = [int((tmp_path / run).read_text()) for run in "ab"]
    study.kill()
    study.wait()
    wait_until(lambda: not any(locks._lives(process) for process in processes), 60)


def test_what_an_engine_has_not_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="unknown engine 'lokal': did you mean local"):
        engines.get("lokal")
    with pytest.raises(UserError, match="--jobs 0: expected 1 or more"):
        engines.get("local", 0)
    for name, asked, said in (
        ("local", EngineOptions(address="a:1"), "--ray-address is of --engine ray, and this is --engine local"),
        ("ray", EngineOptions(slurm={"partition": "gpu"}), "--slurm is of --engine slurm, and this is --engine ray"),
        ("local", EngineOptions(needs=Needs(4)), "--cpus and --gpus are of --engine ray and slurm"),
        ("ray", EngineOptions(needs=Needs(0)), "--cpus 0: expected 1 or more"),
    ):
        with pytest.raises(UserError, match=said):
            engines.get(name, options=asked)
    for engine, package in (("ray", "ray"), ("slurm", "submitit")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"pip install 'trustcxr\[{engine}\]'"):
            engines.get(engine).map(note, tasks_of(tmp_path, "a"))


@pytest.fixture
def nobody() -> str:
    """An address at which nobody answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_an_address_without_a_cluster_is_said_within_seconds(nobody: str, tmp_path: Path) -> None:
    for address, said in ((nobody, "no Ray cluster answers there"), ("here", "expected auto, HOST:PORT")):
        began = time.monotonic()
        with pytest.raises(UserError, match=rf"--ray-address {address}: {said}"):
            engines.get("ray", options=EngineOptions(address=address)).map(note, tasks_of(tmp_path, "a"))
        assert time.monotonic() - began < 30


def test_an_engine_that_cannot_be_used_is_said_before_images_are_read(
    images: Path, nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_study, "load_dataset", lambda *_, **__: pytest.fail("images are read"))
    atomic.write_yaml(tmp_path / "small.yaml", RECIPE)
    typed = ("study", tmp_path / "small.yaml", "--data", images, "--out", tmp_path / "out", "--engine")
    assert f"--ray-address {nobody}: no Ray cluster answers" in complaint(*typed, "ray", "--ray-address", nobody)
    if shutil.which("srun") is None:
        assert "SLURM cannot be used from here" in complaint(*typed, "slurm")
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_a_cluster_is_started_once_and_ends_with_its_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)  # where its processes find `note`
    begun, start = [], ray.init
    monkeypatch.setattr(ray, "init", lambda *a, **k: (begun.append(a), start(*a, **k)))
    engine = engines.get("ray", jobs=1)
    engine.preflight(tmp_path)
    for name in "ab":
        assert engine.map(note, tasks_of(tmp_path, name)) == [None]
    assert begun == [("local",)]
    assert ray.is_initialized()
    del engine
    assert not ray.is_initialized()


def test_where_slurm_is_asked_for_no_card_it_is_said_with_how_to_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit")
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for gpus, options, asked, said in (
        (None, {}, None, True),
        (None, {"partition": "gpu"}, None, True),
        (None, {"gres": "gpu:1"}, None, False),
        (0.0, {}, 0, False),
        (0.5, {}, 1, False),
    ):
        engine = engines.get("slurm", options=EngineOptions(needs=Needs(gpus=gpus), slurm=options))
        engine.preflight(tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert ("SLURM is asked for no GPU" in capsys.readouterr().err) == said, (gpus, options)
        parameters = engine.executor(tmp_path, "train").parameters
        assert parameters.get("gpus_per_node") == asked, "nothing where nothing is said"


def test_images_at_an_address_are_brought_once_and_whole(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = Path(f"file://{images}")  # as typed, and as a path that has lost a stroke
    first = load_dataset(address, split="Train", size=32, workers=1)
    assert first.root != images
    assert first.root.name == images.name
    assert first.fingerprint == load_dataset(images, split="Train", size=32, workers=1).fingerprint
    assert capsys.readouterr().err.count("copying to") == 1
    load_dataset(address, split="Val", size=32, workers=1)
    assert "brought" not in capsys.readouterr().err
    # What does not train takes it too: evaluate, explain, audit and data check read a manifest first.
    assert read_manifest(address).root == first.root


def test_an_address_that_cannot_be_copied_is_said_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert remote.resolve_address(Path("s3://bucket/images")) == "s3://bucket/images"
    with pytest.raises(UserError, match="file:///nowhere/at/all: does not exist"):
        load_dataset("file:///nowhere/at/all")
    with pytest.raises(UserError, match="strange://images: cannot be copied"):
        load_dataset("strange://images")
    sealed = type("Sealed", (Exception,), {})  # as a store of objects says that it knows no credentials
    monkeypatch.setattr("fsspec.core.url_to_fs", Mock(side_effect=sealed("no credentials")))
    with pytest.raises(UserError, match="s3://bucket/images: cannot be copied: no credentials"):
        load_dataset(Path("s3://bucket/images"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), *filter(None, sys.path)]))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # else they wait for whatever else the machine does
        options = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
        found = cluster_utils.Cluster(initialize_head=True, head_node_args=options)
        found.spare = found.add_node(num_cpus=1, object_store_memory=80 << 20)
        yield found
        found.shutdown()


def on(cluster: Any, **asked: Any) -> Any:
    return engines.get("ray", options=EngineOptions(address=cluster.address, **asked))


@pytest.mark.full
def test_a_task_that_fails_on_a_node_fails_its_run_and_no_other(cluster: Any, tmp_path: Path) -> None:
    assert str(os.getpid()) not in {process for *_, process in check_failures(on(cluster), tmp_path)}
    with pytest.raises(CannotWrite, match="no space"):
        on(cluster).map(note, tasks_of(tmp_path, "full", "a"))


@pytest.mark.full
def test_what_no_node_has_is_said_before_anything_is_begun(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no node has 64 cores and 0 GPUs for a run; there is 1 cores"):
        on(cluster, needs=Needs(64)).map(note, tasks_of(tmp_path, "a"))
    folder = os.open(tmp_path, os.O_RDONLY)  # a path that this process alone sees
    try:
        with pytest.raises(UserError, match=r"node .+: cannot see /proc/self/fd/\d+; choose an --out on a disk"):
            on(cluster).map(note, tasks_of(Path(f"/proc/self/fd/{folder}"), "a"))
    finally:
        os.close(folder)
    atomic.write_yaml(tmp_path / "data.yaml", {"path": "/no/such/images"})
    with pytest.raises(UserError, match="cannot see the images in /no/such/images"):
        on(cluster).map(note, tasks_of(tmp_path, "a"))
    assert not (tmp_path / "log").exists()


@pytest.mark.full
def test_what_a_node_was_at_when_it_was_lost_is_done_again_on_another(cluster: Any, tmp_path: Path) -> None:
    begun, spare = tmp_path / "begun", cluster.add_node(num_cpus=1, object_store_memory=80 << 20)

    def lines() -> list[list[str]]:
        return [line.split() for line in begun.read_text().splitlines()] if begun.is_file() else []

    def lose() -> None:
        while not (there := [run for run, node in lines() if node == spare.node_id]):
            time.sleep(0.05)
        cluster.remove_node(spare, allow_graceful=False)
        for run in set("abc") - set(there):
            (tmp_path / f"go-{run}").touch()
        while len([run for run, _ in lines() if run in there]) < 2:  # it is begun once more
            time.sleep(0.05)
        (tmp_path / f"go-{there[0]}").touch()

    threading.Thread(target=lose, daemon=True).start()
    outcomes = on(cluster).map(held_on_its_node, tasks_of(tmp_path, *"abc"))
    assert outcomes == [None] * 3
    (lost,) = [run for run, node in lines() if node == spare.node_id]
    assert len({node for run, node in lines() if run == lost}) == 2


@pytest.mark.full
@pytest.mark.parametrize("lost", [False, True])
def test_a_study_on_two_nodes_has_the_bits_of_one_process(
    lost: bool, cluster: Any, images: Path, alone: Path, tmp_path: Path
) -> None:
    study, gone = tmp_path / "study", threading.Event()

    def lose() -> None:
        while not list(study.glob("runs/*/history.csv")):  # somebody is in the middle of a training
            time.sleep(0.05)
        cluster.remove_node(cluster.spare, allow_graceful=False)
        gone.set()

    if lost:
        threading.Thread(target=lose, daemon=True).start()
    document = Study(small(), images, study, on(cluster)).run()
    assert document.failures == []
    assert gone.is_set() == lost
    assert bits(study) == bits(alone)


@pytest.mark.full
def test_a_preempted_job_is_queued_again_a_dead_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), *filter(None, sys.path)]))
    engine = SlurmEngine(Needs(), cluster="local")
    tasks = tasks_of(tmp_path, "a", "wrong", steps=("train", "test")) + tasks_of(tmp_path, "killed")
    outcomes = engine.map(taken_away_once, tasks)
    assert outcomes[:4] == [None, Failure("wrong", "train: cannot be done")] * 2
    assert "its job" in str(outcomes[4])
    assert "ended without a result" in str(outcomes[4])
    assert "ended without a result" in str(read_failure(tmp_path / "runs" / "killed")), "recorded for it"
    assert [line.split()[:2] for line in (tmp_path / "log").read_text().splitlines()] == [["a", "train"], ["a", "test"]]


@pytest.mark.slow
def test_a_study_by_slurm_has_the_bits_of_one_process(
    images: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    recipe = small(defences=[], models=RECIPE["models"][:1])
    Study(recipe, images, tmp_path / "study", SlurmEngine(Needs(), cluster="local")).run()
    found = bits(tmp_path / "study")
    assert found == {name: content for name, content in bits(alone).items() if name in found}
