"""Training on a handful of synthetic images: the same seed is the same run, whether or not it was cut off."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pack import Pack
from small_runs import MODEL, PowerCut, cut_at, made_up, recipe, same, weights
from trustcxr import defences
from trustcxr.data import loader
from trustcxr.data.loader import to_pixels
from trustcxr.defences import adversarial, base
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import load_run
from trustcxr.models import classifier, factory
from trustcxr.models.factory import load_weights, save_weights
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.report import model_card
from trustcxr.storage import atomic, layout, segments
from trustcxr.storage.schemas import Hardware
from trustcxr.training import environment as origins
from trustcxr.training import fit_run, monitor
from trustcxr.training import step as fitting
from trustcxr.training.step import TrainingStep


@pytest.fixture(scope="module")
def radiographs(pack: Pack) -> tuple[Any, Any]:
    """48 images to train on and 24 to validate, 32 pixels."""
    return pack.training_images()


@pytest.fixture
def rising(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation figures that rise, so that the last epoch is the one that is kept."""
    figures = {"val_accuracy": 0.3, "val_fgsm_accuracy": 0.4, "val_pgd_accuracy": 0.35}

    def validate_(*_: Any) -> dict[str, float]:
        for name in figures:
            figures[name] += 0.01
        return dict(figures)

    monkeypatch.setattr(monitor, "validate", validate_)


@pytest.mark.parametrize("defence", ["standard", "fgsm"])
def test_a_run_leaves_what_the_design_says(defence: str, radiographs: tuple[Any, Any], tmp_path: Path) -> None:
    summary = fit_run.fit(recipe(defence), *radiographs, tmp_path)
    names = {"history.csv", "model.safetensors", "run.yaml", "training.json", "training_images.parquet"}
    assert {p.name for p in tmp_path.iterdir()} == names
    assert atomic.read_json(tmp_path / "training.json") == summary.plain()
    history = atomic.read_table(tmp_path / "history.csv")
    common = ["epoch", "train_loss", "learning_rate", "epsilon", "train_accuracy", "val_accuracy"]
    robust = ["val_fgsm_accuracy", "val_pgd_accuracy"] if defence == "fgsm" else []
    assert list(history) == [*common, *robust, "seconds"]
    assert history["epoch"].tolist() == [0, 1]
    shares = history[[c for c in history if c.endswith("accuracy")]].to_numpy()
    assert ((shares >= 0) & (shares <= 1)).all()
    assert history["seconds"].is_monotonic_increasing
    assert summary.epochs == 2
    assert summary.stopped == "epochs"
    assert summary.monitor == ("val_accuracy" if defence == "standard" else "val_pgd_accuracy")
    assert summary.plain().get("watched_images") == (None if defence == "standard" else len(radiographs[1]))
    assert summary.precision == summary.precision_asked == "32-true"
    best = history.set_index("epoch").loc[summary.best_epoch]
    assert summary.best_value == pytest.approx(best[summary.monitor])
    about = atomic.read_yaml(tmp_path / "run.yaml")
    assert about["classes"] == ["COVID-19", "Non-COVID", "Normal"]
    assert about["name"] == f"{MODEL}-{defence}-s0"
    said = {"root_name": "phantom", "split": "Train", "images": 48}
    assert {key: about["data"][key] for key in said} == said
    assert about["data"]["fingerprint"] == about["data"]["fingerprints"]["Train"] == radiographs[0].fingerprint
    assert about["data"]["fingerprints"]["Val"] == radiographs[1].fingerprint
    assert about["checksums"]["model.safetensors"] == atomic.checksum(tmp_path / "model.safetensors")
    known = atomic.read_table(tmp_path / "training_images.parquet")
    assert known["image"].tolist() == radiographs[0].image_sums.tolist()
    assert known["sample_id"].tolist() == radiographs[0].sample_ids.tolist()
    assert validate(RunRecipe, about["recipe"], "run.yaml") == recipe(defence)
    assert set(segments.last_segment(about)["versions"]) >= {"trustcxr", "torch", "timm"}


def test_what_was_computed_in_is_kept_beside_what_was_asked_for(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    summary = fit_run.fit(recipe(epochs=1, precision="bf16-mixed"), *radiographs, tmp_path)
    assert (summary.precision, summary.precision_asked) == ("32-true", "bf16-mixed")


def test_the_watch_takes_an_even_slice_of_a_large_validation_split() -> None:
    places = monitor.attacked_rows(range(1000))  # type: ignore[arg-type]
    assert (len(places), places[0], places[-1]) == (monitor.MONITOR_IMAGES, 0, 999)
    assert set(np.diff(places)) <= {3, 4}
    assert monitor.attacked_rows(range(7)).tolist() == list(range(7))  # type: ignore[arg-type]


def test_training_learns_what_the_images_show(radiographs: tuple[Any, Any], tmp_path: Path) -> None:
    """Loss falls and training accuracy rises: a gradient, a schedule or a label that is wrong would show here."""
    flat = {"rotation": 0.0, "shift": 0.0, "scale": 0.0, "brightness": 0.0, "contrast": 0.0}
    fit_run.fit(recipe(epochs=12, learning_rate=5e-3, augment=flat), *radiographs, tmp_path)
    history = atomic.read_table(tmp_path / "history.csv")
    assert history["train_loss"].iloc[-1] < 0.6 * history["train_loss"].iloc[0]
    assert history["train_accuracy"].iloc[-1] > 0.75


def test_kept_weights_are_those_of_the_best_epoch(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Tensor] = []
    real = save_weights
    pixels = to_pixels(torch.from_numpy(np.array(radiographs[1].images)))

    def spy(model: nn.Module, path: Path) -> None:
        model_mode = model.training
        with torch.inference_mode():
            kept.append(model.eval()(pixels))
        model.train(model_mode)
        real(model, path)

    monkeypatch.setattr(monitor, "save_weights", spy)
    made_up(monkeypatch, [(0.4,), (0.7,), (0.5,), (0.7,)])
    summary = fit_run.fit(recipe(epochs=4), *radiographs, tmp_path)
    assert (summary.best_epoch, summary.best_value) == (1, 0.7)
    assert len(kept) == 2, "only epochs that are better than all before"
    run = load_run(tmp_path, on="cpu")
    with torch.inference_mode():
        assert torch.equal(run.model(pixels), kept[1]), "load_run gives back the very logits"
    assert not run.model.training
    assert run.classes == radiographs[0].classes
    assert (run.size, run.name) == (32, f"{MODEL}-standard-s0")
    assert run.training == summary


def test_best_value_is_the_accuracy_of_the_kept_weights(radiographs: tuple[Any, Any], tmp_path: Path) -> None:
    summary = fit_run.fit(recipe(epochs=3), *radiographs, tmp_path)
    run, val = load_run(tmp_path, on="cpu"), radiographs[1]
    with torch.inference_mode():
        predicted = run.model(to_pixels(torch.from_numpy(np.array(val.images)))).argmax(1).numpy()
    assert float((predicted == val.labels).mean()) == pytest.approx(summary.best_value)


@pytest.mark.usefixtures("rising")
def test_same_seed_same_weights(radiographs: tuple[Any, Any], tmp_path: Path) -> None:
    for name, seed, noise in (("a", 0, 1), ("b", 0, 2), ("c", 1, 1)):
        torch.manual_seed(noise)
        np.random.seed(noise)  # noqa: NPY002
        fit_run.fit(recipe("fgsm", seed=seed), *radiographs, tmp_path / name)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "standard": ("standard", {}),
    "fgsm with a ramp": ({"name": "fgsm", "epsilon": 0.05, "ramp": 0.8, "clean_weight": 0.3}, {}),
    "averaged, warm-up, balanced": ("standard", {"ema_decay": 0.9, "warmup_epochs": 1.5, "balanced": True}),
    "dropout": ("standard", {}),
    "bf16": ("fgsm", {"precision": "bf16-mixed"}),
}


@pytest.mark.sample("standard", "fgsm with a ramp", "dropout")
@pytest.mark.usefixtures("rising", "bfloat16")
@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] if c == "bf16" else []) for c in CASES])
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(
    case: str, radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_dropout(name: str, *, classes: int, weights: str) -> nn.Module:
        net = timm.create_model(name, num_classes=classes, in_chans=1, drop_rate=0.5)
        return classifier.Classifier(net, mean=0.5, std=0.25)

    if case == "dropout":
        monkeypatch.setattr(factory, "build", with_dropout)
    defence, options = CASES[case]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit_run.fit(recipe(defence, epochs=3, **options), *radiographs, whole)
    with pytest.MonkeyPatch.context() as patch:
        done = cut_at(patch, 4)  # three steps an epoch: in the middle of the second
        with pytest.raises(PowerCut):
            fit_run.fit(recipe(defence, epochs=3, **options), *radiographs, parts)
        assert done == [0, 1, 2, 3]
    assert not (parts / "training.json").exists()
    assert not (parts / "model.safetensors").exists()
    torch.rand(17)  # whatever was drawn before
    with pytest.MonkeyPatch.context() as patch:
        done = cut_at(patch, -1)
        summary = fit_run.fit(recipe(defence, epochs=3, **options), *radiographs, parts)
        assert done == [3, 4, 5, 6, 7, 8], "the first epoch is not trained again"
    assert same(weights(whole), weights(parts))
    histories = [atomic.read_table(folder / "history.csv") for folder in (whole, parts)]
    assert histories[0].drop(columns=["seconds", *VALIDATED]).equals(histories[1].drop(columns=["seconds", *VALIDATED]))
    assert histories[1]["seconds"].is_monotonic_increasing
    assert summary.epochs == 3


VALIDATED = ["val_accuracy", "val_fgsm_accuracy", "val_pgd_accuracy"]  # made up here


@pytest.mark.usefixtures("rising")
def test_augmentation_depends_on_seed_and_step(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    asked: list[dict[str, float]] = []
    real = loader.augment

    def spy(images: Tensor, generator: torch.Generator, **options: float) -> Tensor:
        seen.append(generator.initial_seed())
        asked.append(options)
        return real(images, generator, **options)

    monkeypatch.setattr(fitting, "augment", spy)
    for seed in (0, 0, 1):
        fit_run.fit(recipe(seed=seed, augment={"rotation": 3.0}), *radiographs, tmp_path / str(len(seen)))
    first, again, other = seen[:6], seen[6:12], seen[12:]
    assert first == again
    assert len({*first, *other}) == 12
    assert all(options == recipe(augment={"rotation": 3.0}).training.augment.model_dump() for options in asked)


def test_resuming_takes_up_the_best_epoch(radiographs: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        made_up(patch, [(0.9,), (0.2,)])
        cut_at(patch, 4)
        with pytest.raises(PowerCut):
            fit_run.fit(recipe(epochs=3), *radiographs, tmp_path)
        first = load_file(tmp_path / "checkpoint" / "best.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        made_up(patch, [(0.3,), (0.4,)])
        summary = fit_run.fit(recipe(epochs=3), *radiographs, tmp_path)
    assert (summary.best_epoch, summary.best_value) == (0, 0.9)
    assert same(weights(tmp_path), first)


def test_control_c_says_so_and_the_run_goes_on_later(radiographs: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        cut_at(patch, 4, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            fit_run.fit(recipe(), *radiographs, tmp_path)
    assert not (tmp_path / "training.json").exists(), "a run that was stopped is not taken for done"
    assert fit_run.fit(recipe(), *radiographs, tmp_path).epochs == 2


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled_when_a_run_goes_on(
    radiographs: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        cut_at(patch, 4)
        with pytest.raises(PowerCut):
            fit_run.fit(recipe(), *radiographs, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content | {"trap": Trap(tmp_path / "ran")}, checkpoint)
    assert fit_run.fit(recipe(), *radiographs, tmp_path / "run").epochs == 2
    assert re.search(r"last\.ckpt: cannot be read.*training starts again", capsys.readouterr().err)
    assert not (tmp_path / "ran").exists()


def on_another_machine(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(layout, "versions", lambda: {"trustcxr": "1", "torch": "2.10"})
    patch.setattr(origins, "hardware", lambda: Hardware(processor="Another", cores=64, accelerator="none"))
    patch.setattr(origins, "source", lambda: {"commit": "abcdef0123", "changed": False})


def test_a_run_that_goes_on_elsewhere_says_what_each_stretch_was_trained_on(
    radiographs: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        on_another_machine(patch)
        cut_at(patch, 4)
        with pytest.raises(PowerCut):
            fit_run.fit(recipe(epochs=3), *radiographs, tmp_path)
        assert len(atomic.read_yaml(tmp_path / "run.yaml")["segments"]) == 1
    with pytest.MonkeyPatch.context() as patch:
        cut_at(patch, 7)  # once more, in the third epoch, and gone on with on the same: no stretch of its own
        with pytest.raises(PowerCut):
            fit_run.fit(recipe(epochs=3), *radiographs, tmp_path)
    summary = fit_run.fit(recipe(epochs=3), *radiographs, tmp_path)
    about = atomic.read_yaml(tmp_path / "run.yaml")
    first, second = segments.read_segments(about)
    assert (first["from_epoch"], second["from_epoch"]) == (0, 1)
    assert first["versions"] == {"trustcxr": "1", "torch": "2.10"}
    assert atomic.section(first, "hardware")["processor"] == "Another"
    assert atomic.section(first, "source")["commit"] == "abcdef0123"
    assert atomic.section(second, "versions") == layout.versions()
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "resumed on another machine or version" in line)
    told = re.search(r"from epoch 1 with (.*torch 2\.10.*); from epoch 2 with (.*)", line)
    assert told is not None
    assert f"torch {layout.versions()['torch']}" in told[2]
    assert "batches" not in line, "what is alike is not said"
    card = model_card.render_card(tmp_path)
    assert f"- Resumed on a different machine or version: {told[0]}" in card
    assert f"of training on Another, then {origins.processor()}" in card
    assert load_run(tmp_path).training == summary


@pytest.mark.parametrize("at_the_end", [True, False])
def test_a_training_is_of_who_trained_it_and_not_of_who_began_or_ended_it(
    at_the_end: bool, radiographs: tuple[Any, Any], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        on_another_machine(patch)
        if at_the_end:
            patch.setattr(fit_run, "_finish", lambda *_: (_ for _ in ()).throw(PowerCut))
        else:
            cut_at(patch, 2)  # no checkpoint yet
        with pytest.raises(PowerCut):
            fit_run.fit(recipe(), *radiographs, tmp_path)
    fit_run.fit(recipe(), *radiographs, tmp_path)
    (alone,) = segments.read_segments(atomic.read_yaml(tmp_path / "run.yaml"))
    assert (atomic.section(alone, "hardware")["processor"] == "Another") is at_the_end
    assert (atomic.section(alone, "versions") == layout.versions()) is not at_the_end


def test_of_a_refit_both_trainings_say_what_they_were_on(radiographs: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        on_another_machine(patch)
        patch.setattr(fit_run, "RefitMonitor", lambda *_: (_ for _ in ()).throw(PowerCut))
        with pytest.raises(PowerCut):
            fit_run.fit(recipe(refit=True), *radiographs, tmp_path)
    fit_run.fit(recipe(refit=True), *radiographs, tmp_path)
    assert len(segments.read_segments(atomic.read_yaml(tmp_path / "run.yaml"))) == 1
    said = segments.describe_segments(tmp_path)
    assert re.search(r"^for validation from epoch 1 with .*torch 2\.10.*; once more from epoch 1 with ", said)


def test_training_stops_early(radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, [(0.5,), (0.6,), (0.6,), (0.4,), (0.9,)])
    summary = fit_run.fit(recipe(epochs=5, patience=2), *radiographs, tmp_path)
    assert (summary.stopped, summary.epochs, summary.best_epoch) == ("early", 4, 1)


def test_patience_starts_when_the_ramp_is_over(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch, [(0.6, 0.5, 0.5), *[(0.6, 0.45, 0.45)] * 5])
    defence = {"name": "fgsm", "ramp": 0.5}
    summary = fit_run.fit(recipe(defence, epochs=6, patience=1), *radiographs, tmp_path)
    assert (summary.stopped, summary.epochs) == ("early", 5)  # the ramp ends with epoch 3
    history = atomic.read_table(tmp_path / "history.csv")
    assert history["epsilon"].tolist() == pytest.approx([0.02 / 3, 0.04 / 3, 0.02, 0.02, 0.02])


def test_a_loss_that_is_no_number_keeps_the_last_good_weights(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(1000))

    def breaks(model: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        loss, logits = base.standard(model, images, labels, **options)
        return (loss * math.nan if next(calls) == 4 else loss), logits

    monkeypatch.setitem(defences.DEFENCES, "standard", breaks)
    summary = fit_run.fit(recipe(epochs=3), *radiographs, tmp_path)
    assert summary.stopped.startswith("numbers: the loss is nan at step 4")
    assert (summary.epochs, summary.best_epoch) == (1, 0)
    assert all(bool(torch.isfinite(value).all()) for value in weights(tmp_path).values())
    load_run(tmp_path)


def test_a_loss_that_is_no_number_at_once_is_one_line(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(model: nn.Module, images: Tensor, labels: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        logits = model(images)
        return logits.sum() * math.inf, logits

    monkeypatch.setitem(defences.DEFENCES, "standard", breaks)
    with pytest.raises(UserError, match=r"in the first epoch; lower training\.learning_rate") as problem:
        fit_run.fit(recipe(), *radiographs, tmp_path)
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "training.json").exists()


def watch(radiographs: tuple[Any, Any], folder: Path, defence: str = "fgsm", **options: Any) -> monitor.Monitor:
    return monitor.Monitor(folder, radiographs[1], recipe(defence, **options))


def test_catastrophic_overfitting_stops_training_and_is_said(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 8: FGSM accuracy stays while PGD accuracy falls to nothing."""
    made_up(monkeypatch, [(0.7, 0.55, 0.5), (0.7, 0.6, 0.55), (0.75, 0.9, 0.02), (0.8, 0.95, 0.0)])
    summary = fit_run.fit(recipe("fgsm", epochs=6), *radiographs, tmp_path)
    assert (summary.stopped, summary.epochs, summary.best_epoch) == ("overfitting", 3, 1)
    for part in ("catastrophic overfitting at epoch 3", "from 55.0% to 2.0%", "90.0%", "epoch 2 are kept"):
        assert part in summary.alarm
    assert "\n" not in summary.alarm
    run = load_run(tmp_path)
    assert run.training.alarm == summary.alarm


def test_the_alarm_names_the_balanced_accuracies_that_decided(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([(0.5, 0.6), (0.55, 0.1)])

    def validate(*inputs: Any) -> dict[str, float]:
        row, balanced = ({"val_fgsm_accuracy": 0.9, "val_pgd_accuracy": pgd} for pgd in next(figures))
        inputs[-1].update(balanced)
        return {"val_accuracy": 0.9} | row

    monkeypatch.setattr(monitor, "validate", validate)
    summary = fit_run.fit(recipe("fgsm", epochs=4), *radiographs, tmp_path)
    assert "balanced accuracy under PGD-10 at epsilon 0.02 fell from 60.0% to 10.0%" in summary.alarm


@pytest.mark.parametrize(
    ("best_pgd", "fgsm", "pgd", "overfits", "classes"),
    [
        (0.55, 0.90, 0.02, True, 3),
        (0.55, 0.90, 0.50, False, 3),  # PGD accuracy held
        (0.55, 0.10, 0.02, False, 3),  # both fell: that is another fault
        (0.40, 0.90, 0.02, False, 3),  # PGD accuracy never was above chance
        (0.55, 0.42, 0.38, False, 3),
        (0.50, 0.90, 0.00, False, 2),  # half right of two classes is chance
        (0.40, 0.90, 0.00, True, 5),  # 0.4 of five classes is twice chance
    ],
)
def test_what_is_catastrophic(
    best_pgd: float, fgsm: float, pgd: float, overfits: bool, classes: int, radiographs: tuple[Any, Any], tmp_path: Path
) -> None:
    seen = watch(radiographs, tmp_path)
    seen.best["best_pgd"] = best_pgd
    row = {"val_accuracy": 0.8, "val_fgsm_accuracy": fgsm, "val_pgd_accuracy": pgd}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen.val, "classes", tuple("abcde"[:classes]))
        assert seen._overfits(row) is overfits


class ByHeart(nn.Module):
    """Knows images by heart: the answer is that of the nearest."""

    def __init__(self, radiographs: Tensor, answers: Tensor) -> None:
        super().__init__()
        self.images, self.answers = radiographs.flatten(1), answers

    def forward(self, images: Tensor) -> Tensor:
        distance = torch.cdist(images.flatten(1), self.images)
        return torch.stack([-distance.masked_fill(self.answers != k, 9.0).amin(1) for k in range(3)], 1)


def test_one_answer_to_all_is_not_kept_where_most_images_are_of_one_class(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    val = radiographs[1]
    labels = np.asarray(val.labels)
    rows = np.sort(np.concatenate([np.flatnonzero(labels == k)[:few] for k, few in enumerate((8, 1, 1))]))
    monkeypatch.setattr(monitor, "attacked_rows", lambda _: rows)
    pixels, truth = to_pixels(torch.from_numpy(val.batch(np.arange(24)))), torch.as_tensor(labels)
    answers = truth.clone()
    answers[rows[labels[rows] == 0][:2]] = 1  # 8 of 10 right, as one answer to all has, but of every class
    how = recipe("fgsm")
    how = how.model_copy(update={"defence": how.defence.model_copy(update={"epsilon": 0.0})})
    seen, scores = monitor.Monitor(tmp_path, val, how), []
    for said in (torch.zeros_like(truth), answers):
        balanced: dict[str, float] = {}
        model = ByHeart(pixels, said)
        figures = monitor.validate(model, val, seen.recipe, torch.device("cpu"), monitor.ALONE, balanced)
        assert figures["val_pgd_accuracy"] == pytest.approx(0.8)
        scores.append(seen._score(figures | balanced, 3))
        seen.best["best_pgd"] = balanced["val_pgd_accuracy"]
        row = {"val_accuracy": 0.8, "val_fgsm_accuracy": 0.9, "val_pgd_accuracy": 0.0}
        assert seen._overfits(row) == (said is answers), "to leave one answer to all is not to overfit"
    assert scores[0] == pytest.approx(0, abs=1e-3)
    assert scores[1] > 0.5


def test_a_robust_run_is_judged_by_pgd(radiographs: tuple[Any, Any], tmp_path: Path) -> None:
    """FGSM accuracy only breaks ties: it rewards masked gradients."""
    seen = watch(radiographs, tmp_path)

    def score(fgsm: float, pgd: float) -> float:
        return seen._score({"val_accuracy": 0.9, "val_fgsm_accuracy": fgsm, "val_pgd_accuracy": pgd}, 3)

    assert score(0.5, 0.50) > score(0.9, 0.45)
    assert score(0.6, 0.50) > score(0.5, 0.50)
    assert score(0.6, 0.10) > score(0.5, 0.20), "below chance PGD accuracy tells nothing"
    assert watch(radiographs, tmp_path, "standard")._score({"val_accuracy": 0.7}, 3) == 0.7


def test_epsilon_grows_over_the_ramp() -> None:
    def epsilons(ramp: float) -> list[float]:
        made = recipe({"name": "fgsm", "epsilon": 0.1, "ramp": ramp}, epochs=2)
        module = TrainingStep(nn.Linear(1, 1), made, classes=3, steps_per_epoch=5)
        return [module.epsilon(step) for step in range(10)]

    assert epsilons(0.0) == [0.1] * 10
    assert epsilons(0.5) == pytest.approx([0, 0.02, 0.04, 0.06, 0.08, *[0.1] * 5])


def test_fgsm_training_uses_the_recipe(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def spy(model: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        seen.append(options | {"training": model.training, "range": (float(images.min()), float(images.max()))})
        return adversarial.fgsm(model, images, labels, **options)

    monkeypatch.setitem(defences.DEFENCES, "fgsm", spy)
    defence = {"name": "fgsm", "epsilon": 0.04, "clean_weight": 0.25}
    fit_run.fit(recipe(defence, epochs=1, label_smoothing=0.1), *radiographs, tmp_path)
    assert len(seen) == 3
    for step in seen:
        asked = {"epsilon": 0.04, "clean_weight": 0.25, "label_smoothing": 0.1, "training": True}
        assert step.items() >= asked.items()
        assert 0 <= step["range"][0] < step["range"][1] <= 1


def test_validation_leaves_the_model_alone(radiographs: tuple[Any, Any]) -> None:
    torch.manual_seed(0)
    model = factory.build(MODEL, classes=3).train()
    model.net.bn1.eval()
    before = {name: module.training for name, module in model.named_modules()}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    figures = monitor.validate(model, radiographs[1], recipe("fgsm"), torch.device("cpu"))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert same(state, model.state_dict())
    assert set(figures) == {"val_accuracy", "val_fgsm_accuracy", "val_pgd_accuracy"}
    assert figures["val_pgd_accuracy"] <= figures["val_fgsm_accuracy"] + 0.05
    assert list(monitor.validate(model, radiographs[1], recipe(), torch.device("cpu"))) == ["val_accuracy"]


@pytest.mark.usefixtures("rising")
def test_kept_weights_are_the_moving_average(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[dict[str, Tensor]] = []
    real = TrainingStep.on_train_batch_end

    def spy(self: TrainingStep, *inputs: Any) -> None:
        steps.append({k: v.detach().clone() for k, v in self.model.state_dict().items()})
        real(self, *inputs)

    monkeypatch.setattr(TrainingStep, "on_train_batch_end", spy)
    fit_run.fit(recipe(ema_decay=0.8, epochs=2), *radiographs, tmp_path)
    assert len(steps) == 6
    expected = steps[0]
    for step in steps[1:]:
        expected = {k: 0.8 * expected[k] + 0.2 * step[k] for k in step}
    kept = weights(tmp_path)
    assert kept.keys() == expected.keys()
    for name, value in kept.items():
        if value.is_floating_point():
            assert torch.allclose(value, expected[name], atol=1e-5), name
    assert not torch.allclose(kept["net.fc.weight"], steps[-1]["net.fc.weight"], atol=1e-5)


def test_indices_are_copied_and_not_averaged() -> None:
    net = nn.Linear(2, 2)
    net.register_buffer("index", torch.arange(169))
    for decay in (0.9, 0.95, 0.9995):
        average = TrainingStep(net, recipe(ema_decay=decay), classes=2, steps_per_epoch=1).average
        assert average is not None
        for _ in range(3):
            average.update_parameters(net)
        assert torch.equal(average.module.index, net.index)


def lr_of(radiographs: tuple[Any, Any], folder: Path, **options: Any) -> list[float]:
    fit_run.fit(recipe(epochs=2, **options), *radiographs, folder)
    return atomic.read_table(folder / "history.csv")["learning_rate"].tolist()


@pytest.mark.usefixtures("rising")
def test_batches_are_as_the_recipe_says(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    real = loader.loader
    monkeypatch.setattr(fit_run, "loader", lambda *a, **options: asked.append(options) or real(*a, **options))
    for balanced in (True, False):
        fit_run.fit(recipe(seed=3, epochs=1, balanced=balanced), *radiographs, tmp_path / str(balanced))
    assert [(o["shuffle"], o["seed"], o["balanced"], o["drop_last"]) for o in asked] == [
        (True, 3, True, True),
        (True, 3, False, True),
    ]


@pytest.mark.usefixtures("rising")
def test_schedules(radiographs: tuple[Any, Any], tmp_path: Path) -> None:
    assert lr_of(radiographs, tmp_path / "a", schedule="constant") == pytest.approx([2e-3, 2e-3])
    middle, last = lr_of(radiographs, tmp_path / "b", schedule="cosine")
    assert 2e-4 < middle < 2e-3
    assert last < 2e-5
    warm = lr_of(radiographs, tmp_path / "c", schedule="constant", warmup_epochs=2)
    assert warm[0] == pytest.approx(2e-3 * 4 / 7)


@pytest.mark.usefixtures("rising")
def test_a_data_set_smaller_than_a_batch(radiographs: tuple[Any, Any], tmp_path: Path) -> None:
    assert fit_run.fit(recipe(epochs=1, batch_size=64), *radiographs, tmp_path).epochs == 1


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_weights(factory.build(MODEL, classes=3), tmp_path / "w.safetensors")
    again = factory.build(MODEL, classes=3)
    load_weights(again, tmp_path / "w.safetensors")
    assert same(again.state_dict(), load_file(tmp_path / "w.safetensors"))
    for other in (factory.build(MODEL, classes=2), factory.build("test_vit", classes=3)):
        with pytest.raises(UserError, match="not the weights of this model") as problem:
            load_weights(other, tmp_path / "w.safetensors")
        assert "\n" not in str(problem.value)
    torch.save({"trap": Trap(tmp_path / "ran")}, tmp_path / "pickle.safetensors")
    with pytest.raises(UserError, match="not the weights of this model"):
        load_weights(again, tmp_path / "pickle.safetensors")
    assert not (tmp_path / "ran").exists()


@pytest.fixture(autouse=True)
def _one_processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
