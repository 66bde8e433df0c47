"""Each defence through whole runs: judged as it should be, the same after a cut, counted honestly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from small_runs import PowerCut, cut_at, made_up, recipe, same, weights
from trustcxr import defences, registry
from trustcxr.data.loader import to_pixels
from trustcxr.defences import adversarial
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import load_run
from trustcxr.models import factory
from trustcxr.models.factory import save_weights
from trustcxr.recipes.training_recipe import DefenceRecipe
from trustcxr.storage import atomic
from trustcxr.training import fit_run, monitor
from trustcxr.training import step as fitting
from trustcxr.training.step import TrainingStep

DEFENCE_OPTIONS = {name: entry.options for name, entry in registry.DEFENCES.items()}

STABILITY_ATTACK = ["fgsm", "fgsm-rs", "n-fgsm", "free", "pgd", "trades"]
CHANGED = ["mixup", "cutout", "gaussian"]
OPTIONS: dict[str, dict[str, Any]] = {
    "fgsm": {"ramp": 0.5, "clean_weight": 0.5, "attack_precision": "bf16"},
    "fgsm-rs": {"ramp": 0.8, "clean_weight": 0.3},
    "n-fgsm": {"ramp": 0.5},
    "free": {"ramp": 0.5, "replays": 2},
    "pgd": {"steps": 2},
    "trades": {"steps": 1, "beta": 3.0},
    "cutout": {"size": 0.4},
}


@pytest.fixture
def rising(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, [(0.4 + 0.01 * i, 0.4 + 0.01 * i, 0.4 + 0.01 * i) for i in range(50)])


def defence(name: str) -> dict[str, Any]:
    return {"name": name} | OPTIONS.get(name, {})


@pytest.mark.sample("fgsm-0.9", "trades-0.9")
@pytest.mark.slow
@pytest.mark.usefixtures("rising")
@pytest.mark.parametrize("ema_decay", [pytest.param(0.0, marks=pytest.mark.slow), 0.9])
@pytest.mark.parametrize("name", [*STABILITY_ATTACK, *CHANGED])
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(
    name: str, ema_decay: float, radiographs: tuple[Any, Any], tmp_path: Path
) -> None:
    run = recipe(defence(name), ema_decay=ema_decay)
    per_epoch = 6 if name == "free" else 3
    fit_run.fit(run, *radiographs, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        cut_at(patch, per_epoch + 1)
        with pytest.raises(PowerCut):
            fit_run.fit(run, *radiographs, tmp_path / "parts")
    torch.rand(7)
    with pytest.MonkeyPatch.context() as patch:
        done = cut_at(patch, -1)
        summary = fit_run.fit(run, *radiographs, tmp_path / "parts")
    assert done == list(range(per_epoch, 2 * per_epoch)), "the first epoch is not trained again"
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert (summary.epochs, summary.steps) == (2, 2 * per_epoch)
    assert load_run(tmp_path / "parts").recipe == run
    saved = weights(tmp_path / "whole")
    assert saved.keys() == factory.build("test_resnet", classes=3).state_dict().keys(), "no twin, no perturbation"


@pytest.mark.sample("fgsm", "trades")
@pytest.mark.parametrize("name", [*STABILITY_ATTACK, *CHANGED])
def test_a_defence_is_judged_by_what_it_trains_for(name: str, radiographs: tuple[Any, Any], tmp_path: Path) -> None:
    summary = fit_run.fit(recipe(defence(name), epochs=1), *radiographs, tmp_path)
    history = atomic.read_table(tmp_path / "history.csv")
    assert ("val_pgd_accuracy" in history) == (name in STABILITY_ATTACK)
    assert summary.monitor == ("val_pgd_accuracy" if name in STABILITY_ATTACK else "val_accuracy")
    assert history["epsilon"].iloc[0] == (0.02 if name in STABILITY_ATTACK else 0.0)


@pytest.mark.sample("fgsm", "trades")
@pytest.mark.parametrize("name", STABILITY_ATTACK)
def test_catastrophic_overfitting_is_noticed_whatever_the_attack(
    name: str, radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 8: the epoch before it is kept, and the run says so."""
    kept: list[dict[str, Tensor]] = []
    real = save_weights

    def spy(model: nn.Module, path: Path) -> None:
        kept.append({k: v.clone() for k, v in model.state_dict().items()})
        real(model, path)

    monkeypatch.setattr(monitor, "save_weights", spy)
    made_up(monkeypatch, [(0.7, 0.55, 0.5), (0.7, 0.6, 0.55), (0.75, 0.9, 0.02), (0.8, 0.95, 0.0)])
    summary = fit_run.fit(recipe({"name": name}, epochs=6, batch_size=24), *radiographs, tmp_path)
    assert (summary.stopped, summary.epochs, summary.best_epoch) == ("overfitting", 3, 1)
    assert "catastrophic overfitting at epoch 3" in summary.alarm
    assert same(weights(tmp_path), kept[1])


def test_free_shows_each_batch_so_many_times_and_counts_them(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, Tensor, float]] = []

    def spy(model: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        seen.append((images.clone(), options["perturbation"].clone(), options["epsilon"]))
        return adversarial.free(model, images, labels, **options)

    monkeypatch.setitem(defences.DEFENCES, "free", spy)
    summary = fit_run.fit(recipe({"name": "free", "replays": 3, "ramp": 0.5}), *radiographs, tmp_path)
    assert summary.steps == len(seen) == 2 * 3 * 3, "epochs, batches, replays"
    for first in range(0, 18, 3):
        assert torch.equal(seen[first][0], seen[first + 2][0]), "replays are of the same augmented images"
    assert not torch.equal(seen[0][0], seen[3][0])
    assert float(seen[0][1].abs().max()) == 0
    moved = [float(perturbation.abs().max()) for _, perturbation, _ in seen]
    assert all(m > 0 for m in moved[2:]), "kept between batches and epochs"
    assert [e for _, _, e in seen] == pytest.approx([min(0.02, 0.02 * step / 9) for step in range(18)])
    history = atomic.read_table(tmp_path / "history.csv")
    assert history["learning_rate"].iloc[-1] < 1e-4, "the schedule ends with the last replay"


@pytest.mark.sample("standard", "fgsm", "trades")
@pytest.mark.parametrize("name", ["standard", *STABILITY_ATTACK, *CHANGED])
def test_a_pixel_that_is_no_number_stops_the_run_with_the_last_good_weights(
    name: str, radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))

    def broken(images: Tensor) -> Tensor:
        pixels = to_pixels(images)
        if next(calls) == 4:
            pixels[1, 0, 3, 3] = torch.nan
        return pixels

    monkeypatch.setattr(fitting, "to_pixels", broken)
    made_up(monkeypatch, [(0.5, 0.5, 0.5)] * 3)
    run = recipe({"name": name} | ({"replays": 1} if name == "free" else {}), epochs=3)
    summary = fit_run.fit(run, *radiographs, tmp_path)
    assert summary.stopped == "numbers: a pixel is not a number at step 4"
    assert (summary.epochs, summary.best_epoch, summary.steps) == (1, 0, 4)
    assert all(bool(torch.isfinite(value).all()) for value in weights(tmp_path).values())


@pytest.mark.sample("fgsm", "trades")
@pytest.mark.parametrize("name", [*STABILITY_ATTACK, *CHANGED])
def test_weights_that_are_no_numbers_stop_the_run(
    name: str, radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TrainingStep.training_step

    def spoil(self: TrainingStep, batch: Any, number: int) -> Tensor:
        if self.global_step == 4:
            with torch.no_grad():
                self.model.net.fc.weight.fill_(torch.nan)
        return real(self, batch, number)

    monkeypatch.setattr(TrainingStep, "training_step", spoil)
    made_up(monkeypatch, [(0.5, 0.5, 0.5)] * 3)
    run = recipe({"name": name} | ({"replays": 1} if name == "free" else {}), epochs=3)
    summary = fit_run.fit(run, *radiographs, tmp_path)
    # An attack that looks at the logits meets them first; else the loss does. Either stops the run at that step.
    said = ("numbers: the loss is nan at step 4", "numbers: the model returns NaN or infinity for 16 of 16 images")
    assert summary.stopped.startswith(said)
    assert all(bool(torch.isfinite(value).all()) for value in weights(tmp_path).values())


@pytest.mark.usefixtures("rising")
def test_adamw_decouples_the_decay(radiographs: tuple[Any, Any], tmp_path: Path) -> None:
    for kind in ("adam", "adamw"):
        fit_run.fit(recipe(optimiser=kind, epochs=1), *radiographs, tmp_path / kind)
        fit_run.fit(recipe(optimiser=kind, epochs=1, weight_decay=0.5), *radiographs, tmp_path / f"{kind} decay")
    assert same(weights(tmp_path / "adam"), weights(tmp_path / "adamw"))
    assert not same(weights(tmp_path / "adam decay"), weights(tmp_path / "adamw decay"))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"name": "mixup", "epsilon": 0.03}, "defence mixup does not use epsilon; it takes alpha"),
        ({"name": "standard", "ramp": 0.5}, "defence standard does not use ramp; it takes no options"),
        ({"name": "fgsm", "steps": 7}, "defence fgsm does not use steps"),
        ({"name": "trades", "clean_weight": 0.5}, "defence trades does not use clean_weight"),
        ({"name": "trades", "beta": -1}, "key 'defence.beta'"),
        ({"name": "cutout", "size": 1.5}, "key 'defence.size'"),
        ({"name": "fgsm", "attack_precision": "fp8"}, "key 'defence.attack_precision'"),
    ],
)
def test_a_recipe_refuses_what_a_defence_does_not_use(content: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as problem:
        recipe(content)
    assert complaint in str(problem.value)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("defence", ["ibp", "crown-ibp"])
@pytest.mark.parametrize(
    ("training", "complaint"),
    [
        ({"guidance": 0.3, "guidance_on": "gradients"}, "asks for bounds alone; set defence.clean_weight too"),
        ({"background": "emptied"}, "background: emptied shows images"),
        ({"background": "gate-emptied"}, "background: gate-emptied shows images"),
    ],
)
def test_what_needs_an_answer_is_refused_where_bounds_are_trained(
    defence: str, training: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint) as problem:
        recipe(defence, **training)
    assert "\n" not in str(problem.value)


def test_images_shown_beside_bounds_can_be_guided(radiographs: tuple[Any, Any], tmp_path: Path) -> None:
    for name, keys in {"plain": {}, "guided": {"guidance": 5.0, "guidance_on": "gradients"}}.items():
        defence = {"name": "ibp", "clean_weight": 0.5}
        how = recipe(defence, model={"name": "plain3"}, epochs=1, **keys)
        assert fit_run.fit(how, *radiographs, tmp_path / name).watched_images is None, "all are certified"
    assert not same(weights(tmp_path / "plain"), weights(tmp_path / "guided"))


def test_a_key_that_is_as_it_is_by_default_is_no_mistake() -> None:
    """run.yaml holds every key."""
    for name in DEFENCE_OPTIONS:
        run = recipe({"name": name})
        assert DefenceRecipe.model_validate(run.defence.model_dump()) == run.defence
        assert run.defence.attacks == (name in STABILITY_ATTACK or run.defence.certifies)
