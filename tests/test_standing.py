"""Where a study stands, read off its folder while another process works there; what it will cost, as measured here."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from small_runs import recipe as small_run
from test_cli import complaint, run
from test_engines import small
from trustcxr import console
from trustcxr.data import load_dataset
from trustcxr.data.phantom import writing
from trustcxr.recipes.study import StudyRecipe, load_study, tracked, with_seeds
from trustcxr.results import files, folders, locks
from trustcxr.results.documents import CostDocument, FilmCost, WayCost
from trustcxr.study import costs, data_check, engines, planned, standing, steps, watching
from trustcxr.study.engines import Task, failures
from trustcxr.study.protocol import Study

OLD = Path(__file__).parent / "studies" / "v0.1"
STANDARD, ROBUST = "test_resnet-standard-s0", "test_resnet-fgsm-s0"


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A study that was begun: its recipe, and one run that is trained and tested."""
    study = tmp_path / "study"
    shutil.copytree(OLD, study)
    (study / "study.json").unlink()
    for name in ("metrics.json", "saliency.parquet"):
        (study / "runs" / ROBUST / name).unlink()
    return study


def held_by(folder: Path, process: int, host: str = "") -> None:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    files.write_json(folder / locks.HOLDER_FILE, {"pid": process, "host": host or platform.node(), "since": since})


def states(study: Path) -> dict[str, str]:
    return {one.run: one.state for one in standing.status(study).runs}


def test_each_run_is_where_its_files_say(begun: Path) -> None:
    robust = begun / "runs" / ROBUST
    assert states(begun)[ROBUST] == "waiting"
    assert planned.standing(planned.runs(planned.recipe_of(begun), begun).certain[-1], robust).step == "explain"
    held_by(robust, os.getpid())
    (found,) = [one for one in standing.status(begun).runs if one.run == ROBUST]
    assert (found.state, found.step) == ("running", "explain")
    assert f"process {os.getpid()} on {platform.node()}" in found.holder
    (robust / locks.HOLDER_FILE).unlink()
    files.write_json(robust / folders.FAILURE_FILE, {"run": ROBUST, "reason": "train: no memory", "when": "now"})
    assert states(begun)[ROBUST] == "failed"
    done = run("status", begun)
    assert f"FAILED {ROBUST}: train: no memory" in done.stdout
    files.write_json(robust / folders.METRICS_FILE, {})
    assert states(begun)[ROBUST] == "done"


def test_a_process_that_was_killed_holds_nothing(begun: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    held_by(begun / "runs" / ROBUST, gone.pid)
    assert states(begun)[ROBUST] == "waiting"
    assert locks.was_killed(begun / "runs" / ROBUST)
    held_by(begun / "runs" / ROBUST, gone.pid, host="elsewhere")
    assert states(begun)[ROBUST] == "running", "of another machine its word is taken"
    assert not locks.was_killed(begun / "runs" / ROBUST)


def test_a_process_that_began_after_a_folder_was_held_is_another_with_its_number(begun: Path) -> None:
    robust = begun / "runs" / ROBUST
    held_by(robust, os.getpid())
    assert states(begun)[ROBUST] == "running"
    if not Path("/proc/self/stat").is_file():
        pytest.skip("nobody says here when a process began")
    said = files.read_json(robust / locks.HOLDER_FILE)
    files.write_json(robust / locks.HOLDER_FILE, said | {"since": "2020-02-02T02:02:02+00:00"})
    assert locks.was_killed(robust)
    assert states(begun)[ROBUST] == "waiting"


@pytest.mark.parametrize("process", ["x", 99999999999999, None])
def test_a_damaged_word_of_who_holds_a_folder_is_no_traceback(begun: Path, process: object) -> None:
    robust = begun / "runs" / ROBUST
    files.write_json(robust / locks.HOLDER_FILE, {"pid": process, "host": platform.node(), "since": "then"})
    assert states(begun)[ROBUST] == "waiting"


def test_a_run_whose_process_was_killed_is_gone_on_with_and_that_is_said(
    begun: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody else can: what is killed says nothing."""
    done: list[str] = []
    monkeypatch.setitem(steps.STEPS, "explain", lambda study, run, folder: done.append(run.name))
    files.write_yaml(begun / "data.yaml", {"path": "films"})
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    held_by(begun / "runs" / ROBUST, gone.pid)
    for _ in range(2):
        steps.carry_out(Task(begun, ROBUST, "explain"))
    assert done == [ROBUST, ROBUST]
    assert capsys.readouterr().err.count(f"{ROBUST}: whoever worked on it before was killed") == 1


def test_a_run_of_a_node_that_was_lost_has_failed_and_one_that_works_here_goes_on(begun: Path) -> None:
    task = Task(begun, ROBUST, "explain")
    held_by(begun / "runs" / ROBUST, 4711, host="node-7")
    failures.lost(task, "lost 4 times")
    assert states(begun)[ROBUST] == "failed"
    held_by(begun / "runs" / ROBUST, os.getpid())
    failures.lost(task, "lost 4 times")
    assert states(begun)[ROBUST] == "running"


def test_the_epoch_and_the_time_left_come_from_epochs_that_were_measured(begun: Path) -> None:
    robust = begun / "runs" / ROBUST
    for name in folders.STEP_FILES.values():
        (robust / name).unlink(missing_ok=True)
    history = "epoch,val_accuracy,seconds\n0,0.5,30.0\n"
    (robust / folders.HISTORY_FILE).write_text(history)
    files.write_json(robust / costs.STEPS_FILE, {"validate": 1.0, "test": 7.0, "explain": 2.0, "describe": 0.5})
    held_by(robust, os.getpid())
    document = json.loads(run("status", begun, "--json").stdout)
    (found,) = [one for one in document["runs"] if one["run"] == ROBUST]
    assert (found["step"], found["epoch"], found["epochs"]) == ("train", 1, 2)
    assert found["seconds"] == {"train": 30.0, "validate": 1.0, "test": 7.0, "explain": 2.0, "describe": 0.5}
    assert document["at_once"] == 1
    assert "running: train, epoch 2 of 2" in " ".join(run("status", begun).stdout.split())
    (robust / locks.HOLDER_FILE).unlink()
    assert "waiting: cut off in train, epoch 2 of 2" in " ".join(run("status", begun).stdout.split())


def test_a_study_says_now_and_then_where_it_stands(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(watching, "EVERY", 0.01)
    monkeypatch.setattr(watching, "say", said.append)
    standard, robust = (begun / "runs" / name for name in (STANDARD, ROBUST))
    for name in folders.STEP_FILES.values():
        (standard / name).touch()
    held_by(robust, os.getpid())
    files.write_json(robust / costs.STEPS_FILE, {"explain": 200.0, "describe": 0.4})
    with watching.watched(planned.recipe_of(begun), begun):
        patience = time.monotonic() + 20
        while not said and time.monotonic() < patience:
            time.sleep(0.01)
        time.sleep(0.2)
    there = f"tiny: 1 of 2 runs done; {ROBUST}: explain"
    assert said == [f"{there}; at most 3 min 20 s left"], "once, while nothing changes"
    (robust / costs.STEPS_FILE).unlink()
    assert watching.line(standing.status(begun)) == there, "no time where none was measured"


def test_the_line_of_a_study_that_has_not_chosen_says_so() -> None:
    plan = standing.plan(load_study("twenty-one"), None)
    assert watching.line(plan) == "twenty-one: 0 of 21 runs done, before validation chooses 6 networks"


def test_steps_of_unlike_length_tell_no_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_LINE_EVERY", 0.0)
    with console.Progress("2 runs at once", 5, timed=False) as bar:
        bar.advance(2, note="train a")
    assert capsys.readouterr().err == "2 runs at once: 2/5 train a\n"


def test_a_damaged_file_of_times_counts_as_none(begun: Path) -> None:
    robust = begun / "runs" / ROBUST
    for path in (robust / costs.STEPS_FILE, begun / costs.COST_FILE, robust / folders.FAILURE_FILE):
        path.write_text("")
    (robust / folders.HISTORY_FILE).write_text("epoch,seconds\n0,30.0\n1,x")
    assert states(begun)[ROBUST] == "failed"
    with costs.taken(robust, "explain"):
        pass
    assert list(costs.steps_of(robust)) == ["explain"]


def test_time_worked_before_counts_as_none_where_its_file_is_damaged(tmp_path: Path) -> None:
    study = Study(small(), tmp_path, tmp_path, engines.get("local"))  # type: ignore[arg-type]
    study._clock = time.monotonic() - 5
    (tmp_path / "timings.json").write_text("")
    study._count_time()
    assert 5 <= study._seconds() < 60
    study._count_time()
    assert 5 <= study._seconds() < 60, "and goes on from there"


def test_a_damaged_check_of_the_data_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = SimpleNamespace(to_dict=lambda: {"verdict": "none"}, verdict="none")
    monkeypatch.setattr("trustcxr.data.auditing.audit.audit", lambda *_, **__: made)
    (tmp_path / folders.DATA_CHECK_FILE).write_text("")
    written = data_check.write(small(), tmp_path, tmp_path, [])  # type: ignore[arg-type]
    assert files.read_json(written)["verdict"] == "none"


def test_the_check_of_the_data_looks_at_the_classes_of_the_study(tmp_path: Path) -> None:
    for number, name in enumerate(("Train/a", "Train/A", "Test/a", "Test/b")):
        (tmp_path / "films" / name).mkdir(parents=True)
        Image.fromarray(np.full((32, 32), 60 * number, np.uint8)).save(tmp_path / "films" / name / f"{number}.png")
    for labels, alike in (({}, True), ({"A": "a", "b": "b"}, False)):
        data = {"size": 32, "labels": labels}
        recipe = StudyRecipe.model_validate({"name": "s", "models": ["test_resnet"], "data": data})
        (tmp_path / f"{alike}").mkdir()
        found = files.read_json(data_check.write(recipe, tmp_path / "films", tmp_path / f"{alike}", []))
        assert ("differ only in capitals or blanks: 'a' (2 images) and 'A' (1 image)" in found["verdict"]) == alike
        assert found["classes"] == (["A", "a", "b"] if alike else ["a", "b"])


def test_the_check_of_the_data_is_made_again_where_a_mask_is_gone_and_only_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    films = writing.write(tmp_path / "films", {"Train": 4, "Val": 4, "Test": 4}, size=32)
    recipe = StudyRecipe.model_validate({"name": "s", "models": ["test_resnet"], "data": {"size": 32}})

    def check() -> tuple[dict[str, Any], str]:
        capsys.readouterr()
        parts = [load_dataset(films, split=split, size=32) for split in ("Train", "Val", "Test")]
        path = data_check.write(recipe, films, tmp_path, parts)
        return files.read_json(path), capsys.readouterr().err

    first, said = check()
    assert "data check:" in said
    assert check() == (first, "")
    gone = sorted(films.rglob("Test/**/infection masks/*.png"))
    for mask in gone:
        mask.unlink()
    then, said = check()
    assert "data-check.json: of other images or masks: checked again" in said
    count, left = (found["files"]["masks"]["infection"]["n"] for found in (first, then))
    assert count - left == len(gone) > 0


def test_a_damaged_recipe_of_a_study_is_said_with_what_to_do(begun: Path) -> None:
    (begun / folders.STUDY_FILE).write_text("")
    said = complaint("status", begun)
    assert "study.yaml: expected keys and values, found nothing; delete it, and `trustcxr study` with the" in said


def test_what_nobody_measured_is_not_guessed(begun: Path) -> None:
    robust = begun / "runs" / ROBUST
    shutil.rmtree(robust)
    found = standing.status(begun)
    assert (found.least, found.most) == (None, None)
    assert ROBUST in found.unmeasured
    said = " ".join(run("status", begun).stdout.split())
    assert "time left: not known" in said
    assert f"; `trustcxr study RECIPE --data PATH --dry-run --out {begun}` measures it" in said


def test_nothing_is_cut_off_in_a_terminal_of_80_columns() -> None:
    printed = run("study", "quick", "--dry-run", "--no-measure").stdout.splitlines()
    (row,) = [line for line in printed if line.startswith("tf_efficientnet_lite0-smooth-standard-s0 ")]
    assert row.count("unknown") == 3
    assert len(row) <= 80


def test_a_finished_study_of_version_0_1_is_done() -> None:
    assert set(states(OLD).values()) == {"done"}
    assert "2 done, 0 running, 0 failed, 0 waiting" in run("status", OLD).stdout


def test_a_run_whose_files_are_gone_is_not_done_whatever_study_json_says(tmp_path: Path) -> None:
    study = Path(shutil.copytree(OLD, tmp_path / "study"))
    shutil.rmtree(study / "runs" / ROBUST)
    assert states(study) == {STANDARD: "done", ROBUST: "waiting"}


def test_a_folder_that_is_no_study_is_one_line(tmp_path: Path) -> None:
    assert "no study.yaml here" in complaint("status", tmp_path)
    assert "no such study folder" in complaint("status", tmp_path / "gone")
    assert "there is v0.1 in it" in complaint("status", OLD.parent)


def test_robust_runs_of_networks_that_are_not_chosen_yet_cost_between_the_cheapest_and_the_dearest() -> None:
    recipe: StudyRecipe = small(models=[{"name": n, "weights": "none"} for n in ("test_resnet", "resnet10t")])  # type: ignore[assignment]
    found = planned.runs(recipe, None)
    assert (len(found.certain), len(found.open), found.to_choose) == (2, 2, 1)
    ways = {
        costs.kind(one): WayCost(step=seconds, batch=12, timed=12, forward=0.0, gradient=0.0)
        for one, seconds in zip((*found.certain, *found.open), (1.0, 2.0, 10.0, 40.0), strict=True)
    }
    counts = {"train": 24, "val": 6, "test": 6}
    measured = CostDocument(ways=ways, counts=counts, films={"test": FilmCost(forward=2, gradient=3, seconds=0.5)})
    plan = standing.plan(recipe, None, measured)
    # Two steps an epoch and one epoch; a film tested costs half a second, and nothing was annotated.
    assert [one.seconds["train"] for one in plan.runs] == [2.0, 4.0, 20.0, 80.0]
    assert {one.seconds["test"] for one in plan.runs} == {3.0}
    assert (plan.least, plan.most) == (2 + 4 + 20 + 9, 2 + 4 + 80 + 9)
    assert [one.state for one in plan.runs] == ["waiting", "waiting", "if chosen", "if chosen"]


def test_a_dry_run_of_a_study_that_is_followed_is_of_that_study(begun: Path) -> None:
    content = files.read_yaml(begun / folders.STUDY_FILE)
    asked = begun.parent / "recipe.yaml"
    files.write_yaml(asked, files.part(content, "recipe"))
    followed = tracked(planned.recipe_of(begun), "mlflow", "http://lab:5000")
    files.write_yaml(begun / folders.STUDY_FILE, content | {"recipe": followed.model_dump(mode="json")})
    assert run("study", asked, "--dry-run", "--no-measure", "--out", begun).stdout.count("waiting") > 0
    files.write_yaml(asked, files.part(content, "recipe") | {"seeds": [5]})
    assert "holds a study of another recipe" in complaint("study", asked, "--dry-run", "--no-measure", "--out", begun)


def test_a_dry_run_brings_no_films_here() -> None:
    said = complaint("study", "demo", "--dry-run", "--data", "s3://bucket/films")
    assert "s3://bucket/films: a dry run brings no films here; leave --data out" in said


def test_epochs_with_a_refit_are_those_of_both_trainings(tmp_path: Path) -> None:
    one = small_run("fgsm", epochs=3, refit=True)
    for folder, rows in ((tmp_path / "validated", 3), (tmp_path, 1)):
        folder.mkdir(exist_ok=True)
        (folder / folders.HISTORY_FILE).write_text("epoch,seconds\n" + "".join(f"{n},{n}\n" for n in range(rows)))
    found = planned.standing(one, tmp_path)
    assert (found.epoch, found.epochs) == (4, 6)


def test_seeds_are_the_recipes_own_and_then_those_after(tmp_path: Path) -> None:
    assert with_seeds(load_study("demo"), 3).seeds == (0, 1, 2)
    assert with_seeds(small(seeds=[7, 3]), 4).seeds == (7, 3, 8, 9)  # type: ignore[arg-type]
    assert with_seeds(small(seeds=[7, 3]), 1).seeds == (7,)  # type: ignore[arg-type]
    assert "--seeds 0: expected 1 or more" in complaint("study", "demo", "--seeds", 0, "--dry-run")
    listed = json.loads(run("study", "demo", "--seeds", 2, "--dry-run", "--no-measure", "--json").stdout)
    assert [one["seed"] for one in listed["runs"]] == [0, 1] * 4


def test_a_dry_run_of_the_paper_lists_its_runs_without_data() -> None:
    done = run("study", "paper", "--dry-run", "--no-measure")
    assert done.stdout.count("if chosen") == 21
    assert "validation will choose 6 networks" in done.stdout
    assert "say --data PATH" in complaint("study", "paper")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("models: [resnt18]", "unknown model 'resnt18'"),
        ("models: [{name: resnet18, weights: nowhere.pth}]", "no such file 'nowhere.pth'"),
        ("models: [resnet18]\ndefences: [fgms]", "did you mean fgsm"),
        ("models: [resnet18]\nexplanation: {methods: [gradcamm]}", "did you mean gradcam"),
        ("models: [resnet18]\nexplanation: {corruptions: [gama]}", "did you mean gamma"),
    ],
)
def test_a_dry_run_that_only_lists_refuses_what_nobody_knows(tmp_path: Path, keys: str, said: str) -> None:
    (tmp_path / "bad.yaml").write_text(f"name: bad\n{keys}\n")
    assert said in complaint("study", tmp_path / "bad.yaml", "--dry-run", "--no-measure")


def test_what_is_of_a_dry_run_is_of_nothing_else(tmp_path: Path) -> None:
    at = ["study", "demo", "--data", tmp_path, "--out", tmp_path / "out"]
    assert "--no-measure is of --dry-run alone" in complaint(*at, "--no-measure")
    assert "--again is of --dry-run alone" in complaint(*at, "--again")
    assert "leave one of them out" in complaint(*at, "--dry-run", "--no-measure", "--again")


@pytest.mark.slow
def test_a_dry_run_measures_each_network_once_and_trains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from trustcxr.study import measuring

    recipe: StudyRecipe = small(data={"size": 32})  # type: ignore[assignment]
    counts = {"train": 27, "val": 12, "test": 12, "annotated": 8, "annotated_val": 8}
    found = measuring.measure(recipe, counts, seconds=0.3)
    assert set(found.ways) == {
        costs.kind(one)
        for part in planned.runs(recipe, None).__dict__.values()
        if isinstance(part, list)
        for one in part
    }
    for way in found.ways.values():
        assert way.step is not None
        assert way.forward is not None
        assert way.gradient is not None
        assert way.step > way.forward > 0
        assert way.gradient > way.forward
    # FGSM at two radii and PGD-2: four gradients; a clean pass, its own answers, a pass for each image that results.
    assert found.films["test"].gradient == pytest.approx(4, abs=1)
    assert (found.films["test"].forward or 0) > 4
    assert (found.films["explain"].gradient or 0) >= 1
    plan = standing.plan(recipe, None, found)
    assert plan.least is not None
    assert 0 < plan.least < (plan.most or 0)

    def never(*_: object, **__: object) -> WayCost:
        raise AssertionError("timed again")

    monkeypatch.setattr(measuring, "way", never)
    assert measuring.measure(recipe, counts).ways == found.ways, "kept in the cache, way by way"
    with pytest.raises(AssertionError, match="timed again"):
        measuring.measure(recipe, counts, again=True)


def test_what_a_step_takes_whatever_its_batch_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from trustcxr.study import measuring

    monkeypatch.setattr(measuring, "_timed", lambda work: work())
    tried: list[int] = []

    def prepare(count: int) -> Callable[[], float]:
        tried.append(count)
        return lambda: 3.0 + 0.5 * count

    an_image, timed = measuring._seconds_an_image(prepare, 32, 1.0, beside=3.0)
    assert (an_image, timed, tried) == (0.5, 2, [2]), "one try alone, where that takes longer than there is"
    assert 3.0 + 32 * an_image == 19.0
    assert measuring._seconds_an_image(prepare, 32, 1000.0, beside=3.0) == (0.5, 32)
