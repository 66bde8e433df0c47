"""Trained models by name: weights that are wrong or missing are an error, never other answers."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import trustcxr as tx
from trustcxr import cli
from trustcxr.errors import UserError
from trustcxr.evaluation import hub, trained_models
from trustcxr.storage import atomic, layout


@pytest.fixture
def packed(pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of one model, `small`."""
    folder = tmp_path / "zoo"
    (folder / "small").mkdir(parents=True)
    hub.stage(pack.run("fgsm"), folder / "small")
    run = tx.load_run(folder / "small", on="cpu")
    with torch.no_grad():
        logits = run.model(trained_models.synthetic_images(run.size)).tolist()
    weights = folder / "small" / layout.WEIGHTS_FILE
    entry = {"name": "small", "summary": "A small model.", "classes": list(run.classes), "expected_logits": logits}
    entry |= {"bytes": weights.stat().st_size, "sha256": atomic.checksum(weights)}
    (folder / "small.json").write_text(json.dumps(entry))
    monkeypatch.setattr(trained_models, "ZOO", folder)
    monkeypatch.chdir(tmp_path)
    trained_models.names.cache_clear()
    yield folder
    trained_models.names.cache_clear()


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_name_loads_the_model_and_names_it(packed: Path) -> None:
    run = tx.load_run("small", on="cpu")
    assert run.name == "small"
    assert not run.model.training
    model = tx.load_model("small")
    assert (model.name, model.size, len(model.classes)) == ("small", run.size, 3)


def test_synthetic_images_lie_in_pixel_space() -> None:
    images = trained_models.synthetic_images(32)
    assert images.shape == (5, 1, 32, 32)
    assert 0 <= float(images.min()) < float(images.max()) <= 1
    assert len({tuple(image.flatten().tolist()) for image in images}) == 5


def test_other_answers_than_expected_are_an_error(packed: Path) -> None:
    logits = json.loads((packed / "small.json").read_text())["expected_logits"]
    logits[3][1] += 0.1
    change(packed / "small.json", expected_logits=logits)
    with pytest.raises(UserError, match="answer otherwise than the zoo expects"):
        tx.load_run("small")


def test_changed_weights_are_an_error(packed: Path) -> None:
    path = packed / "small" / layout.WEIGHTS_FILE
    state = load_file(path)
    first = next(key for key in state if key.endswith("weight"))
    save_file(state | {first: state[first] * 1.5}, path)
    with pytest.raises(UserError, match="damaged or replaced"):
        tx.load_run("small")


def test_missing_weights_are_an_error(packed: Path) -> None:
    (packed / "small" / layout.WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match="small: its weights are missing"):
        tx.load_run("small")


def test_a_folder_of_the_same_name_comes_first(packed: Path, pack, tmp_path: Path) -> None:
    (tmp_path / "small").symlink_to(pack.run("standard"))
    assert tx.load_run("small").recipe.defence.name == "standard"


def test_commands_take_the_name_and_suggest_a_near_one(packed: Path, pack) -> None:
    listed = json.loads(CliRunner().invoke(cli.app, ["models", "--json"]).stdout)
    assert [entry["name"] for entry in listed["trained"]] == ["small"]
    assert len(listed["architectures"]) == 21
    result = CliRunner().invoke(cli.app, ["certify", "smal", "--data", str(pack.images())])
    assert isinstance(result.exception, UserError)
    assert "did you mean small?" in str(result.exception)
    for load in (tx.load_run, tx.load_model):
        with pytest.raises(UserError, match=r"did you mean small\?"):
            load("smal")
    result = CliRunner().invoke(cli.app, ["audit", "smal", "--data", str(pack.images()), "--out", "audit"])
    assert "did you mean small?" in str(result.exception)


def test_no_command_writes_into_the_package(packed: Path, pack) -> None:
    result = CliRunner().invoke(cli.app, ["fit-ood", "small", "--data", str(pack.images())])
    assert "small: comes with the statistics" in str(result.exception)
    assert not (packed / "small" / "ood.safetensors").exists()
    result = CliRunner().invoke(cli.app, ["fit-ood", "hf://owner/name", "--data", str(pack.images())])
    assert "is on a hub" in str(result.exception)


def test_results_of_a_trained_model_stand_in_the_working_folder(packed: Path, pack, tmp_path: Path) -> None:
    before = sorted(path for path in packed.rglob("*"))
    command = ["evaluate", "small", "--data", str(pack.images()), "--attack", "fgsm", "--json"]
    result = CliRunner().invoke(cli.app, command)
    assert result.exception is None, result.exception
    assert json.loads(result.stdout)["run"] == "small"
    assert list((tmp_path / "trustcxr-out" / "small" / "evaluations").glob("*/metrics.json"))
    assert sorted(path for path in packed.rglob("*")) == before


def test_names_load_without_torch() -> None:
    import subprocess
    import sys

    code = "import sys; from trustcxr.evaluation import trained_models as t; t.names(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert result.stdout.strip() == "False"
