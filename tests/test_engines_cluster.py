"""A study on a Ray cluster and by SLURM: the same bits, a node lost half-way too; what cannot be is one line."""

import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_work import held_on_its_node, note, taken_away_once
from pack import Pack
from test_cli import complaint
from test_engines import bits, small
from test_study import RECIPE
from trustcxr.data import load_dataset, read_manifest, remote
from trustcxr.errors import CannotWrite, UserError
from trustcxr.storage import atomic
from trustcxr.study import engines, run_study
from trustcxr.study.engines import EngineOptions, Failure, Needs, Task, read_failure
from trustcxr.study.engines.slurm import SlurmEngine
from trustcxr.study.run_study import Study

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def images(pack: Pack) -> Path:
    return pack.images()


@pytest.fixture(scope="module")
def local(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("local")
    Study(small(), images, folder / "study", engines.get("local"), threads=1).run()  # type: ignore[arg-type]
    return bits(folder / "study")


@pytest.mark.parametrize(
    ("name", "asked", "said"),
    [
        ("local", EngineOptions(address="a:1"), "--ray-address is of --engine ray, and this is --engine local"),
        ("ray", EngineOptions(slurm={"partition": "gpu"}), "--slurm is of --engine slurm, and this is --engine ray"),
        ("local", EngineOptions(needs=Needs(4)), "--cpus and --gpus are of --engine ray and slurm"),
        ("ray", EngineOptions(needs=Needs(0)), "--cpus 0: expected 1 or more"),
    ],
)
def test_options_of_another_engine_are_refused(name: str, asked: EngineOptions, said: str) -> None:
    with pytest.raises(UserError, match=said):
        engines.get(name, options=asked)


def test_what_is_not_installed_is_said_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for engine, package in (("ray", "ray"), ("slurm", "submitit")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"pip install 'trustcxr\[{engine}\]'"):
            engines.get(engine).map(note, [Task(tmp_path, "a", "train")])


def test_an_address_without_a_cluster_is_said_within_seconds(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    for address, said in ((nobody, "no Ray cluster answers there"), ("here", "expected auto, HOST:PORT")):
        began = time.monotonic()
        with pytest.raises(UserError, match=rf"--ray-address {address}: {said}"):
            engines.get("ray", options=EngineOptions(address=address)).map(note, [Task(tmp_path, "a", "train")])
        assert time.monotonic() - began < 30


def test_an_engine_that_cannot_be_used_is_said_before_images_are_read(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_study, "load_dataset", lambda *_, **__: pytest.fail("images are read"))
    atomic.write_yaml(tmp_path / "small.yaml", RECIPE)
    typed = ("study", tmp_path / "small.yaml", "--data", images, "--out", tmp_path / "out", "--engine")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    assert f"--ray-address {nobody}: no Ray cluster answers" in complaint(*typed, "ray", "--ray-address", nobody)
    if shutil.which("srun") is None:
        assert "SLURM cannot be used from here" in complaint(*typed, "slurm")
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_a_cluster_started_for_a_study_is_started_once_and_ends_with_its_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)  # where its processes find `note`
    begun, start = [], ray.init
    monkeypatch.setattr(ray, "init", lambda *a, **k: (begun.append(a), start(*a, **k)))
    engine = engines.get("ray", jobs=1)
    engine.preflight(tmp_path)
    for name in "ab":
        assert engine.map(note, [Task(tmp_path, name, "train")]) == [None]
    assert begun == [("local",)]
    assert ray.is_initialized()
    del engine
    assert not ray.is_initialized()


@pytest.fixture
def beside_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


@pytest.mark.usefixtures("beside_slurm")
@pytest.mark.parametrize(
    ("gpus", "options", "asked", "said"),
    [
        (None, {}, None, True),
        (None, {"partition": "gpu"}, None, True),
        (None, {"gres": "gpu:1"}, None, False),
        (0.0, {}, 0, False),
        (0.5, {}, 1, False),
    ],
)
def test_where_slurm_is_asked_for_no_card_it_is_said_with_how_to_ask(
    gpus: float | None,
    options: dict[str, str],
    asked: int | None,
    said: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = engines.get("slurm", options=EngineOptions(needs=Needs(gpus=gpus), slurm=options))
    engine.preflight(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert ("SLURM is asked for no GPU" in capsys.readouterr().err) == said
    assert isinstance(engine, SlurmEngine)
    assert engine.executor(tmp_path, "train").parameters.get("gpus_per_node") == asked, "nothing where nothing is said"


def test_images_at_an_address_are_brought_once_and_whole(
    images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = Path(f"file://{images}")  # as typed, and as a path that has lost a stroke
    first = load_dataset(address, split="Train", size=32, workers=1)
    assert first.root != images
    assert first.root.name == images.name
    assert first.fingerprint == load_dataset(images, split="Train", size=32, workers=1).fingerprint
    assert capsys.readouterr().err.count("copying to") == 1
    load_dataset(address, split="Val", size=32, workers=1)
    assert "brought" not in capsys.readouterr().err
    assert remote.resolve_address(Path("s3://bucket/images")) == "s3://bucket/images"
    # What does not train takes it too: evaluate, explain, audit and data check read a manifest first.
    assert read_manifest(address).root == first.root
    with pytest.raises(UserError, match="file:///nowhere/at/all: does not exist"):
        load_dataset("file:///nowhere/at/all")
    with pytest.raises(UserError, match="strange://images: cannot be copied"):
        load_dataset("strange://images")

    class Sealed(Exception):
        """As a store of objects says that it knows no credentials."""

    def refuse(address: str) -> None:
        raise Sealed("no credentials")

    monkeypatch.setattr("fsspec.core.url_to_fs", refuse)
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
    steps = [(run, step) for step in ("train", "test") for run in ("wrong", "a", "faulty", "b")]
    ticks: list[int] = []
    outcomes = on(cluster).map(note, [Task(tmp_path, *step) for step in steps], lambda: ticks.append(1))
    wrong, faulty = Failure("wrong", "train: cannot be done"), Failure("faulty", "train: ZeroDivisionError: of nothing")
    assert outcomes == [wrong, None, faulty, None] * 2
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert [step for run, step, _ in lines if run == "a"] == ["train", "test"], "a run's steps in their order"
    assert str(os.getpid()) not in {process for *_, process in lines}
    assert len(ticks) == 6
    with pytest.raises(CannotWrite, match="no space"):
        on(cluster).map(note, [Task(tmp_path, "full", "train"), Task(tmp_path, "a", "train")])


@pytest.mark.full
def test_what_no_node_has_is_said_before_anything_is_begun(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no node has 64 cores and 0 GPUs for a run; there is 1 cores"):
        on(cluster, needs=Needs(64)).map(note, [Task(tmp_path, "a", "train")])
    folder = os.open(tmp_path, os.O_RDONLY)  # a path that this process alone sees
    try:
        with pytest.raises(UserError, match=r"node .+: cannot see /proc/self/fd/\d+; choose an --out on a disk"):
            on(cluster).map(note, [Task(Path(f"/proc/self/fd/{folder}"), "a", "train")])
    finally:
        os.close(folder)
    atomic.write_yaml(tmp_path / "data.yaml", {"path": "/no/such/images"})
    with pytest.raises(UserError, match="cannot see the images in /no/such/images"):
        on(cluster).map(note, [Task(tmp_path, "a", "train")])
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
    outcomes = on(cluster).map(held_on_its_node, [Task(tmp_path, run, "train") for run in "abc"])
    assert outcomes == [None] * 3
    (lost,) = [run for run, node in lines() if node == spare.node_id]
    assert len({node for run, node in lines() if run == lost}) == 2


@pytest.mark.full
@pytest.mark.parametrize("lost", [False, True])
def test_a_study_on_two_nodes_has_the_bits_of_one_process_even_where_a_node_is_lost(
    lost: bool, cluster: Any, images: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    study, gone = tmp_path / "study", threading.Event()

    def lose() -> None:
        while not list(study.glob("runs/*/history.csv")):  # somebody is in the middle of a training
            time.sleep(0.05)
        cluster.remove_node(cluster.spare, allow_graceful=False)
        gone.set()

    if lost:
        threading.Thread(target=lose, daemon=True).start()
    document = Study(small(), images, study, on(cluster)).run()  # type: ignore[arg-type]
    assert document.failures == []
    assert gone.is_set() == lost
    assert bits(study) == local


@pytest.mark.full
def test_a_job_that_is_preempted_is_queued_again_and_one_that_dies_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), *filter(None, sys.path)]))
    engine = SlurmEngine(Needs(), cluster="local")
    steps = [(run, step) for step in ("train", "test") for run in ("a", "wrong")] + [("killed", "train")]
    outcomes = engine.map(taken_away_once, [Task(tmp_path, *step) for step in steps])
    assert outcomes[:4] == [None, Failure("wrong", "train: cannot be done")] * 2
    assert "its job" in str(outcomes[4])
    assert "ended without a result" in str(outcomes[4])
    assert "ended without a result" in str(read_failure(tmp_path / "runs" / "killed")), "recorded for it"
    assert [line.split()[:2] for line in (tmp_path / "log").read_text().splitlines()] == [["a", "train"], ["a", "test"]]


@pytest.mark.slow
def test_a_study_by_slurm_has_the_bits_of_one_process(
    images: Path, local: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    recipe = small(defences=[], models=small().models[:1])  # type: ignore[attr-defined]
    Study(recipe, images, tmp_path / "study", SlurmEngine(Needs(), cluster="local")).run()  # type: ignore[arg-type]
    found = bits(tmp_path / "study")
    assert found == {name: content for name, content in local.items() if name in found}
