"""Which images a run is measured on, how their list is read, and folders that hold something else."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from small_runs import newest, recipe
from test_study import tiny
from trustcxr.data.phantom import write_files
from trustcxr.errors import UserError
from trustcxr.runs import run_folder
from trustcxr.storage import atomic
from trustcxr.study import engines
from trustcxr.study.run_study import Study

MAPS = {"corruptions": ["jpeg"], "sample": 0}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files.write(tmp_path_factory.mktemp("images") / "phantom", {"Train": 6, "Val": 3, "Test": 8}, size=32)


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    run_folder.train(recipe(epochs=1), images, folder)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def fgsm(run: Path, data: Path, epsilon: float = 0.01, **options: Any) -> Any:
    return run_folder.evaluate(run, data, attacks=["fgsm"], epsilons=[epsilon], **options)[0]


def test_what_comes_later_of_the_same_images_is_measured_anew(run: Path, images: Path, tmp_path: Path) -> None:
    """Patients, over whom intervals are; lung masks, by which views are cut; training masks, that maps must beat."""
    found = sorted((images / "Lung Segmentation Data").rglob("Test/*/images/*.png"))
    table = pd.DataFrame({"path": found, "class": [path.parts[-3] for path in found]})
    table.to_csv(tmp_path / "list.csv", index=False)
    _, first = run_folder.evaluate(run, tmp_path / "list.csv", attacks=["fgsm"])
    table.assign(patient=[number // 4 for number in range(len(table))]).to_csv(tmp_path / "list.csv", index=False)
    _, second = run_folder.evaluate(run, tmp_path / "list.csv", attacks=["fgsm"])
    assert [atomic.read_table(p / "predictions.parquet")["group"].nunique() for p in (first, second)] == [24, 6]
    other = Path(shutil.copytree(images, tmp_path / "images"))
    _, first = run_folder.explain(run, other, options={"methods": ["gradcam@-3"], **MAPS})
    before = (first / "saliency.parquet").read_bytes()
    for mask in sorted(other.glob("**/Train/*/infection masks/*.png")):
        shutil.copyfile(mask.parents[1] / "lung masks" / mask.name, mask)
    _, second = run_folder.explain(run, other, options={"methods": ["gradcam@-3"], **MAPS})
    assert second == first, "the images and their masks are the same"
    assert (second / "saliency.parquet").read_bytes() != before
    bare = Path(shutil.copytree(images, tmp_path / "bare", ignore=shutil.ignore_patterns("lung masks", "Infection *")))
    assert fgsm(run, images).without_lungs is not None
    assert fgsm(run, bare).without_lungs is None


def test_images_of_the_runs_own_test_are_no_data_from_elsewhere(run: Path, images: Path, tmp_path: Path) -> None:
    fgsm(run, images)
    assert fgsm(run, images, out=tmp_path / "out").drop_from_internal == []


@pytest.mark.parametrize(("name", "what"), [("run.yaml", "a run"), ("audit.json", "an audit")])
def test_a_study_takes_no_folder_that_holds_something_else(images: Path, tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"holds {what}; choose another --out"):
        Study(tiny(), images, tmp_path, engines.get("local")).run()
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == [name]


def test_labels_are_of_the_run_s_own_columns_wherever_one_stands(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A list with two columns of labels, and its images in a folder that was typed as seen from there."""
    place = tmp_path / "hospital" / "images"
    rows = []
    for path in sorted(images.rglob("images/*.png")):
        split, label = path.parts[-4:-2]
        image = place / f"{split}-{label}-{path.name}"
        image.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, image)
        rows.append({"path": image.name, "class": "Normal", "radiologist": label, "split": split})
    table = pd.DataFrame(rows).drop_duplicates("path")
    listed = tmp_path / "hospital" / "list.csv"
    table.to_csv(listed, index=False)
    monkeypatch.chdir(tmp_path)
    columns = {"path": "path", "class": "radiologist", "split": "split"}
    own = recipe(epochs=1)
    own = own.model_copy(update={"data": own.data.model_copy(update={"columns": columns, "images": "hospital/images"})})
    run_folder.train(own, Path("hospital/list.csv"), tmp_path / "run")
    monkeypatch.chdir("/")
    run_folder.evaluate(tmp_path / "run", listed, attacks=["fgsm"])
    found = atomic.read_table(newest(tmp_path / "run") / "predictions.parquet")
    assert set(found["class"]) == set(table["radiologist"])
    table.rename(columns={"radiologist": "diagnosis"}).drop(columns="class").to_csv(listed, index=False)
    capsys.readouterr()
    run_folder.evaluate(tmp_path / "run", listed, attacks=["fgsm"], listing={"images": str(place)})
    said = capsys.readouterr().err
    assert "no column 'radiologist'" in said
    assert "read by its usual columns" in said
    other = tmp_path / "elsewhere" / "list.csv"  # another hospital's, whose images lie beside their list
    shutil.copytree(place, other.parent)
    for image in other.parent.glob("*.png"):
        image.rename(image.with_name(f"other-{image.name}"))
    table.assign(path="other-" + table["path"]).to_csv(other, index=False)
    monkeypatch.chdir(tmp_path)
    run_folder.evaluate(tmp_path / "run", other, attacks=["fgsm"], out=tmp_path / "results")
    assert set(atomic.read_table(tmp_path / "results" / "predictions.parquet")["class"]) == set(table["radiologist"])
