"""`trustcxr verify`: every figure computed again from its tables; one number that somebody changed is found."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pack import Pack
from small_runs import networks
from test_cli import complaint, run
from test_engines import small
from test_study import study as carry_out
from trustcxr.errors import UserError
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.runs.run_folder import RunFolder
from trustcxr.storage import atomic, schemas
from trustcxr.storage.schemas import StudyDocument, VerifiedDocument
from trustcxr.study import run_study
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
    expected = [("a", 0.5, 0.25), ("b[fgsm].x", 2, 3), ("c", None, True), ("more", "2 figures", None), ("d", None, 4)]
    assert list(differences(said, computed)) == expected
    changed = [{"attack": "fgsm", "x": 4}]
    assert next(differences({"b": said["b"][::-1]}, {"b": said["b"]}))[0] == "b (order)"
    assert list(differences({"b": changed}, {"b": said["b"]})) == [("b[fgsm].x", 4, 2), ("b[pgd]", None, "2 figures")]
    assert count_figures({"a": [1, 2, {"b": None}], "c": False}) == 3


@pytest.fixture(scope="module")
def done(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return work_on(tmp_path_factory.mktemp("verified") / "out", pack, seeds=[0, 1])


def work_on(out: Path, pack: Pack, **changes: object) -> Path:
    """Work on a study of one network."""
    carry_out(small(models=networks("test_resnet"), **changes), pack.images(), out)
    return out


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
    assert "no study.json here" in complaint("verify", done / "runs")


@pytest.mark.slow
def test_each_changed_number_is_found_and_the_exit_code_is_1(study: Path) -> None:
    changed: list[tuple[str, tuple[str | int, ...]]] = [
        ("study.json", ("runs", 0, "clean", "accuracy", "ci", 0)),
        ("study.json", ("comparisons", 0, "difference", "value")),
        ("study.json", ("over_seeds", 0, "figures", 0, "deviation")),
        ("study.json", ("selection", "ranking", 0, "value")),
        ("study.json", ("runs", 1, "training", "best_value")),
        (f"{ROBUST}/metrics.json", ("attacks", 1, "accuracy", "value")),
        (f"{ROBUST}/metrics.json", ("saliency", "layercam@-3", "infection_energy", "value")),
        (f"{ROBUST}/training.json", ("best_value",)),
    ]
    for file, keys in changed:
        change(study / file, *keys, to=0.123456)
    printed = json.loads(run("verify", study, "--json", expect=1).stdout)["differences"]
    for file, keys in changed:
        last = [key for key in keys if isinstance(key, str)][-1]
        of_file = [one for one in printed if one["file"].startswith(file)]
        assert any(last in one["key"] and one["stored"] == 0.123456 for one in of_file), keys
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
def test_a_validated_run_that_failed_is_ranked(pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = run_study.STEPS["test"]

    def fails(study: run_study.StudyFolder, recipe: RunRecipe, folder: RunFolder) -> None:
        if recipe.name == OTHER:
            raise UserError("no")
        real(study, recipe, folder)

    monkeypatch.setitem(run_study.STEPS, "test", fails)
    document = schemas.read_schema(StudyDocument, work_on(tmp_path / "out", pack) / "study.json")
    assert (len(document.selection.ranking), [run.run for run in document.runs]) == (1, [NAME])
    checked = verify(tmp_path / "out")
    assert (found(checked), checked.unchecked) == (set(), [])


@pytest.mark.slow
def test_both_trainings_of_a_refit_are_verified(pack: Pack, tmp_path: Path) -> None:
    out = work_on(tmp_path / "out", pack, training={"epochs": 1, "batch_size": 12, "refit": True})
    checked = verify(out)
    assert (found(checked), checked.unchecked) == (set(), [])
    file = f"{ROBUST}/training.json"
    for keys in (("best_value",), ("seconds",), ("refit", "epochs")):
        change(out / file, *keys, to=99)
    assert {key for name, key in found(verify(out)) if name == file} == {"best_value", "seconds", "refit.epochs"}


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
def test_a_damaged_table_is_a_line_and_the_other_runs_are_verified(
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
