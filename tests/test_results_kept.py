"""A study owns its runs; a command writes to a folder of its own; and every result says of which images it is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, ImageFilter

from small_runs import newest, seal
from test_cli import complaint, run
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
from trustcxr.study import engines
from trustcxr.study.run_study import Study
from trustcxr.study.verify_study import verify

RUN = Path("runs/test_resnet-standard-s0")
STUDY = {
    "name": "small",
    "data": {"size": 32},
    "models": [{"name": "test_resnet", "weights": "none"}],
    "training": {"epochs": 1, "batch_size": 12},
    "defences": [],
    "evaluation": {"attacks": [{"name": "fgsm", "epsilons": [0.02]}], "bootstrap": 100},
    "explanation": {"methods": ["gradcam@-3"], "corruptions": ["jpeg"], "sample": 2, "panels": 1},
}
TRAIN = ["--model", "test_resnet", "--weights", "none", "--size", "32", "--epochs", "1", "--batch-size", "12"]
MAPS: dict[str, Any] = {"methods": ["gradcam@-3"], "corruptions": ["jpeg"], "sample": 2}


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
    out = tmp_path_factory.mktemp("study") / "out"
    Study(parsing.validate(StudyRecipe, STUDY, "test"), images, out, engines.get("local")).run()
    return out


@pytest.fixture
def study(studied: Path, tmp_path: Path) -> Path:
    """That study, to change."""
    return Path(shutil.copytree(studied, tmp_path / "out"))


def again(study: Path, images: Path) -> StudyDocument:
    """The same command once more."""
    return Study(parsing.validate(StudyRecipe, STUDY, "test"), images, study, engines.get("local")).run()


def runs_of(study: Path) -> object:
    return schemas.read_schema(StudyDocument, study / "study.json").runs


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
    there = [
        path for path in folder.rglob("*") if path.is_file() and path.name[0] != "." and path.name != "timings.json"
    ]
    return {path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes()) for path in there}


def test_no_command_changes_a_file_of_a_study_and_the_study_ends_with_its_own_figures(
    study: Path, images: Path
) -> None:
    before, run_ = content(study), study / RUN
    run_folder.evaluate(run_, images, attacks=["fgsm", "pgd"], epsilons=[0.02, 0.3], steps=2)
    run_folder.explain(run_, images, options=MAPS | {"methods": ["layercam"], "sample": 0})
    after = content(study)
    assert {path: after[path] for path in before} == before
    assert {path.parts[:3] for path in after.keys() - before.keys()} == {(*RUN.parts, "evaluations")}
    first = runs_of(study)
    again(study, images)
    assert runs_of(study) == first
    assert {path: content(study)[path][1] for path in before if path.suffix == ".parquet"} == {
        path: part[1] for path, part in before.items() if path.suffix == ".parquet"
    }
    assert verify(study).differences == []


def test_a_finished_study_computes_nothing_again(study: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    before = content(study / RUN)
    monkeypatch.setattr(predictions, "predict", never)
    monkeypatch.setattr(atomic, "write_batches", never)
    again(study, images)
    assert content(study / RUN) == before


@pytest.mark.parametrize("name", ["validation", "predictions", "saliency", "lesion_effects", "metrics", "example_maps"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_what_is_missing_or_damaged_in_a_study_is_made_again_to_the_same_bits(
    name: str, damage: str, study: Path, images: Path
) -> None:
    before = content(study / RUN)
    path = next((study / RUN).glob(f"{name}.*"))
    whole = path.read_bytes()
    path.unlink() if damage == "gone" else path.write_bytes(whole[: len(whole) // 2])
    again(study, images)
    assert path.read_bytes() == whole
    assert {path: part[1] for path, part in content(study / RUN).items()} == {
        path: part[1] for path, part in before.items()
    }


def test_a_table_of_other_options_weights_data_or_algorithm_is_not_current(
    study: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trustcxr.data import load_dataset

    test, made = load_dataset(images, "Test", 32), list[int]()
    real = predictions.predict

    def predict(run: Any, data: Any, **options: Any) -> Any:
        made.append(len(options["conditions"]))
        return real(run, data, **options)

    def once(restarts: int = 1, data: Any = test) -> int:
        asked = {"attacks": [{"name": "pgd", "epsilons": [0.02], "steps": 2, "restarts": restarts}]}
        before = len(made)
        run_folder.RunFolder(study / RUN).test(data, EvaluationRecipe.model_validate(asked))
        return len(made) - before

    monkeypatch.setattr(predictions, "predict", predict)
    assert [once(restarts) for restarts in (2, 2, 1, 2, 2)] == [1, 0, 1, 1, 0]
    grouped = load_dataset(images, "Test", 32)
    grouped.table["group"] = "one"
    assert [once(2, grouped), once(2, grouped), once(2)] == [1, 0, 1], "patients are part of the data"
    monkeypatch.setitem(provenance.ALGORITHM_VERSION, "predictions.parquet", 99)
    assert [once(2), once(2)] == [1, 0]
    with (study / RUN / "model.safetensors").open("ab") as weights:
        weights.write(b" ")
    assert not run_folder.RunFolder(study / RUN).results.is_current("predictions.parquet")


def test_a_surrogate_is_known_by_its_weights_and_not_by_its_folder(study: Path, tmp_path: Path) -> None:
    def asked(folder: Path) -> Any:
        attack = {"name": "transfer", "epsilons": [0.02], "surrogate": str(folder)}
        return run_folder.prediction_options(EvaluationRecipe.model_validate({"attacks": [attack]}))

    other = Path(shutil.copytree(study / RUN, tmp_path / "other"))
    assert asked(other) == asked(study / RUN)
    with (other / "model.safetensors").open("ab") as weights:
        weights.write(b"0")
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
    assert {"predictions.parquet", "saliency.parquet", "lesion_effects.parquet", "metrics.json"} <= {
        path.name for path in maps.iterdir()
    }
    assert attacked(maps) == []


def test_an_evaluation_that_was_killed_goes_on_with_the_tables_that_it_has(
    trained: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, place = run_folder.explain(trained, images, options=MAPS)
    whole = {path: part[1] for path, part in content(place).items()}
    shutil.rmtree(place)
    real = atomic.write_batches

    def killed_before(name: str) -> None:
        def write(path: Path, *rest: Any) -> None:
            if path.name == name:
                raise KeyboardInterrupt
            real(path, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(atomic, "write_batches", write)
            with pytest.raises(KeyboardInterrupt):
                run_folder.explain(trained, images, options=MAPS)

    for name in ("saliency.parquet", "lesion_effects.parquet", "validation.parquet"):
        killed_before(name)
    before = content(place)
    assert {path.name for path in before} == {"predictions.parquet", "saliency.parquet", "lesion_effects.parquet"}
    run_folder.explain(trained, images, options=MAPS)
    after = content(place)
    assert {path: after[path] for path in before} == before, "what was there is not measured again"
    assert {path: part[1] for path, part in after.items()} == whole


def test_results_go_to_another_folder_if_one_is_named_and_are_not_mixed_there(
    trained: Path, images: Path, others: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    at = ["--attack", "fgsm", "--out", out]
    run("evaluate", trained, "--data", images, *at)
    before = content(out)
    assert not (trained / "evaluations").exists()
    moved = trained.rename(tmp_path / "moved")
    assert "nothing was computed again" in run("evaluate", moved, "--data", images, *at).stderr
    other = Path(shutil.copytree(moved, tmp_path / "weights"))
    train_otherwise(other)
    asked: list[tuple[Any, ...]] = [
        ("evaluate", moved, "--data", others, *at),
        ("evaluate", moved, "--data", images, "--attack", "pgd", "--steps", 2, "--out", out),
        ("evaluate", other, "--data", images, *at),
        ("explain", moved, "--data", images, "--method", "gradcam@-3", "--sample", 0, "--out", out),
    ]
    for words in asked:
        assert "results are never mixed. Give another --out" in complaint(*words)
    assert content(out) == before


def train_otherwise(run_: Path) -> None:
    """Give a run other weights, as a training that ended elsewhere."""
    from safetensors.torch import load_file, save_file

    save_file({k: v * 1.01 for k, v in load_file(run_ / "model.safetensors").items()}, run_ / "model.safetensors")
    seal(run_)


def test_no_command_writes_into_a_run_a_study_or_an_audit(
    trained: Path, study: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "audit.json").write_text("{}")
    for out, what in ((trained, "a run"), (study, "a study"), (study / RUN, "a run"), (tmp_path / "audit", "an audit")):
        said = complaint("evaluate", trained, "--data", images, "--attack", "fgsm", "--out", out)
        assert f"{out}: holds {what}" in said
        assert said.endswith("choose another --out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.json").write_text("mine")
    assert "did not write" in complaint("evaluate", trained, "--data", images, "--out", tmp_path / "mine")


def test_a_report_of_a_run_shows_its_newest_evaluation_on_its_own_images_with_maps_and_proofs(
    trained: Path, images: Path, others: Path, tmp_path: Path
) -> None:
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
    newest_ = newest(trained)
    (newest_ / "metrics.json").write_text(json.dumps({"version": 10**6}))
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
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("mine")
    said = complaint("train", "--data", images, *TRAIN, "--out", tmp_path / "out")
    assert f"holds {', '.join(sorted(name.split('/')[0] for name in names))}, which this command did not write" in said
    assert {path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()} == {"mine"}
    assert not (tmp_path / "out" / "run.yaml").exists()


def test_neither_an_audit_nor_a_study_takes_the_place_of_other_files(
    trained: Path, images: Path, tmp_path: Path
) -> None:
    for name in ("predictions.parquet", "report.html"):
        (tmp_path / name).write_text("mine")
    said = complaint("audit", trained, "--data", images, "--out", tmp_path)
    assert "holds predictions.parquet, report.html, which this command did not write and would lose" in said
    (tmp_path / "study.json").write_text("mine")
    (tmp_path / "study.yml").write_text(yaml.safe_dump(STUDY))
    said = complaint("study", tmp_path / "study.yml", "--data", images, "--out", tmp_path, "--no-check")
    assert "holds report.html, study.json, which this command did not write and would lose; choose another" in said
    assert {(tmp_path / name).read_text() for name in ("predictions.parquet", "report.html", "study.json")} == {"mine"}


def test_a_study_goes_on_beside_its_check_of_the_data(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "study.yml").write_text(yaml.safe_dump(STUDY))
    out.mkdir()
    (out / "data.yaml").write_text("path: x\n")
    (out / "data-check.json").write_text('{"verdict": "of a study that was killed then"}')
    run("study", tmp_path / "study.yml", "--data", images, "--out", out, "--no-check")
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


def test_no_results_go_among_images(trained: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yml").write_text(yaml.safe_dump(STUDY))
    said = complaint("study", tmp_path / "study.yml", "--data", images, "--out", images, "--no-check")
    assert "holds the images; choose another --out" in said
    part = images / "Lung Segmentation Data"
    assert "holds the images" in complaint("train", "--data", images, *TRAIN, "--out", part)
    assert "holds the images" in complaint("evaluate", trained, "--data", images, "--attack", "fgsm", "--out", part)
    assert not [path for path in images.rglob("*") if path.suffix in (".json", ".yaml", ".html", ".parquet", ".lock")]
    inside = images / "results"  # a folder of its own beside them is none of theirs
    run_folder.evaluate(trained, images, attacks=["fgsm"], out=inside)
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
    content = STUDY | {"data": {"size": 32, "splits": {"train": "Train", "test": "Train"}}}
    with pytest.raises(UserError, match="train and test are both Train"):
        parsing.validate(StudyRecipe, content, "test")
    asked = ["train", "--data", "nowhere", *TRAIN, "--out", "nowhere", "--set", "data.splits.val=Test"]
    assert "val and test are both Test" in complaint(*asked)


def test_the_second_command_is_told_who_holds_the_run(trained: Path, images: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from trustcxr.storage.locks import folder_lock\n"
        "with folder_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    first = subprocess.Popen([sys.executable, "-c", hold, str(trained)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        first.stdout.readline()
        for command in (["evaluate", trained], ["explain", trained], ["train", *TRAIN, "--out", trained]):
            assert f"in use by process {first.pid} on" in complaint(*command, "--data", images)
        out = ["--data", images, "--attack", "fgsm", "--out", trained.parent / "out"]
        run("evaluate", trained, *out)  # into a folder that nobody holds
    finally:
        first.kill()
        first.wait()
    assert (trained / locks.LOCK_FILE).exists()


def test_a_model_that_was_not_trained_here_has_a_runs_document(made: Path, images: Path) -> None:
    from trustcxr.data import load_dataset

    whole = load_run(made)

    class Theirs:
        """As an adapter gives it: model, classes, name, size, device."""

        model, classes, name, size, device = whole.model, whole.classes, "theirs", 32, whole.device

    data = load_dataset(images, split="Test", size=32)
    table = predictions.predict(Theirs(), data, views=False)  # type: ignore[arg-type]
    document = run_figures.describe(Theirs(), table, resamples=100)
    said = {"run": "theirs", "model": "theirs", "origin": "given", "defence": "", "seed": None}
    assert document.plain().items() >= said.items()
    assert run_figures.describe(whole, table, resamples=100).plain()["origin"] == "trained"
