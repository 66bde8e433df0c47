"""The state of a study, read from its folder while another process works there; and what it will cost."""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from small_runs import networks
from small_runs import recipe as small_run
from test_cli import complaint, run
from test_engines import small
from trustcxr import registry
from trustcxr.data.phantom import write_files
from trustcxr.recipes.study_recipe import load_study, with_seeds, with_tracker
from trustcxr.storage import atomic, layout, locks
from trustcxr.study import cost, run_study, status
from trustcxr.study.engines import Failure, Task

STANDARD, ROBUST = "test_resnet-standard-s0", "test_resnet-fgsm-s0"


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A study with one run that is done, and one that is trained and tested."""
    study = tmp_path / "study"
    recipe = small(models=networks("test_resnet"), training={"epochs": 2, "batch_size": 12})
    atomic.write_yaml(study / layout.STUDY_FILE, {"recipe": recipe.model_dump(mode="json")})
    for name, done in ((STANDARD, 5), (ROBUST, 3)):
        (study / "runs" / name).mkdir(parents=True)
        for file in list(layout.STEP_FILES.values())[:done]:
            (study / "runs" / name / file).touch()
    return study


def held_by(folder: Path, process: object, host: str = "") -> None:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    atomic.write_json(folder / locks.HOLDER_FILE, {"pid": process, "host": host or platform.node(), "since": since})


def states(study: Path) -> dict[str, str]:
    return {one.run: one.state for one in status.status(study).runs}


def test_each_run_is_where_its_files_say(begun: Path) -> None:
    robust = begun / "runs" / ROBUST
    assert states(begun) == {STANDARD: "done", ROBUST: "waiting"}
    held_by(robust, os.getpid())
    (found,) = [one for one in status.status(begun).runs if one.run == ROBUST]
    assert (found.state, found.step) == ("running", "explain")
    assert f"process {os.getpid()} on {platform.node()}" in found.holder
    (robust / locks.HOLDER_FILE).unlink()
    atomic.write_json(robust / layout.FAILURE_FILE, {"run": ROBUST, "reason": "train: no memory", "when": "now"})
    assert states(begun)[ROBUST] == "failed"
    assert f"FAILED {ROBUST}: train: no memory" in run("status", begun).stdout
    atomic.write_json(robust / layout.METRICS_FILE, {})
    assert "2 done, 0 running, 0 failed, 0 waiting" in run("status", begun).stdout
    assert "no study.yaml here" in complaint("status", begun / "runs")
    (begun / layout.STUDY_FILE).write_text("")
    said = complaint("status", begun)
    assert "study.yaml: expected keys and values, found nothing; delete it, and `trustcxr study` with the" in said


@pytest.fixture(scope="module")
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_process_that_was_killed_holds_nothing(begun: Path, gone: int) -> None:
    robust = begun / "runs" / ROBUST
    for process, host, state in ((gone, "", "waiting"), (gone, "elsewhere", "running"), ("x", "", "waiting")):
        held_by(robust, process, host)
        assert states(begun)[ROBUST] == state, "of another machine its word is taken"
        assert locks.was_killed(robust) == (process == gone and not host)


def test_a_run_whose_process_was_killed_is_gone_on_with(
    begun: Path, gone: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []
    monkeypatch.setitem(run_study.STEPS, "explain", lambda study, run, folder: done.append(run.name))
    atomic.write_yaml(begun / "data.yaml", {"path": "images"})
    held_by(begun / "runs" / ROBUST, gone)
    for _ in range(2):
        run_study.carry_out(Task(begun, ROBUST, "explain"))
    assert done == [ROBUST, ROBUST]
    assert capsys.readouterr().err.count(f"{ROBUST}: the previous process was killed") == 1


def test_a_run_of_a_node_that_was_lost_has_failed_and_one_that_works_here_goes_on(begun: Path) -> None:
    for process, host, state in ((4711, "node-7", "failed"), (os.getpid(), "", "running")):
        held_by(begun / "runs" / ROBUST, process, host)
        Failure.of_lost(Task(begun, ROBUST, "explain"), "lost 4 times")
        assert states(begun)[ROBUST] == state


def test_the_epoch_and_the_time_left_come_from_epochs_that_were_measured(begun: Path) -> None:
    def shown() -> str:
        return " ".join(run("status", begun).stdout.split())

    robust = begun / "runs" / ROBUST
    for name in layout.STEP_FILES.values():
        (robust / name).unlink(missing_ok=True)
    (robust / layout.HISTORY_FILE).write_text("epoch,val_accuracy,seconds\n0,0.5,30.0\n")
    atomic.write_json(robust / layout.TIMINGS_FILE, {"validate": 1.0, "test": 7.0, "explain": 2.0, "describe": 0.5})
    held_by(robust, os.getpid())
    document = json.loads(run("status", begun, "--json").stdout)
    (found,) = [one for one in document["runs"] if one["run"] == ROBUST]
    assert (found["step"], found["epoch"], found["epochs"]) == ("train", 1, 2)
    assert found["seconds"] == {"train": 30.0, "validate": 1.0, "test": 7.0, "explain": 2.0, "describe": 0.5}
    assert "running: train, epoch 2 of 2" in shown()
    (robust / locks.HOLDER_FILE).unlink()
    assert "waiting: cut off in train, epoch 2 of 2" in shown()
    for path in (robust / layout.TIMINGS_FILE, begun / layout.TIMINGS_FILE, robust / layout.HISTORY_FILE):
        path.write_text("damaged")
    assert "time left: unknown until" in shown()
    assert f"--out {begun}` estimates it" in shown()
    with status.record_time(robust, "explain"):
        pass
    assert list(status.read_seconds(robust)) == ["explain"]


def test_epochs_with_a_refit_are_those_of_both_trainings(tmp_path: Path) -> None:
    one = small_run("fgsm", epochs=3, refit=True)
    for folder, rows in ((tmp_path / "before_refit", 3), (tmp_path, 1)):
        folder.mkdir(exist_ok=True)
        (folder / layout.HISTORY_FILE).write_text("epoch,seconds\n" + "".join(f"{n},{n}\n" for n in range(rows)))
    found = status.read_state(one, tmp_path)
    assert (found.epoch, found.epochs) == (4, 6)


def test_robust_runs_of_networks_that_are_not_chosen_yet_cost_at_most_the_most_expensive() -> None:
    recipe = small(models=networks("test_resnet", "resnet10t"))
    found = status.plan_runs(recipe, None)
    each = zip((*found.certain, *found.open), (1.0, 2.0, 10.0, 40.0), strict=True)
    seconds = {status.kind(one): dict.fromkeys(layout.STEP_FILES, taken) for one, taken in each}
    plan = status.plan(recipe, None, seconds)
    assert [one.left for one in plan.runs] == [5.0, 10.0, 50.0, 200.0]
    assert plan.most == 5 + 10 + 200
    assert [one.state for one in plan.runs] == ["waiting", "waiting", "if chosen", "if chosen"]


def test_a_dry_run_of_another_recipe_is_refused_and_of_a_tracked_study_is_not(begun: Path) -> None:
    content, asked = atomic.read_yaml(begun / layout.STUDY_FILE), begun.parent / "recipe.yaml"
    atomic.write_yaml(asked, atomic.section(content, "recipe"))
    followed = with_tracker(status.read_recipe(begun), track="mlflow", tracking_uri="http://lab:5000")
    atomic.write_yaml(begun / layout.STUDY_FILE, content | {"recipe": followed.model_dump(mode="json")})
    words = ("study", asked, "--dry-run", "--out", begun)
    printed = run(*words).stdout
    assert "unknown" not in printed.split("tiny:")[1]
    assert [line.split("  ")[-1].strip() for line in printed.splitlines() if ROBUST in line] == ["explain, describe"]
    atomic.write_yaml(asked, atomic.section(content, "recipe") | {"seeds": [5]})
    assert "holds another study: recipe.seeds[0] was 0, is 5" in complaint(*words)


def test_seeds_are_the_recipes_own_and_then_those_after() -> None:
    assert with_seeds(load_study("demo"), 3).seeds == (0, 1, 2)
    assert with_seeds(small(seeds=[7, 3]), 4).seeds == (7, 3, 8, 9)
    assert "--seeds 0: expected 1 or more" in complaint("study", "demo", "--seeds", 0, "--dry-run")
    listed = json.loads(run("study", "demo", "--seeds", 2, "--dry-run", "--json").stdout)
    assert [one["seed"] for one in listed["runs"]] == [0, 1] * 4


def test_a_dry_run_of_the_paper_lists_its_runs_without_data(tmp_path: Path) -> None:
    done = run("study", "paper", "--dry-run")
    assert done.stdout.count("if chosen") == 21
    assert "validation will choose 6 networks" in done.stdout
    assert "say --data PATH" in complaint("study", "paper")
    said = "s3://bucket/images: a dry run downloads nothing"
    assert said in complaint("study", "demo", "--dry-run", "--data", "s3://bucket/images")
    (tmp_path / "bad.yaml").write_text("name: bad\nmodels: [resnet18]\ndefences: [fgms]\n")
    assert "did you mean fgsm" in complaint("study", tmp_path / "bad.yaml", "--dry-run")


@pytest.mark.slow
def test_a_dry_run_times_each_network_and_keeps_the_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small()
    images = write_files.write(tmp_path / "images", {"Train": 6, "Val": 3, "Test": 2}, size=32)
    monkeypatch.setattr(cost, "_time_passes", lambda run: (1.0, 2.0))
    plan = cost.dry_run(recipe, images, tmp_path / "study")
    assert "18 train, 9 val, 6 test, 6 annotated" in capsys.readouterr().err
    # Of a test image: clean, its views and three attacks; the gradients of these, and one beside.
    assert plan.runs[0].seconds["train"] == 18 * 1.5 * 2 + 9
    assert plan.runs[0].seconds["test"] == 6 * ((1 + len(registry.VIEWS) + 3) + 2 * (1 + 2 + 2))
    assert status.plan(recipe, tmp_path / "study").most == plan.most
    monkeypatch.undo()
    seconds = cost.estimate(recipe, status.plan_runs(recipe, None).certain[:1], images)
    assert all(second > 0 for steps in seconds.values() for second in steps.values())
