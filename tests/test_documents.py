"""Documents: read from the shape on disk and written back to it, whatever is missing, broken or newer."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from study_fixture import make_study
from trustcxr.errors import UserError
from trustcxr.report import study_folder
from trustcxr.results import documents, files, schema
from trustcxr.results.documents import AttackResult, Figure, RunDocument, Share, StudyDocument, TrainingDocument
from trustcxr.results.flat import Document, understood


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = make_study(tmp_path_factory.mktemp("study"), panels=0)
    return json.loads((folder / "study.json").read_text())


def test_what_is_read_is_written_again(study: dict[str, Any]) -> None:
    document, lost = understood(StudyDocument, study)
    assert document.plain() == study
    assert json.loads(document.model_dump_json()) == study
    assert lost == []


def test_every_key_of_a_study_has_a_type(study: dict[str, Any]) -> None:
    def strangers(document: Document) -> set[str]:
        found = {f"{type(document).__name__}.{key}" for key in document.model_extra or {}}
        for _, value in document.items():
            parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            found |= {name for part in parts if isinstance(part, Document) for name in strangers(part)}
        return found

    assert strangers(understood(StudyDocument, study)[0]) == set()


def test_a_figure_is_one_value_and_several_keys(study: dict[str, Any]) -> None:
    run = understood(RunDocument, study["runs"][0])[0]
    stored = study["runs"][0]["clean"]
    assert run.clean.accuracy.value == stored["accuracy"]
    assert run.clean.accuracy.interval == tuple(stored["accuracy_ci"])
    energy = run.saliency["gradcam"].figure("infection_energy")
    assert energy.chance == study["runs"][0]["saliency"]["gradcam"]["infection_energy_chance"]
    assert run.saliency["gradcam"].figure("never_measured") == Figure()
    assert (run["clean"]["accuracy_ci"], run.get("seed"), "steps" in run.attacks[0]) == (
        stored["accuracy_ci"],
        0,
        False,
    )


def test_a_measure_whose_name_ends_as_what_stands_beside_it() -> None:
    content = {
        "infection_energy": 0.2, "infection_energy_lung": 0.4, "infection_energy_given_lung": 0.3,
        "infection_energy_given_lung_ci": [0.1, 0.5], "infection_energy_given_lung_chance": 0.25, "n": 3,
        "artefact_energy_chance": 0.01, "new_words": "kept",
    }  # fmt: skip
    document = understood(documents.SaliencyDocument, content)[0]
    assert document.figure("infection_energy").lung == 0.4
    assert document.figure("infection_energy_given_lung").ci == (0.1, 0.5)
    assert document.figure("artefact_energy_chance").value == 0.01
    assert document.plain() == content


def test_against_chance_takes_the_whole_interval() -> None:
    def where(low: float, high: float, chance: float | None = 0.3) -> str:
        return Figure(value=(low + high) / 2, ci=(low, high), chance=chance).against_chance

    assert [where(0.31, 0.5), where(0.1, 0.29), where(0.2, 0.4), where(0.1, 0.2, None)] == [
        "above",
        "below",
        "around",
        "",
    ]


def test_what_is_missing_has_a_default_and_stays_missing() -> None:
    document, lost = understood(StudyDocument, {})
    assert (document.runs, document.selection.ranking, document.data.counts, lost) == ([], [], {}, [])
    assert document.plain() == {}
    run = understood(RunDocument, {"clean": {"accuracy": 0.5}})[0]
    assert (run.clean.accuracy.interval, run.background, run.masking, run.training.epochs) == (None, "full", None, None)


def test_one_document_over_another_keeps_what_it_has() -> None:
    below = understood(RunDocument, {"model": "a", "seed": 1, "older": 1, "clean": {"accuracy": 0.5}})[0]
    above = understood(RunDocument, {"model": "b", "masking": None, "newer": 2})[0]
    whole = {"model": "b", "seed": 1, "clean": {"accuracy": 0.5}, "masking": None, "older": 1, "newer": 2}
    assert above.over(below).plain() == whole
    assert (below.model, above.seed) == ("a", None), "neither is changed"


def test_the_figures_with_an_interval_are_listed(study: dict[str, Any]) -> None:
    clean = understood(RunDocument, study["runs"][0])[0].clean
    names = [key.removesuffix("_ci") for key in study["runs"][0]["clean"] if key.endswith("_ci")]
    assert sorted(name for name, _ in clean.shares()) == sorted(names)
    assert dict(clean.shares())["ece"] == clean.ece


def test_an_accuracy_may_be_a_number_alone() -> None:
    run, lost = understood(RunDocument, {"shortcuts": {"border_only": 0.4, "lungs_only": {"accuracy": 0.5}, "x": "y"}})
    assert {name: part.accuracy.value for name, part in run.shortcuts.items()} == {
        "border_only": 0.4,
        "lungs_only": 0.5,
    }
    assert lost == []


def test_a_shape_that_only_a_later_version_understands_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: a\n")
    (tmp_path / "model.safetensors").touch()
    for name, kind in (("metrics.json", RunDocument), ("study.json", StudyDocument)):
        path = tmp_path / name
        path.write_text(json.dumps({"version": documents.VERSION, "study": "s"}))
        assert documents.read(kind, path).version == documents.VERSION
        path.write_text(json.dumps({"version": documents.VERSION + 1}))
        said = rf"{name}: written by a later TrustCXR, in shape {documents.VERSION + 1}; this one reads up to"
        with pytest.raises(UserError, match=said):
            documents.read(kind, path)
        with pytest.raises(UserError, match=said):
            study_folder.read(tmp_path)
        path.unlink()


def test_what_is_newer_is_kept() -> None:
    newer = {"version": 99, "run": "a", "vouched": {"0.02": 0.4}, "clean": {"accuracy": 0.5, "kappa": 0.3}}
    newer |= {"attacks": [{"attack": "new", "epsilon": 0.1, "accuracy": 0.2, "norm": "L0"}]}
    document, lost = understood(RunDocument, newer)
    assert document.plain() == newer
    assert (document.version, document.attacks[0].accuracy.value, lost) == (99, 0.2, [])


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"classes": "no"}, "RunDocument.classes"),
        ({"clean": 3}, "RunDocument.clean"),
        ({"clean": {"confusion": "x"}}, "Classification.confusion"),
        ({"attacks": [{"attack": "pgd", "steps": [1]}]}, "AttackResult.steps"),
        ({"attacks": [{"attack": "pgd", "epsilon": "x"}]}, "AttackResult.epsilon"),
        ({"clean": {"accuracy": "95 percent", "accuracy_ci": [0.8, 1.0]}}, "Classification.accuracy"),
        ({"clean": {"accuracy": 0.9, "accuracy_ci": [float("nan"), 1.0]}}, "Classification.accuracy"),
    ],
)
def test_what_cannot_be_understood_has_its_default_and_is_named(content: dict[str, Any], named: str) -> None:
    document, lost = understood(RunDocument, content | {"run": "a"})
    assert document.run == "a"
    assert lost == [named]


def test_strangers_in_a_list_and_broken_numbers_are_left_out() -> None:
    content = {
        "attacks": [3, {"attack": "fgsm", "accuracy": "high", "accuracy_ci": [None, 1], "epsilon": float("nan")}]
    }
    (attack,) = understood(RunDocument, content)[0].attacks
    assert (attack.accuracy.value, attack.accuracy.ci, attack.accuracy.interval) == (None, (None, 1.0), None)
    assert attack.epsilon is None


def test_what_we_write_ourselves_is_checked() -> None:
    with pytest.raises(ValidationError):
        AttackResult.model_validate({"epsilon": "large"})
    with pytest.raises(ValidationError):
        RunDocument.model_validate({"attacks": [3]})


def test_a_document_is_built_with_figures_and_written_flat(tmp_path: Path) -> None:
    attack = AttackResult(attack="pgd", epsilon=0.02, accuracy=Share(value=0.5, ci=(0.4, float("nan"))), n=9, steps=20)
    files.write_json(tmp_path / "metrics.json", RunDocument(run="a", attacks=[attack]))
    stored = {"attack": "pgd", "epsilon": 0.02, "accuracy": 0.5, "accuracy_ci": [0.4, None], "n": 9, "steps": 20}
    assert files.read_json(tmp_path / "metrics.json") == {"run": "a", "attacks": [stored]}
    assert list(files.read_json(tmp_path / "metrics.json")["attacks"][0]) == list(stored), "in the order of old files"
    again = documents.read(RunDocument, tmp_path / "metrics.json")
    assert again.attacks == [attack]
    again.attacks[0].steps = 40
    assert again.plain()["attacks"][0]["steps"] == 40


def test_a_file_that_is_no_document_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text("[1]")
    with pytest.raises(UserError, match=r"training\.json: expected keys and values, found list") as problem:
        documents.read(TrainingDocument, tmp_path / "training.json")
    assert "\n" not in str(problem.value)


def test_the_published_schemas_are_current() -> None:
    folder = Path(__file__).resolve().parents[1] / "docs" / "schema"
    published = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    assert published == schema.schemas(), "write them again: python -m trustcxr.results.schema docs/schema"


def test_the_schema_is_of_what_stands_on_disk(study: dict[str, Any]) -> None:
    found = json.loads(schema.schemas()["metrics.schema.json"])
    clean = found["$defs"]["Classification"]["properties"]
    assert set(study["runs"][0]["clean"]) <= set(clean)
    assert "class" in found["$defs"]["PlantedShortcut"]["properties"]
    assert "figures" not in found["$defs"]["SaliencyDocument"]["properties"]
