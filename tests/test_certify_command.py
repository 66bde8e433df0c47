"""`train --defence ibp` and `certify` from the command line, on synthetic films."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from trustcxr import load_run
from trustcxr.certify.ibp import Interval
from trustcxr.cli import app
from trustcxr.data.phantom import writing
from trustcxr.errors import UserError
from trustcxr.evaluation import certified
from trustcxr.results import files, folders
from trustcxr.results.documents import RunDocument
from trustcxr.study import run_folder

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return writing.write(tmp_path_factory.mktemp("data") / "phantom", {"Train": 24, "Val": 8, "Test": 8}, size=32)


@pytest.fixture(scope="module")
def run(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained by bounds, and certified at two radii."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = "--model plain3 --weights none --defence ibp --size 32 --epochs 6 --learning-rate 0.004 --epsilon 0.01"
    shares = "--ramp 0.5 --clean-share 0.2 --set defence.attack_share=0.1 --set defence.regulariser=0.5"
    typed = ["train", "--data", str(films), "--out", str(folder), *options.split(), *shares.split()]
    done = RUNNER.invoke(app, typed)
    assert done.exit_code == 0, done.output
    done = RUNNER.invoke(app, ["certify", str(folder), "--data", str(films), "--epsilon", "0.002", "--epsilon", "0.01"])
    assert done.exit_code == 0, done.output
    assert "proved" in done.output
    assert "0.002" in done.output
    return folder


@pytest.mark.slow
def test_training_is_judged_by_what_it_proves(run: Path) -> None:
    training, history = files.read_json(run / "training.json"), pd.read_csv(run / "history.csv")
    assert (training["monitor"], training["epsilon"]) == ("val_certified_accuracy", 0.01)
    assert training["best_value"] == history["val_certified_accuracy"].max()
    assert (history["val_certified_accuracy"] <= history["val_accuracy"]).all()
    assert history["epsilon"].iloc[-1] == pytest.approx(0.01)


@pytest.mark.slow
def test_certified_accuracy_stands_below_every_attack_s(run: Path) -> None:
    document, table = files.read_json(run / "metrics.json"), files.read_table(run / "certified.parquet")
    assert [entry["epsilon"] for entry in document["certified"]] == [0.002, 0.01]
    for entry in document["certified"]:
        rows = table[table["epsilon"] == entry["epsilon"]]
        assert entry["n"] == len(rows) == rows["sample_id"].nunique() == 24
        assert entry["accuracy"]["value"] == pytest.approx(rows["certified"].mean())
        assert entry["accuracy"]["ci"][0] <= entry["accuracy"]["value"] <= entry["accuracy"]["ci"][1]
        for attack in (a for a in document["attacks"] if a["epsilon"] == entry["epsilon"]):
            assert entry["accuracy"]["value"] <= attack["accuracy"]["value"] <= document["clean"]["accuracy"]["value"]
    assert (table["certified"] <= table["proved"]).all()
    assert table["proved"].any()


@pytest.mark.slow
def test_a_run_that_was_not_evaluated_is_held_against_the_worst_case_at_each_radius(run: Path) -> None:
    attacked = [(a["attack"], a["epsilon"]) for a in files.read_json(run / "metrics.json")["attacks"]]
    assert {epsilon for attack, epsilon in attacked if attack == "worst-case"} == {0.002, 0.01}


@pytest.mark.slow
def test_another_epsilon_is_added_and_evaluation_keeps_what_is_certified(run: Path, films: Path) -> None:
    before = files.read_json(run / "metrics.json")["certified"]
    document, _ = run_folder.certify(run, films, epsilons=[0.005])
    assert [entry["epsilon"] for entry in document.plain()["certified"]] == [0.002, 0.005, 0.01]
    assert [e for e in document.plain()["certified"] if e["epsilon"] != 0.005] == before
    assert ("worst-case", 0.005) in {(row.attack, row.epsilon) for row in document.attacks}
    again, _ = run_folder.evaluate(run, films, attacks=["fgsm"])
    assert again.certified == document.certified


@pytest.mark.slow
def test_after_an_evaluation_each_radius_is_held_against_the_worst_case_too(
    run: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    for name in ("metrics.json", "predictions.parquet", "certified.parquet"):
        (other / name).unlink()
    run_folder.evaluate(other, films)
    done = RUNNER.invoke(app, ["certify", str(other), "--data", str(films), "--epsilon", "0.02"])
    assert done.exit_code == 0, done.output
    document = files.read_json(other / "metrics.json")
    attacked = {(a["attack"], a["epsilon"]): a["accuracy"]["value"] for a in document["attacks"]}
    (entry,) = document["certified"]
    assert entry["accuracy"]["value"] <= attacked["worst-case", 0.02]
    assert set(attacked) >= {("fgsm", 0.02), ("pgd", 0.02)}, "what was measured before stays"
    before = (other / "predictions.parquet").read_bytes()
    run_folder.certify(other, films, epsilons=[0.02])
    assert (other / "predictions.parquet").read_bytes() == before, "attacked once"
    (other / "predictions.parquet").unlink()
    run_folder.certify(other, films, epsilons=[0.004])
    said = capsys.readouterr().err
    assert "not attacked yet by worst-case at epsilon 0.004, and predictions.parquet is not here" in said
    kept = {(a["attack"], a["epsilon"]) for a in files.read_json(other / "metrics.json")["attacks"]}
    assert kept == set(attacked), "figures whose predictions are elsewhere stay"
    run_folder.evaluate(other, films, attacks=["fgsm"])
    assert "metrics.json: no longer holds pgd-20 at 0.02, worst-case-50 at 0.02" in capsys.readouterr().err


@pytest.mark.slow
def test_a_weak_worst_case_is_none(run: Path, films: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    run_folder.evaluate(other, films, attacks=["worst-case"], epsilons=[0.02], steps=1, queries=1)
    document, _ = run_folder.certify(other, films, epsilons=[0.02])
    assert {row.steps for row in document.attacks if (row.attack, row.epsilon) == ("worst-case", 0.02)} == {1, 50}


@pytest.mark.slow
def test_proofs_of_other_films_that_a_kill_left_are_not_told(run: Path, tmp_path: Path) -> None:
    """Of data from elsewhere a name is all that its folder has, until predictions are there."""
    data = writing.write(tmp_path / "elsewhere", {"Train": 1, "Val": 1, "Test": 3}, size=32, seed=5)
    other = Path(shutil.copytree(run, tmp_path / "run"))
    _, place = run_folder.certify(other, data, epsilons=[0.002], split="Test")
    for name in ("metrics.json", "predictions.parquet"):
        (place / name).unlink()
    gone = sorted(data.rglob("Test/*/images/*.png"))[0].name
    for path in list(data.rglob(gone)):
        path.unlink()
    document, where = run_folder.certify(other, data, epsilons=[0.004], split="Test")
    assert (where, [row.epsilon for row in document.certified]) == (place, [0.004])
    assert document.certified[0].n == document.clean.n


@pytest.mark.slow
def test_a_radius_that_is_proved_again_by_intervals_alone_says_so(run: Path, films: Path, tmp_path: Path) -> None:
    again = shutil.copytree(run, tmp_path / "run")
    typed = ["certify", str(again), "--data", str(films), "--epsilon", "0.002"]
    done = RUNNER.invoke(app, typed)
    assert "proved otherwise" not in done.output, "the same once more"
    done = RUNNER.invoke(app, [*typed, "--method", "ibp"])
    assert "epsilon 0.002 was proved otherwise before: made again, as is asked for now" in " ".join(done.output.split())
    document = RunDocument.model_validate(files.read_json(again / "metrics.json"))
    methods = [entry.method for entry in document.certified]
    assert (document.certified[0].epsilon, methods) == (0.002, ["ibp", *["crown"] * (len(methods) - 1)])
    done = RUNNER.invoke(app, ["report", str(again)])
    assert done.exit_code == 0, done.output
    said = " ".join((again / "report.html").read_text(encoding="utf-8").split())
    assert f"(at epsilon 0.002 of {document.run} by interval bounds alone, as was asked)" in said


@pytest.mark.slow
def test_what_would_flatter_is_said_beside_what_is_proved(run: Path, films: Path, tmp_path: Path) -> None:
    """A network that gives one answer is proved on a third of the films, whatever is done to them."""
    other = Path(shutil.copytree(run, tmp_path / "run"))
    for name in ("metrics.json", "predictions.parquet", "certified.parquet"):
        (other / name).unlink()
    weights = load_file(other / "model.safetensors")
    last = [name for name in weights if name.endswith("bias")][-1]
    weights[last] = weights[last] + torch.tensor([0.0, 0.0, 1000.0])
    save_file(weights, other / "model.safetensors")
    content = files.read_yaml(other / "run.yaml")
    content["checksums"] = folders.checksums(other, content["classes"])
    files.write_yaml(other / "run.yaml", content)
    done = RUNNER.invoke(app, ["certify", str(other), "--data", str(films), "--epsilon", "0.01"])
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "ALARM" in said
    assert all(alarm["text"] in said for alarm in files.read_json(other / "metrics.json")["alarms"])


@pytest.mark.slow
def test_a_radius_of_nothing_is_refused(run: Path, films: Path) -> None:
    with pytest.raises(UserError, match="epsilon 0: no pixel may change"):
        run_folder.certify(run, films, epsilons=[0.01, 0.0])


@pytest.mark.slow
def test_the_document_can_be_printed_as_json(run: Path, films: Path) -> None:
    typed = ["certify", str(run), "--data", str(films), "--epsilon", "0.01", "--method", "ibp", "--json"]
    done = RUNNER.invoke(app, typed)
    assert done.exit_code == 0, done.output
    assert 0 <= json.loads(done.stdout)["certified"][-1]["accuracy"]["value"] <= 1


def test_an_answer_is_certified_only_where_it_is_right_and_proved() -> None:
    rows = {"group": list("aabb"), "label": [0, 0, 1, 2], "epsilon": 0.01}
    table = pd.DataFrame(rows | {"proved": [True, True, False, True], "certified": [True, False, False, True]})
    (entry,) = certified.describe(table, resamples=200)
    assert entry.plain()["accuracy"]["value"] == 0.5
    assert entry.plain()["proved"]["value"] == 0.75
    assert entry.plain()["balanced_accuracy"]["value"] == pytest.approx((0.5 + 0 + 1) / 3)


def test_what_is_proved_has_intervals() -> None:
    random = np.random.default_rng(0)
    proved, label = random.random(300) < 0.6, np.arange(300) % 3
    rows = {"group": np.arange(300).astype(str), "label": label, "epsilon": 0.01, "proved": proved}
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
    from trustcxr.certify import contract, ibp

    model, images = load_run(run).model, torch.rand(3, 1, 32, 32)
    found = ibp.intervals(contract.exact(model), Interval.of(*contract.box(images.double(), 0.01)))[-1]
    logits = model(images).double()
    assert (found.low - 1e-4 <= logits).all()
    assert (logits <= found.high + 1e-4).all()


PLAIN = ["--model", "plain3", "--weights", "none"]
TOO_MUCH = ["--defence", "ibp", "--clean-share", "0.9", "--set", "defence.attack_share=0.2"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--model", "test_resnet", "--weights", "none", "--defence", "ibp"], "cannot be bounded"),
        (["--model", "plain5", "--defence", "ibp"], "has no ImageNet weights"),
        (["--model", "plain6", "--weights", "none"], "plain5"),
        ([*PLAIN, "--defence", "fgsm", "--set", "defence.attack_share=0.1"], "not use"),
        ([*PLAIN, *TOO_MUCH], "together at most 1"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(films: Path, tmp_path: Path, typed: list[str], said: str) -> None:
    done = RUNNER.invoke(app, ["train", "--data", str(films), "--out", str(tmp_path / "run"), "--size", "32", *typed])
    assert isinstance(done.exception, UserError) or done.exit_code == 2, done.output
    assert said in str(done.exception) + done.output


@pytest.mark.slow
def test_what_intervals_have_no_use_for_is_refused(run: Path, films: Path) -> None:
    typed = ["certify", str(run), "--data", str(films), "--method", "ibp"]
    for option in ("--steps", "--neurons"):
        with pytest.raises(UserError, match="neurons and steps are of the method crown"):
            RUNNER.invoke(app, [*typed, option, "500"], catch_exceptions=False)


@pytest.mark.slow
def test_an_unknown_method_is_refused_with_the_ones_there_are(run: Path, films: Path) -> None:
    with pytest.raises(UserError, match="ibp, crown"):
        RUNNER.invoke(app, ["certify", str(run), "--data", str(films), "--method", "crow"], catch_exceptions=False)
