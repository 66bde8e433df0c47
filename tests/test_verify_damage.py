"""`trustcxr verify` of a study whose files are damaged or gone: what no table backs any more never counts as agreed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pack import Pack
from test_cli import run
from test_engines import small
from test_verify import change, found
from trustcxr import report
from trustcxr.report import plans
from trustcxr.results import differences, files
from trustcxr.results.documents import Difference, VerifiedDocument
from trustcxr.study import engines, verifying
from trustcxr.study.protocol import Study
from trustcxr.study.verifying import verify

NAME, OTHER = "test_resnet-fgsm-s0", "test_resnet-standard-s0"


@pytest.fixture(scope="module")
def done(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("damaged")
    recipe = small(models=[{"name": "test_resnet", "weights": "none"}])
    Study(recipe, pack.images(), base / "out", engines.get("local")).run()  # type: ignore[arg-type]
    return base / "out"


@pytest.fixture
def study(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "study"))


def edit(path: Path, how: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    files.write_table(path, how(files.read_table(path)))


def unchecked(document: VerifiedDocument, *words: str) -> bool:
    return any(all(word in line for word in words) for line in document.unchecked)


def test_what_is_said_and_was_not_computed_is_found() -> None:
    said = {"a": 1, "b": {"c": 2, "d": [1, 2]}, "e": {"f": 1}, "g": [{"h": 1}], "i": None, "j": [], "k": 0}
    computed = {"b": {"d": [1, 2]}, "e": {}, "g": [{}]}
    assert list(differences.unbacked(said, computed)) == [
        ("a", 1, None),
        ("b.c", 2, None),
        ("e", "1 figure", None),
        ("g[0].h", 1, None),
        ("k", 0, None),
    ]
    assert list(differences.unbacked(computed, computed)) == []


def test_an_entry_that_is_gone_makes_no_difference_of_the_others() -> None:
    rows = [{"attack": "pgd", "x": 1}, {"attack": "fgsm", "x": 2}, {"attack": "apgd", "x": 3}]
    changed = [rows[1], rows[2] | {"x": 4}]
    keys = [one.key for one in differences.between({"rows": changed}, {"rows": rows})]
    assert keys == ["rows (how many)", "rows[apgd].x"]


def test_a_part_whose_table_is_gone_is_named_and_one_that_its_table_does_not_give_differs(tmp_path: Path) -> None:
    said = {
        "clean": {"accuracy": {"value": 0.5}},
        "certified": [{"epsilon": 0.1, "accuracy": {"value": 0.99}}],
        "input_gradients": {"n": 3},
    }
    document = VerifiedDocument(folder=str(tmp_path), differences=[], unchecked=[])
    behind = {"certified": tmp_path / "certified.parquet", "saliency": tmp_path / "saliency.parquet"}
    verifying._hold(document, "metrics.json", said, {"clean": {"accuracy": {"value": 0.5}}}, old=False, behind=behind)
    assert document.unchecked == ["metrics.json: certified: certified.parquet is missing, so 2 figures were not held"]
    assert found(document) == {("metrics.json", "input_gradients")}


def test_where_only_the_page_differs_the_command_that_makes_it_anew_is_said() -> None:
    document = VerifiedDocument(study="a", folder="out/a study", runs=1, unchecked=[])
    document.differences = [Difference(file="report.html", key="text", said="The data", computed="Other data")]
    hint = "only report.html differs: `trustcxr report 'out/a study'` makes it anew from the files"
    assert hint in list(plans.verified(document))
    document.differences.append(Difference(file="study.json", key="runs", said=1, computed=2))
    assert hint not in list(plans.verified(document))


@pytest.mark.slow
def test_an_untouched_study_agrees(study: Path) -> None:
    report.write(study)
    assert "all agree" in run("verify", study).stdout


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_of_maps_whose_table_is_gone_nothing_counts_as_agreed(study: Path) -> None:
    (study / "runs" / NAME / "saliency.parquet").unlink()
    document = verify(study)
    assert found(document) == set()
    for file in (f"study.json: {NAME}", f"runs/{NAME}/metrics.json"):
        assert unchecked(document, f"{file}: saliency: runs/{NAME}/saliency.parquet is missing, so ")
    assert unchecked(document, "comparisons and spread over seeds of maps: saliency.parquet of", NAME)
    assert "all agree" not in run("verify", study).stdout


@pytest.mark.slow
def test_proofs_and_a_temperature_that_no_table_backs_are_named(study: Path) -> None:
    path = study / "runs" / NAME / "metrics.json"
    content = files.read_document(path)
    proof = {"epsilon": 0.01, "accuracy": {"value": 0.99}, "n": 12}
    files.write_json(path, content | {"certified": [proof]})
    (study / "runs" / NAME / "validation.parquet").unlink()
    change(study / "study.json", "runs", 1, "calibration", "temperature", to=7.5)
    document = verify(study)
    assert found(document) == set()
    assert unchecked(document, f"runs/{NAME}/metrics.json: certified: ", "certified.parquet is missing")
    assert unchecked(document, f"study.json: {NAME}: calibration: ", "validation.parquet is missing")


@pytest.mark.slow
def test_figures_that_their_table_does_not_give_any_more_differ(study: Path) -> None:
    edit(study / "runs" / NAME / "predictions.parquet", lambda table: table.assign(gradient=np.nan))
    document = verify(study)
    files_of_it = (f"study.json: {NAME}", f"runs/{NAME}/metrics.json")
    assert found(document) == {(file, "input_gradients") for file in files_of_it}


@pytest.mark.slow
def test_a_finished_run_that_was_taken_out_of_the_study_is_found(study: Path) -> None:
    path = study / "study.json"
    content = json.loads(path.read_text())
    content["runs"] = [entry for entry in content["runs"] if entry["run"] != NAME]
    content["alarms"] = [entry for entry in content["alarms"] if entry["run"] != NAME]
    path.write_text(json.dumps(content | {"comparisons": []}))
    document = verify(study)
    assert found(document) == {("study.json", f"runs[{NAME}]")}
    assert document.differences[0].computed == f"finished in runs/{NAME}"


@pytest.mark.slow
def test_a_run_that_is_there_twice_or_was_invented_is_found(study: Path) -> None:
    path = study / "study.json"
    content = json.loads(path.read_text())
    content["runs"] += [content["runs"][0], {"run": "better", "clean": {"accuracy": {"value": 1.0}}}]
    path.write_text(json.dumps(content))
    assert {("study.json", f"runs[{OTHER}]"), ("study.json", "runs[better]")} <= found(verify(study))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("predictions.parquet", lambda t: t.drop(index=t.index[t["attack"] == "clean"][0]), "1 films without a row"),
        ("predictions.parquet", lambda t: t.assign(label=[99, *t["label"].iloc[1:]]), "the label 99, of 3 classes"),
        ("predictions.parquet", lambda t: t[:0], "no rows"),
        ("predictions.parquet", lambda t: t.drop(columns="label"), "no column label"),
        ("predictions.parquet", lambda t: pd.concat([t, t]), "rows there twice"),
        ("validation.parquet", lambda t: t.assign(label=99), "the label 99, of 3 classes"),
        ("saliency.parquet", lambda t: t.drop(columns="measure"), "saliency.parquet or lesions.parquet"),
        ("history.csv", lambda t: t[:0], "no epochs in it; restore it: no command makes it again but a training"),
        ("history.csv", lambda t: t.drop(columns="seconds"), "no column seconds"),
        ("history.csv", lambda t: t.assign(seconds="long"), "no numbers in seconds"),
        ("history.csv", lambda t: t.assign(val_pgd_accuracy="high"), "no numbers in val_pgd_accuracy"),
    ],
)
def test_a_damaged_table_is_a_line_that_names_it_and_the_other_runs_are_verified(
    file: str, damage: Callable[[pd.DataFrame], pd.DataFrame], said: str, study: Path
) -> None:
    edit(study / "runs" / NAME / file, damage)
    change(study / "runs" / OTHER / "metrics.json", "attacks", 1, "accuracy", to=0.987)
    document = verify(study)
    assert not document.agrees
    (one,) = [one for one in document.differences if NAME in one.file]
    assert said in f"{one.file}: {one.computed}"
    assert one.file in (f"runs/{NAME}/{file}", f"runs/{NAME}")
    assert "\n" not in str(one.computed)
    assert "delete it" not in str(one.computed)
    assert (f"runs/{OTHER}/metrics.json", "attacks[fgsm 0.02].accuracy") in found(document)


@pytest.mark.slow
def test_an_emptied_history_has_true_advice_and_an_epoch_before_the_first_is_found(study: Path) -> None:
    (study / "runs" / NAME / "history.csv").write_text("")
    change(study / "runs" / OTHER / "training.json", "best_epoch", to=-5)
    document = verify(study)
    history = [one for one in document.differences if one.file == f"runs/{NAME}/history.csv"]
    assert ["not readable as a table; restore it" in str(one.computed) for one in history] == [True]
    assert (f"runs/{OTHER}/training.json", "best_epoch") in found(document)


@pytest.mark.slow
def test_only_what_was_changed_by_hand_differs(study: Path) -> None:
    path = study / "runs" / NAME / "metrics.json"
    content = json.loads(path.read_text())
    content["attacks"] = content["attacks"][1:]
    path.write_text(json.dumps(content))
    (fewer, *others) = sorted(found(verify(study)))
    assert fewer == (f"runs/{NAME}/metrics.json", "attacks (how many)")
    assert others == []


@pytest.mark.slow
def test_weights_that_are_gone_are_named_and_replaced_ones_differ(study: Path) -> None:
    runs = study / "runs"
    (runs / NAME / "model.safetensors").unlink()
    shutil.copyfile(runs / OTHER / "familiarity.safetensors", runs / OTHER / "model.safetensors")
    document = verify(study)
    assert unchecked(document, f"runs/{NAME}/model.safetensors is missing")
    assert found(document) == {(f"runs/{OTHER}/model.safetensors", "checksum of model.safetensors")}
