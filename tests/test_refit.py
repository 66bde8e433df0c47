"""A run that is trained once more, on validation images too: what was chosen on validation stays with the first."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from small_runs import PowerCut, Splits, cut_at, made_up, networks, newest, recipe, same, weights
from test_study import study, tiny
from trustcxr import report
from trustcxr.data import load_dataset
from trustcxr.errors import UserError
from trustcxr.evaluation import predictions
from trustcxr.evaluation import trained_run as evaluation_run
from trustcxr.explain import evaluate
from trustcxr.report import terminal
from trustcxr.report.load import Run
from trustcxr.runs import run_folder
from trustcxr.storage import atomic, prediction_table
from trustcxr.storage.schemas import RunDocument, TrainingDocument
from trustcxr.training import fit_run, monitor
from trustcxr.training.step import TrainingStep


@pytest.mark.slow
def test_the_second_training_sees_both_and_ends_at_the_epoch_that_validation_chose(
    radiographs: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bars: list[tuple[str, int, int]]
) -> None:
    # The second of four epochs is the best.
    made_up(monkeypatch, [(0.5,), (0.7,), (0.6,), (0.6,), (0.9,), (0.1,)])
    seen: dict[int, set[int]] = {}
    real = TrainingStep.training_step

    def watching_step(self: TrainingStep, batch: Any, number: int) -> torch.Tensor:
        seen.setdefault(self.steps_per_epoch, set()).update(batch[2].tolist())
        return real(self, batch, number)

    monkeypatch.setattr(TrainingStep, "training_step", watching_step)
    summary = fit_run.fit(recipe(epochs=4, refit=True), *radiographs, tmp_path)
    assert [bar[1:] for bar in bars] == [(12, 12), (8, 8)], "the time left is told of the epochs to come"
    assert seen[3] == set(range(48)), "validation images are not in the first"
    assert max(seen[4]) >= 48
    first = atomic.read_json(tmp_path / "before_refit" / "training.json")
    assert (first["epochs"], first["best_epoch"], first["best_value"]) == (4, 1, 0.7)
    assert atomic.read_json(tmp_path / "training.json") == summary.plain()
    assert (summary.epochs, summary.best_epoch, summary.best_value) == (4, 1, 0.7)
    assert summary.refit.epochs == 2
    assert summary.seconds == pytest.approx(first["seconds"] + summary.refit.seconds)
    said = "after 4 epochs; then a refit of 2 epochs with the validation images"
    assert terminal.describe_training(summary).endswith(said)
    history = atomic.read_table(tmp_path / "history.csv")
    assert history["seen_accuracy"].tolist() == [0.9, 0.1], "named as what it is, and the last epoch is kept"
    assert not [name for name in history if name.startswith("val_")]
    rates = [atomic.read_table(path / "history.csv")["learning_rate"] for path in (tmp_path / "before_refit", tmp_path)]
    assert rates[1].to_numpy() == pytest.approx(rates[0].to_numpy()[:2], rel=0.2), "the same schedule, cut short"
    assert atomic.read_yaml(tmp_path / "run.yaml")["data"]["images"] == 72
    assert atomic.read_yaml(tmp_path / "before_refit" / "run.yaml")["data"]["images"] == 48
    assert not same(weights(tmp_path), weights(tmp_path / "before_refit"))


@pytest.mark.slow
def test_the_first_is_the_run_without_it(radiographs: Splits, tmp_path: Path) -> None:
    fit_run.fit(recipe("fgsm", refit=True), *radiographs, tmp_path / "twice")
    fit_run.fit(recipe("fgsm"), *radiographs, tmp_path / "once")
    assert same(weights(tmp_path / "twice" / "before_refit"), weights(tmp_path / "once"))
    assert not (tmp_path / "once" / "before_refit").exists()
    loaded = evaluation_run.load_run(tmp_path / "once")
    assert evaluation_run.load_before_refit(loaded) is loaded


@pytest.mark.sample("9")
@pytest.mark.slow
@pytest.mark.parametrize("cut", [4, 9])
def test_a_cut_changes_nothing(cut: int, radiographs: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe("fgsm", epochs=3, refit=True)
    whole = fit_run.fit(made, *radiographs, tmp_path / "whole")
    done: list[int] = []
    real = TrainingStep.training_step

    def step(self: TrainingStep, batch: Any, number: int) -> torch.Tensor:
        if len(done) == cut:
            done.append(-1)
            raise PowerCut
        done.append(self.global_step)
        return real(self, batch, number)

    monkeypatch.setattr(TrainingStep, "training_step", step)
    with pytest.raises(PowerCut):
        fit_run.fit(made, *radiographs, tmp_path / "cut")
    assert (tmp_path / "cut" / "before_refit" / "training.json").exists() == (cut == 9)
    assert not (tmp_path / "cut" / "training.json").exists()
    again = fit_run.fit(made, *radiographs, tmp_path / "cut")
    assert again.refit.epochs == whole.refit.epochs
    first = {4: 6, 9: 0}[cut]  # steps of it that were not done, or not saved
    assert len(done) - done.index(-1) - 1 == first + 4 * whole.refit.epochs, "nothing is trained twice"
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))


def test_another_run_is_refused_meanwhile(radiographs: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_at(monkeypatch, 1)
    with pytest.raises(PowerCut):
        fit_run.fit(recipe(refit=True), *radiographs, tmp_path)
    with pytest.raises(UserError, match="holds another run"):
        run_folder.train(recipe(seed=1, refit=True), radiographs[0].root, tmp_path)


@pytest.mark.slow
def test_overfitting_in_a_refit_is_said(radiographs: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [(0.6, 0.6, 0.5), (0.6, 0.6, 0.6), (0.6, 0.6, 0.62)]
    made_up(monkeypatch, [*first, (0.8, 0.7, 0.7), (0.8, 0.7, 0.7), (0.8, 0.9, 0.1)])
    summary = fit_run.fit(recipe("fgsm", epochs=3, refit=True), *radiographs, tmp_path)
    assert summary.refit.stopped == "overfitting"
    assert "accuracy under PGD-10 at epsilon 0.02 fell from 70.0%" in summary.alarm
    assert "70.0% to 10.0% on validation images that it was trained on" in summary.alarm
    assert "the weights of epoch 2 are kept" in summary.alarm
    assert "alarm" not in atomic.read_json(tmp_path / "before_refit" / "training.json")


@pytest.fixture
def tuned_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders of the runs whose maps thresholds are tuned on."""
    found, real = list[str](), evaluate.tune_thresholds

    def spy(run: evaluation_run.Run, *rest: Any, **options: Any) -> dict[str, float]:
        found.append(run.folder.name)
        return real(run, *rest, **options)

    monkeypatch.setattr(evaluate, "tune_thresholds", spy)
    return found


def logits(run: Path, images: Any) -> np.ndarray:
    return prediction_table.logits_of(predictions.predict(evaluation_run.load_run(run), images, views=False))


def judged_by_the_first(folder: Path, val: Any, results: Path | None = None) -> bool:
    """Whether validation.parquet is of the weights that validation judged, and not of those that are tested."""
    stored = prediction_table.logits_of(atomic.read_table((results or folder) / "validation.parquet"))
    first = logits(folder / "before_refit", val)
    assert not np.allclose(first, logits(folder, val), atol=1e-3)
    return np.allclose(stored, first, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_a_study_chooses_by_the_first_training(radiographs: Splits, tmp_path: Path, tuned_on: list[str]) -> None:
    keys = {"models": networks("test_resnet"), "training": {"epochs": 2, "batch_size": 16, "refit": True}}
    explanation = {"methods": ["layercam"], "corruptions": [], "sample": 0, "panels": 1}
    document = study(tiny(**keys, explanation=explanation), radiographs[0].root, tmp_path / "out")
    folder = tmp_path / "out" / "runs" / "test_resnet-fgsm-s0"
    assert judged_by_the_first(folder, radiographs[1])
    assert tuned_on == ["before_refit", "before_refit"]
    tested = atomic.read_table(folder / "predictions.parquet").query("attack == 'clean'")
    again = logits(folder, load_dataset(radiographs[0].root, split="Test", size=32))
    assert np.allclose(prediction_table.logits_of(tested), again, atol=1e-5)
    assert document.plain()["runs"][0]["training"]["refit"]["epochs"] >= 1
    page = report.write(tmp_path / "out").read_text(encoding="utf-8")
    assert "Refit, epochs" in page
    first = Run(RunDocument(), folder, []).history
    assert first is not None
    assert "val_accuracy" in first, "the curve of the training that validation looked on"


@pytest.mark.slow
def test_one_run_is_calibrated_and_tuned_on_what_validation_judged(
    radiographs: Splits, tmp_path: Path, tuned_on: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    root, maps = radiographs[0].root, {"methods": ["layercam"], "corruptions": [], "sample": 0}
    fit_run.fit(recipe(refit=True), *radiographs, tmp_path)
    run_folder.evaluate(tmp_path, root, attacks=["fgsm"])
    run_folder.explain(tmp_path, root, options=maps)
    assert judged_by_the_first(tmp_path, radiographs[1], newest(tmp_path))
    assert tuned_on == ["before_refit"]
    assert "flatters" not in capsys.readouterr().err, "test images are not among those it was trained on"
    for split, count in (("Val", 24), ("Train", 48)):
        run_folder.evaluate(tmp_path, root, split=split, attacks=["fgsm"])
        said = capsys.readouterr().err
        assert f"was trained on these {count} images: what is measured there flatters it" in said
        assert f"measured on the split {split} of phantom, not on a split Test" in said
    run_folder.explain(tmp_path, root, split="Val", options=maps)
    assert "was trained on these 24 images" in capsys.readouterr().err
    run_folder.evaluate(tmp_path / "before_refit", root, split="Val", attacks=["fgsm"])
    assert "flatters" not in capsys.readouterr().err


def test_refitting_never_stops_early_for_validation(radiographs: Splits, tmp_path: Path) -> None:
    first = TrainingDocument(best_epoch=4, seconds=1.0)
    watch = monitor.RefitMonitor(tmp_path, radiographs[1], recipe(refit=True), first)
    assert watch.epochs == 5
    assert watch._score({"epoch": 3.0, "val_accuracy": 0.9}, 3) > watch._score({"epoch": 2.0, "val_accuracy": 1.0}, 3)
