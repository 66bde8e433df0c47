"""`evaluate` loses nothing, mixes nothing up, and says on which films it was."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file

from small_runs import seal, weights
from test_cli import complaint, run
from trustcxr.data import read_manifest
from trustcxr.data.phantom import writing
from trustcxr.errors import UserError
from trustcxr.evaluation import predictions, summary
from trustcxr.evaluation.run import About, load_run
from trustcxr.explain.summary import with_before
from trustcxr.recipes import validation
from trustcxr.recipes.exam import load_exam
from trustcxr.recipes.study import StudyRecipe
from trustcxr.results import documents, files, locks
from trustcxr.results.documents import StudyDocument
from trustcxr.results.tables import conditions_of, merged
from trustcxr.study import audit, engines, run_folder
from trustcxr.study import films as tested
from trustcxr.study import made as made_with
from trustcxr.study.protocol import Study

STUDY = {
    "name": "small",
    "data": {"size": 32},
    "models": [{"name": "test_resnet", "weights": "none"}],
    "training": {"epochs": 1, "batch_size": 12},
    "defences": [],
    "evaluation": {"attacks": [{"name": "fgsm", "epsilons": [0.02]}], "bootstrap": 100},
    "explanation": {"methods": ["layercam"], "corruptions": [], "sample": 0, "panels": 0},
}
TRAIN = ["--model", "test_resnet", "--weights", "none", "--size", "32", "--epochs", "1", "--batch-size", "12"]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return writing.write(tmp_path_factory.mktemp("films") / "phantom", {"Train": 8, "Val": 4, "Test": 4}, size=32)


@pytest.fixture(scope="module")
def made(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run("train", "--data", films, *TRAIN, "--out", out)
    return out


@pytest.fixture
def trained(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture(scope="module")
def studied(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "out"
    Study(validation.validate(StudyRecipe, STUDY, "test"), films, out, engines.get("local")).run()
    return out


@pytest.fixture
def study(studied: Path, tmp_path: Path) -> Path:
    """That study, to change."""
    return Path(shutil.copytree(studied, tmp_path / "out"))


def again(study: Path, films: Path) -> StudyDocument:
    """The same command once more."""
    return Study(validation.validate(StudyRecipe, STUDY, "test"), films, study, engines.get("local")).run()


def runs_of(study: Path) -> object:
    return documents.read(StudyDocument, study / "study.json").runs


@pytest.fixture
def others(films: Path, tmp_path: Path) -> Path:
    """Another folder of the same name: one test film is another."""
    copy = Path(shutil.copytree(films, tmp_path / "other" / "phantom"))
    Image.new("L", (32, 32), 77).save(sorted(copy.rglob("Test/Normal/images/*.png"))[0])
    return copy


def attacked(folder: Path) -> list[tuple[str, float]]:
    return [(row["attack"], row["epsilon"]) for row in files.read_json(folder / "metrics.json")["attacks"]]


# --- nothing is lost -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_was_measured_before_is_kept(trained: Path, films: Path) -> None:
    run_folder.evaluate(trained, films, attacks=["pgd"], steps=2, corruptions=["jpeg"], severities=[3])
    before = files.read_table(trained / "predictions.parquet")
    run_folder.evaluate(trained, films, attacks=["fgsm"], epsilons=[0.01])
    assert attacked(trained) == [("fgsm", 0.01), ("pgd", 0.02)]
    assert [row["corruption"] for row in files.read_json(trained / "metrics.json")["corruptions"]] == ["jpeg"]
    after = files.read_table(trained / "predictions.parquet")
    kept = after[after["attack"].isin(["pgd", "jpeg"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before[before["attack"].isin(["pgd", "jpeg"])].reset_index(drop=True))
    run_folder.evaluate(trained, films, attacks=["fgsm"], epsilons=[0.01])
    twice = files.read_table(trained / "predictions.parquet")
    assert len(twice) == len(after), "the same condition is measured anew, and stands there once"


def test_maps_that_are_measured_again_make_the_same_file_and_others_stay_in_it(tmp_path: Path) -> None:
    path = tmp_path / "saliency.parquet"

    def measured(method: str) -> bytes:
        rows = pd.DataFrame({"sample_id": ["a", "b"], "method": method, "severity": 0, "value": [0.5, 0.25]})
        files.write_batches(path, with_before(iter([rows]), path, [method]))
        return path.read_bytes()

    assert measured("gradcam") == measured("gradcam")
    measured("layercam")
    assert files.read_table(path)["method"].tolist() == ["gradcam"] * 2 + ["layercam"] * 2


def test_a_table_of_before_steps_and_severities_is_merged_too(trained: Path, films: Path) -> None:
    run_folder.evaluate(trained, films, attacks=["fgsm"])
    table = files.read_table(trained / "predictions.parquet").drop(columns=["steps", "severity", "data"])
    files.write_table(trained / "predictions.parquet", table)
    run_folder.evaluate(trained, films, attacks=["pgd"], steps=2)
    merged = files.read_table(trained / "predictions.parquet")
    assert {name for name, *_ in conditions_of(merged)} >= {"clean", "fgsm", "pgd"}


def test_results_go_to_another_folder_where_one_is_named(
    trained: Path, films: Path, others: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run("evaluate", trained, "--data", films, "--attack", "fgsm", "--out", out)
    run("evaluate", trained, "--data", films, "--attack", "pgd", "--steps", 2, "--out", out)
    assert attacked(out) == [("fgsm", 0.02), ("pgd", 0.02)]
    assert not (trained / "predictions.parquet").exists()
    assert "holds results of other films; choose another --out" in complaint(
        "evaluate", trained, "--data", others, "--attack", "fgsm", "--out", out
    )


def trained_otherwise(run_: Path, place: Path) -> Path:
    """A run of the same name whose training ended elsewhere."""
    other = Path(shutil.copytree(run_, place))
    save_file({key: value * 1.01 for key, value in weights(other).items()}, other / "model.safetensors")
    seal(other)
    return other


def test_a_run_of_the_same_name_and_other_weights_is_another_run(trained: Path, films: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", trained_otherwise(trained, tmp_path / "other")
    run("evaluate", trained, "--data", films, "--attack", "pgd", "--steps", 2, "--out", out)
    before = (out / "predictions.parquet").read_bytes()
    at = ["--data", films, "--attack", "fgsm", "--out", out]
    assert "holds results of another run of that name, of other weights; choose" in complaint("evaluate", other, *at)
    assert (out / "predictions.parquet").read_bytes() == before
    run("evaluate", trained.rename(tmp_path / "moved"), *at)
    assert attacked(out) == [("fgsm", 0.02), ("pgd", 0.02)], "the same run wherever its folder is"


def test_results_of_which_no_weights_are_known_are_of_this_run(trained: Path, films: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_folder.evaluate(trained, films, attacks=["pgd"], steps=2, out=out)
    (out / made_with.MADE_FILE).unlink()
    run_folder.evaluate(trained, films, attacks=["fgsm"], out=out)
    assert attacked(out) == [("fgsm", 0.02), ("pgd", 0.02)]
    other = trained_otherwise(trained, tmp_path / "other")
    with pytest.raises(UserError, match="of other weights"):
        run_folder.evaluate(other, films, attacks=["fgsm"], out=out)


def test_what_was_found_on_other_films_before_a_run_was_trained_again_is_not_mixed_with_what_is_now(
    trained: Path, others: Path, tmp_path: Path
) -> None:
    _, place = run_folder.evaluate(trained, others, attacks=["pgd"], steps=2)
    other = trained_otherwise(trained, tmp_path / "again")
    with pytest.raises(UserError, match=r"phantom-Test: holds results of weights that .* had before; move it away"):
        run_folder.explain(other, others, options={"methods": ["gradcam"]})
    shutil.rmtree(other / "evaluations")
    _, place = run_folder.evaluate(other, others, attacks=["fgsm"])
    assert attacked(place) == [("fgsm", 0.02)]


def test_results_do_not_go_into_an_audit(trained: Path, films: Path, tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "audit.json").write_text("{}")
    at = ["--data", films, "--attack", "fgsm", "--out", tmp_path / "audit"]
    assert "holds an audit; choose another --out" in complaint("evaluate", trained, *at)
    assert [path.name for path in (tmp_path / "audit").iterdir()] == ["audit.json"]


@pytest.mark.parametrize(
    "names",
    [
        ("audit.json", "predictions.parquet", "report.html"),
        ("metrics.json", "saliency.parquet"),  # maps of a given model, or results of a run elsewhere
        ("report.docx",),
        ("checkpoint/mine.txt",),
        ("evaluations/mine.txt",),
    ],
)
def test_a_run_is_trained_over_nothing_that_is_not_a_runs(names: tuple[str, ...], films: Path, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("mine")
    said = complaint("train", "--data", films, *TRAIN, "--out", tmp_path / "out")
    assert f"holds {', '.join(sorted(name.split('/')[0] for name in names))}, which this command did not write" in said
    assert {path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()} == {"mine"}
    assert not (tmp_path / "out" / "run.yaml").exists()


def test_neither_an_audit_nor_a_study_takes_the_place_of_other_files(
    trained: Path, films: Path, tmp_path: Path
) -> None:
    for name in ("predictions.parquet", "report.html"):
        (tmp_path / name).write_text("mine")
    said = complaint("audit", trained, "--data", films, "--out", tmp_path)
    assert (
        "holds predictions.parquet, report.html, which this command did not write and would lose; choose another"
        in said
    )
    (tmp_path / "study.json").write_text("mine")
    (tmp_path / "study.yml").write_text(yaml.safe_dump(STUDY))
    said = complaint("study", tmp_path / "study.yml", "--data", films, "--out", tmp_path, "--no-check")
    assert "holds report.html, study.json, which this command did not write and would lose; choose another" in said
    assert {(tmp_path / name).read_text() for name in ("predictions.parquet", "report.html", "study.json")} == {"mine"}


def test_what_is_ours_goes_on_where_the_file_that_says_so_was_deleted(tmp_path: Path) -> None:
    """As the advice on a damaged one has it."""
    for name in (".lock", "predictions.parquet", "report.html"):
        (tmp_path / "audit" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "audit" / name).write_text("ours")
    audit._refuse_another(tmp_path / "audit", About("x", "x"), load_exam())  # type: ignore[arg-type]
    (tmp_path / "audit" / ".lock").unlink()
    with pytest.raises(UserError, match="which this command did not write"):
        audit._refuse_another(tmp_path / "audit", About("x", "x"), load_exam())  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_study_goes_on_beside_its_check_of_the_data(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "study.yml").write_text(yaml.safe_dump(STUDY))
    out.mkdir()
    (out / ".data.yaml").write_text("path: x\n")
    (out / "data-check.json").write_text('{"verdict": "of a study that was killed then"}')
    run("study", tmp_path / "study.yml", "--data", films, "--out", out, "--no-check")
    assert (out / "study.json").is_file()


def test_results_within_the_data_go_on_though_they_hold_pictures(films: Path, tmp_path: Path) -> None:
    for name in ("run.yaml", "study.yaml", "audit.json", "metrics.json"):
        place = tmp_path / "data" / name.replace(".", "-")
        (place / "figures").mkdir(parents=True)
        Image.new("L", (8, 8)).save(place / "figures" / "x.png")
        with pytest.raises(UserError, match="holds the films"):
            tested.refuse_films(place, tmp_path / "data")
        (place / name).write_text("{}")
        tested.refuse_films(place, tmp_path / "data")


def test_no_results_go_among_films(trained: Path, films: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yml").write_text(yaml.safe_dump(STUDY))
    said = complaint("study", tmp_path / "study.yml", "--data", films, "--out", films, "--no-check")
    assert "holds the films; choose another --out" in said
    part = films / "Lung Segmentation Data"
    assert "holds the films" in complaint("train", "--data", films, *TRAIN, "--out", part)
    assert "holds the films" in complaint("evaluate", trained, "--data", films, "--attack", "fgsm", "--out", part)
    assert not [path for path in films.rglob("*") if path.suffix in (".json", ".yaml", ".html", ".parquet", ".lock")]
    inside = films / "results"  # a folder of its own beside them is none of theirs
    run_folder.evaluate(trained, films, attacks=["fgsm"], out=inside)
    run_folder.evaluate(trained, films, attacks=["pgd"], steps=1, out=inside)
    assert attacked(inside) == [("fgsm", 0.02), ("pgd", 0.02)]
    shutil.rmtree(inside)


@pytest.mark.slow
def test_of_a_run_that_may_only_be_read_results_are_made_elsewhere(
    trained: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.access  # whoever runs the tests may be allowed everything
    monkeypatch.setattr(os, "access", lambda path, how, **more: Path(path) != trained and real(path, how, **more))
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    document, _ = run_folder.evaluate(trained, films, attacks=["fgsm"], out=tmp_path / "out")
    assert document.calibration is not None
    assert (tmp_path / "out" / "validation.parquet").is_file()
    run_folder.explain(trained, films, out=tmp_path / "maps", options={"methods": ["gradcam"]})
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_a_study_refuses_figures_that_are_not_of_its_recipe(
    films: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, folder = runs_of(study), study / "runs" / "test_resnet-standard-s0"
    run_folder.evaluate(folder, films, attacks=["pgd"], steps=2)
    assert attacked(folder) == [("fgsm", 0.02), ("pgd", 0.02)]
    again(study, films)
    assert "metrics.json: not of the study's recipe, so written again" in capsys.readouterr().err
    assert runs_of(study) == first
    assert attacked(folder) == [("fgsm", 0.02)]
    kept = set(files.read_table(folder / "predictions.parquet")["attack"])
    assert {"fgsm", "pgd"} <= kept, "nothing measured is lost"


# --- which films -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_another_folder_of_the_same_name_is_kept_apart(
    trained: Path, films: Path, others: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder.evaluate(trained, films, attacks=["fgsm"])
    own = (trained / "predictions.parquet").read_bytes()
    _, place = run_folder.evaluate(trained, others, attacks=["fgsm"])
    assert place == trained / "evaluations" / "phantom-Test"
    assert "but holds other Test films" in capsys.readouterr().err
    assert (trained / "predictions.parquet").read_bytes() == own
    Image.new("L", (32, 32), 78).save(sorted(others.rglob("Test/Normal/images/*.png"))[0])
    _, second = run_folder.evaluate(trained, others, attacks=["fgsm"])
    assert second != place
    assert second.name.startswith("phantom-Test-")


def test_the_fingerprint_stands_in_every_document(trained: Path, films: Path, studied: Path) -> None:
    run_folder.evaluate(trained, films, attacks=["fgsm"])
    known = files.read_yaml(trained / "run.yaml")["data"]["fingerprints"]["Test"]
    assert set(files.read_table(trained / "predictions.parquet")["data"]) == {known}
    assert files.read_json(trained / "metrics.json")["films"] == known
    document = files.read_json(studied / "study.json")
    assert document["data"]["fingerprints"]["Test"] == known
    assert files.read_yaml(studied / "study.yaml")["fingerprint"] == document["data"]["fingerprint"]


def test_a_study_does_not_go_on_with_other_films(films: Path, others: Path, study: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a study of other films than"):
        again(study, others)
    moved = Path(shutil.copytree(films, tmp_path / "moved"))
    assert len(again(study, moved).plain()["runs"]) == 1, "the same films under another name are the same study"


def test_a_finished_run_asks_for_its_films_too(trained: Path, films: Path, others: Path, tmp_path: Path) -> None:
    assert "no such" in complaint("train", "--data", tmp_path / "nowhere", *TRAIN, "--out", trained)
    run("train", "--data", films, *TRAIN, "--out", trained)
    Image.new("L", (32, 32), 79).save(sorted(others.rglob("Train/Normal/images/*.png"))[0])
    assert "was trained on other films" in complaint("train", "--data", others, *TRAIN, "--out", trained)


def test_a_list_of_all_splits_is_tested_on_its_test_split(trained: Path, films: Path, tmp_path: Path) -> None:
    read_manifest(films).write(tmp_path / "clean.csv")
    document, place = run_folder.evaluate(trained, tmp_path / "clean.csv", attacks=["fgsm"])
    assert document.plain()["clean"]["n"] == 12
    assert document.plain()["split"] == "Test"
    assert document.plain()["notes"] == []
    assert place == trained, "the very films that are its own"


def test_films_that_were_trained_on_are_said_at_the_top(trained: Path, films: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "elsewhere"
    for name in ("COVID-19", "Normal"):
        (foreign / name).mkdir(parents=True)
        for split in ("Train", "Test"):
            for film in sorted(films.glob(f"Lung*/Lung*/{split}/{name}/images/*"))[:3]:
                shutil.copy(film, foreign / name / f"{split}-{film.name}")
    done = run("evaluate", trained, "--data", foreign, "--attack", "fgsm")
    note = "was trained on 6 of these 12 films: what is measured there flatters it"
    assert note in done.stdout.splitlines()[0]
    document = files.read_json(trained / "evaluations" / "elsewhere-all" / "metrics.json")
    assert note in document["notes"][0]
    assert document["alarms"][0]["kind"] == "trained_on"
    assert "measured on all 12 images of elsewhere" in document["notes"][1]


@pytest.mark.slow
@pytest.mark.parametrize("command", [("evaluate", "--attack", "fgsm"), ("explain", "--method", "gradcam")])
def test_what_a_list_lacks_is_said_of_it_once(
    command: tuple[str, ...], trained: Path, films: Path, tmp_path: Path
) -> None:
    table = read_manifest(films).table[["class", "split", "path", "infection_mask"]]
    table = pd.concat([table, table[-1:].assign(path="gone.png")])
    for name in ("path", "infection_mask"):
        table[name] = [None if path is None else films / path for path in table[name]]
    table.to_csv(tmp_path / "list.csv", index=False)
    names = [f"--label={name}={name}" for name in ("COVID-19", "Non-COVID", "Normal")]
    done = run(*command[:1], trained, "--data", tmp_path / "list.csv", *command[1:], *names, "--label=Nrmal=Normal")
    assert done.stderr.count("gone.png") == 1
    assert done.stderr.count("names what is no class of these data: Nrmal") == 1


def test_one_split_in_two_roles_is_refused() -> None:
    content = STUDY | {"data": {"size": 32, "splits": {"train": "Train", "test": "Train"}}}
    with pytest.raises(UserError, match="train and test are both Train"):
        validation.validate(StudyRecipe, content, "test")
    asked = ["train", "--data", "nowhere", *TRAIN, "--out", "nowhere", "--set", "data.splits.val=Test"]
    assert "val and test are both Test" in complaint(*asked)


def test_the_second_command_is_told_who_holds_the_run(trained: Path, films: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from trustcxr.results.locks import holding\n"
        "with holding(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    first = subprocess.Popen([sys.executable, "-c", hold, str(trained)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        first.stdout.readline()
        for command in (["evaluate", trained], ["explain", trained], ["train", *TRAIN, "--out", trained]):
            assert f"in use by process {first.pid} on" in complaint(*command, "--data", films)
    finally:
        first.kill()
        first.wait()
    assert (trained / locks.LOCK_FILE).exists()


def test_a_model_that_was_not_trained_here_has_a_runs_document(made: Path, films: Path) -> None:
    from trustcxr.data import load_dataset

    whole = load_run(made)

    class Theirs:
        """As an adapter gives it: model, classes, name, size, device."""

        model, classes, name, size, device = whole.model, whole.classes, "theirs", 32, whole.device

    data = load_dataset(films, split="Test", size=32)
    table = predictions.predict(Theirs(), data, views=False)  # type: ignore[arg-type]
    document = summary.describe(Theirs(), table, resamples=100)
    assert (document.plain()["run"], document.plain()["model"], document.plain()["origin"]) == (
        "theirs",
        "theirs",
        "given",
    )
    assert (document.plain()["defence"], document.plain()["seed"]) == ("", None)
    assert summary.describe(whole, table, resamples=100).plain()["origin"] == "trained"
    given = type(whole)(made, whole.model, whole.classes, None, origin=About("their-net", "densenet"), given_size=32)
    assert (given.name, given.size) == ("their-net", 32)
    with pytest.raises(UserError, match="was not trained here"):
        _ = given.trained_by


def test_columns_that_one_table_alone_has_are_kept() -> None:
    rows = {"steps": 1, "severity": 0, "epsilon": 0.02}
    before = pd.DataFrame([rows | {"attack": "worst-case", "broken_by": "fab"}])
    after = pd.DataFrame([rows | {"attack": "clean", "epsilon": 0.0}, rows | {"attack": "fgsm"}])
    table = merged(before, after)
    assert table["attack"].tolist() == ["clean", "worst-case", "fgsm"]
    assert table.loc[1, "broken_by"] == "fab"
