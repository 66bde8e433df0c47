"""Each defence through whole runs: judged as it should be, counted honestly; and its options as they are typed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from small_runs import made_up, recipe, rise, same, spied_weights, weights
from trustcxr import defences, registry
from trustcxr.data.loader import to_pixels
from trustcxr.defences import adversarial
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import load_run
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.training_recipe import DefenceRecipe
from trustcxr.runs import run_folder
from trustcxr.storage import atomic
from trustcxr.training import fit_run
from trustcxr.training import step as fitting
from trustcxr.training.step import TrainingStep

STABILITY_ATTACK = ["fgsm", "fgsm-rs", "n-fgsm", "free", "pgd", "trades"]
CHANGED = ["mixup", "cutout", "gaussian"]


@pytest.mark.sample("fgsm", "trades")
@pytest.mark.parametrize("name", [*STABILITY_ATTACK, *CHANGED])
def test_a_defence_is_judged_by_what_it_trains_for(name: str, radiographs: tuple[Any, Any], tmp_path: Path) -> None:
    summary = fit_run.fit(recipe(name, epochs=1), *radiographs, tmp_path)
    history = atomic.read_table(tmp_path / "history.csv")
    assert ("val_pgd_accuracy" in history) == (name in STABILITY_ATTACK)
    assert summary.monitor == ("val_pgd_accuracy" if name in STABILITY_ATTACK else "val_accuracy")
    assert history["epsilon"].iloc[0] == (0.02 if name in STABILITY_ATTACK else 0.0)


@pytest.mark.sample("fgsm", "trades")
@pytest.mark.parametrize("name", STABILITY_ATTACK)
def test_catastrophic_overfitting_is_noticed_whatever_the_attack(
    name: str, radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 8: FGSM accuracy stays while PGD accuracy falls to nothing: the epoch before is kept, the run says so."""
    kept = spied_weights(monkeypatch)
    made_up(monkeypatch, [(0.7, 0.55, 0.5), (0.7, 0.6, 0.55), (0.75, 0.9, 0.02), (0.8, 0.95, 0.0)])
    summary = fit_run.fit(recipe({"name": name}, epochs=6, batch_size=24), *radiographs, tmp_path)
    assert (summary.stopped, summary.epochs, summary.best_epoch) == ("overfitting", 3, 1)
    for part in ("catastrophic overfitting at epoch 3", "from 55.0% to 2.0%", "90.0%", "epoch 2 are kept"):
        assert part in summary.alarm
    assert "\n" not in summary.alarm
    assert load_run(tmp_path).training.alarm == summary.alarm
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


@pytest.mark.sample(*(f"{what}-{name}" for what in ("pixels", "weights") for name in ("standard", "fgsm", "trades")))
@pytest.mark.parametrize("name", ["standard", *STABILITY_ATTACK, *CHANGED])
@pytest.mark.parametrize("what", ["pixels", "weights"])
def test_what_is_no_number_stops_the_run_with_the_last_good_weights(
    what: str, name: str, radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = iter(range(100)), TrainingStep.training_step

    def broken(images: Tensor) -> Tensor:
        pixels = to_pixels(images)
        if next(calls) == 4:
            pixels[1, 0, 3, 3] = torch.nan
        return pixels

    def spoil(self: TrainingStep, batch: Any, number: int) -> Tensor:
        if self.global_step == 4:
            with torch.no_grad():
                self.model.net.fc.weight.fill_(torch.nan)
        return real(self, batch, number)

    if what == "pixels":
        monkeypatch.setattr(fitting, "to_pixels", broken)
    else:
        monkeypatch.setattr(TrainingStep, "training_step", spoil)
    made_up(monkeypatch, [(0.5, 0.5, 0.5)] * 3)
    run = recipe({"name": name} | ({"replays": 1} if name == "free" else {}), epochs=3)
    summary = fit_run.fit(run, *radiographs, tmp_path)
    # An attack that looks at the logits meets the weights first; else the loss does. Either stops the run at that step.
    no_weights = ("the loss is nan at step 4", "the model returns NaN or infinity for 16 of 16 images")
    said = ("a pixel is not a number at step 4",) if what == "pixels" else no_weights
    assert summary.stopped.startswith(tuple(f"numbers: {words}" for words in said))
    assert (summary.epochs, summary.best_epoch, summary.steps) == (1, 0, 4)
    assert all(bool(torch.isfinite(value).all()) for value in weights(tmp_path).values())
    load_run(tmp_path)


def test_adamw_decouples_the_decay(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rise(monkeypatch)
    for kind in ("adam", "adamw"):
        fit_run.fit(recipe(optimiser=kind, epochs=1), *radiographs, tmp_path / kind)
        fit_run.fit(recipe(optimiser=kind, epochs=1, weight_decay=0.5), *radiographs, tmp_path / f"{kind} decay")
    assert same(weights(tmp_path / "adam"), weights(tmp_path / "adamw"))
    assert not same(weights(tmp_path / "adam decay"), weights(tmp_path / "adamw decay"))


@pytest.mark.parametrize(
    ("content", "training", "complaint"),
    [
        ({"name": "mixup", "epsilon": 0.03}, {}, "defence mixup does not use epsilon; it takes alpha"),
        ({"name": "standard", "ramp": 0.5}, {}, "defence standard does not use ramp; it takes no options"),
        ({"name": "fgsm", "steps": 7}, {}, "defence fgsm does not use steps"),
        ({"name": "trades", "clean_weight": 0.5}, {}, "defence trades does not use clean_weight"),
        ({"name": "trades", "beta": -1}, {}, "key 'defence.beta'"),
        ({"name": "cutout", "size": 1.5}, {}, "key 'defence.size'"),
        ({"name": "fgsm", "attack_precision": "fp8"}, {}, "key 'defence.attack_precision'"),
        *(
            ({"name": bounds}, training, complaint)
            for bounds in ("ibp", "crown-ibp")  # where bounds are trained there is no answer
            for training, complaint in (
                ({"guidance": 0.3, "guidance_on": "gradients"}, "asks for bounds alone; set defence.clean_weight too"),
                ({"background": "emptied"}, "background: emptied shows images"),
                ({"background": "gate-emptied"}, "background: gate-emptied shows images"),
            )
        ),
    ],
)
def test_a_recipe_refuses_what_a_defence_does_not_use(
    content: dict[str, Any], training: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError) as problem:
        recipe(content, **training)
    assert complaint in str(problem.value)
    assert "\n" not in str(problem.value)


def test_images_shown_beside_bounds_can_be_guided(radiographs: tuple[Any, Any], tmp_path: Path) -> None:
    for name, keys in {"plain": {}, "guided": {"guidance": 5.0, "guidance_on": "gradients"}}.items():
        defence = {"name": "ibp", "clean_weight": 0.5}
        how = recipe(defence, model={"name": "plain3"}, epochs=1, **keys)
        assert fit_run.fit(how, *radiographs, tmp_path / name).watched_images is None, "all are certified"
    assert not same(weights(tmp_path / "plain"), weights(tmp_path / "guided"))


def test_a_key_that_is_as_it_is_by_default_is_no_mistake() -> None:
    """run.yaml holds every key."""
    for name in registry.DEFENCES:
        run = recipe({"name": name})
        assert DefenceRecipe.model_validate(run.defence.model_dump()) == run.defence
        assert run.defence.attacks == (name in STABILITY_ATTACK or run.defence.certifies)


def typed(*options: str) -> RunRecipe:
    defence = {"name": "trades", "epsilon": 0.02, "ramp": 0.0, "clean_weight": 0.0}
    network: dict[str, Any] = {"model": "resnet18", "weights": "none", "size": 64, "seed": 0}
    return run_folder.recipe(**network, defence=defence, training={}, options=options)


def test_any_key_can_be_typed() -> None:
    run = typed("defence.beta=3", "training.augment.flip=0.5", "model.normalisation=group", "training.balanced=true")
    assert (run.defence.beta, run.training.augment.flip, run.model.normalisation) == (3.0, 0.5, "group")
    assert (run.training.balanced, run.training.augment.rotation) == (True, 10.0)
    assert typed("seed=3", "defence.epsilon=0.01").defence.epsilon == 0.01


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("defence.bta=3", "unknown key 'defence.bta': did you mean beta"),
        ("defence.beta", "write KEY=VALUE"),
        ("defence.beta=[", "not readable as YAML"),
        ("defence.beta.more=3", None),
        ("seed.more=3", "'seed' holds a value, not keys"),
        ("defence=fgsm", "key 'defence'"),
        ("training.balanced_by=source", "balanced_by: source does nothing without training.balanced"),
    ],
)
def test_what_is_typed_wrong_is_one_line(option: str, complaint: str | None) -> None:
    with pytest.raises(UserError) as problem:
        typed(option)
    assert (complaint or "defence.beta") in str(problem.value)
    assert "\n" not in str(problem.value)
