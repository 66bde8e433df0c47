"""What version 0.1 left on disk is read, written again as it was, judged and reported."""

import json
import shutil
from pathlib import Path

import pytest

from trustcxr import report
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.study import StudyRecipe
from trustcxr.recipes.validation import validate
from trustcxr.results import files, folders
from trustcxr.results.documents import RunDocument, StudyDocument, TrainingDocument
from trustcxr.results.flat import Document, understood

STUDY = Path(__file__).parent / "studies" / "v0.1"
KINDS = {"study.json": StudyDocument, "metrics.json": RunDocument, "training.json": TrainingDocument}
DOCUMENTS = sorted(path.relative_to(STUDY) for path in STUDY.rglob("*.json"))


@pytest.mark.parametrize("name", DOCUMENTS, ids=str)
def test_a_document_of_version_0_1_is_understood_and_written_again_as_it_was(name: Path) -> None:
    kind: type[Document] = KINDS[name.name]
    stored = json.loads((STUDY / name).read_text())
    document, lost = understood(kind, stored)
    assert lost == []
    assert document.plain() == stored


def test_its_figures_are_where_they_belong() -> None:
    study = understood(StudyDocument, files.read_json(STUDY / "study.json"))[0]
    stored = json.loads((STUDY / "study.json").read_text())
    assert study.version is None
    assert study.trustcxr == "0.1.0"
    for run, raw in zip(study.runs, stored["runs"], strict=True):
        assert run.clean.accuracy.value == raw["clean"]["accuracy"]
        assert [a.accuracy.value for a in run.attacks] == [a["accuracy"] for a in raw["attacks"]]
        energy = run.saliency["layercam@-1"].figure("infection_energy_given_lung")
        assert energy.value == raw["saliency"]["layercam@-1"]["infection_energy_given_lung"]
        assert energy.chance == raw["saliency"]["layercam@-1"]["infection_energy_given_lung_chance"]
    assert {row.measure for row in study.comparisons} == {row["measure"] for row in stored["comparisons"]}
    evaluated = understood(RunDocument, files.read_json(STUDY / "runs" / "test_resnet-fgsm-s0" / "metrics.json"))[0]
    assert evaluated.planted_shortcuts["marker"].carrier


def test_its_recipes_are_read() -> None:
    validate(StudyRecipe, files.read_yaml(STUDY / "study.yaml")["recipe"], "study.yaml")
    for path in STUDY.glob(f"runs/*/{folders.RUN_FILE}"):
        assert validate(RunRecipe, files.read_yaml(path)["recipe"], str(path)).name == path.parent.name


@pytest.mark.slow
def test_it_is_reported(tmp_path: Path) -> None:
    shutil.copytree(STUDY, tmp_path / "study")
    page = report.write(tmp_path / "study").read_text(encoding="utf-8")
    assert "A small study as version 0.1 wrote it" in page
    assert "Missing or unreadable parts" not in page
    for part in ("Planted shortcuts", "elsewhere-all", "LayerCAM", "leads and tubes"):
        assert part in page
    for absent in ("No training history was found", "No explanations were measured", "No comparisons were made"):
        assert absent not in page
