"""A training followed in TensorBoard or MLflow: the same run, each epoch's figures there too; and what a run took."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pack import Pack
from small_runs import PowerCut, cut_at, recipe, same, weights
from test_cli import complaint, run
from trustcxr.errors import UserError
from trustcxr.recipes.study_recipe import load_study, with_tracker, without_tracker
from trustcxr.runs.run_folder import RunFolder
from trustcxr.storage import atomic, schemas
from trustcxr.storage.schemas import TrainingDocument
from trustcxr.training import environment, fit_run, tracking


@pytest.fixture(scope="module")
def images(pack: Pack) -> tuple[Any, Any]:
    return pack.training_images()


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


@pytest.mark.parametrize("track", ["tensorboard", "mlflow"])
def test_a_package_that_is_missing_is_said_with_how_to_install_it(
    track: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytorch_lightning import loggers

    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("not there")

    monkeypatch.setattr(loggers, {"tensorboard": "TensorBoardLogger", "mlflow": "MLFlowLogger"}[track], missing)
    with pytest.raises(UserError, match=rf"{track} needs missing packages: pip install 'trustcxr\[track\]'"):
        tracking.make_logger(recipe(track=track), tmp_path / "run")


def test_runs_of_a_study_are_tracked_together(tmp_path: Path) -> None:
    run_folder = tmp_path / "study" / "runs" / "a"
    assert tracking.tracking_folder(run_folder) == run_folder
    atomic.write_yaml(tmp_path / "study" / "study.yaml", {})
    assert (
        tracking.tracking_folder(run_folder)
        == tracking.tracking_folder(run_folder / "before_refit")
        == tmp_path / "study"
    )


@pytest.mark.slow
def test_tensorboard_has_every_epoch_and_the_run_is_the_same(images: tuple[Any, Any], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit_run.fit(recipe(), *images, tmp_path / "alone")
    fit_run.fit(recipe(track="tensorboard"), *images, tmp_path / "tracked")
    assert same(weights(tmp_path / "alone"), weights(tmp_path / "tracked"))
    events = EventAccumulator(str(next((tmp_path / "tracked" / "tensorboard").glob("*"))))
    events.Reload()
    history = atomic.read_table(tmp_path / "tracked" / "history.csv")
    seen = [point.value for point in events.Scalars("val_accuracy")]
    assert seen == pytest.approx(history["val_accuracy"].tolist())


@pytest.mark.full
def test_runs_of_a_study_that_begin_at_once_share_a_new_database(tmp_path: Path) -> None:
    folders = [tmp_path / "runs" / name for name in "ab"]
    atomic.write_yaml(tmp_path / "study.yaml", {})
    begin = (
        "import sys; from pathlib import Path; from small_runs import recipe; from trustcxr.training import tracking\n"
    )
    begin += "tracking.make_logger(recipe(track='mlflow'), Path(sys.argv[1]))"
    for folder in folders:
        folder.mkdir(parents=True)
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), *sys.path]))}
    begun = [
        subprocess.Popen([sys.executable, "-c", begin, folder], env=here, stderr=subprocess.PIPE) for folder in folders
    ]
    said = [each.communicate()[1] for each in begun]
    assert [each.returncode for each in begun] == [0, 0], said
    assert len({atomic.read_json(folder / tracking.TRACKED_FILE)["run"] for folder in folders}) == 2


@pytest.mark.full
def test_mlflow_keeps_runs_in_sqlite_and_one_that_was_cut_off_is_gone_on_with(
    images: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    asked, folder = recipe("fgsm", track="mlflow"), tmp_path / "run"
    with monkeypatch.context() as cut:
        cut_at(cut, 4)
        with pytest.raises(PowerCut):
            fit_run.fit(asked, *images, folder)
    fit_run.fit(asked, *images, folder)
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (experiment,) = [one for one in client.search_experiments() if one.name == "run"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.params["defence/name"] == "fgsm"
    history = atomic.read_table(folder / "history.csv")
    points = {point.step: point.value for point in client.get_metric_history(found.info.run_id, "val_pgd_accuracy")}
    assert points == pytest.approx(dict(enumerate(history["val_pgd_accuracy"])))


@pytest.mark.full
def test_a_server_that_does_not_answer_is_one_line(
    images: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")
    asked = recipe(track="mlflow", tracking_uri="http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"tracking with mlflow at http://127\.0\.0\.1:9 failed"):
        fit_run.fit(asked, *images, tmp_path / "run")


def test_a_tracker_that_fails_on_the_way_costs_no_training(capsys: pytest.CaptureFixture[str]) -> None:
    import pandas as pd

    sent: list[int] = []

    class Monitored:
        recipe = recipe(track="mlflow", tracking_uri="http://lab")

        def table(self) -> pd.DataFrame:
            return pd.DataFrame({"epoch": [0, 1], "val_accuracy": [0.5, 0.75]})

    class Broken:
        def log_metrics(self, figures: dict[str, float], step: int) -> None:
            sent.append(step)
            raise ConnectionError("gone")

        def finalize(self, status: str) -> None:
            sent.append(-1)

    followed = tracking.Tracked(Monitored(), Broken())  # type: ignore[arg-type]
    for _ in range(2):
        followed.on_train_epoch_end(None, None)  # type: ignore[arg-type]
    followed.on_fit_end(None, None)  # type: ignore[arg-type]
    assert sent == [1], "after the first failure nothing more is sent"
    assert capsys.readouterr().err.count("tracking with mlflow at http://lab failed: gone; training continues") == 1


def test_the_source_is_known_where_it_is_a_checkout_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = environment.source.__wrapped__()
    assert found is None or len(str(found["commit"])) == 40
    elsewhere = tmp_path / "site-packages" / "provenance.py"
    elsewhere.parent.mkdir()
    elsewhere.touch()
    monkeypatch.setattr(environment, "__file__", str(elsewhere))
    assert environment.source.__wrapped__() is None


@pytest.mark.full
def test_a_run_says_what_it_took_also_over_a_cut(
    images: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as cut:
        cut_at(cut, 4)
        with pytest.raises(PowerCut):
            fit_run.fit(recipe(), *images, tmp_path)
    first = atomic.read_yaml(tmp_path / "run.yaml")
    assert {"segments", "recipe", "data"} <= set(first)
    fit_run.fit(recipe(), *images, tmp_path)
    content = atomic.read_yaml(tmp_path / "run.yaml")
    training = schemas.read_schema(TrainingDocument, tmp_path / "training.json")
    history = atomic.read_table(tmp_path / "history.csv")
    assert training.seconds == pytest.approx(history["seconds"].iloc[-1])
    assert sys.platform == "win32" or content["segments"][-1]["hardware"]["system"]  # type: ignore[index]
    assert run("report", tmp_path, expect=2).stderr, "not tested, so no page"
