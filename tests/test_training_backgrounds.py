"""Runs that see another background in training, or images with emptied lungs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from small_runs import MODEL, PowerCut, cut_at, made_up, recipe, same, weights
from trustcxr import defences
from trustcxr.data import load_dataset
from trustcxr.data.phantom import write_files
from trustcxr.defences import backgrounds
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import load_run
from trustcxr.models import classifier
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.study_recipe import StudyRecipe, run_recipe
from trustcxr.storage import atomic
from trustcxr.training import fit_run, lung_segmenter, monitor, step

STILL = {"rotation": 0.0, "shift": 0.0, "scale": 0.0, "brightness": 0.0, "contrast": 0.0}


@pytest.fixture(autouse=True)
def _rising(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, [(0.4 + 0.01 * i, 0.4 + 0.01 * i, 0.4 + 0.01 * i) for i in range(50)])


Step = tuple[Tensor, Tensor, dict[str, Any]]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    seen: list[Step] = []

    for name in ("standard", "fgsm"):
        real = defences.DEFENCES[name]

        def spy(
            model: nn.Module, images: Tensor, labels: Tensor, real: Any = real, **options: Any
        ) -> tuple[Tensor, Tensor]:
            seen.append((images.clone(), labels, options))
            return real(model, images, labels, **options)

        monkeypatch.setitem(defences.DEFENCES, name, spy)
    return seen


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "swap": ({"name": "standard"}, {"background": "swap"}),
    "mask": ({"name": "mixup"}, {"background": "mask"}),
    "emptied": ({"name": "fgsm-rs"}, {"background": "emptied"}),
    "emptied and trades": ({"name": "trades"}, {"background": "emptied"}),
}


@pytest.mark.sample("swap", "emptied")
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(
    case: str, radiographs: tuple[Any, Any], tmp_path: Path
) -> None:
    defence, options = CASES[case]
    run = recipe(defence, **options)
    per_epoch = 6 if defence["name"] == "free" else 3
    summary = fit_run.fit(run, *radiographs, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        cut_at(patch, per_epoch + 1)
        with pytest.raises(PowerCut):
            fit_run.fit(run, *radiographs, tmp_path / "parts")
    fit_run.fit(run, *radiographs, tmp_path / "parts")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert summary.images_without_lung_mask == 0
    about = atomic.read_yaml(tmp_path / "whole" / "run.yaml")
    assert about["background"] == run.background
    loaded = load_run(tmp_path / "whole")
    assert loaded.recipe == run
    plain = fit_run.fit(recipe(defence), *radiographs, tmp_path / "plain")
    assert "images_without_lung_mask" not in plain.plain()
    assert not same(weights(tmp_path / "whole"), weights(tmp_path / "plain"))


def test_swapped_images_have_their_own_lungs(radiographs: tuple[Any, Any], tmp_path: Path, steps: list[Step]) -> None:
    train, _ = radiographs
    order: list[Tensor] = []
    real = step.TrainingStep.training_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            step.TrainingStep,
            "training_step",
            lambda self, batch, number: order.append(batch[2]) or real(self, batch, number),
        )
        patch.setattr(backgrounds, "SHARE", 1.0)
        fit_run.fit(recipe(background="swap", augment=STILL, epochs=1), *radiographs, tmp_path)
    for (images, labels, _), rows in zip(steps, order, strict=True):
        own = torch.from_numpy(train.batch(rows.tolist())).float() / 255
        lungs = torch.from_numpy(np.array(train.masks("lung")[rows.numpy()]))[:, None].bool()
        difference = (images - own).abs()
        assert float(difference[~lungs].mean()) > 3 * float(difference[lungs].mean())
        assert torch.equal(labels, torch.as_tensor(train.labels[rows.numpy()])), "the label is the lungs'"


def test_validation_sees_images_as_they_are(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    seen: list[Tensor] = []
    real = monitor._pixels
    monkeypatch.setattr(monitor, "_pixels", lambda images, device: seen.append(images) or real(images, device))
    fit_run.fit(recipe(background="mask", epochs=1), *radiographs, tmp_path)
    assert torch.equal(torch.cat(seen), torch.from_numpy(radiographs[1].batch(range(len(radiographs[1])))))


def test_images_with_emptied_lungs_stand_beside_the_batch(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[Step]
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    real = backgrounds.emptied
    monkeypatch.setattr(backgrounds, "emptied", lambda *given: seen.append(given) or real(*given))
    fit_run.fit(recipe("fgsm", background="emptied", augment=STILL, epochs=1), *radiographs, tmp_path / "a")
    fit_run.fit(recipe("fgsm", augment=STILL, epochs=1), *radiographs, tmp_path / "b")
    assert len(seen) == 3, "a run with the whole image has none"
    for (images, _, __), (pixels, lungs) in zip(steps, seen, strict=False):
        assert torch.equal(images, pixels), "those that are learnt by their labels are as they were"
        assert lungs.shape == images.shape
    for (first, _, __), (second, _, __) in zip(steps[:3], steps[3:], strict=True):
        assert torch.equal(first, second)
    losses = [atomic.read_table(tmp_path / name / "history.csv")["train_loss"].iloc[0] for name in "ab"]
    assert losses[0] > losses[1]


def test_networks_side_by_side_behind_a_gate_each_have_emptied_lungs_beside_them(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lung_segmenter, "EPOCHS", 1)
    learners: list[nn.Module] = []
    real = backgrounds.WithEmptiedLungs
    monkeypatch.setattr(
        backgrounds, "WithEmptiedLungs", lambda learner, images: learners.append(learner) or real(learner, images)
    )
    run = recipe("fgsm", model={"members": 2}, background="gate-emptied", epochs=1)
    fit_run.fit(run, *radiographs, tmp_path)
    assert len(learners) == 3 * 2
    assert all(isinstance(learner.gate, classifier.LungGate) for learner in learners)
    assert learners[0].net is not learners[1].net
    assert load_run(tmp_path).recipe.name == f"{MODEL}-gate-emptied-fgsm-s0"


def test_images_without_a_mask_are_left_as_they_are_and_counted(
    tmp_path: Path, steps: list[Step], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backgrounds, "SHARE", 1.0)
    folder = write_files.write(tmp_path / "phantom", {"Train": 8, "Val": 4, "Test": 2}, size=32)
    masks: dict[str, list[Path]] = {}  # images that have an infection mask are in the layout twice
    for path in sorted(folder.rglob("Train/*/lung masks/*.png")):
        masks.setdefault(path.name, []).append(path)
    names = sorted(masks)
    assert len(names) == 24

    def lose(radiographs: list[str]) -> None:
        for name in radiographs:
            for path in masks[name]:
                path.unlink()

    lose(names[:10])
    data = [load_dataset(folder, split=s, size=32, cache=tmp_path / "cache", workers=1) for s in ("Train", "Val")]
    options = {"background": "mask", "augment": STILL, "batch_size": 24, "epochs": 1}
    summary = fit_run.fit(recipe(**options), *data, tmp_path / "run")
    assert summary.images_without_lung_mask == 10
    assert "10 of 24 training images have no lung mask" in capsys.readouterr().err
    (images, _, __), *_ = steps
    black = (images == 0).float().mean((1, 2, 3))
    assert int((black > 0.2).sum()) == 14, "those with a mask are black outside the lungs"
    lose(names[10:])
    data = [load_dataset(folder, split=s, size=32, cache=tmp_path / "cache2", workers=1) for s in ("Train", "Val")]
    with pytest.raises(UserError, match=r"need lung masks, and no image of .*phantom has one"):
        fit_run.fit(recipe(**options), *data, tmp_path / "none")


def study(**keys: Any) -> StudyRecipe:
    content = {"name": "test", "models": [{"name": MODEL, "weights": "none"}], **keys}
    return validate(StudyRecipe, content, "study.yaml")


def test_entries_of_a_study_may_have_a_background_of_their_own() -> None:
    made = study(
        defences=[
            "fgsm",
            {"name": "standard", "training": {"background": "swap"}},
            {"name": "fgsm", "training": {"background": "swap", "epochs": 7}},
        ]
    )
    runs = [run_recipe(made, made.models[0], d, 0) for d in made.defences]
    assert [run.name.removeprefix(MODEL) for run in runs] == ["-fgsm-s0", "-swap-standard-s0", "-swap-fgsm-s0"]
    assert [run.background for run in runs] == ["full", "swap", "swap"]
    assert runs[2].training.epochs == 7
    assert validate(RunRecipe, runs[2].model_dump(mode="json"), "run.yaml") == runs[2]
