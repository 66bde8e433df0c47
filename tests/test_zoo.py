"""Trained models by name: weights that are wrong or missing are an error, never other answers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import trustcxr as tx
from test_cli import complaint, run
from trustcxr.errors import UserError
from trustcxr.evaluation import hub, trained_models
from trustcxr.storage import atomic, layout


@pytest.fixture
def packed(pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A zoo of one model, `small`."""
    folder = tmp_path / "zoo"
    (folder / "small").mkdir(parents=True)
    hub.stage(pack.run("fgsm"), folder / "small")
    small = tx.load_run(folder / "small", on="cpu")
    logits = small.model(trained_models.synthetic_images(small.size)).tolist()
    weights = folder / "small" / layout.WEIGHTS_FILE
    entry = {"name": "small", "summary": "A small model.", "classes": list(small.classes), "expected_logits": logits}
    entry |= {"bytes": weights.stat().st_size, "sha256": atomic.checksum(weights)}
    (folder / "small.json").write_text(json.dumps(entry))
    monkeypatch.setattr(trained_models, "ZOO", folder)
    monkeypatch.chdir(tmp_path)
    trained_models.names.cache_clear()
    yield folder
    trained_models.names.cache_clear()


def test_a_name_loads_the_model_unless_a_folder_has_it(packed: Path, pack, tmp_path: Path) -> None:
    loaded, model = tx.load_run("small", on="cpu"), tx.load_model("small")
    assert (loaded.name, loaded.model.training) == ("small", False)
    assert (model.name, model.size, len(model.classes)) == ("small", loaded.size, 3)
    (tmp_path / "small").symlink_to(pack.run("standard"))
    assert (loaded.recipe.defence.name, tx.load_run("small").recipe.defence.name) == ("fgsm", "standard")


def test_other_answers_and_weights_than_expected_are_an_error(packed: Path) -> None:
    entry = json.loads((packed / "small.json").read_text())
    entry["expected_logits"][3][1] += 0.1
    (packed / "small.json").write_text(json.dumps(entry))
    with pytest.raises(UserError, match="answer otherwise than the zoo expects"):
        tx.load_run("small")
    path = packed / "small" / layout.WEIGHTS_FILE
    state = load_file(path)
    first = next(key for key in state if key.endswith("weight"))
    save_file(state | {first: state[first] * 1.5}, path)
    with pytest.raises(UserError, match="damaged or replaced"):
        tx.load_run("small")
    path.unlink()
    with pytest.raises(UserError, match="small: its weights are missing"):
        tx.load_run("small")


def test_commands_take_the_name_and_suggest_a_near_one(packed: Path, pack) -> None:
    listed = json.loads(run("models", "--json").stdout)
    assert [entry["name"] for entry in listed["trained"]] == ["small"]
    data = ("--data", pack.images())
    for command in (("certify", "smal", *data), ("audit", "smal", *data, "--out", "audit")):
        assert "did you mean small?" in complaint(*command)
    for load in (tx.load_run, tx.load_model):
        with pytest.raises(UserError, match=r"did you mean small\?"):
            load("smal")


def test_no_command_writes_into_the_package(packed: Path, pack, tmp_path: Path) -> None:
    before, data = sorted(packed.rglob("*")), ("--data", pack.images())
    assert "small: comes with the statistics" in complaint("fit-ood", "small", *data)
    assert "is on a hub" in complaint("fit-ood", "hf://owner/name", *data)
    assert json.loads(run("evaluate", "small", *data, "--attack", "fgsm", "--json").stdout)["run"] == "small"
    assert list((tmp_path / "trustcxr-out" / "small" / "evaluations").glob("*/metrics.json"))
    assert sorted(packed.rglob("*")) == before
