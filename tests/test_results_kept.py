"""A study owns its runs; a command writes to a folder of its own; and every result says of which images it is."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
from PIL import Image, ImageFilter
from safetensors.torch import save_file

from engine_work import holding
from small_runs import networks, newest, seal, weights
from small_runs import recipe as run_recipe
from test_cli import complaint, run
from test_study import RECIPE
from test_study import study as work_on
from trustcxr.data import load_dataset
from trustcxr.data.phantom import write_files
from trustcxr.errors import UserError
from trustcxr.evaluation import predictions, run_figures
from trustcxr.evaluation.trained_run import load_run
from trustcxr.recipes import parsing
from trustcxr.recipes.evaluation_recipe import EvaluationRecipe
from trustcxr.recipes.study_recipe import StudyRecipe
from trustcxr.report import load
from trustcxr.runs import provenance, run_folder
from trustcxr.runs import test_data as tested
from trustcxr.storage import atomic, locks, schemas
from trustcxr.storage.evaluations import own_figures
from trustcxr.storage.schemas import StudyDocument
from trustcxr.study.verify_study import verify

RUN = Path("runs/test_resnet-standard-s0")
STUDY = RECIPE | {
    "models": networks("test_resnet"),
    "defences": [],
    "evaluation": {"attacks": [{"name": "fgsm", "epsilons": [0.02]}], "bootstrap": 100},
    "explanation": {"methods": ["gradcam@-3"], "corruptions": ["jpeg"], "sample": 2, "panels": 1},
}
TRAIN = ["--model", "test_resnet", "--weights", "none", "--size", "32", "--epochs", "1", "--batch-size", "12"]
MAPS = {"methods": ["gradcam@-3"], "corruptions": ["jpeg"], "sample": 2}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files.write(tmp_path_factory.mktemp("images") / "phantom", {"Train": 8, "Val": 4, "Test": 4}, size=32)


@pytest.fixture(scope="module")
def made(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run("train", "--data", images, *TRAIN, "--out", out)
    return out


@pytest.fixture
def trained(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture(scope="module")
def studied(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    again(out := tmp_path_factory.mktemp("study") / "out", images)
    return out


@pytest.fixture
def study(studied: Path, tmp_path: Path) -> Path:
    """That study, to change."""
    return Path(shutil.copytree(studied, tmp_path / "out"))


def again(study: Path, images: Path) -> StudyDocument:
    """The same command once more."""
    return work_on(parsing.validate(StudyRecipe, STUDY, "test"), images, study)


@pytest.fixture
def others(images: Path, tmp_path: Path) -> Path:
    """Another folder of the same name: one test image is another."""
    copy = Path(shutil.copytree(images, tmp_path / "other" / "phantom"))
    Image.new("L", (32, 32), 77).save(sorted(copy.rglob("Test/Normal/images/*.png"))[0])
    return copy


def attacked(folder: Path) -> list[tuple[str, float]]:
    return [(row["attack"], row["epsilon"]) for row in atomic.read_json(folder / "metrics.json")["attacks"]]


def content(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Time and bytes of every result."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    found = (path.relative_to(folder) for path in files if path.name != "timings.json")
    return {path: ((folder / path).stat().st_mtime_ns, (folder / path).read_bytes()) for path in found}


def bits(folder: Path) -> dict[Path, bytes]:
    return {path: part[1] for path, part in content(folder).items()}


def test_no_command_changes_a_study_which_ends_with_its_own_figures(study: Path, images: Path) -> None:
    before, run_ = content(study), study / RUN
    run_folder.evaluate(run_, images, attacks=["fgsm", "pgd"], epsilons=[0.02, 0.3], steps=2)
    run_folder.explain(run_, images, options=MAPS | {"methods": ["layercam"], "sample": 0})
    after = content(study)
    assert {path: after[path] for path in before} == before
    assert {path.parts[:3] for path in after.keys() - before.keys()} == {(*RUN.parts, "evaluations")}
    first = schemas.read_schema(StudyDocument, study / "study.json").runs
    assert again(study, images).runs == first
    tables = [path for path in before if path.suffix == ".parquet"]
    assert [bits(study)[path] for path in tables] == [before[path][1] for path in tables]
    assert verify(study).differences == []


def test_a_finished_study_computes_nothing_again(study: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(study / RUN)
    for module, name in ((predictions, "predict"), (atomic, "write_batches")):
        monkeypatch.setattr(module, name, Mock(side_effect=AssertionError("computed again")))
    again(study, images)
    assert content(study / RUN) == before


@pytest.mark.parametrize("name", ["validation", "predictions", "saliency", "lesion_effects", "metrics", "example_maps"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_what_is_missing_or_damaged_is_made_again_the_same(name: str, damage: str, study: Path, images: Path) -> None:
    before = bits(study / RUN)
    path = next((study / RUN).glob(f"{name}.*"))
    whole = path.read_bytes()
    path.unlink() if damage == "gone" else path.write_bytes(whole[: len(whole) // 2])
    again(study, images)
    assert path.read_bytes() == whole
    assert bits(study / RUN) == before


def test_when_a_table_is_not_current(study: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test, predict = load_dataset(images, "Test", 32), Mock(side_effect=predictions.predict)

    def once(restarts: int = 1, data: Any = test) -> int:
        asked = {"attacks": [{"name": "pgd", "epsilons": [0.02], "steps": 2, "restarts": restarts}]}
        before = predict.call_count
        run_folder.RunFolder(study / RUN).test(data, EvaluationRecipe.model_validate(asked))
        return predict.call_count - before

    monkeypatch.setattr(predictions, "predict", predict)
    assert [once(restarts) for restarts in (2, 2, 1, 2, 2)] == [1, 0, 1, 1, 0]
    grouped = load_dataset(images, "Test", 32)
    grouped.table["group"] = "one"
    assert [once(2, grouped), once(2, grouped), once(2)] == [1, 0, 1], "patients are part of the data"
    monkeypatch.setitem(provenance.ALGORITHM_VERSION, "predictions.parquet", 99)
    assert [once(2), once(2)] == [1, 0]
    with (study / RUN / "model.safetensors").open("ab") as file:
        file.write(b" ")
    assert not run_folder.RunFolder(study / RUN).results.is_current("predictions.parquet")


def test_a_surrogate_is_known_by_its_weights_and_not_by_its_folder(study: Path, tmp_path: Path) -> None:
    def asked(folder: Path) -> Any:
        attack = {"name": "transfer", "epsilons": [0.02], "surrogate": str(folder)}
        return run_folder.prediction_options(EvaluationRecipe.model_validate({"attacks": [attack]}))

    other = Path(shutil.copytree(study / RUN, tmp_path / "other"))
    assert asked(other) == asked(study / RUN)
    with (other / "model.safetensors").open("ab") as file:
        file.write(b"0")
    assert asked(other) != asked(study / RUN)


def test_maps_are_held_against_the_masks_that_are_there_now(study: Path, images: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(images, tmp_path / "images"))
    first = atomic.read_json(study / "study.json")["runs"][0]
    for mask in sorted(other.glob("**/infection masks/*")):
        with Image.open(mask) as before:
            grown = before.filter(ImageFilter.MaxFilter(5))
        grown.save(mask)
    again(study, other)
    after = atomic.read_json(study / "study.json")["runs"][0]
    assert after["clean"] == first["clean"], "the images are the same"
    before_, now = (one["saliency"]["gradcam@-3"]["infection_energy"]["chance"] for one in (first, after))
    assert now > before_, "what an even map has"
    assert after["lesions"] != first["lesions"]


def test_each_evaluation_has_a_folder_of_its_own_and_none_is_merged(trained: Path, images: Path) -> None:
    _, first = run_folder.evaluate(trained, images, attacks=["pgd"], steps=2)
    before = content(first)
    _, second = run_folder.evaluate(trained, images, attacks=["fgsm"], epsilons=[0.01])
    assert first.parent == second.parent == trained / "evaluations"
    assert {first.name[:-8], second.name[:-8]} == {"phantom-Test-"}
    assert (attacked(first), attacked(second)) == ([("pgd", 0.02)], [("fgsm", 0.01)])
    assert content(first) == before
    _, maps = run_folder.explain(trained, images, options=MAPS)
    assert maps not in (first, second)
    names = {"predictions.parquet", "saliency.parquet", "lesion_effects.parquet", "metrics.json"}
    assert names <= {path.name for path in maps.iterdir()}
    assert attacked(maps) == []


def test_a_killed_evaluation_keeps_its_tables(trained: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, place = run_folder.explain(trained, images, options=MAPS)
    whole, real = bits(place), atomic.write_batches
    shutil.rmtree(place)
    for name in ("saliency.parquet", "lesion_effects.parquet", "validation.parquet"):

        def write(path: Path, *rest: Any, killed_before: str = name) -> None:
            if path.name == killed_before:
                raise KeyboardInterrupt
            real(path, *rest)

        monkeypatch.setattr(atomic, "write_batches", write)
        with pytest.raises(KeyboardInterrupt):
            run_folder.explain(trained, images, options=MAPS)
    monkeypatch.setattr(atomic, "write_batches", real)
    before = content(place)
    assert {path.name for path in before} == {"predictions.parquet", "saliency.parquet", "lesion_effects.parquet"}
    run_folder.explain(trained, images, options=MAPS)
    after = content(place)
    assert {path: after[path] for path in before} == before, "what was there is not measured again"
    assert bits(place) == whole


def test_results_in_a_named_folder_are_not_mixed(trained: Path, images: Path, others: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    at = ["--attack", "fgsm", "--out", out]
    run("evaluate", trained, "--data", images, *at)
    before = content(out)
    assert not (trained / "evaluations").exists()
    moved = trained.rename(tmp_path / "moved")
    assert "nothing was computed again" in run("evaluate", moved, "--data", images, *at).stderr
    other = Path(shutil.copytree(moved, tmp_path / "weights"))  # as of a training that ended elsewhere
    save_file({name: w * 1.01 for name, w in weights(other).items()}, other / "model.safetensors")
    seal(other)
    for words in (
        ("evaluate", moved, "--data", others, *at),
        ("evaluate", moved, "--data", images, "--attack", "pgd", "--steps", 2, "--out", out),
        ("evaluate", other, "--data", images, *at),
        ("explain", moved, "--data", images, "--method", "gradcam@-3", "--sample", 0, "--out", out),
    ):
        assert "results are never mixed. Give another --out" in complaint(*words)
    assert content(out) == before


def test_no_results_go_into_a_run_a_study_or_an_audit(trained: Path, study: Path, images: Path, tmp_path: Path) -> None:
    for name in ("audit/audit.json", "mine/metrics.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    for out, what in ((trained, "a run"), (study, "a study"), (study / RUN, "a run"), (tmp_path / "audit", "an audit")):
        said = complaint("evaluate", trained, "--data", images, "--attack", "fgsm", "--out", out)
        assert f"{out}: holds {what}" in said
        assert said.endswith("choose another --out")
    assert "did not write" in complaint("evaluate", trained, "--data", images, "--out", tmp_path / "mine")


def test_a_report_is_of_the_newest_evaluation(trained: Path, images: Path, others: Path, tmp_path: Path) -> None:
    assert "this run is not tested yet" in complaint("report", trained)
    run_folder.evaluate(trained, images, attacks=["pgd"], steps=1)
    run_folder.evaluate(trained, images, attacks=["fgsm"], epsilons=[0.01])
    run_folder.explain(trained, images, options=MAPS)
    run_folder.evaluate(trained, others, attacks=["fgsm"], epsilons=[0.3])
    (shown,) = load.load_report(trained).runs
    assert [(row.attack, row.epsilon) for row in shown.attacks] == [("fgsm", 0.01)]
    assert list(shown.metrics.saliency) == ["gradcam@-3", "random"]
    assert shown.saliency is not None
    assert set(shown.predictions()["attack"]) >= {"clean", "fgsm"}  # type: ignore[index]
    assert list(shown.evaluations) == ["phantom-Test"]
    assert shown.evaluations["phantom-Test"].attacks[0].epsilon == 0.3
    assert load_run(trained).metrics == (own_figures(trained) or pytest.fail("none")).document
    run("report", trained)
    assert (trained / "report.html").is_file()
    (newest(trained) / "metrics.json").write_text(json.dumps({"version": 10**6}))
    assert not load.load_report(trained).runs[0].evaluations, "one that cannot be read is passed over"


@pytest.mark.parametrize(
    "names",
    [
        ("audit.json", "predictions.parquet", "report.html"),
        ("metrics.json", "saliency.parquet"),  # maps of a given model, or results of a run elsewhere
        ("checkpoint/mine.txt",),
        ("evaluations/mine.txt",),
    ],
)
def test_a_run_is_trained_over_nothing_that_is_not_a_runs(names: tuple[str, ...], images: Path, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    said = complaint("train", "--data", images, *TRAIN, "--out", tmp_path)
    assert f"holds {', '.join(sorted(name.split('/')[0] for name in names))}, which this command did not write" in said
    assert {path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == {"mine"}
    assert not (tmp_path / "run.yaml").exists()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A file of that study."""
    atomic.write_yaml(tmp_path / "study.yml", STUDY)
    return tmp_path / "study.yml"


def test_audits_and_studies_replace_no_other_files(trained: Path, images: Path, recipe: Path, tmp_path: Path) -> None:
    for name in ("predictions.parquet", "report.html"):
        (tmp_path / name).write_text("mine")
    said = complaint("audit", trained, "--data", images, "--out", tmp_path)
    assert "holds predictions.parquet, report.html, which this command did not write and would lose" in said
    (tmp_path / "study.json").write_text("mine")
    said = complaint("study", recipe, "--data", images, "--out", tmp_path, "--no-check")
    assert "holds report.html, study.json, which this command did not write and would lose; choose another" in said
    assert {(tmp_path / name).read_text() for name in ("predictions.parquet", "report.html", "study.json")} == {"mine"}


def test_a_study_goes_on_beside_its_check_of_the_data(images: Path, recipe: Path, tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    (out / "data.yaml").write_text("path: x\n")
    (out / "data-check.json").write_text('{"verdict": "of a study that was killed then"}')
    run("study", recipe, "--data", images, "--out", out, "--no-check")
    assert (out / "study.json").is_file()


def test_results_within_the_data_go_on_though_they_hold_pictures(images: Path, tmp_path: Path) -> None:
    for name in ("run.yaml", "study.yaml", "audit.json", "metrics.json"):
        place = tmp_path / "data" / name.replace(".", "-")
        (place / "figures").mkdir(parents=True)
        Image.new("L", (8, 8)).save(place / "figures" / "x.png")
        with pytest.raises(UserError, match="holds the images"):
            tested.check_out(place, tmp_path / "data")
        (place / name).write_text("{}")
        tested.check_out(place, tmp_path / "data")


def test_no_results_go_among_images(trained: Path, images: Path, recipe: Path) -> None:
    part = images / "Lung Segmentation Data"
    for words, out in (
        (("study", recipe, "--no-check"), images),
        (("train", *TRAIN), part),
        (("evaluate", trained, "--attack", "fgsm"), part),
    ):
        assert "holds the images; choose another --out" in complaint(*words, "--data", images, "--out", out)
    assert not [path for path in images.rglob("*") if path.suffix in (".json", ".yaml", ".html", ".parquet", ".lock")]
    inside = images / "results"  # a folder of its own beside them is none of theirs
    for _ in range(2):
        run_folder.evaluate(trained, images, attacks=["fgsm"], out=inside)
    assert attacked(inside) == [("fgsm", 0.02)]
    shutil.rmtree(inside)


def test_the_fingerprint_stands_in_every_document(trained: Path, images: Path, studied: Path) -> None:
    _, place = run_folder.evaluate(trained, images, attacks=["fgsm"])
    known = atomic.read_yaml(trained / "run.yaml")["data"]["fingerprints"]["Test"]
    assert set(atomic.read_table(place / "predictions.parquet")["data"]) == {known}
    assert atomic.read_json(place / "metrics.json")["images"] == known
    document = atomic.read_json(studied / "study.json")
    assert document["data"]["fingerprints"]["Test"] == known
    assert atomic.read_yaml(studied / "study.yaml")["fingerprint"] == document["data"]["fingerprint"]


def test_a_study_does_not_go_on_with_other_images(images: Path, others: Path, study: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a study of other images than"):
        again(study, others)
    moved = Path(shutil.copytree(images, tmp_path / "moved"))
    assert len(again(study, moved).plain()["runs"]) == 1, "the same images under another name are the same study"


def test_a_finished_run_asks_for_its_images_too(trained: Path, images: Path, others: Path, tmp_path: Path) -> None:
    assert "no such" in complaint("train", "--data", tmp_path / "nowhere", *TRAIN, "--out", trained)
    run("train", "--data", images, *TRAIN, "--out", trained)
    Image.new("L", (32, 32), 79).save(sorted(others.rglob("Train/Normal/images/*.png"))[0])
    assert "was trained on other images" in complaint("train", "--data", others, *TRAIN, "--out", trained)


def test_images_that_were_trained_on_are_said_at_the_top(trained: Path, images: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "elsewhere"
    for name in ("COVID-19", "Normal"):
        (foreign / name).mkdir(parents=True)
        for split in ("Train", "Test"):
            for image in sorted(images.glob(f"Lung*/Lung*/{split}/{name}/images/*"))[:3]:
                shutil.copy(image, foreign / name / f"{split}-{image.name}")
    done = run("evaluate", trained, "--data", foreign, "--attack", "fgsm")
    note = "was trained on 6 of these 12 images: what is measured there flatters it"
    assert note in done.stdout.splitlines()[0]
    document = atomic.read_json(newest(trained) / "metrics.json")
    assert note in document["notes"][0]
    assert document["alarms"][0]["kind"] == "trained_on"
    assert "measured on all 12 images of elsewhere" in document["notes"][1]


def test_one_split_in_two_roles_is_refused() -> None:
    asked = ["train", "--data", "nowhere", *TRAIN, "--out", "nowhere", "--set", "data.splits.val=Test"]
    assert "val and test are both Test" in complaint(*asked)


def test_the_second_command_is_told_who_holds_the_run(trained: Path, images: Path) -> None:
    with holding(trained) as holder:
        for command in (["evaluate", trained], ["explain", trained], ["train", *TRAIN, "--out", trained]):
            assert f"in use by process {holder} on" in complaint(*command, "--data", images)
        out = ["--data", images, "--attack", "fgsm", "--out", trained.parent / "out"]
        run("evaluate", trained, *out)  # into a folder that nobody holds
    assert (trained / locks.LOCK_FILE).exists()


def test_a_model_that_was_not_trained_here_has_a_runs_document(made: Path, images: Path) -> None:
    whole = load_run(made)
    keys = {"model": whole.model, "classes": whole.classes, "device": whole.device}
    theirs: Any = SimpleNamespace(**keys, name="theirs", size=32)  # as an adapter gives it
    table = predictions.predict(theirs, load_dataset(images, split="Test", size=32), views=False)
    document = run_figures.describe(theirs, table, resamples=100)
    said = {"run": "theirs", "model": "theirs", "origin": "given", "defence": "", "seed": None}
    assert document.plain().items() >= said.items()
    assert run_figures.describe(whole, table, resamples=100).plain()["origin"] == "trained"


def fgsm(trained: Path, data: Path, **options: Any) -> Any:
    return run_folder.evaluate(trained, data, attacks=["fgsm"], epsilons=[0.01], **options)[0]


def test_what_comes_later_of_the_same_images_is_measured_anew(trained: Path, images: Path, tmp_path: Path) -> None:
    """Patients, over whom intervals are; lung masks, by which views are cut; training masks, that maps must beat."""
    found = sorted((images / "Lung Segmentation Data").rglob("Test/*/images/*.png"))
    table = pd.DataFrame({"path": found, "class": [path.parts[-3] for path in found]})
    table.to_csv(tmp_path / "list.csv", index=False)
    _, first = run_folder.evaluate(trained, tmp_path / "list.csv", attacks=["fgsm"])
    table.assign(patient=[number // 4 for number in range(len(table))]).to_csv(tmp_path / "list.csv", index=False)
    _, second = run_folder.evaluate(trained, tmp_path / "list.csv", attacks=["fgsm"])
    assert [atomic.read_table(p / "predictions.parquet")["group"].nunique() for p in (first, second)] == [12, 3]
    other, maps = Path(shutil.copytree(images, tmp_path / "images")), MAPS | {"sample": 0}
    _, first = run_folder.explain(trained, other, options=maps)
    before = (first / "saliency.parquet").read_bytes()
    for mask in sorted(other.glob("**/Train/*/infection masks/*.png")):
        shutil.copyfile(mask.parents[1] / "lung masks" / mask.name, mask)
    _, second = run_folder.explain(trained, other, options=maps)
    assert second == first, "the images and their masks are the same"
    assert (second / "saliency.parquet").read_bytes() != before
    bare = Path(shutil.copytree(images, tmp_path / "bare", ignore=shutil.ignore_patterns("lung masks", "Infection *")))
    assert fgsm(trained, images).without_lungs is not None
    assert fgsm(trained, images, out=tmp_path / "out").drop_from_internal == [], "its own test is not from elsewhere"
    assert fgsm(trained, bare).without_lungs is None


@pytest.mark.parametrize(("name", "what"), [("run.yaml", "a run"), ("audit.json", "an audit")])
def test_a_study_takes_no_folder_that_holds_something_else(images: Path, tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"holds {what}; choose another --out"):
        again(tmp_path, images)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == [name]


def test_labels_are_of_the_run_s_own_columns_wherever_one_stands(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A list with two columns of labels, and its images in a folder that was typed as seen from there."""
    place, listed, rows = tmp_path / "hospital" / "images", tmp_path / "hospital" / "list.csv", []
    place.mkdir(parents=True)
    for path in sorted(images.rglob("images/*.png")):
        split, label = path.parts[-4:-2]
        image = shutil.copy(path, place / f"{split}-{label}-{path.name}")
        rows.append({"path": image.name, "class": "Normal", "radiologist": label, "split": split})
    table = pd.DataFrame(rows).drop_duplicates("path")
    table.to_csv(listed, index=False)
    monkeypatch.chdir(tmp_path)
    columns = {"path": "path", "class": "radiologist", "split": "split"}
    own = run_recipe(epochs=1)
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
