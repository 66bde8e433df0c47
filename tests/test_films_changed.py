"""Of films whose pixels stay and whose masks or patients are others since, and of places that hold something else."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from small_runs import recipe
from test_cli import complaint
from test_cli import run as command
from test_study import tiny
from trustcxr.data.phantom import writing
from trustcxr.errors import UserError
from trustcxr.results import files
from trustcxr.study import engines, run_folder
from trustcxr.study.protocol import Study

MAPS = {"corruptions": ["jpeg"], "sample": 0}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return writing.write(tmp_path_factory.mktemp("films") / "phantom", {"Train": 6, "Val": 3, "Test": 8}, size=32)


@pytest.fixture(scope="module")
def trained(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    run_folder.train(recipe(epochs=1), films, folder)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def fgsm(run: Path, data: Path, epsilon: float = 0.01, **options: Any) -> Any:
    return run_folder.evaluate(run, data, attacks=["fgsm"], epsilons=[epsilon], **options)[0]


def test_a_column_of_patients_that_came_later_is_what_all_intervals_are_over(
    run: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = sorted((films / "Lung Segmentation Data").rglob("Test/*/images/*.png"))
    table = pd.DataFrame({"path": found, "class": [path.parts[-3] for path in found]})
    path = tmp_path / "list.csv"
    table.to_csv(path, index=False)
    fgsm(run, path)
    table["patient"] = [number // 4 for number in range(len(table))]
    table.to_csv(path, index=False)
    after = fgsm(run, path, 0.02)
    place = next(run.glob("evaluations/*"))
    predictions = files.read_table(place / "predictions.parquet")
    assert predictions["group"].nunique() == 6, "of both evaluations"
    assert "grouped otherwise now" in capsys.readouterr().err
    again = fgsm(Path(shutil.copytree(run, tmp_path / "again", ignore=shutil.ignore_patterns("evaluations"))), path)
    (before,) = (row for row in after.attacks if row.epsilon == 0.01)
    assert before.accuracy.ci == again.attacks[0].accuracy.ci, "as if it had been measured anew"


@pytest.mark.slow
def test_what_lung_masks_cut_is_not_told_once_they_are_gone(run: Path, films: Path, tmp_path: Path) -> None:
    assert fgsm(run, films).without_lungs is not None
    bare = Path(shutil.copytree(films, tmp_path / "bare", ignore=shutil.ignore_patterns("lung masks", "Infection *")))
    assert fgsm(run, bare, 0.02).without_lungs is None
    assert {row.epsilon for row in fgsm(run, films, 0.03).attacks} == {0.01, 0.02, 0.03}, "attacks stay"
    assert fgsm(run, films, 0.03).without_lungs is not None


@pytest.mark.slow
def test_a_map_held_against_the_mean_of_other_training_masks_is_left_out(
    run: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(films, tmp_path / "films"))
    run_folder.explain(run, other, options={"methods": ["gradcam@-3"], **MAPS})
    masks = sorted(other.glob("**/Train/*/infection masks/*.png"))
    assert masks
    for mask in masks:
        shutil.copyfile(mask.parents[1] / "lung masks" / mask.name, mask)
    document, _ = run_folder.explain(run, other, options={"methods": ["layercam@-3"], **MAPS})
    assert list(document.saliency) == ["layercam@-3", "random"]
    assert "gradcam@-3: held against the mean of other training masks, and left out" in capsys.readouterr().err
    run_folder.explain(run, other, options={"methods": ["layercam@-3"], **MAPS})
    assert "held against the mean" not in capsys.readouterr().err, "said once"
    document, _ = run_folder.explain(run, other, options={"methods": ["gradcam@-3"], **MAPS})
    assert list(document.saliency) == ["layercam@-3", "gradcam@-3", "random"]


def test_films_of_the_runs_own_test_are_no_data_from_elsewhere(run: Path, films: Path, tmp_path: Path) -> None:
    fgsm(run, films)
    assert fgsm(run, films, out=tmp_path / "out").drop_from_internal == []


@pytest.mark.slow
def test_explain_prints_the_alarms_of_the_document(run: Path, films: Path) -> None:
    quick = ["--method", "gradcam@-3", "--sample", "0", "--corruption", "jpeg", "--split", "Train"]
    said = " ".join(command("explain", run, "--data", films, *quick).stdout.split())
    (place,) = run.glob("evaluations/*")
    alarms = files.read_json(place / "metrics.json")["alarms"]
    assert any(alarm["kind"] == "trained_on" for alarm in alarms)
    assert [alarm["text"] for alarm in alarms if alarm["text"] not in said] == []


@pytest.mark.parametrize(("name", "what"), [("run.yaml", "a run"), ("audit.json", "an audit")])
def test_a_study_takes_no_folder_that_holds_something_else(films: Path, tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"holds {what}; choose another --out"):
        Study(tiny(), films, tmp_path, engines.get("local")).run()
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == [name]


def test_what_is_kept_takes_the_place_of_no_whole_study(films: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(Path(__file__).parent / "studies" / "v0.1", study)
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    recipe_file = tmp_path / "tiny.yaml"
    files.write_yaml(recipe_file, files.read_yaml(study / "study.yaml")["recipe"])
    for out in (study, tmp_path / "other"):
        said = complaint("study", recipe_file, "--data", films, "--out", out, "--kept", study, "--no-check")
        assert "holds a whole study, and not what is kept of one; give --kept a folder of its own" in said
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_labels_are_of_the_run_s_own_columns_wherever_one_stands(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A list with two columns of labels, and its films in a folder that was typed as seen from there."""
    place = tmp_path / "hospital" / "films"
    rows = []
    for path in sorted(films.rglob("images/*.png")):
        split, label = path.parts[-4:-2]
        film = place / f"{split}-{label}-{path.name}"
        film.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, film)
        rows.append({"path": film.name, "class": "Normal", "radiologist": label, "split": split})
    table = pd.DataFrame(rows).drop_duplicates("path")
    listed = tmp_path / "hospital" / "list.csv"
    table.to_csv(listed, index=False)
    monkeypatch.chdir(tmp_path)
    columns = {"path": "path", "class": "radiologist", "split": "split"}
    own = recipe(epochs=1)
    own = own.model_copy(update={"data": own.data.model_copy(update={"columns": columns, "images": "hospital/films"})})
    run_folder.train(own, Path("hospital/list.csv"), tmp_path / "run")
    monkeypatch.chdir("/")
    run_folder.evaluate(tmp_path / "run", listed, attacks=["fgsm"])
    found = files.read_table(tmp_path / "run" / "predictions.parquet")
    assert set(found["class"]) == set(table["radiologist"])
    place.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"list\.csv: none of its images was found.*--images"):
        run_folder.evaluate(tmp_path / "run", listed, attacks=["fgsm"])
    (tmp_path / "moved").rename(place)
    table.rename(columns={"radiologist": "diagnosis"}).drop(columns="class").to_csv(listed, index=False)
    capsys.readouterr()
    run_folder.evaluate(tmp_path / "run", listed, attacks=["fgsm"], listing={"images": str(place)})
    said = capsys.readouterr().err
    assert "no column 'radiologist'" in said
    assert "read by its usual columns" in said
    other = tmp_path / "elsewhere" / "list.csv"  # another hospital's, whose films lie beside their list
    shutil.copytree(place, other.parent)
    for film in other.parent.glob("*.png"):
        film.rename(film.with_name(f"other-{film.name}"))
    table.assign(path="other-" + table["path"]).to_csv(other, index=False)
    monkeypatch.chdir(tmp_path)
    run_folder.evaluate(tmp_path / "run", other, attacks=["fgsm"], out=tmp_path / "results")
    assert set(files.read_table(tmp_path / "results" / "predictions.parquet")["class"]) == set(table["radiologist"])
