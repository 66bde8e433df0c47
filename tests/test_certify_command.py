"""`train --defence ibp` and `certify` from the command line, on synthetic images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from small_runs import newest
from trustcxr import load_run
from trustcxr.certify.verify import Interval, intervals
from trustcxr.cli import app
from trustcxr.data.phantom import write_files
from trustcxr.errors import UserError
from trustcxr.evaluation import certified
from trustcxr.runs import run_folder
from trustcxr.storage import atomic, layout
from trustcxr.storage.schemas import RunDocument

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files.write(tmp_path_factory.mktemp("data") / "phantom", {"Train": 24, "Val": 8, "Test": 8}, size=32)


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = "--model plain3 --weights none --defence ibp --size 32 --epochs 6 --learning-rate 0.004 --epsilon 0.01"
    shares = "--ramp 0.5 --clean-weight 0.2 --set defence.regulariser=0.5"
    typed = ["train", "--data", str(images), "--out", str(folder), *options.split(), *shares.split()]
    done = RUNNER.invoke(app, typed)
    assert done.exit_code == 0, done.output
    done = RUNNER.invoke(
        app, ["certify", str(folder), "--data", str(images), "--epsilon", "0.002", "--epsilon", "0.01"]
    )
    assert done.exit_code == 0, done.output
    assert "Certified accuracy" in done.output
    assert "0.002" in done.output
    assert "after decoding and resizing, not of the file" in done.output
    return folder


@pytest.mark.slow
def test_training_is_judged_by_what_it_proves(run: Path) -> None:
    training, history = atomic.read_json(run / "training.json"), pd.read_csv(run / "history.csv")
    assert (training["monitor"], training["epsilon"]) == ("val_certified_accuracy", 0.01)
    assert training["best_value"] == history["val_certified_accuracy"].max()
    assert (history["val_certified_accuracy"] <= history["val_accuracy"]).all()
    assert history["epsilon"].iloc[-1] == pytest.approx(0.01)


@pytest.mark.slow
def test_certified_accuracy_stands_below_every_attack_s(run: Path) -> None:
    place = newest(run)
    document, table = atomic.read_json(place / "metrics.json"), atomic.read_table(place / "certified.parquet")
    assert [entry["epsilon"] for entry in document["certified"]] == [0.002, 0.01]
    for entry in document["certified"]:
        rows = table[table["epsilon"] == entry["epsilon"]]
        assert entry["tf32"] is False
        assert entry["n"] == len(rows) == rows["sample_id"].nunique() == 24
        assert entry["accuracy"]["value"] == pytest.approx(rows["certified"].mean())
        assert entry["accuracy"]["ci"][0] <= entry["accuracy"]["value"] <= entry["accuracy"]["ci"][1]
        for attack in (a for a in document["attacks"] if a["epsilon"] == entry["epsilon"]):
            assert entry["accuracy"]["value"] <= attack["accuracy"]["value"] <= document["clean"]["accuracy"]["value"]
    assert (table["certified"] <= table["proved"]).all()
    assert table["proved"].any()


def test_other_radii_or_another_effort_have_a_folder_of_their_own(run: Path, images: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    first = newest(other)
    document, place = run_folder.certify(other, images, epsilons=[0.005])
    assert [entry.epsilon for entry in document.certified] == [0.005]
    assert ("worst-case", 0.005) in {(row.attack, row.epsilon) for row in document.attacks}
    _, again = run_folder.certify(other, images, epsilons=[0.01, 0.002])
    assert again == first != place
    typed = ["certify", str(other), "--data", str(images), "--epsilon", "0.005"]
    done = RUNNER.invoke(app, [*typed, "--method", "ibp"])
    assert done.exit_code == 0, done.output
    assert newest(other) not in (first, place)
    document = RunDocument.model_validate(atomic.read_json(newest(other) / "metrics.json"))
    assert [entry.method for entry in document.certified] == ["ibp"]
    done = RUNNER.invoke(app, ["report", str(other)])
    assert done.exit_code == 0, done.output
    said = " ".join((other / "report.html").read_text(encoding="utf-8").split())
    assert f"(interval bounds alone: epsilon 0.005 of {document.run})" in said


@pytest.mark.slow
def test_what_would_flatter_is_said_beside_what_is_proved(run: Path, images: Path, tmp_path: Path) -> None:
    """A network that gives one answer is proved on a third of the images, whatever is done to them."""
    other = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(other / "evaluations")
    weights = load_file(other / "model.safetensors")
    last = [name for name in weights if name.endswith("bias")][-1]
    weights[last] = weights[last] + torch.tensor([0.0, 0.0, 1000.0])
    save_file(weights, other / "model.safetensors")
    content = atomic.read_yaml(other / "run.yaml")
    content["checksums"] = layout.checksums(other, content["classes"])
    atomic.write_yaml(other / "run.yaml", content)
    done = RUNNER.invoke(app, ["certify", str(other), "--data", str(images), "--epsilon", "0.01"])
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "ALARM" in said
    assert all(alarm["text"] in said for alarm in atomic.read_json(newest(other) / "metrics.json")["alarms"])


@pytest.mark.slow
def test_the_document_can_be_printed_as_json(run: Path, images: Path) -> None:
    typed = ["certify", str(run), "--data", str(images), "--epsilon", "0.01", "--method", "ibp", "--json"]
    done = RUNNER.invoke(app, typed)
    assert done.exit_code == 0, done.output
    assert 0 <= json.loads(done.stdout)["certified"][-1]["accuracy"]["value"] <= 1


def test_an_answer_is_certified_only_where_it_is_right_and_proved() -> None:
    rows = {"group": list("aabb"), "label": [0, 0, 1, 2], "epsilon": 0.01, "method": "crown", "tf32": False}
    table = pd.DataFrame(rows | {"proved": [True, True, False, True], "certified": [True, False, False, True]})
    (entry,) = certified.describe(table, resamples=200)
    assert entry.plain()["accuracy"]["value"] == 0.5
    assert entry.plain()["proved"]["value"] == 0.75
    assert entry.plain()["balanced_accuracy"]["value"] == pytest.approx((0.5 + 0 + 1) / 3)


def test_what_is_proved_has_intervals() -> None:
    random = np.random.default_rng(0)
    proved, label = random.random(300) < 0.6, np.arange(300) % 3
    rows = {"group": np.arange(300).astype(str), "label": label, "epsilon": 0.01, "proved": proved}
    rows |= {"method": "crown", "tf32": False}
    (entry,) = certified.describe(pd.DataFrame(rows | {"certified": proved & (label > 0)}), resamples=300)
    for name, value in (("proved", proved.mean()), ("balanced_accuracy", (proved & (label > 0)).mean())):
        low, high = entry.plain()[name]["ci"]
        assert low < value < high
        assert high - low == pytest.approx(2 * 1.96 * np.sqrt(value * (1 - value) / 300), rel=0.25)
    nothing = pd.DataFrame(rows | {"proved": False, "certified": False})
    (entry,) = certified.describe(nothing, resamples=300)
    assert (entry.plain()["proved"]["value"], entry.plain()["proved"]["ci"][0]) == (0, 0)
    assert 0.005 < entry.plain()["proved"]["ci"][1] < 0.02, "of none of 300 the resamples say nothing"


@pytest.mark.slow
def test_bounds_in_the_model_as_it_is_loaded_hold_its_logits(run: Path) -> None:
    from trustcxr.certify import verify

    model, images = load_run(run).model, torch.rand(3, 1, 32, 32)
    found = intervals(verify.exact(model), Interval.from_ends(*verify.box(images.double(), 0.01)))[-1]
    logits = model(images).double()
    assert (found.low - 1e-4 <= logits).all()
    assert (logits <= found.high + 1e-4).all()


PLAIN = ["--model", "plain3", "--weights", "none"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--model", "test_resnet", "--weights", "none", "--defence", "ibp"], "cannot be bounded"),
        (["--model", "plain5", "--defence", "ibp"], "has no ImageNet weights"),
        (["--model", "plain6", "--weights", "none"], "plain5"),
        ([*PLAIN, "--defence", "fgsm", "--set", "defence.regulariser=0.1"], "not use"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(images: Path, tmp_path: Path, typed: list[str], said: str) -> None:
    done = RUNNER.invoke(app, ["train", "--data", str(images), "--out", str(tmp_path / "run"), "--size", "32", *typed])
    assert isinstance(done.exception, UserError) or done.exit_code == 2, done.output
    assert said in str(done.exception) + done.output


@pytest.mark.slow
def test_what_intervals_have_no_use_for_is_refused(run: Path, images: Path) -> None:
    typed = ["certify", str(run), "--data", str(images), "--method", "ibp"]
    for option in ("--steps", "--neurons"):
        with pytest.raises(UserError, match="neurons and steps need the method crown"):
            RUNNER.invoke(app, [*typed, option, "500"], catch_exceptions=False)
