"""What would fail after hours of training is said before it; what is damaged of a finished run is made again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from small_runs import recipe as run_recipe
from small_runs import seal
from trustcxr.data import load_dataset
from trustcxr.data.layouts import read_manifest
from trustcxr.data.phantom import write_files
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import load_run
from trustcxr.models import factory
from trustcxr.models.factory import save_weights
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.study_recipe import StudyRecipe
from trustcxr.runs import preflight, run_folder
from trustcxr.storage import atomic

NETWORK = {"name": "test_resnet", "weights": "none"}


def study(**keys: Any) -> StudyRecipe:
    return validate(StudyRecipe, {"name": "x", "data": {"size": 32}, "models": [NETWORK]} | keys, "x.yaml")


def test_a_study_that_can_be_done_is_let_through(tmp_path: Path) -> None:
    preflight.check_study(study(), tmp_path)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"explanation": {"methods": ["layercam@layer9"]}}, "unknown layer 'layer9'"),
        ({"evaluation": {"attacks": [{"name": "transfer", "surrogate": "gone"}]}}, "gone: no such run folder"),
        ({"models": [NETWORK | {"weights": "gone.safetensors"}]}, "no such file 'gone.safetensors'; or choose"),
        ({"defences": ["fgms"]}, "did you mean fgsm"),
        ({"defences": ["ibp"]}, "test_resnet-ibp-s0: .*cannot be bounded"),
    ],
)
def test_what_is_not_there_is_said_before_the_training(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        preflight.check_study(study(**keys), tmp_path)


def test_a_run_that_is_refused_leaves_its_folder_to_the_command_that_is_right(tmp_path: Path) -> None:
    training = {"counterfactuals": {"share": 0.3, "healthy_class": "Nrmal"}}
    images, out = write_files.write(tmp_path / "images", {"Train": 6, "Val": 3}, size=32), tmp_path / "run"
    wrong, right = ({"training": {"epochs": 1, "batch_size": 6} | keys} for keys in (training, {}))
    keys = {"model": NETWORK, "data": {"size": 32}}
    with pytest.raises(UserError, match=r"unknown healthy class .* did you mean Normal"):
        run_folder.train(validate(RunRecipe, keys | wrong, "x"), images, out)
    run_folder.train(validate(RunRecipe, keys | right, "x"), images, out)
    assert (out / "training.json").is_file()


def test_weights_of_seeds_that_come_later_are_asked_for_again(tmp_path: Path) -> None:
    moved = [NETWORK | {"weights": "gone.safetensors"}]
    for name in ("standard", "fgsm"):
        atomic.write_json(tmp_path / "runs" / f"test_resnet-{name}-s0" / "training.json", {})
    alone = study(models=moved, seeds=[0])
    assert preflight._trained(alone, alone.models[0], tmp_path)
    with pytest.raises(UserError, match="no such file"):
        preflight.check_names(study(models=moved, seeds=[0, 1]), tmp_path)


def test_weights_that_do_not_fit_are_said_before_the_training(tmp_path: Path) -> None:
    save_file({"something.else": np.zeros(3, np.float32)}, tmp_path / "alien.safetensors")
    alien = NETWORK | {"weights": str(tmp_path / "alien.safetensors")}
    with pytest.raises(UserError, match="do not fit test_resnet"):
        preflight.check_study(study(models=[NETWORK | {"label": "own"}, alien]), tmp_path)


@pytest.mark.parametrize(
    ("keys", "kind"),
    [({"background": "mask"}, "lung"), ({"counterfactuals": {"share": 0.3, "healthy_class": "a"}}, "infection")],
)
def test_masks_that_are_not_there_are_said_before_the_training(tmp_path: Path, keys: dict[str, Any], kind: str) -> None:
    data = load_dataset(images(tmp_path / "images", ("a", "b")), "Train", 32, workers=1)
    preflight.check_masks(study(), data)
    with pytest.raises(UserError, match=f"no training image has a mask of kind (lung|{kind}), which test_resnet-"):
        preflight.check_masks(study(training=keys), data)


def test_missing_imagenet_weights_are_said_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(arch: str, classes: int) -> None:
        raise UserError(f"no ImageNet weights for {arch}")

    monkeypatch.setattr(factory, "_from_hub", none)
    with pytest.raises(UserError, match="no ImageNet weights for test_resnet"):
        preflight.check_study(study(models=[{"name": "test_resnet"}]), tmp_path)


@pytest.mark.parametrize(
    "keys",
    [
        {"seeds": [-1]},
        {"training": {"weight_decay": float("inf")}},
        {"data": {"size": 1_000_000}},
        {"defences": [{"name": "trades", "beta": float("inf")}]},
    ],
)
def test_seeds_sizes_and_numbers_without_end_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="key '"):
        study(**keys)


def images(folder: Path, classes: tuple[str, ...], without: str = "") -> Path:
    random = np.random.default_rng(0)
    for split in ("Train", "Val", "Test"):
        for name in classes:
            if f"{split}/{name}" == without:
                continue
            (folder / split / name).mkdir(parents=True)
            Image.fromarray(random.integers(0, 255, (32, 32), np.uint8)).save(folder / split / name / "0.png")
    return folder


def test_one_class_alone_or_missing_from_a_split_is_refused(tmp_path: Path) -> None:
    for data, said in (
        (images(tmp_path / "one", ("a",)), "one class alone"),
        (images(tmp_path / "val", ("a", "b"), "Val/b"), r"no image of b in the split Val \(val\)"),
    ):
        parts = {role: load_dataset(data, split, 32, workers=1) for role, split in (("train", "Train"), ("val", "Val"))}
        with pytest.raises(UserError, match=said):
            preflight.check_classes(parts)


def test_lists_with_semicolons_are_read_and_dropped_rows_are_said(tmp_path: Path) -> None:
    images(tmp_path / "images", ("a",))
    listed = tmp_path / "images" / "list.csv"
    listed.write_text("path;class;split\nTrain/a/0.png;a;Train\nVal/a/0.png;;Val\nTest/a/0.png;b;Test\n")
    manifest = read_manifest(listed)
    assert len(manifest.table) == 2
    assert any("1 rows of list.csv have no image or no class" in note for note in manifest.notes)
    renamed = manifest.with_labels({"a": "x", "b": "x", "nobody": "x"})
    assert any("these data lack: nobody" in note for note in renamed.notes)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    folder, chosen = tmp_path / "run", run_recipe()
    folder.mkdir()
    save_weights(factory.build(chosen.model.name, classes=2), folder / "model.safetensors")
    atomic.write_yaml(folder / "run.yaml", {"classes": ["a", "b"], "recipe": chosen.model_dump(mode="json")})
    seal(folder)
    atomic.write_json(folder / "training.json", {"epochs": 1})
    atomic.write_json(folder / "metrics.json", {"clean": {}})
    import pandas as pd

    atomic.write_table(folder / "predictions.parquet", pd.DataFrame({"label": [0, 1]}))
    return folder


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


@pytest.mark.parametrize("last", ["patience:", "rotation: 1", "healthy_class: Normal\n"])
def test_a_run_whose_recipe_lost_its_end_is_trained_again_and_not_believed(
    finished: Path, last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder.supersede_damaged(finished)
    load_run(finished)
    whole = (finished / "run.yaml").read_text()
    (finished / "run.yaml").write_text(whole[: whole.index(last) + len(last)])
    with pytest.raises(UserError):  # the first is no recipe; the others are, and not that of the training
        load_run(finished)
    run_folder.supersede_damaged(finished)
    assert names(finished) == {"superseded-1"}
    assert "trained again" in capsys.readouterr().err


def test_a_recipe_of_a_later_version_is_not_taken_for_a_damaged_one(finished: Path) -> None:
    content = atomic.read_yaml(finished / "run.yaml")
    content["recipe"]["training"]["of_the_future"] = 1
    atomic.write_yaml(finished / "run.yaml", content)
    before = names(finished)
    run_folder.supersede_damaged(finished)
    assert names(finished) == before
