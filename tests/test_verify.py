"""`trustcxr verify`: every figure computed again from its tables; one number that somebody changed is found."""

import json
import shutil
from pathlib import Path

import pytest

from pack import Pack
from test_cli import complaint, run
from test_engines import small
from trustcxr import report
from trustcxr.results import differences, files
from trustcxr.results.documents import VerifiedDocument
from trustcxr.study import engines, finished, verifying
from trustcxr.study.protocol import Study
from trustcxr.study.verifying import verify

OLD = Path(__file__).parent / "studies" / "v0.1"
ROBUST = "runs/test_resnet-fgsm-s0"


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


def test_documents_are_compared_figure_by_figure() -> None:
    said = {"a": 0.5, "b": [{"attack": "pgd", "x": 1}, {"attack": "fgsm", "x": 2}], "c": None, "more": 1}
    assert list(differences.between(said, {"a": 0.5 + 1e-12, "b": said["b"], "c": None, "d": []})) == []
    computed = {"a": 0.25, "b": [{"attack": "pgd", "x": 1}, {"attack": "fgsm", "x": 3}], "c": True, "d": 4}
    keys = [(one.key, one.said, one.computed) for one in differences.between(said, computed)]
    assert keys == [("a", 0.5, 0.25), ("b[fgsm].x", 2, 3), ("c", None, True), ("d", None, 4)]
    assert [one.key for one in differences.between({"b": []}, {"b": [1]})] == ["b (how many)"]
    assert differences.figures({"a": [1, 2, {"b": None}]}) == 3


@pytest.mark.slow
def test_a_study_of_version_0_1_is_verified_and_a_changed_figure_is_found(tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(OLD, study)
    change(study / ROBUST / "metrics.json", "attacks", 0, "accuracy", to=0.987)
    change(study / "study.json", "runs", 0, "saliency", "layercam@-1", "infection_energy", to=0.5)
    document = verify(study)
    stored = files.read_json(study / "study.json")["runs"][0]["run"]
    files_and_keys = found(document)
    assert {(f, k.rsplit(".", 1)[-1]) for f, k in files_and_keys} == {
        (f"{ROBUST}/metrics.json", "accuracy"),
        (f"study.json: {stored}", "infection_energy"),
    }
    assert document.figures > 500
    assert document.files == len(
        [*study.glob("study.json"), *study.glob("runs/*/training.json"), *study.rglob("metrics.json")]
    )
    assert any("written by 0.1.0" in line for line in document.unchecked)


def test_intervals_that_were_not_kept_before_are_no_difference_and_changed_ones_are() -> None:
    now = {
        "attacks": [{"attack": "pgd", "epsilon": 0.02, "success_rate": 0.5, "success_rate_ci": [0.4, 0.6], "ece": 0.1}],
        "corruptions": [{"corruption": "jpeg", "severity": 3, "flip_rate": 0.1, "flip_rate_ci": [0.0, 0.2]}],
        "certified": [{"epsilon": 0.01, "proved": 0.1, "proved_ci": [0.0, 0.2], "accuracy_ci": [0.0, 0.2]}],
        "saliency": {"layercam@stages.1": {"infection_energy": 0.2, "infection_energy_activation": 0.15}},
    }
    lead = {"measure": "infection_energy", "control": "chance", "difference": 0.1}
    now["saliency"]["layercam@stages.1"]["over_controls"] = [lead]
    now["attacks"][0]["ece_ci"] = [0.0, 0.2]
    before = {
        name: [{k: v for k, v in row.items() if k[-3:] != "_ci"} for row in rows]
        for name, rows in now.items()
        if isinstance(rows, list)
    }
    before["saliency"] = {"layercam@stages.1": {"infection_energy": 0.2}}

    def differing(said: object) -> set[str]:
        document = VerifiedDocument(differences=[], unchecked=[])
        verifying._hold(document, "metrics.json", said, now, old=False)
        return {one.key for one in document.differences}

    assert differing(before) == {"certified[0.01].accuracy_ci"}
    before["attacks"][0]["success_rate_ci"] = [0.3, 0.6]
    before["saliency"]["layercam@stages.1"]["infection_energy_activation"] = 0.3
    before["saliency"]["layercam@stages.1"]["over_controls"] = [lead | {"difference": 0.2}]
    changed = {"attacks[pgd 0.02].success_rate_ci[0]", "saliency.layercam@stages.1.infection_energy_activation"}
    changed.add("saliency.layercam@stages.1.over_controls[infection_energy chance].difference")
    assert differing(before) == {"certified[0.01].accuracy_ci", *changed}


@pytest.mark.slow
def test_a_changed_figure_of_a_training_is_found_and_a_missing_history_is_said(tmp_path: Path) -> None:
    study = Path(shutil.copytree(OLD, tmp_path / "study"))
    before = verify(study)
    assert not before.differences
    change(study / "study.json", "runs", 0, "training", "best_value", to=0.999)
    change(study / "study.json", "runs", 0, "training", "epochs", to=77)
    name = files.read_json(study / "study.json")["runs"][0]["run"]
    (study / "runs" / name / "history.csv").unlink()
    document = verify(study)
    assert found(document) == {(f"study.json: {name}", f"training.{key}") for key in ("best_value", "epochs")}
    (line,) = set(document.unchecked) - set(before.unchecked)
    assert line.startswith(f"runs/{name}/history.csv is missing")


def test_a_study_of_which_no_table_is_left_does_not_agree(tmp_path: Path) -> None:
    study = Path(shutil.copytree(OLD, tmp_path / "study"))
    for table in study.rglob("*.parquet"):
        table.unlink()
    done = run("verify", study, expect=1)
    assert "of no run could the figures be computed again" in done.stdout
    assert "agree" not in done.stdout


def test_what_is_no_finished_study_is_one_line(tmp_path: Path) -> None:
    assert "no such study folder" in complaint("verify", tmp_path / "gone")
    assert "no study.json here" in complaint("verify", tmp_path)


def test_what_is_kept_of_a_study_cannot_be_computed_again_and_that_is_said(tmp_path: Path) -> None:
    finished.keep(OLD, tmp_path / "kept")
    kept = tmp_path / "kept"
    said = complaint("verify", kept)
    assert f"{kept}: holds what --kept keeps of finished runs, their figures without predictions" in said
    assert "nothing can be computed again: give the study's own --out" in said
    assert "run the same" not in said
    begun = Path(shutil.copytree(tmp_path / "kept", tmp_path / "begun"))
    files.write_yaml(begun / ".data.yaml", {"path": "films"})  # a study that took up what is kept, and is not finished
    assert "started but not finished" in complaint("verify", begun)


@pytest.fixture(scope="module")
def done(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("verified")
    recipe = small(models=[{"name": "test_resnet", "weights": "none"}], seeds=[0, 1])
    Study(recipe, pack.images(), base / "out", engines.get("local")).run()  # type: ignore[arg-type]
    report.write(base / "out")
    return base / "out"


@pytest.mark.slow
def test_every_figure_of_a_study_of_today_agrees(done: Path) -> None:
    document = verify(done, lambda folder: (folder / "report.html").read_text(encoding="utf-8"))
    assert found(document) == set()
    assert document.unchecked == []
    assert document.figures > 1000
    assert "all agree" in run("verify", done).stdout


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("study.json", ("runs", 0, "clean", "accuracy_ci", 0)),
        ("study.json", ("comparisons", 0, "difference")),
        ("study.json", ("over_seeds", 0, "figures", 0, "deviation")),
        ("study.json", ("selection", "ranking", 0, "value")),
        (f"{ROBUST}/metrics.json", ("attacks", 1, "accuracy")),
        (f"{ROBUST}/metrics.json", ("saliency", "layercam@-3", "infection_energy")),
        (f"{ROBUST}/training.json", ("best_value",)),
    ],
)
def test_one_changed_number_is_found_and_the_exit_code_is_1(
    done: Path, tmp_path: Path, file: str, keys: tuple[str | int, ...]
) -> None:
    study = tmp_path / "study"
    shutil.copytree(done, study)
    change(study / file, *keys, to=0.123456)
    printed = json.loads(run("verify", study, "--json", expect=1).stdout)
    last = [key for key in keys if isinstance(key, str)][-1]
    assert any(one["file"].startswith(file) and last in one["key"] for one in printed["differences"])
    assert 0.123456 in [one["said"] for one in printed["differences"]]


@pytest.mark.slow
def test_a_number_changed_on_the_page_is_found(done: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(done, study)
    page = study / "report.html"
    text = page.read_text(encoding="utf-8")
    accuracy = f"{100 * files.read_json(study / 'study.json')['runs'][0]['clean']['accuracy']:.1f}"
    at = text.index(accuracy, text.index("</style>"))
    page.write_text(f"{text[:at]}99.9{text[at + len(accuracy) :]}", encoding="utf-8")
    printed = json.loads(run("verify", study, "--json", expect=1).stdout)
    assert {one["file"] for one in printed["differences"]} == {"report.html"}
