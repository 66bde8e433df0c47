"""Documents: written nested, read back the same, and refused in one line if they are damaged or of another version."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from scripts import write_schemas

from study_fixture import make_study
from trustcxr.errors import UserError
from trustcxr.report import load
from trustcxr.storage import atomic, schemas
from trustcxr.storage.schemas import AttackResult, Figure, RunDocument, Share, StudyDocument


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = make_study(tmp_path_factory.mktemp("study"), panels=0)
    return json.loads((folder / "study.json").read_text())


def test_what_is_read_is_written_again_and_what_is_missing_stays_missing(study: dict[str, Any]) -> None:
    assert StudyDocument.model_validate(study).plain() == study
    document = StudyDocument.model_validate({})
    assert (document.runs, document.selection.ranking, document.data.counts) == ([], [], {})
    assert document.plain() == {}
    run = RunDocument.model_validate({"clean": {"accuracy": {"value": 0.5}}})
    assert (run.clean.accuracy.interval, run.background, run.masking, run.training.epochs) == (None, "full", None, None)


def test_a_figure_is_its_value_its_interval_and_its_baselines(study: dict[str, Any]) -> None:
    run, stored = RunDocument.model_validate(study["runs"][0]), study["runs"][0]
    assert run.clean.accuracy.value == stored["clean"]["accuracy"]["value"]
    assert run.clean.accuracy.interval == tuple(stored["clean"]["accuracy"]["ci"])
    saliency = run.saliency["gradcam"]
    assert saliency.figure("infection_energy").chance == stored["saliency"]["gradcam"]["infection_energy"]["chance"]
    assert saliency.figure("never_measured") == Figure()
    for low, high, chance, word in (
        (0.31, 0.5, 0.3, "above"), (0.1, 0.29, 0.3, "below"), (0.2, 0.4, 0.3, "around"), (0.1, 0.2, None, ""),
    ):  # fmt: skip
        assert Figure(value=(low + high) / 2, ci=(low, high), chance=chance).against_chance == word


def test_measures_of_any_name_stand_beside_the_fields_of_a_method() -> None:
    content = {"n": 3, "from": 0.1, "energy": {"value": 0.2, "lung": 0.4}, "hits": {"value": None}}
    document = schemas.Stratum.model_validate(content)
    assert (document.start, document.figure("energy").lung, list(document.figures)) == (0.1, 0.4, ["energy", "hits"])
    assert document.plain() == content
    assert schemas.Stratum(n=3, start=0.1).with_figures(document.figures).plain() == content
    with pytest.raises(ValidationError):
        schemas.Stratum.model_validate({"energy": 0.2})


@pytest.mark.parametrize("version", [1, schemas.VERSION + 1, None])
def test_another_version_of_the_shape_is_refused(tmp_path: Path, version: int | None) -> None:
    (tmp_path / "run.yaml").write_text("name: a\n")
    (tmp_path / "model.safetensors").touch()
    for path, kind in ((tmp_path / "metrics.json", RunDocument), (tmp_path / "study.json", StudyDocument)):
        path.write_text(json.dumps({"version": schemas.VERSION}))
        assert schemas.read_schema(kind, path).version == schemas.VERSION
        path.write_text(json.dumps({"version": version}))
        why = rf"{path.name}: it has version {version} of the documents' shape, and this TrustCXR reads version 2"
        for read in (partial(schemas.read_schema, kind, path), partial(load.load_report, tmp_path)):
            with pytest.raises(UserError, match=why):
                read()
        path.unlink()


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({"classes": "no"}, "classes"),
        ({"clean": 3}, "clean"),
        ({"attacks": [{}, {"steps": [1]}]}, "attacks.1.steps"),
        ({"clean": {"accuracy": 0.9}}, "clean.accuracy"),
        ({"clean": {"accuracy": {"value": "95 percent"}}}, "clean.accuracy.value"),
        ([1], ""),
    ],
)
def test_a_damaged_document_is_refused_with_file_field_and_remedy(tmp_path: Path, content: Any, field: str) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as problem:
        schemas.read_schema(RunDocument, path)
    why = f"damaged: {field}: .*{re.escape(atomic.REMAKE)}" if field else "expected keys and values, found list.*"
    assert re.fullmatch(f"{re.escape(str(path))}: {why}", str(problem.value)), "in one line"


def test_a_document_is_built_with_figures_and_written_nested(tmp_path: Path) -> None:
    attack = AttackResult(attack="pgd", epsilon=0.02, accuracy=Share(value=0.5, ci=(0.4, float("nan"))), n=9, steps=20)
    atomic.write_json(tmp_path / "metrics.json", RunDocument(run="a", attacks=[attack]))
    accuracy = {"value": 0.5, "ci": [0.4, None]}
    stored = {"attack": "pgd", "epsilon": 0.02, "accuracy": accuracy, "n": 9, "steps": 20}
    assert atomic.read_json(tmp_path / "metrics.json") == {"run": "a", "attacks": [stored]}
    again = schemas.read_schema(RunDocument, tmp_path / "metrics.json")
    assert again.attacks == [attack]
    again.attacks[0].steps = 40
    assert again.plain()["attacks"][0]["steps"] == 40


def test_the_published_schemas_are_current_and_of_what_stands_on_disk(study: dict[str, Any]) -> None:
    folder = Path(__file__).resolve().parents[1] / "docs" / "schema"
    published = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    assert published == write_schemas.schemas(), "write them again: python -m scripts.write_schemas docs/schema"
    parts = json.loads(published["metrics.schema.json"])["$defs"]
    assert set(study["runs"][0]["clean"]) <= set(parts["Classification"]["properties"])
    assert "class" in parts["PlantedShortcut"]["properties"]
    assert parts["SaliencyDocument"]["additionalProperties"] == {"$ref": "#/$defs/Figure"}
