"""Runs that were finished on a machine that is gone: a few small files, and a study goes on from them."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from test_cli import complaint, run
from test_study import tiny
from trustcxr import report
from trustcxr.data.phantom import writing
from trustcxr.errors import CannotWrite, UserError
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.study import StudyRecipe
from trustcxr.results import files
from trustcxr.results.folders import VALIDATED_FILE
from trustcxr.study import engines, finished, standing
from trustcxr.study.protocol import Study
from trustcxr.study.verifying import verify
from trustcxr.training import loop

OLD, ROBUST = Path(__file__).parent / "studies" / "v0.1", "test_resnet-fgsm-s0"
LABELS = ("First", "Second")
EXPLANATION = {"methods": ["layercam"], "corruptions": [], "sample": 0, "panels": 1}


def test_a_finished_run_is_kept_in_small_and_brought_once(tmp_path: Path) -> None:
    kept, study = tmp_path / "kept", tmp_path / "study"
    assert finished.keep(OLD, kept) == [ROBUST]
    assert finished.keep(OLD, kept) == [], "it is there"
    names = {path.name for path in (kept / "runs" / ROBUST).iterdir()}
    assert names == {"run.yaml", "training.json", "history.csv", "metrics.json", VALIDATED_FILE}
    small_one, whole_one = (files.read_json(place / "runs" / ROBUST / "metrics.json") for place in (kept, OLD))
    assert small_one["clean"]["accuracy"] == pytest.approx(whole_one["clean"]["accuracy"], rel=1e-5)
    assert [row["attack"] for row in small_one["attacks"]] == [row["attack"] for row in whole_one["attacks"]]
    assert sum(path.stat().st_size for path in (kept / "runs" / ROBUST).iterdir()) < 30_000
    shutil.copytree(kept, study, ignore=shutil.ignore_patterns("runs"))
    assert finished.bring(kept, study) == [ROBUST]
    assert finished.bring(kept, study) == []
    assert finished.is_finished(study / "runs" / ROBUST)
    assert not finished.is_finished(OLD / "runs" / "test_resnet-standard-s0")
    assert {one.run: one.state for one in standing.status(study).runs}[ROBUST] == "done"
    assert "its figures are here, and its weights are not" in complaint(
        "evaluate", study / "runs" / ROBUST, "--data", OLD
    )
    files.write_yaml(kept / "study.yaml", files.read_yaml(kept / "study.yaml") | {"fingerprint": "of others"})
    with pytest.raises(UserError, match="holds runs on other films"):
        finished.bring(kept, study)


@pytest.mark.parametrize("name", ["history.csv", "training.json", "metrics.json", "run.yaml", "validation.parquet"])
def test_a_run_with_a_lost_file_is_left_out_and_said_once(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, told = Path(shutil.copytree(OLD, tmp_path / "study")), set[str]()
    (study / "runs" / ROBUST / name).write_text("")
    assert finished.keep(study, tmp_path / "kept", told) == []
    assert finished.keep(study, tmp_path / "kept", told) == []
    assert capsys.readouterr().err.count(f"{ROBUST}: {name} is damaged, so the run is not kept") == 1
    (study / "runs" / ROBUST / name).unlink()
    assert finished.keep(study, tmp_path / "kept", told) == []
    assert not (tmp_path / "kept" / "runs").exists()
    shutil.copyfile(OLD / "runs" / ROBUST / name, study / "runs" / ROBUST / name)
    assert finished.keep(study, tmp_path / "kept", told) == [ROBUST]


def test_what_is_damaged_where_it_is_kept_is_not_brought_and_is_kept_anew(tmp_path: Path) -> None:
    kept, study = tmp_path / "kept", tmp_path / "study"
    finished.keep(OLD, kept)
    whole = (kept / "runs" / ROBUST / "metrics.json").read_bytes()
    (kept / "runs" / ROBUST / "metrics.json").write_text("")
    shutil.copytree(kept, study, ignore=shutil.ignore_patterns("runs"))
    assert finished.bring(kept, study) == []
    assert finished.keep(OLD, kept) == [ROBUST]
    assert (kept / "runs" / ROBUST / "metrics.json").read_bytes() == whole
    assert finished.bring(kept, study) == [ROBUST]


def test_a_run_that_was_measured_again_is_kept_again(tmp_path: Path) -> None:
    kept, study = tmp_path / "kept", Path(shutil.copytree(OLD, tmp_path / "study"))
    metrics, small_one = study / "runs" / ROBUST / "metrics.json", kept / "runs" / ROBUST / "metrics.json"
    own = metrics.read_text()
    metrics.write_text(json.dumps(json.loads(own) | {"attacks": []}))  # as `evaluate` of that run leaves it
    finished.keep(study, kept)
    assert files.read_json(small_one)["attacks"] == []
    metrics.write_text(own)
    assert finished.keep(study, kept) == [ROBUST]
    assert files.read_json(small_one)["attacks"]
    assert finished.keep(study, kept) == []
    history = study / "runs" / ROBUST / "history.csv"
    history.write_text(history.read_text() + history.read_text().splitlines()[-1] + "\n")  # trained again
    assert finished.keep(study, kept) == [ROBUST]
    assert (kept / "runs" / ROBUST / "history.csv").read_bytes() == history.read_bytes()


def test_what_is_kept_again_is_never_of_two_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full half-way: neither the old nor the new is taken for whole."""
    kept, study = tmp_path / "kept", Path(shutil.copytree(OLD, tmp_path / "study"))
    finished.keep(study, kept)
    content = files.read_json(study / "runs" / ROBUST / "training.json") | {"best_epoch": 99}
    files.write_json(study / "runs" / ROBUST / "training.json", content)
    real = shutil.copyfile

    def full(source: Path, to: Path) -> None:
        if Path(source).name == "history.csv":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, to)

    monkeypatch.setattr(finished.shutil, "copyfile", full)
    finished.keep_if_possible(study, kept, set())
    assert not (kept / "runs" / ROBUST / "metrics.json").exists()
    monkeypatch.setattr(finished.shutil, "copyfile", real)
    assert finished.keep(study, kept) == [ROBUST]
    assert files.read_json(kept / "runs" / ROBUST / "training.json")["best_epoch"] == 99


def test_a_full_disk_where_runs_are_kept_is_said_once_and_stops_no_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise CannotWrite(f"no space left ({len(told)} MB are free)")

    told: set[str] = set()
    monkeypatch.setattr(finished, "keep", full)
    for _ in range(3):
        finished.keep_if_possible(OLD, tmp_path, told)
    assert capsys.readouterr().err.count("finished runs are not kept for now: no space left") == 1


def test_a_dry_run_counts_what_was_finished_elsewhere_and_refuses_what_the_study_would(tmp_path: Path) -> None:
    kept, asked = tmp_path / "kept", tmp_path / "recipe.yaml"
    finished.keep(OLD, kept)
    files.write_yaml(asked, files.part(files.read_yaml(OLD / "study.yaml"), "recipe"))
    words = ("study", asked, "--dry-run", "--no-measure")
    listed = json.loads(run(*words, "--json").stdout)["runs"]
    assert {one["state"] for one in listed} == {"waiting"}
    listed = json.loads(run(*words, "--kept", kept, "--json").stdout)["runs"]
    assert {one["run"] for one in listed if one["state"] == "done"} == {ROBUST}
    assert not list((tmp_path).glob("**/.costs.json"))
    assert "holds runs of another recipe" in complaint("study", "demo", *words[2:], "--kept", kept)
    for option, value, said in (
        ("--jobs", -4, "--jobs -4: expected 1 or more"),
        ("--engine", "zzz", "unknown engine 'zzz'"),
        ("--devices", 0, "--devices 0: expected 1 or more"),
        ("--devices", 99, "99 processes share each batch"),
    ):
        assert said in complaint(*words, option, value)


def test_what_is_kept_grows_with_the_seeds_of_its_study(tmp_path: Path) -> None:
    kept, grown, asked = tmp_path / "kept", Path(shutil.copytree(OLD, tmp_path / "grown")), tmp_path / "recipe.yaml"
    finished.keep(OLD, kept)
    content = files.read_yaml(OLD / "study.yaml")
    (seed,) = content["recipe"]["seeds"]
    content["recipe"]["seeds"] = [seed, seed + 1]
    files.write_yaml(asked, content["recipe"])
    words = ("study", asked, "--dry-run", "--no-measure", "--json")
    listed = json.loads(run(*words, "--kept", kept, "--out", OLD).stdout)["runs"]
    assert {(one["run"], one["state"]) for one in listed if one["seed"] == seed} >= {(ROBUST, "done")}
    assert {one["state"] for one in listed if one["seed"] != seed} == {"waiting"}
    files.write_yaml(grown / "study.yaml", content)
    assert finished.keep(grown, kept) == []
    assert files.read_yaml(kept / "study.yaml") == content
    with pytest.raises(UserError, match="holds runs of another recipe"):
        finished.keep(OLD, kept)
    said = complaint("study", *words[1:-1], "--out", grown, "--seeds", 1)
    assert f"holds this study with 2 seeds ({seed}, {seed + 1}), and 1 seed ({seed}) would be fewer" in said


def small(**changes: object) -> StudyRecipe:
    models = [{"name": "test_resnet", "label": label, "weights": "none"} for label in LABELS]
    return tiny(models=models, explanation=EXPLANATION, **changes)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return writing.write(tmp_path_factory.mktemp("films") / "phantom", {"Train": 8, "Val": 4, "Test": 4}, size=32)


@pytest.fixture(scope="module")
def whole(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study, and in `kept` beside it what is kept of its runs."""
    out = tmp_path_factory.mktemp("study") / "whole"
    Study(small(), films, out, engines.get("local"), kept=out.with_name("kept")).run()
    return out


def begin(films: Path, out: Path, kept: Path, **changes: object) -> Any:
    return Study(small(**changes), films, out, engines.get("local"), kept=kept).run()


@pytest.mark.slow
def test_a_study_goes_on_from_figures_alone(whole: Path, films: Path, tmp_path: Path, monkeypatch: Any) -> None:
    kept, out = Path(shutil.copytree(whole.with_name("kept"), tmp_path / "kept")), tmp_path / "out"
    names = sorted(path.name for path in kept.glob("runs/*"))
    assert len(names) == 3
    assert not [path for kind in ("*.parquet", "*.safetensors") for path in kept.rglob(kind)]
    robust = next(name for name in names if "fgsm" in name)
    shutil.rmtree(kept / "runs" / robust)
    assert {one.run: one.state for one in standing.status(kept).runs}[robust] == "waiting"
    trained: list[str] = []
    real = loop.fit

    def fit(recipe: RunRecipe, *rest: Any, **options: Any) -> object:
        trained.append(recipe.name)
        return real(recipe, *rest, **options)

    monkeypatch.setattr(loop, "fit", fit)
    document, before = begin(films, out, kept), files.read_json(whole / "study.json")
    assert trained == [robust], "chosen by the figures on validation that are kept, without weights"
    assert document.plain()["selection"] == before["selection"]
    said, meant = ({row["run"]: row["clean"] for row in each["runs"]} for each in (document.plain(), before))
    assert said.keys() == meant.keys()
    for name, clean in said.items():
        assert clean["confusion"] == meant[name]["confusion"]
        assert clean["accuracy_ci"] == pytest.approx(meant[name]["accuracy_ci"], rel=1e-5)
    assert (kept / "runs" / robust / "metrics.json").is_file(), "what ends here is put there too"
    assert {one.state for one in standing.status(out).runs} == {"done"}
    assert "First" in report.write(out).read_text()
    found = verify(out)
    assert found.differences == []
    assert sum("finished elsewhere" in line for line in found.unchecked) == 2


@pytest.mark.slow
def test_what_is_kept_says_what_validation_said(whole: Path) -> None:
    ranking = files.read_json(whole / "study.json")["selection"]["ranking"]
    for row in ranking:
        kept = whole.with_name("kept") / "runs" / f"{row['model'].lower()}-standard-s0" / VALIDATED_FILE
        document = files.read_json(kept)
        assert (document["split"], document["clean"]["accuracy"]) == ("Val", pytest.approx(row["value"]))
        low, high = document["clean"]["accuracy_ci"]
        assert low <= row["value"] <= high


@pytest.mark.slow
def test_runs_of_another_recipe_or_on_other_films_are_refused(whole: Path, films: Path, tmp_path: Path) -> None:
    kept = whole.with_name("kept")
    with pytest.raises(UserError, match="holds runs of another recipe"):
        begin(films, tmp_path / "out", kept, seeds=[5])
    others = writing.write(tmp_path / "others", {"Train": 8, "Val": 4, "Test": 4}, size=32, seed=1)
    with pytest.raises(UserError, match="holds runs on other films"):
        begin(others, tmp_path / "other", kept)
