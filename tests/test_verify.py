"""`trustcxr verify`: every figure computed again from its tables; one number that somebody changed is found."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from test_cli import complaint, run
from test_engines import small
from trustcxr.data.phantom import write_files
from trustcxr.errors import UserError
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.runs.run_folder import RunFolder
from trustcxr.storage import atomic
from trustcxr.storage.schemas import VerifiedDocument
from trustcxr.study import engines, run_study
from trustcxr.study.run_study import Study
from trustcxr.study.verify_study import count_figures, differences, verify

NAME, OTHER = "test_resnet-fgsm-s0", "test_resnet-standard-s0"
ROBUST = f"runs/{NAME}"


def change(path: Path, *keys: str | int, to: object) -> None:
    """Give a figure of a document another value."""
    content = at = json.loads(path.read_text())
    for key in keys[:-1]:
        at = at[key]
    assert at[keys[-1]] != to
    at[keys[-1]] = to
    path.write_text(json.dumps(content))


def found(document: VerifiedDocument) -> set[tuple[str, str]]:
    return {(one.file, one.key) for one in document.differences}


def unchecked(document: VerifiedDocument, *words: str) -> bool:
    return any(all(word in line for word in words) for line in document.unchecked)


def test_documents_are_compared_figure_by_figure() -> None:
    said = {"a": 0.5, "b": [{"attack": "pgd", "x": 1}, {"attack": "fgsm", "x": 2}], "c": None, "more": {"d": 1, "e": 2}}
    assert list(differences(said, said | {"a": 0.5 + 1e-12, "f": [], "g": {"h": None}})) == []
    computed = {"a": 0.25, "b": [{"attack": "pgd", "x": 1}, {"attack": "fgsm", "x": 3}], "c": True, "d": 4}
    assert list(differences(said, computed)) == [
        ("a", 0.5, 0.25),
        ("b[fgsm].x", 2, 3),
        ("c", None, True),
        ("more", "2 figures", None),
        ("d", None, 4),
    ]
    changed = [{"attack": "fgsm", "x": 4}]
    assert next(differences({"b": said["b"][::-1]}, {"b": said["b"]}))[0] == "b (order)"
    assert list(differences({"b": changed}, {"b": said["b"]})) == [("b[fgsm].x", 4, 2), ("b[pgd]", None, "2 figures")]
    assert count_figures({"a": [1, 2, {"b": None}], "c": False}) == 3


def test_what_is_no_finished_study_is_one_line(tmp_path: Path) -> None:
    assert "no such study folder" in complaint("verify", tmp_path / "gone")
    assert "no study.json here" in complaint("verify", tmp_path)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("verified")
    images = write_files.write(base / "phantom", {"Train": 9, "Val": 4, "Test": 4}, size=32)
    recipe = small(models=[{"name": "test_resnet", "weights": "none"}], seeds=[0, 1])
    Study(recipe, images, base / "out", engines.get("local")).run()  # type: ignore[arg-type]
    return base / "out"


@pytest.fixture
def study(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "study"))


@pytest.mark.slow
def test_every_figure_of_a_study_agrees(done: Path) -> None:
    document = verify(done)
    assert (found(document), document.unchecked) == (set(), [])
    assert document.figures > 1000
    assert document.files == 1 + 2 * 4
    assert "all agree" in run("verify", done).stdout


@pytest.mark.slow
def test_each_changed_number_is_found_and_the_exit_code_is_1(study: Path) -> None:
    keys: dict[str, list[tuple[str | int, ...]]] = {
        "study.json": [
            ("runs", 0, "clean", "accuracy", "ci", 0),
            ("comparisons", 0, "difference", "value"),
            ("over_seeds", 0, "figures", 0, "deviation"),
            ("selection", "ranking", 0, "value"),
            ("runs", 1, "training", "best_value"),
        ],
        f"{ROBUST}/metrics.json": [
            ("attacks", 1, "accuracy", "value"),
            ("saliency", "layercam@-3", "infection_energy", "value"),
        ],
        f"{ROBUST}/training.json": [("best_value",)],
    }
    for file, of_file in keys.items():
        for one in of_file:
            change(study / file, *one, to=0.123456)
    printed = json.loads(run("verify", study, "--json", expect=1).stdout)["differences"]
    for file, of_file in keys.items():
        for one in of_file:
            last = [key for key in one if isinstance(key, str)][-1]
            assert any(p["file"].startswith(file) and last in p["key"] and p["stored"] == 0.123456 for p in printed), (
                one
            )
    # What study.json says of a training is compared with training.json, which one of these changed.
    assert len(printed) == 9


@pytest.mark.slow
def test_what_no_table_backs_any_more_is_named_and_does_not_count_as_agreed(study: Path) -> None:
    for name in ("saliency.parquet", "history.csv", "model.safetensors", "validation.parquet"):
        (study / ROBUST / name).unlink()
    path = study / ROBUST / "metrics.json"
    row = {"epsilon": 0.01, "accuracy": {"value": 0.99}, "n": 12}
    atomic.write_json(path, atomic.read_document(path) | {"certified": [row]})
    document = verify(study)
    assert found(document) == set()
    for file in (f"study.json: {NAME}", f"{ROBUST}/metrics.json"):
        assert unchecked(document, f"{file}: saliency: {ROBUST}/saliency.parquet is missing")
        assert unchecked(document, f"{file}: calibration: {ROBUST}/validation.parquet is missing")
    assert unchecked(document, f"{ROBUST}/metrics.json: certified: {ROBUST}/certified.parquet is missing")
    assert unchecked(document, "history.csv is missing")
    assert unchecked(document, "model.safetensors is missing")
    assert unchecked(document, "study.json: comparisons, spread over seeds, ranking and alarms")
    assert "all agree" not in run("verify", study).stdout
    for table in study.rglob("predictions.parquet"):
        table.unlink()
    assert "the figures of no run could be recomputed" in run("verify", study, expect=1).stdout


@pytest.mark.slow
def test_runs_that_are_lacking_or_twice_or_invented_and_replaced_weights_are_found(study: Path) -> None:
    path = study / "study.json"
    content = json.loads(path.read_text())
    runs = [entry for entry in content["runs"] if entry["run"] != NAME]
    twice = next(entry for entry in runs if entry["run"] == OTHER)
    path.write_text(json.dumps(content | {"runs": [*runs, twice, {"run": "better", "clean": {"accuracy": 1.0}}]}))
    shutil.copyfile(study / "runs" / OTHER / "ood.safetensors", study / "runs" / OTHER / "model.safetensors")
    document = verify(study)
    weights = f"runs/{OTHER}/model.safetensors", "checksum of model.safetensors"
    assert found(document) == {weights, *(("study.json", f"runs[{name}]") for name in (NAME, OTHER, "better"))}
    (lacking,) = [one for one in document.differences if NAME in one.key]
    assert lacking.computed == f"finished in {ROBUST}"


@pytest.mark.slow
def test_a_standard_run_that_failed_after_validation_is_ranked_as_in_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_files.write(tmp_path / "phantom", {"Train": 9, "Val": 4, "Test": 4}, size=32)
    real = run_study.STEPS["test"]

    def fails(study: run_study.StudyFolder, recipe: RunRecipe, folder: RunFolder) -> None:
        if recipe.name == OTHER:
            raise UserError("no")
        real(study, recipe, folder)

    monkeypatch.setitem(run_study.STEPS, "test", fails)
    recipe = small(models=[{"name": "test_resnet", "weights": "none"}])
    document = Study(recipe, images, tmp_path / "out", engines.get("local")).run()  # type: ignore[arg-type]
    assert (len(document.selection.ranking), [run.run for run in document.runs]) == (1, [NAME])
    checked = verify(tmp_path / "out")
    assert (found(checked), checked.unchecked) == (set(), [])


@pytest.mark.slow
def test_both_trainings_of_a_refit_are_verified(tmp_path: Path) -> None:
    images = write_files.write(tmp_path / "phantom", {"Train": 9, "Val": 4, "Test": 4}, size=32)
    training = {"epochs": 1, "batch_size": 12, "refit": True}
    recipe = small(models=[{"name": "test_resnet", "weights": "none"}], training=training)
    Study(recipe, images, tmp_path / "out", engines.get("local")).run()  # type: ignore[arg-type]
    checked = verify(tmp_path / "out")
    assert (found(checked), checked.unchecked) == (set(), [])
    file = f"{ROBUST}/training.json"
    for keys in (("best_value",), ("seconds",), ("refit", "epochs")):
        change(tmp_path / "out" / file, *keys, to=99)
    assert {key for name, key in found(verify(tmp_path / "out")) if name == file} == {
        *("best_value", "seconds", "refit.epochs")
    }


def _edit(path: Path, how: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    atomic.write_table(path, how(atomic.read_table(path)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("predictions.parquet", lambda t: t.drop(index=t.index[t["attack"] == "clean"][0]), "1 images without a row"),
        ("predictions.parquet", lambda t: t.assign(label=[99, *t["label"].iloc[1:]]), "the label 99, of 3 classes"),
        ("validation.parquet", lambda t: t.assign(label=99), "the label 99, of 3 classes"),
        ("saliency.parquet", lambda t: t.drop(columns="measure"), "saliency.parquet or lesion_effects.parquet"),
        ("history.csv", lambda t: t[:0], "Restore it: only a new training makes it again"),
        ("history.csv", lambda t: t.drop(columns="seconds"), "damaged: 'seconds'"),
    ],
)
def test_a_damaged_table_is_a_line_that_names_it_and_the_other_runs_are_verified(
    file: str, damage: Callable[[pd.DataFrame], pd.DataFrame], said: str, study: Path
) -> None:
    _edit(study / ROBUST / file, damage)
    change(study / "runs" / OTHER / "metrics.json", "attacks", 1, "accuracy", "value", to=0.987)
    change(study / "runs" / OTHER / "training.json", "best_epoch", to=-5)
    document = verify(study)
    assert not document.agrees
    (one,) = [one for one in document.differences if NAME in one.file]
    assert said in f"{one.file}: {one.computed}"
    assert one.file in (f"{ROBUST}/{file}", ROBUST)
    assert "\n" not in str(one.computed)
    assert (f"runs/{OTHER}/metrics.json", "attacks[fgsm 0.02].accuracy.value") in found(document)
    assert (f"runs/{OTHER}/training.json", "best_epoch") in found(document)


@pytest.mark.slow
def test_figures_that_their_table_does_not_give_any_more_differ(study: Path) -> None:
    _edit(study / ROBUST / "predictions.parquet", lambda table: table.assign(gradient=np.nan))
    for file in (f"study.json: {NAME}", f"{ROBUST}/metrics.json"):
        assert (file, "input_gradients") in found(verify(study))
