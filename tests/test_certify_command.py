"""`train --defence ibp` and `certify` from the command line, on synthetic images; what a report shows of proofs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from small_runs import newest, seal
from test_cli import complaint
from test_cli import run as call
from trustcxr import load_run
from trustcxr.data.phantom import write_files
from trustcxr.evaluation import certified
from trustcxr.report.figures import charts, svg
from trustcxr.report.load import Run
from trustcxr.report.tables import robustness
from trustcxr.runs import run_folder
from trustcxr.storage import atomic
from trustcxr.storage.schemas import RunDocument


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files.write(tmp_path_factory.mktemp("data") / "phantom", {"Train": 24, "Val": 8, "Test": 8}, size=32)


def train(images: Path, folder: Path, *more: str) -> Path:
    options = "--model plain3 --weights none --defence ibp --size 32 --epochs 6 --learning-rate 0.004 --epsilon 0.01"
    shares = "--ramp 0.5 --clean-weight 0.2 --set defence.regulariser=0.5"
    call("train", "--data", images, "--out", folder, *options.split(), *shares.split(), *more)
    return folder


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = train(images, tmp_path_factory.mktemp("runs") / "run")
    said = call("certify", folder, "--data", images, "--epsilon", "0.002", "--epsilon", "0.01").stdout
    for part in ("Certified accuracy", "0.002", "after decoding and resizing, not of the file"):
        assert part in said
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
    call("certify", other, "--data", images, "--epsilon", "0.005", "--method", "ibp")
    assert newest(other) not in (first, place)
    document = RunDocument.model_validate(atomic.read_json(newest(other) / "metrics.json"))
    assert [entry.method for entry in document.certified] == ["ibp"]
    call("report", other)
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
    seal(other)
    done = call("certify", other, "--data", images, "--epsilon", "0.01")
    said = " ".join((done.stdout + done.stderr).split())
    assert "ALARM" in said
    assert all(alarm["text"] in said for alarm in atomic.read_json(newest(other) / "metrics.json")["alarms"])


@pytest.mark.slow
def test_the_document_can_be_printed_as_json(run: Path, images: Path) -> None:
    done = call("certify", run, "--data", images, "--epsilon", "0.01", "--method", "ibp", "--json")
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
    assert said in complaint("train", "--data", images, "--out", tmp_path / "run", "--size", "32", *typed)


@pytest.mark.slow
def test_what_intervals_have_no_use_for_is_refused(run: Path, images: Path) -> None:
    for option in ("--steps", "--neurons"):
        said = complaint("certify", run, "--data", images, "--method", "ibp", option, "500")
        assert "neurons and steps need the method crown" in said


@pytest.mark.slow
def test_members_are_trained_and_certified_by_the_commands(images: Path, tmp_path: Path) -> None:
    run = train(images, tmp_path / "run", "--set", "model.members=2")
    call("certify", run, "--data", images, "--epsilon", "0.002", "--method", "ibp")
    assert len(load_run(run).model.members()) == 2
    assert atomic.read_table(newest(run) / "certified.parquet")["proved"].any()
    training = atomic.read_json(run / "training.json")
    assert (training["monitor"], training["best_value"] >= 0) == ("val_certified_accuracy", True)


def shown(proofs: Any = (), attacks: Any = ()) -> list[Run]:
    """The runs of a report: one with these figures."""
    content = {"model": "plain3", "defence": "ibp", "clean": {"accuracy": {"value": 0.8}}}
    document = RunDocument.model_validate(content | {"certified": [*proofs], "attacks": [*attacks]})
    return [Run(document, Path("runs/a"), [], label="plain3 ibp")]


ENTRY = {"epsilon": 0.02, "accuracy": {"value": 0.6, "ci": [0.5, 0.7]}, "balanced_accuracy": {"value": 0.55}, "n": 100}
ATTACKS = [
    {"attack": name, "epsilon": epsilon, "accuracy": {"value": value}}
    for name, epsilon, value in (
        ("fgsm", 0.02, 0.7),
        ("worst-case", 0.02, 0.65),
        ("pgd", 0.05, 0.1),
        ("pgd-l2", 0.02, 0),
    )
]


def test_beside_a_proof_stands_the_lowest_attack_of_the_same_ball() -> None:
    table = robustness.proved(shown([ENTRY], ATTACKS))
    cells = dict(zip(table.header, *table.rows, strict=True))
    assert (cells["Certified, %"].value, cells["Under attack, %"].value) == (0.6, 0.65)
    assert (cells["Strongest"].text, cells["Open, points"].text) == ("worst-case", "5.0")


def test_the_bar_goes_from_proof_by_the_open_part_to_what_is_lost() -> None:
    (gap,) = robustness.list_proofs(shown([ENTRY], ATTACKS))
    assert charts.proof_parts(gap) == [(0.0, 0.6), (0.6, 0.65), (0.65, 0.8)]
    (alone,) = robustness.list_proofs(shown([ENTRY]))
    assert charts.proof_parts(alone) == [(0.0, 0.6), (0.6, 0.8), (0.8, 0.8)]
    assert svg.render_inline(charts.proof_bars(shown([ENTRY], ATTACKS)), "k").startswith("<svg role")
    for missing in ([], [{"epsilon": 0.1}]):
        assert robustness.proved(shown(missing)) is None
        assert charts.proof_bars(shown(missing)) is None
