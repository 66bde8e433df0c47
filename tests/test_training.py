"""Training on a handful of synthetic images: the same seed is the same run, whether or not it was cut off."""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from small_networks import one_thread
from small_runs import MODEL, PowerCut, cut_at, made_up, recipe, rise, same, spied_weights, weights
from test_models import Trap
from trustcxr import defences
from trustcxr.data import loader
from trustcxr.data.loader import to_pixels
from trustcxr.defences import adversarial
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import load_run
from trustcxr.models import classifier, factory
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.report import model_card
from trustcxr.storage import atomic, layout, segments
from trustcxr.storage.schemas import Hardware, TrainingDocument
from trustcxr.training import environment as origins
from trustcxr.training import fit_run, lung_segmenter, monitor
from trustcxr.training import step as fitting
from trustcxr.training.step import TrainingStep

Fit = Callable[..., TrainingDocument]


@pytest.fixture
def fit(radiographs: tuple[Any, Any], tmp_path: Path) -> Fit:
    """Train a run into tmp_path, or a folder of that."""
    return lambda run, name="": fit_run.fit(run, *radiographs, tmp_path / name)


def cut_off(step: int, fit: Fit, *run: Any, problem: type[BaseException] = PowerCut) -> list[int]:
    """Train until the machine goes off at a step; return the steps that were done."""
    with pytest.MonkeyPatch.context() as patch:
        done = cut_at(patch, step, problem)
        with pytest.raises(problem):
            fit(*run)
    return done


@pytest.fixture
def rising(monkeypatch: pytest.MonkeyPatch) -> None:
    rise(monkeypatch)


@pytest.mark.parametrize("defence", ["standard", "fgsm"])
def test_a_run_leaves_what_the_design_says(
    defence: str, fit: Fit, radiographs: tuple[Any, Any], tmp_path: Path
) -> None:
    summary = fit(recipe(defence))
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
    assert (summary.epochs, summary.stopped) == (2, "epochs")
    assert summary.monitor == ("val_accuracy" if defence == "standard" else "val_pgd_accuracy")
    assert summary.plain().get("watched_images") == (None if defence == "standard" else len(radiographs[1]))
    assert summary.precision == summary.precision_asked == "32-true"
    best = history.set_index("epoch").loc[summary.best_epoch]
    assert summary.best_value == pytest.approx(best[summary.monitor])
    with torch.inference_mode():
        answers = load_run(tmp_path, on="cpu").model(to_pixels(torch.from_numpy(np.array(radiographs[1].images))))
    assert float((answers.argmax(1).numpy() == radiographs[1].labels).mean()) == pytest.approx(best["val_accuracy"])
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


@pytest.mark.usefixtures("no_bfloat16")
def test_what_was_computed_in_is_kept_beside_what_was_asked_for(fit: Fit) -> None:
    summary = fit(recipe(epochs=1, precision="bf16-mixed"))
    assert (summary.precision, summary.precision_asked) == ("32-true", "bf16-mixed")


def test_the_watch_takes_an_even_slice_of_a_large_validation_split() -> None:
    places = monitor.attacked_rows(range(1000))  # type: ignore[arg-type]
    assert (len(places), places[0], places[-1]) == (monitor.MONITOR_IMAGES, 0, 999)
    assert set(np.diff(places)) <= {3, 4}
    assert monitor.attacked_rows(range(7)).tolist() == list(range(7))  # type: ignore[arg-type]


def test_training_learns_what_the_images_show(fit: Fit, tmp_path: Path) -> None:
    """Loss falls and training accuracy rises: a gradient, a schedule or a label that is wrong would show here."""
    flat = {"rotation": 0.0, "shift": 0.0, "scale": 0.0, "brightness": 0.0, "contrast": 0.0}
    fit(recipe(epochs=12, learning_rate=5e-3, augment=flat))
    history = atomic.read_table(tmp_path / "history.csv")
    assert history["train_loss"].iloc[-1] < 0.6 * history["train_loss"].iloc[0]
    assert history["train_accuracy"].iloc[-1] > 0.75


def test_training_stops_early_and_keeps_the_weights_of_the_best_epoch(
    fit: Fit, radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = spied_weights(monkeypatch)
    made_up(monkeypatch, [(0.4,), (0.7,), (0.5,), (0.7,), (0.9,)])
    summary = fit(recipe(epochs=5, patience=2))
    assert (summary.stopped, summary.epochs, summary.best_epoch, summary.best_value) == ("early", 4, 1, 0.7)
    assert len(kept) == 2, "only epochs that are better than all before"
    run = load_run(tmp_path, on="cpu")
    assert same(run.model.state_dict(), kept[1])
    assert not run.model.training
    assert run.classes == radiographs[0].classes
    assert (run.size, run.name) == (32, f"{MODEL}-standard-s0")
    assert run.training == summary


@pytest.mark.usefixtures("rising")
def test_same_seed_same_weights(fit: Fit, tmp_path: Path) -> None:
    for name, seed, noise in (("a", 0, 1), ("b", 0, 2), ("c", 1, 1)):
        torch.manual_seed(noise)
        np.random.seed(noise)  # noqa: NPY002
        fit(recipe("fgsm", seed=seed), name)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


DEFENCES: dict[str, dict[str, Any]] = {
    "fgsm": {"ramp": 0.5, "clean_weight": 0.5, "attack_precision": "bf16"},
    "fgsm-rs": {"ramp": 0.8, "clean_weight": 0.3},
    "n-fgsm": {"ramp": 0.5},
    "free": {"ramp": 0.5, "replays": 2},
    "pgd": {"steps": 2},
    "trades": {"steps": 1, "beta": 3.0},
    "mixup": {},
    "cutout": {"size": 0.4},
    "gaussian": {},
}
QUICK: dict[str, tuple[Any, dict[str, Any]]] = {
    "standard": ("standard", {}),
    "fgsm with a ramp": ({"name": "fgsm", "epsilon": 0.05, "ramp": 0.8, "clean_weight": 0.3}, {}),
    "averaged, warm-up, balanced": ("standard", {"ema_decay": 0.9, "warmup_epochs": 1.5, "balanced": True}),
    "dropout": ("standard", {}),
}
CASES = {
    **QUICK,
    "bf16": ("fgsm", {"precision": "bf16-mixed"}),
    **{f"{n}-{decay}": ({"name": n} | o, {"ema_decay": decay}) for n, o in DEFENCES.items() for decay in (0.0, 0.9)},
    "swap": ("standard", {"background": "swap"}),
    "mask": ("mixup", {"background": "mask"}),
    "emptied": ("fgsm-rs", {"background": "emptied"}),
    "emptied and trades": ("trades", {"background": "emptied"}),
    "gate": ("fgsm", {"background": "gate"}),
}


@pytest.mark.sample("standard", "fgsm with a ramp", "dropout", "fgsm-0.9", "trades-0.9", "swap", "emptied", "gate")
@pytest.mark.usefixtures("rising", "bfloat16")
@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in QUICK else [pytest.mark.slow]) for c in CASES])
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(
    case: str, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_dropout(name: str, *, classes: int, **_: Any) -> nn.Module:
        net = timm.create_model(name, num_classes=classes, in_chans=1, drop_rate=0.5)
        return classifier.Classifier(net, mean=0.5, std=0.25)

    if case == "dropout":
        monkeypatch.setattr(factory, "build", with_dropout)
    monkeypatch.setattr(lung_segmenter, "EPOCHS", 2)
    defence, options = CASES[case]
    run, whole, parts = recipe(defence, epochs=3, **options), tmp_path / "whole", tmp_path / "parts"
    per_epoch = 6 if run.defence.name == "free" else 3
    fit(run, "whole")
    assert cut_off(per_epoch + 1, fit, run, "parts") == list(range(per_epoch + 1)), "amid the second epoch"
    assert not (parts / "training.json").exists()
    assert not (parts / "model.safetensors").exists()
    torch.rand(17)  # whatever was drawn before
    with pytest.MonkeyPatch.context() as patch:
        done = cut_at(patch, -1)
        summary = fit(run, "parts")
        assert done == list(range(per_epoch, 3 * per_epoch)), "the first epoch is not trained again"
    assert same(weights(whole), weights(parts))
    made_up_here = ["seconds", "val_accuracy", "val_fgsm_accuracy", "val_pgd_accuracy"]
    first, second = (atomic.read_table(folder / "history.csv") for folder in (whole, parts))
    assert first.drop(columns=made_up_here).equals(second.drop(columns=made_up_here))
    assert second["seconds"].is_monotonic_increasing
    assert (summary.epochs, summary.steps) == (3, 3 * per_epoch)
    assert load_run(whole).recipe == run, "weights of no twin and no perturbation are kept: they would not fit"


@pytest.mark.usefixtures("rising")
def test_augmentation_depends_on_seed_and_step(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    real = loader.augment
    monkeypatch.setattr(fitting, "augment", lambda *a, **o: seen.append((a[1].initial_seed(), o)) or real(*a, **o))
    for seed in (0, 0, 1):
        fit(recipe(seed=seed, augment={"rotation": 3.0}), str(len(seen)))
    seeds = [seed for seed, _ in seen]
    assert seeds[:6] == seeds[6:12]
    assert len(set(seeds)) == 12
    assert all(options == recipe(augment={"rotation": 3.0}).training.augment.model_dump() for _, options in seen)


def test_resuming_takes_up_the_best_epoch(fit: Fit, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        made_up(patch, [(0.9,), (0.2,)])
        cut_off(4, fit, recipe(epochs=3))
        first = load_file(tmp_path / "checkpoint" / "best.safetensors")
        made_up(patch, [(0.3,), (0.4,)])
        summary = fit(recipe(epochs=3))
    assert (summary.best_epoch, summary.best_value) == (0, 0.9)
    assert same(weights(tmp_path), first)


def test_control_c_says_so_and_the_run_goes_on_later(fit: Fit, tmp_path: Path) -> None:
    cut_off(4, fit, recipe(), problem=KeyboardInterrupt)
    assert not (tmp_path / "training.json").exists(), "a run that was stopped is not taken for done"
    assert fit(recipe()).epochs == 2


def test_nothing_is_unpickled_when_a_run_goes_on(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut_off(4, fit, recipe(), "run")
    checkpoint = tmp_path / "run" / "checkpoint" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content | {"trap": Trap(tmp_path / "ran")}, checkpoint)
    assert fit(recipe(), "run").epochs == 2
    assert re.search(r"last\.ckpt: cannot be read.*training starts again", capsys.readouterr().err)
    assert not (tmp_path / "ran").exists()


def on_another_machine(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(layout, "versions", lambda: {"trustcxr": "1", "torch": "2.10"})
    patch.setattr(origins, "hardware", lambda: Hardware(processor="Another", cores=64, accelerator="none"))
    patch.setattr(origins, "source", lambda: {"commit": "abcdef0123", "changed": False})


def test_a_run_that_goes_on_elsewhere_says_what_each_stretch_was_trained_on(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        on_another_machine(patch)
        cut_off(4, fit, recipe(epochs=3))
        assert len(atomic.read_yaml(tmp_path / "run.yaml")["segments"]) == 1
    cut_off(7, fit, recipe(epochs=3))  # on the same, in the third epoch: no stretch of its own
    summary = fit(recipe(epochs=3))
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
    at_the_end: bool, fit: Fit, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        on_another_machine(patch)
        if at_the_end:
            patch.setattr(fit_run, "_finish", lambda *_: (_ for _ in ()).throw(PowerCut))
        cut_off(-1 if at_the_end else 2, fit, recipe())  # at 2 there is no checkpoint yet
    fit(recipe())
    (alone,) = segments.read_segments(atomic.read_yaml(tmp_path / "run.yaml"))
    assert (atomic.section(alone, "hardware")["processor"] == "Another") is at_the_end
    assert (atomic.section(alone, "versions") == layout.versions()) is not at_the_end


def test_of_a_refit_both_trainings_say_what_they_were_on(fit: Fit, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        on_another_machine(patch)
        patch.setattr(fit_run, "RefitMonitor", lambda *_: (_ for _ in ()).throw(PowerCut))
        cut_off(-1, fit, recipe(refit=True))
    fit(recipe(refit=True))
    assert len(segments.read_segments(atomic.read_yaml(tmp_path / "run.yaml"))) == 1
    said = segments.describe_segments(tmp_path)
    assert re.search(r"^for validation from epoch 1 with .*torch 2\.10.*; once more from epoch 1 with ", said)


def test_patience_starts_when_the_ramp_is_over(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, [(0.6, 0.5, 0.5), *[(0.6, 0.45, 0.45)] * 5])
    defence = {"name": "fgsm", "ramp": 0.5}
    summary = fit(recipe(defence, epochs=6, patience=1))
    assert (summary.stopped, summary.epochs) == ("early", 5)  # the ramp ends with epoch 3
    history = atomic.read_table(tmp_path / "history.csv")
    assert history["epsilon"].tolist() == pytest.approx([0.02 / 3, 0.04 / 3, 0.02, 0.02, 0.02])


def test_a_loss_that_is_no_number_at_once_is_one_line(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(model: nn.Module, images: Tensor, labels: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        return model(images).sum() * math.inf, model(images)

    monkeypatch.setitem(defences.DEFENCES, "standard", breaks)
    with pytest.raises(UserError, match=r"in the first epoch; lower training\.learning_rate") as problem:
        fit(recipe())
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "training.json").exists()


def test_the_alarm_names_the_balanced_accuracies_that_decided(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([(0.5, 0.6), (0.55, 0.1)])

    def validate(*inputs: Any) -> dict[str, float]:
        row, balanced = ({"val_fgsm_accuracy": 0.9, "val_pgd_accuracy": pgd} for pgd in next(figures))
        inputs[-1].update(balanced)
        return {"val_accuracy": 0.9} | row

    monkeypatch.setattr(monitor, "validate", validate)
    summary = fit(recipe("fgsm", epochs=4))
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
    seen = monitor.Monitor(tmp_path, radiographs[1], recipe("fgsm"))
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
    seen, plain = (monitor.Monitor(tmp_path, radiographs[1], recipe(name)) for name in ("fgsm", "standard"))

    def score(fgsm: float, pgd: float) -> float:
        return seen._score({"val_accuracy": 0.9, "val_fgsm_accuracy": fgsm, "val_pgd_accuracy": pgd}, 3)

    assert score(0.5, 0.50) > score(0.9, 0.45)
    assert score(0.6, 0.50) > score(0.5, 0.50)
    assert score(0.6, 0.10) > score(0.5, 0.20), "below chance PGD accuracy tells nothing"
    assert plain._score({"val_accuracy": 0.7}, 3) == 0.7


def test_fgsm_training_uses_the_recipe(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def spy(model: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        seen.append(options)
        assert model.training
        assert 0 <= float(images.min()) < float(images.max()) <= 1
        return adversarial.fgsm(model, images, labels, **options)

    monkeypatch.setitem(defences.DEFENCES, "fgsm", spy)
    asked = {"epsilon": 0.04, "clean_weight": 0.25}
    fit(recipe({"name": "fgsm"} | asked, epochs=1, label_smoothing=0.1))
    assert len(seen) == 3
    assert all(options.items() >= (asked | {"label_smoothing": 0.1}).items() for options in seen)


def test_validation_leaves_the_model_alone(radiographs: tuple[Any, Any]) -> None:
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
def test_kept_weights_are_the_moving_average(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[dict[str, Tensor]] = []
    real = TrainingStep.on_train_batch_end

    def spy(self: TrainingStep, *inputs: Any) -> None:
        steps.append({k: v.detach().clone() for k, v in self.model.state_dict().items()})
        real(self, *inputs)

    monkeypatch.setattr(TrainingStep, "on_train_batch_end", spy)
    fit(recipe(ema_decay=0.8, epochs=2))
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


@pytest.mark.usefixtures("rising")
def test_batches_are_as_the_recipe_says(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    real = loader.loader
    monkeypatch.setattr(fit_run, "loader", lambda *a, **options: asked.append(options) or real(*a, **options))
    for balanced in (True, False):
        fit(recipe(seed=3, epochs=1, balanced=balanced), str(balanced))
    keys = ("shuffle", "seed", "balanced", "drop_last")
    assert [[options[key] for key in keys] for options in asked] == [[True, 3, True, True], [True, 3, False, True]]


@pytest.mark.usefixtures("rising")
def test_schedules(fit: Fit, tmp_path: Path) -> None:
    def rates(schedule: str, warmup: int = 0) -> list[float]:
        fit(recipe(schedule=schedule, warmup_epochs=warmup), name := f"{schedule}{warmup}")
        return atomic.read_table(tmp_path / name / "history.csv")["learning_rate"].tolist()

    assert rates("constant") == pytest.approx([2e-3, 2e-3])
    middle, last = rates("cosine")
    assert 2e-4 < middle < 2e-3
    assert last < 2e-5
    assert rates("constant", 2)[0] == pytest.approx(2e-3 * 4 / 7)


@pytest.mark.usefixtures("rising")
def test_a_data_set_smaller_than_a_batch(fit: Fit) -> None:
    assert fit(recipe(epochs=1, batch_size=64)).epochs == 1


@pytest.fixture(autouse=True)
def _one_processor() -> Iterator[None]:
    with one_thread():
        yield
