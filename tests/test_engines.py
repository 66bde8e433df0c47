"""Engines: the same bits however many runs are worked on at once; a run that dies fails alone; one writer a folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine_work import note
from pack import Pack
from test_study import tiny
from trustcxr.errors import CannotWrite, UserError
from trustcxr.storage import atomic, locks
from trustcxr.study import engines
from trustcxr.study.engines import Engine, Failure, Task, read_failure
from trustcxr.study.engines import ray as of_ray
from trustcxr.study.run_study import Study
from trustcxr.training.environment import use_threads

BITS = ("model.safetensors", "validation.parquet", "predictions.parquet", "saliency.parquet", "metrics.json")


@pytest.fixture(scope="module")
def images(pack: Pack) -> Path:
    return pack.images()


def small(**changes: object) -> object:
    explanation = {"methods": ["layercam@-3"], "corruptions": [], "sample": 0, "panels": 1}
    return tiny(**({"explanation": explanation} | changes))


@pytest.fixture(scope="module")
def alone(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That study with its runs one after another in this process, which has two threads, by one of them."""
    out, threads = tmp_path_factory.mktemp("alone") / "out", torch.get_num_threads()
    torch.set_num_threads(2)
    Study(small(), images, out, engines.get("local"), threads=1).run()  # type: ignore[arg-type]
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    return out


def bits(study: Path) -> dict[str, bytes]:
    found = {f"{p.parent.name}/{p.name}": p.read_bytes() for name in BITS for p in study.glob(f"runs/*/{name}")}
    assert found
    return found


def named(tmp_path: Path, *pairs: tuple[str, str]) -> list[Task]:
    return [Task(tmp_path, run, step) for run, step in pairs]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_task_that_fails_fails_its_run_and_no_other(
    jobs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [(run, step) for step in ("train", "test") for run in ("wrong", "a", "faulty", "b")]
    ticks: list[int] = []
    outcomes = engines.get("local", jobs).map(note, named(tmp_path, *steps), lambda: ticks.append(1))
    wrong, faulty = Failure("wrong", "train: cannot be done"), Failure("faulty", "train: ZeroDivisionError: of nothing")
    assert outcomes == [wrong, None, faulty, None] * 2
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted((run, step) for run, step, _ in lines) == [(r, s) for r in "ab" for s in ("test", "train")]
    assert [step for run, step, _ in lines if run == "a"] == ["train", "test"], "a run's steps in their order"
    assert (len({process for *_, process in lines} - {str(os.getpid())}) > 0) == (jobs > 1)
    assert len(ticks) == 6, "after each task that was tried"
    assert "did a" in capsys.readouterr().err


def test_a_process_that_is_killed_fails_its_task_alone(tmp_path: Path) -> None:
    outcomes = engines.get("local", 2).map(note, named(tmp_path, ("killed", "train"), ("a", "train"), ("b", "train")))
    assert [bool(outcome) for outcome in outcomes] == [True, False, False]
    assert "ended with code -9" in str(outcomes[0])


def test_what_a_process_that_is_killed_was_at_is_recorded_at_once(tmp_path: Path) -> None:
    recorded: list[str | None] = []
    tasks = named(tmp_path, ("killed", "train"), ("killed", "test"), ("a", "train"), ("a", "test"))
    engines.get("local", 2).map(note, tasks, lambda: recorded.append(read_failure(tmp_path / "runs" / "killed")))
    assert len(recorded) == 3
    assert recorded[-1] is not None
    assert recorded[-1].startswith("train: its process ended with code -9")


def test_a_task_whose_node_was_lost_once_too_often_is_recorded_at_once(tmp_path: Path) -> None:
    """By Ray's own error, without its cluster."""

    class Lost(Exception):
        pass

    def get(_: object) -> None:
        raise Lost("the node is gone\nwith much detail")

    ray = SimpleNamespace(get=get, exceptions=SimpleNamespace(RayError=Lost))
    outcome = of_ray._outcome(ray, None, Task(tmp_path, "a", "test"))
    assert outcome == Failure("a", "test: lost 4 times: Lost: the node is gone")
    assert read_failure(tmp_path / "runs" / "a") == "test: lost 4 times: Lost: the node is gone"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_disk_that_is_full_stops_all(jobs: int, tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="no space"):
        engines.get("local", jobs).map(note, named(tmp_path, ("full", "train"), ("a", "train")))


def test_unknown_engines_and_impossible_jobs_are_one_line() -> None:
    with pytest.raises(UserError, match="unknown engine 'lokal': did you mean local"):
        engines.get("lokal")
    with pytest.raises(UserError, match="--jobs 0: expected 1 or more"):
        engines.get("local", 0)


@pytest.mark.slow
def test_two_runs_at_once_give_the_same_bits(images: Path, alone: Path, tmp_path: Path) -> None:
    Study(small(), images, tmp_path, engines.get("local", 2)).run()  # type: ignore[arg-type]
    assert bits(tmp_path) == bits(alone)
    for run in (path for study in (alone, tmp_path) for path in study.glob("runs/*/run.yaml")):
        assert atomic.read_yaml(run)["segments"][-1]["hardware"]["threads"] == 1
    first, second = (atomic.read_json(folder / "study.json") for folder in (alone, tmp_path))
    for key in ("selection", "comparisons", "alarms", "data"):
        assert first[key] == second[key]


def test_a_study_keeps_the_threads_that_it_began_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def threads(jobs: int, asked: int | None) -> int | None:
        study = Study(small(), tmp_path, tmp_path, engines.get("local", jobs), threads=asked)  # type: ignore[arg-type]
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

    class Backwards:
        threads = 1

        def preflight(self, study: Path) -> None:
            pass

        def map(self, work: object, tasks: list[Task], after: object = None) -> list[Failure | None]:
            order = sorted(range(len(tasks)), key=lambda k: tasks[k].run, reverse=True)
            engines.LocalEngine().map(work, [tasks[k] for k in order])  # type: ignore[arg-type]
            return [None] * len(tasks)

    engine: Engine = Backwards()  # type: ignore[assignment]
    Study(small(), images, tmp_path, engine).run()  # type: ignore[arg-type]
    assert bits(tmp_path) == bits(alone)


HOLD = """
import sys, time
from pathlib import Path
from trustcxr.storage.locks import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_is_told_who_holds_a_folder_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline().strip() == "held"
    with (
        pytest.raises(UserError, match=rf"in use by process {first.pid} on \S+ since \d{{4}}-"),
        locks.folder_lock(tmp_path),
    ):
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    with locks.folder_lock(tmp_path), locks.folder_lock(tmp_path):
        assert atomic.read_json(tmp_path / locks.HOLDER_FILE)["pid"] == os.getpid()


def test_files_that_a_killed_process_left_half_written_are_swept(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    half = [f".metrics.{gone.pid}.json", f"checkpoint/.last.{gone.pid}.ckpt", f".predictions.{os.getpid()}.parquet"]
    kept = [f".report.{os.getppid()}.html", "timings.json", "data.yaml", "model.safetensors"]
    (tmp_path / "checkpoint").mkdir()
    for name in (*half, *kept):
        (tmp_path / name).touch()
    with locks.folder_lock(tmp_path):
        pass
    assert not [name for name in half if (tmp_path / name).exists()]
    assert all((tmp_path / name).exists() for name in kept), "and nothing that another living process writes"


@pytest.mark.full
def test_a_worker_ends_with_a_study_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from trustcxr.study import engines\n"
        "def sleep(task):\n"
        "    Path(task.study, task.run).write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    folder = Path(sys.argv[1])\n"
        "    engines.get('local', 2).map(sleep, [engines.Task(folder, run, 'train') for run in 'ab'])\n"
    )
    study = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not all((tmp_path / run).is_file() for run in "ab"):
        time.sleep(0.1)
    processes = [int((tmp_path / run).read_text()) for run in "ab"]
    study.kill()
    study.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(locks._lives(process) for process in processes):
        time.sleep(0.1)
    assert not any(locks._lives(process) for process in processes)
