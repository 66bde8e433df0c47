"""What a command makes of a study's run is told from what the study made, and the study ends with its own figures."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from test_study import tiny
from trustcxr.data import load_dataset
from trustcxr.data.phantom import writing
from trustcxr.errors import UserError
from trustcxr.evaluation import predictions
from trustcxr.recipes.study import StudyRecipe
from trustcxr.recipes.testing import EvaluationRecipe
from trustcxr.results import files
from trustcxr.study import engines, made, run_folder
from trustcxr.study.protocol import Study
from trustcxr.study.verifying import Different, differences, verify

RUN = Path("runs/test_resnet-standard-s0")
ATTACKS = [{"name": "fgsm", "epsilons": [0.02]}, {"name": "pgd", "epsilons": [0.02], "steps": 2}]


def asked() -> StudyRecipe:
    return tiny(
        models=[{"name": "test_resnet", "weights": "none"}],
        defences=[],
        evaluation={"attacks": ATTACKS, "bootstrap": 100},
        explanation={"methods": ["gradcam@-3"], "corruptions": ["jpeg"], "sample": 2, "panels": 1},
    )


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return writing.write(tmp_path_factory.mktemp("films") / "phantom", {"Train": 6, "Val": 3, "Test": 4}, size=32)


@pytest.fixture(scope="module")
def done(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "out"
    Study(asked(), films, out, engines.get("local")).run()
    return out


@pytest.fixture
def study(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "out"))


def again(study: Path, films: Path) -> Any:
    """The study started again; its study.json."""
    Study(asked(), films, study, engines.get("local")).run()
    return files.read_json(study / "study.json")


def differing(one: object, other: object) -> list[Different]:
    return list(differences(one, other))


def explain(run: Path, data: Path, **options: object) -> None:
    run_folder.explain(run, data, options=options)


def evaluate(run: Path, data: Path, **options: Any) -> None:
    run_folder.evaluate(run, data, **options)


@pytest.mark.slow
def test_maps_are_held_against_the_masks_that_are_there_now(
    done: Path, study: Path, films: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(films, tmp_path / "films"))
    masks = sorted(other.glob("**/infection masks/*"))
    assert masks
    first = files.read_json(study / "study.json")["runs"][0]
    for mask in masks:
        with Image.open(mask) as before:
            grown = before.filter(ImageFilter.MaxFilter(5))
        grown.save(mask)
    after = again(study, other)["runs"][0]
    assert after["clean"] == first["clean"], "the films are the same"
    shown = [dict(np.load(place / RUN / "panels.npz")) for place in (done, study)]
    assert any(not np.array_equal(shown[0][name], shown[1][name]) for name in shown[0]), "panels show today's outlines"
    before, now = (one["saliency"]["gradcam@-3"]["infection_energy_chance"] for one in (first, after))
    assert now > before, "what an even map has"
    assert after["lesions"] != first["lesions"]
    fresh = tmp_path / "fresh"
    shutil.copytree(study, fresh)
    for name in ("saliency.parquet", "lesions.parquet", "metrics.json"):
        (fresh / RUN / name).unlink()
    assert not differing(again(fresh, other)["runs"][0]["saliency"], after["saliency"])


@pytest.mark.slow
def test_what_was_measured_on_masks_that_are_gone_is_not_told_and_a_refusal_takes_nothing_away(
    study: Path, films: Path, tmp_path: Path
) -> None:
    first, run = files.read_json(study / "study.json")["runs"], study / RUN
    quick = {"methods": ["gradcam@-3"], "corruptions": ["jpeg"], "sample": 2}
    healthy = Path(shutil.copytree(films, tmp_path / "healthy", ignore=shutil.ignore_patterns("Infection *")))
    bare = Path(shutil.copytree(healthy, tmp_path / "bare", ignore=shutil.ignore_patterns("*masks")))
    assert files.read_json(run / "metrics.json")["lesions"]
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(UserError, match="no infection or lung masks here"):
        explain(run, bare, **quick)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    explain(run, healthy, **quick)
    after = files.read_json(run / "metrics.json")
    assert not (run / "lesions.parquet").exists()
    assert not after.get("lesions"), "no film of these has a lesion"
    assert after["saliency"]["gradcam@-3"]["infection_energy"]["value"] is None
    assert differing(again(study, films)["runs"], first) == [], "the masks are back"


@pytest.mark.slow
def test_effects_of_lesions_that_are_not_measured_again_are_said_to_be_gone(
    study: Path, films: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, gone = study / RUN, "metrics.json: no longer holds what the lesion does by "
    before = files.read_json(run / "metrics.json")["lesions"]
    assert {row["condition"] for row in before} > {"clean"}
    quick = {"methods": ["gradcam@-3"], "corruptions": ["jpeg"], "sample": 2}
    explain(run, films, **quick)
    assert gone not in capsys.readouterr().err, "the same once more"
    explain(run, films, **quick | {"sample": 0})
    said = " ".join(capsys.readouterr().err.split())
    assert gone in said
    assert "under pgd at 0.02" in said
    assert "transplant beside " in said
    assert {row["condition"] for row in files.read_json(run / "metrics.json")["lesions"]} == {"clean"}


@pytest.mark.slow
def test_what_is_measured_of_the_own_films_later_is_no_difference_in_what_was_said_of_others(
    study: Path, films: Path, tmp_path: Path
) -> None:
    others = writing.write(tmp_path / "elsewhere", {"Train": 1, "Val": 1, "Test": 3}, size=32, seed=5)
    for data in (others, films):
        evaluate(study / RUN, data, split="Test", attacks=["fgsm", "pgd"], epsilons=[0.02], steps=3)
    (place,) = (study / RUN).glob("evaluations/*")
    assert [row["attack"] for row in files.read_json(place / "metrics.json")["drop_from_internal"]] == ["clean", "fgsm"]
    assert verify(study).differences == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "options"),
    [
        (explain, {"methods": ["gradcam@-3"], "epsilon": 0.3, "severity": 5, "corruptions": ["letters"], "sample": 4}),
        (explain, {"methods": ["random"], "sample": 0, "corruptions": ["jpeg"]}),
        (explain, {"methods": ["layercam"], "corruptions": ["jpeg"], "sample": 2}),
        (evaluate, {"attacks": ["fgsm", "pgd"], "epsilons": [0.02], "steps": 2}),
        (evaluate, {"attacks": ["fgsm", "pgd"], "epsilons": [0.02, 0.3], "steps": 9}),
    ],
)
def test_a_study_ends_with_its_own_figures_whatever_a_command_made_there(
    study: Path, films: Path, command: Callable[..., None], options: dict[str, Any]
) -> None:
    before = files.read_json(study / "study.json")
    command(study / RUN, films, **options)
    after = again(study, films)
    assert differing(before["runs"], after["runs"]) == []
    assert differing(before["comparisons"], after["comparisons"]) == []
    assert verify(study).differences == []


@pytest.mark.slow
def test_a_run_that_a_command_tested_first_is_tested_as_the_recipe_says(study: Path, films: Path) -> None:
    before = files.read_json(study / "study.json")
    for name in ("predictions.parquet", "saliency.parquet", "metrics.json", made.MADE_FILE):
        (study / RUN / name).unlink()
    evaluate(study / RUN, films, attacks=["fgsm", "pgd"], epsilons=[0.02], steps=9)
    explain(study / RUN, films, methods=["layercam"], sample=0)
    after = again(study, films)
    assert differing(before["runs"], after["runs"]) == []


def test_what_was_never_noted_is_read_as_done(study: Path, films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(predictions, "predict", never)
    (study / RUN / made.MADE_FILE).unlink()
    stamps = {path: path.stat().st_mtime_ns for path in (study / RUN).iterdir() if not path.name.startswith(".")}
    Study(asked(), films, study, engines.get("local")).run()
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


@pytest.mark.slow
def test_a_command_killed_before_its_note_is_not_taken_for_the_study(
    study: Path, films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files.read_json(study / "study.json")
    with monkeypatch.context() as patch:
        patch.setattr(made, "note_metrics", lambda *_: None)
        evaluate(study / RUN, films, attacks=["fgsm", "pgd"], epsilons=[0.02], steps=2)
    after = again(study, films)
    assert differing(before["runs"], after["runs"]) == []


def test_attacks_of_other_options_are_carried_out_again(
    study: Path, films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restarts, batches and surrogates stand in no row of a table."""
    test = load_dataset(films, "Test", 32)
    pgd = {"name": "pgd", "epsilons": [0.02], "steps": 2}
    carried_out: list[object] = []
    real = predictions.predict

    def predict(run: Any, films: Any, attacks: Any, **options: Any) -> object:
        carried_out.append(attacks[0].restarts)
        return real(run, films, attacks, **options)

    monkeypatch.setattr(predictions, "predict", predict)
    for restarts in (2, 2, 1, 2):
        options = EvaluationRecipe.model_validate({"attacks": [pgd | {"restarts": restarts}]})
        run_folder.RunFolder(study / RUN).test(test, options, once=True)
    assert carried_out == [2, 1, 2]


def test_a_surrogate_is_known_by_its_weights_and_not_by_its_folder(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study / RUN, tmp_path / "other")
    known = made.surrogate(str(study / RUN))
    assert made.surrogate(str(tmp_path / "other")) == known
    with (tmp_path / "other" / "model.safetensors").open("ab") as weights:
        weights.write(b"0")
    options = EvaluationRecipe.model_validate(
        {"attacks": [{"name": "transfer", "epsilons": [0.02], "surrogate": str(tmp_path / "other")}]}
    )
    (how,) = made.predictions(options).values()
    assert isinstance(how, dict)
    assert how["surrogate"] not in (known, str(tmp_path / "other"))
    assert made.surrogate(None) is None
