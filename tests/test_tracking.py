"""A training followed in TensorBoard or MLflow: the same run, each epoch's figures there too; and what a run took."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
from pytorch_lightning import loggers

from small_runs import PowerCut, Splits, cut_at, recipe, same, weights
from test_cli import complaint, run
from trustcxr.errors import UserError
from trustcxr.recipes.study_recipe import load_study, with_tracker, without_tracker
from trustcxr.runs.run_folder import RunFolder
from trustcxr.storage import atomic, schemas
from trustcxr.storage.schemas import TrainingDocument
from trustcxr.training import environment, fit_run, tracking


def test_a_tracker_is_no_part_of_what_a_run_is(tmp_path: Path) -> None:
    one, other = recipe(), recipe(track="mlflow", tracking_uri="http://lab:5000")
    assert one != other
    assert one.same_as(other)
    assert not one.same_as(recipe(epochs=3))
    atomic.write_yaml(tmp_path / "run.yaml", {"recipe": other.model_dump(mode="json")})
    RunFolder(tmp_path).check_recipe(one)
    with pytest.raises(UserError, match="holds another run"):
        RunFolder(tmp_path).check_recipe(recipe(epochs=3))
    demo = load_study("demo")
    assert with_tracker(demo, track="tensorboard").training.track == "tensorboard"
    assert without_tracker(with_tracker(demo, track="mlflow", tracking_uri="http://lab:5000")) == demo


def test_what_is_typed_wrongly_is_one_line(tmp_path: Path) -> None:
    typed = ("train", "--data", tmp_path, "--model", "resnet18", "--out", tmp_path / "out", "--track")
    assert "unknown value 'tensorbord': did you mean tensorboard" in complaint(*typed, "tensorbord")
    assert "mlflow, which has a server" in complaint(*typed, "tensorboard:http://lab")
    for where in ("tensorbord", "tensorboard:http://lab"):
        assert "--track: " in complaint("study", "demo", "--dry-run", "--track", where)


@pytest.mark.parametrize(("track", "name"), [("tensorboard", "TensorBoardLogger"), ("mlflow", "MLFlowLogger")])
def test_a_missing_package_is_said(track: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, name, Mock(side_effect=ModuleNotFoundError("not there")))
    with pytest.raises(UserError, match=rf"{track} needs missing packages: pip install 'trustcxr\[track\]'"):
        tracking.make_logger(recipe(track=track), tmp_path / "run")


def test_runs_of_a_study_are_tracked_together(tmp_path: Path) -> None:
    run_folder = tmp_path / "runs" / "a"
    assert tracking.tracking_folder(run_folder) == run_folder
    atomic.write_yaml(tmp_path / "study.yaml", {})
    for folder in (run_folder, run_folder / "before_refit"):
        assert tracking.tracking_folder(folder) == tmp_path


@pytest.mark.slow
def test_tensorboard_has_every_epoch_and_the_run_is_the_same(radiographs: Splits, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit_run.fit(recipe(), *radiographs, tmp_path / "alone")
    fit_run.fit(recipe(track="tensorboard"), *radiographs, tmp_path / "tracked")
    assert same(weights(tmp_path / "alone"), weights(tmp_path / "tracked"))
    events = EventAccumulator(str(next((tmp_path / "tracked" / "tensorboard").glob("*"))))
    events.Reload()
    history = atomic.read_table(tmp_path / "tracked" / "history.csv")
    seen = [point.value for point in events.Scalars("val_accuracy")]
    assert seen == pytest.approx(history["val_accuracy"].tolist())


BEGIN = """
import sys
from pathlib import Path
from small_runs import recipe
from trustcxr.training import tracking
tracking.make_logger(recipe(track="mlflow"), Path(sys.argv[1]))
"""


@pytest.mark.full
def test_runs_of_a_study_that_begin_at_once_share_a_new_database(tmp_path: Path) -> None:
    folders = [tmp_path / "runs" / name for name in "ab"]
    atomic.write_yaml(tmp_path / "study.yaml", {})
    for folder in folders:
        folder.mkdir(parents=True)
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), *sys.path]))}
    options: Any = {"env": here, "stderr": subprocess.PIPE}
    begun = [subprocess.Popen([sys.executable, "-c", BEGIN, folder], **options) for folder in folders]
    said = [each.communicate()[1] for each in begun]
    assert [each.returncode for each in begun] == [0, 0], said
    assert len({atomic.read_json(folder / tracking.TRACKED_FILE)["run"] for folder in folders}) == 2


@pytest.mark.full
def test_mlflow_goes_on_after_a_cut(radiographs: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    asked, folder = recipe("fgsm", track="mlflow"), tmp_path / "run"
    with monkeypatch.context() as cut:
        cut_at(cut, 4)
        with pytest.raises(PowerCut):
            fit_run.fit(asked, *radiographs, folder)
    fit_run.fit(asked, *radiographs, folder)
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (experiment,) = [one for one in client.search_experiments() if one.name == "run"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.params["defence/name"] == "fgsm"
    history = atomic.read_table(folder / "history.csv")
    points = {point.step: point.value for point in client.get_metric_history(found.info.run_id, "val_pgd_accuracy")}
    assert points == pytest.approx(dict(enumerate(history["val_pgd_accuracy"])))


@pytest.mark.full
def test_a_silent_server_is_one_line(radiographs: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")
    asked = recipe(track="mlflow", tracking_uri="http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"tracking with mlflow at http://127\.0\.0\.1:9 failed"):
        fit_run.fit(asked, *radiographs, tmp_path / "run")


def test_a_tracker_that_fails_on_the_way_costs_no_training(capsys: pytest.CaptureFixture[str]) -> None:
    history = pd.DataFrame({"epoch": [0, 1], "val_accuracy": [0.5, 0.75]})
    monitored: Any = SimpleNamespace(recipe=recipe(track="mlflow", tracking_uri="http://lab"), table=lambda: history)
    broken = Mock(**{"log_metrics.side_effect": ConnectionError("gone")})
    followed = tracking.Tracked(monitored, broken)
    for _ in range(2):
        followed.on_train_epoch_end(None, None)  # type: ignore[arg-type]
    followed.on_fit_end(None, None)  # type: ignore[arg-type]
    broken.log_metrics.assert_called_once_with({"val_accuracy": 0.75}, step=1)  # after a failure nothing more is sent
    broken.finalize.assert_not_called()
    assert capsys.readouterr().err.count("tracking with mlflow at http://lab failed: gone; training continues") == 1


def test_the_source_is_known_in_a_checkout_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = environment.source.__wrapped__()
    assert found is None or len(str(found["commit"])) == 40
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "site-packages" / "provenance.py"))
    assert environment.source.__wrapped__() is None


@pytest.mark.full
def test_a_cut_run_says_what_it_took(radiographs: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as cut:
        cut_at(cut, 4)
        with pytest.raises(PowerCut):
            fit_run.fit(recipe(), *radiographs, tmp_path)
    first = atomic.read_yaml(tmp_path / "run.yaml")
    assert {"segments", "recipe", "data"} <= set(first)
    fit_run.fit(recipe(), *radiographs, tmp_path)
    content = atomic.read_yaml(tmp_path / "run.yaml")
    training = schemas.read_schema(TrainingDocument, tmp_path / "training.json")
    history = atomic.read_table(tmp_path / "history.csv")
    assert training.seconds == pytest.approx(history["seconds"].iloc[-1])
    assert sys.platform == "win32" or content["segments"][-1]["hardware"]["system"]  # type: ignore[index]
    assert run("report", tmp_path, expect=2).stderr, "not tested, so no page"
