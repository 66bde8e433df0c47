"""The protocol end to end: what it writes, that it goes on, that it chooses on validation alone."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from small_runs import networks
from small_runs import recipe as run_recipe
from test_cli import run as command
from trustcxr import cli, registry, report
from trustcxr.data import load_dataset, read_manifest
from trustcxr.data.phantom import write_files
from trustcxr.errors import OUT_OF_MEMORY, CannotWrite, NotFiniteError, UserError, is_out_of_memory
from trustcxr.evaluation import metrics
from trustcxr.evaluation.predictions import generate_views
from trustcxr.evaluation.trained_run import load_run
from trustcxr.explain import ood
from trustcxr.models import factory
from trustcxr.recipes import parsing
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.study_recipe import StudyRecipe
from trustcxr.runs import preflight, run_folder
from trustcxr.storage import atomic
from trustcxr.storage.prediction_table import logits_of
from trustcxr.storage.schemas import StudyDocument
from trustcxr.study import comparison, engines, run_study, status
from trustcxr.study.engines import Failure, Task
from trustcxr.study.run_study import Study
from trustcxr.study.verify_study import verify
from trustcxr.training import fit_run as loop
from trustcxr.training.step import TrainingStep

METHODS = ["gradcam", "layercam", "layercam@-2"]  # of one cell at 32 pixels, and no figures, but for the last
RECIPE = {
    "name": "tiny",
    "data": {"size": 32},
    "models": networks("test_efficientnet", "test_resnet"),
    "training": {"epochs": 1, "batch_size": 12},
    "selection": {"count": 1},
    "defences": [{"name": "fgsm", "epsilon": 0.02}],
    "evaluation": {
        "attacks": [{"name": "fgsm", "epsilons": [0.01, 0.02]}, {"name": "pgd", "epsilons": [0.02], "steps": 2}],
        "bootstrap": 100,
    },
    "explanation": {"methods": METHODS, "corruptions": ["jpeg", "letters"], "sample": 2, "panels": 2},
}

(RESNET,) = networks("test_resnet")
FIRST, SECOND = "test_efficientnet-standard-s0", "test_resnet-standard-s0"


def tiny(**changes: object) -> StudyRecipe:
    return parsing.validate(StudyRecipe, RECIPE | changes, "test")


def study(recipe: StudyRecipe, images: Path, out: Path) -> StudyDocument:
    """Work on a study, one run after another in this process."""
    return Study(recipe, images, out, engines.get("local")).run()


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files.write(tmp_path_factory.mktemp("images") / "phantom", {"Train": 12, "Val": 4, "Test": 5}, size=48)


@pytest.fixture(scope="module")
def done(radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    study(tiny(), radiographs, out := tmp_path_factory.mktemp("study") / "tiny")
    return out


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    """That study, to change."""
    return Path(shutil.copytree(done, tmp_path / "tiny"))


def test_a_study_holds_every_run_and_every_number(done: Path) -> None:
    document = atomic.read_json(done / "study.json")
    assert [run["defence"] == "fgsm" for run in document["runs"]].count(True) == 1
    assert len({run["run"] for run in document["runs"]}) == len(document["runs"]) == 3
    for run in document["runs"]:
        folder = done / "runs" / run["run"]
        for name in ("model.safetensors", "history.csv", "predictions.parquet", "saliency.parquet", "metrics.json"):
            assert (folder / name).is_file()
        assert run["split"] == "Test"
        assert [(a["attack"], a["epsilon"]) for a in run["attacks"]] == [("fgsm", 0.01), ("fgsm", 0.02), ("pgd", 0.02)]
        table = atomic.read_table(folder / "predictions.parquet")
        again = metrics.from_predictions(table, tuple(document["classes"]), resamples=100).plain()
        assert again["clean"]["accuracy"]["ci"] == pytest.approx(run["clean"]["accuracy"]["ci"])
        values = [[a["accuracy"]["value"] for a in of["attacks"]] for of in (again, run)]
        assert values[0] == pytest.approx(values[1])
    assert document["notice"] == "Research software. Not for diagnosis."
    assert document["data"]["counts"]["Test"] == {"COVID-19": 5, "Non-COVID": 5, "Normal": 5}
    measured = {row["measure"] for row in document["comparisons"]}
    assert {"clean accuracy", "fgsm accuracy @0.02", "pgd accuracy @0.02", "infection_energy"} <= measured


def test_a_run_is_whole_before_the_next_begins(done: Path) -> None:
    """A study that is cut off has finished rows, and not only weights."""
    ended, began = done / "runs" / FIRST / "metrics.json", done / "runs" / SECOND / "model.safetensors"
    assert ended.stat().st_mtime_ns <= began.stat().st_mtime_ns


def test_a_study_that_was_cut_off_has_no_document(
    radiographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "fit", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        study(tiny(), radiographs, tmp_path)
    assert (tmp_path / "study.yaml").is_file()
    assert not (tmp_path / "study.json").exists(), "nobody takes it for one that is finished"


def test_every_run_of_a_study_knows_what_its_images_are_like(done: Path) -> None:
    for folder in (done / "runs").iterdir():
        known, run = ood.load(folder), load_run(folder, on="cpu")
        assert known is not None
        assert len(known.scores) == int((known.scores <= known.threshold).sum()) == 12  # 95 % of them, rounded up
        torch.manual_seed(0)
        noise = torch.rand(5, 1, run.size, run.size)
        assert bool((known.score(run, noise) > known.threshold).all())


def test_the_best_are_chosen_on_validation_and_no_test_image_was_seen(done: Path) -> None:
    document = atomic.read_json(done / "study.json")
    selection = document["selection"]
    assert selection["split"] == "Val"
    values = [row["value"] for row in selection["ranking"]]
    assert values == sorted(values, reverse=True)
    assert [row["chosen"] for row in selection["ranking"]] == [True, False]
    tested = atomic.read_table(next(done.glob("runs/*/predictions.parquet")))
    assert set(tested["split"]) == {"Test"}
    for run in (run["run"] for run in document["runs"]):
        table = atomic.read_table(done / "runs" / run / "validation.parquet")
        assert set(table["split"]) == {"Val"}
        assert not set(tested["sample_id"]) & set(table["sample_id"])
    for row in selection["ranking"]:
        table = atomic.read_table(done / "runs" / f"{row['model']}-standard-s0" / "validation.parquet")
        assert (logits_of(table).argmax(1) == table["label"]).mean() == pytest.approx(row["value"])
    robust = next(run for run in document["runs"] if run["defence"] == "fgsm")
    assert robust["model"] == selection["ranking"][0]["model"]


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_the_command_prints_study_json_and_nothing_else(done: Path, radiographs: Path, tmp_path: Path) -> None:
    atomic.write_yaml(tmp_path / "tiny.yaml", RECIPE)
    printed = command("study", tmp_path / "tiny.yaml", "--data", radiographs, "--out", done, "--no-check", "--json")
    assert json.loads(printed.stdout) == atomic.read_json(done / "study.json")
    assert "3 runs" in printed.stderr
    assert f"report: {done / 'report.html'}" in printed.stderr


@pytest.mark.usefixtures("unrendered")
def test_a_study_with_failures_ends_with_1(radiographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic.write_yaml(tmp_path / "tiny.yaml", RECIPE | {"models": networks("test_resnet")})
    no_network_of(monkeypatch, "test_resnet")
    options = ["--data", radiographs, "--out", tmp_path / "out", "--no-check", "--json"]
    printed = command("study", tmp_path / "tiny.yaml", *options, expect=1)
    assert SECOND in [failure["run"] for failure in json.loads(printed.stdout)["failures"]]
    assert f"missing: {SECOND}" in printed.stderr


def test_another_recipe_in_the_same_folder_is_refused(done: Path, radiographs: Path) -> None:
    with pytest.raises(UserError, match=r"another study: recipe\.training\.epochs was \d+, is \d+"):
        study(tiny(training={"epochs": 2, "batch_size": 12}), radiographs, done)


@pytest.mark.slow
def test_a_study_that_was_cut_off_as_it_grew_by_seeds_goes_on(
    copy: Path, radiographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [*copy.glob("runs/*/*.safetensors"), *copy.glob("runs/*/*.parquet")]
    before, trained, real = {path: path.read_bytes() for path in files}, list[str](), loop.fit

    def fit(recipe: RunRecipe, *rest: Any, **options: Any) -> object:
        trained.append(recipe.name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return real(recipe, *rest, **options)

    monkeypatch.setattr(loop, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        study(tiny(seeds=[0, 1]), radiographs, copy)
    assert "it has grown from 1 seed (0) to 2 seeds (0, 1): runs that are finished stay" in capsys.readouterr().err
    states = {one.run: one.state for one in status.status(copy).runs}
    assert (states[FIRST], states["test_resnet-standard-s1"]) == ("done", "waiting")
    assert "if chosen" in states.values(), "what was chosen by one seed is open again"
    document = study(tiny(seeds=[0, 1]), radiographs, copy)
    assert "it has grown" not in capsys.readouterr().err
    assert all(name.endswith("-s1") or "fgsm" in name for name in trained), "what is finished stays"
    assert {path: path.read_bytes() for path in before} == before
    assert {run.run for run in document.runs} >= {FIRST, SECOND, FIRST[:-1] + "1", SECOND[:-1] + "1"}
    assert sorted(row.n or 0 for row in document.over_seeds[0].figures)[0] == 2
    assert {one.state for one in status.status(copy).runs} == {"done"}
    assert "Over seeds" in report.write(copy).read_text(encoding="utf-8")
    found = verify(copy)
    assert (found.differences, found.unchecked) == ([], [])
    study_yaml = (copy / "study.yaml").read_bytes()
    with pytest.raises(UserError, match=r"holds 2 seeds \(0, 1\) of this study, not 1 seed \(0\): use another --out"):
        study(tiny(), radiographs, copy)
    training = tiny().training.model_dump(mode="json")
    for keys in (
        {"seeds": [1, 2]},
        {"seeds": [0, 1, 2], "training": {"epochs": 2, "batch_size": 12}},
        {"seeds": [0, 1], "training": training | {"weight_decay": training["weight_decay"] + 5e-10}},
    ):
        with pytest.raises(UserError, match="holds another study: recipe"):
            study(tiny(**keys), radiographs, copy)
    assert (copy / "study.yaml").read_bytes() == study_yaml


@pytest.mark.slow
def test_robust_runs_that_more_seeds_no_longer_choose_are_left_out(
    copy: Path, radiographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (was,) = [run.parent.name for run in copy.glob("runs/*-fgsm-*/metrics.json")]
    real, turned = comparison.ranked, lambda row: row.model_copy(update={"chosen": not row.chosen})
    monkeypatch.setattr(comparison, "ranked", lambda *given: [turned(row) for row in real(*given)])
    document = study(tiny(seeds=[0, 1]), radiographs, copy)
    assert f"no longer chosen, by all seeds together: {was}; kept, and out of" in capsys.readouterr().err
    assert was not in {run.run for run in document.runs}
    assert (copy / "runs" / was / "metrics.json").is_file()


def no_network_of(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the training of one network fail."""
    real = loop.fit

    def fit(recipe: RunRecipe, *rest: Any, **options: Any) -> object:
        if recipe.model.name == name:
            raise NotFiniteError("a loss that is no number")
        return real(recipe, *rest, **options)

    monkeypatch.setattr(loop, "fit", fit)


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_a_failed_run_costs_no_other(radiographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, out = networks("test_efficientnet", "test_resnet"), tmp_path / "out"
    with monkeypatch.context() as patch:
        no_network_of(patch, "test_resnet")
        document = study(tiny(models=models), radiographs, out)
    assert [(f.run, f.reason) for f in document.failures] == [(SECOND, "train: a loss that is no number")]
    assert "no number" in atomic.read_json(out / "runs" / SECOND / "failure.json")["reason"]
    assert [run.run for run in document.runs] == [FIRST]
    assert document.selection.ranking == [], "a network that is missing might have been the best"
    report.write(out)
    left = shutil.copytree(out, tmp_path / "left")
    without = study(tiny(models=models[:1]), radiographs, left)
    assert [row.model for row in without.selection.ranking] == ["test_efficientnet"]
    assert [(f.run, f.reason) for f in without.selection.left_out] == [(SECOND, "train: a loss that is no number")]
    assert len(without.runs) == 2, "its robust run is no longer waited for"
    text = f"Left out of the study, since training failed: {SECOND} (train: a loss that is no number)."
    assert text in report.write(left).read_text(encoding="utf-8")
    with pytest.raises(UserError, match=f"{FIRST}: trained, and so counted in this study"):
        study(tiny(models=models[1:]), radiographs, out)
    shown = ("example_maps.npz",)  # images are chosen by all runs
    done = [p for p in (out / "runs" / FIRST).iterdir() if p.is_file() and p.name not in shown]
    stamps = {p: p.stat().st_mtime_ns for p in done}
    again = study(tiny(models=models), radiographs, out)
    assert again.failures == []
    assert len(again.runs) == 3
    assert not list(out.glob("runs/*/failure.json"))
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps, "only what was missing is tried again"


@pytest.mark.parametrize("ask", [torch.empty, np.empty, bytearray])
def test_no_memory_is_one_line(ask: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "app", lambda **_: ask(1 << 50))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"trustcxr: {OUT_OF_MEMORY}\n"
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.slow
def test_a_loss_that_is_nan_fails_alone(radiographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = TrainingStep._on

    def diverging(self: TrainingStep, *batch: Any) -> Any:
        loss, right = real(self, *batch)
        return (loss * float("nan") if self.recipe.model.name == "test_resnet" else loss), right

    monkeypatch.setattr(TrainingStep, "_on", diverging)
    document = study(tiny(selection={"count": 2}), radiographs, tmp_path / "out")
    assert [run.run for run in document.runs] == [FIRST, FIRST.replace("standard", "fgsm")]
    assert [failure.run for failure in document.failures] == [SECOND, SECOND.replace("standard", "fgsm")]
    assert all("in the first epoch" in failure.reason for failure in document.failures)


def test_what_a_step_raises_is_recorded_until_that_step_is_done(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = copy / "runs" / FIRST / "failure.json"
    for problem, reason in (
        (CannotWrite("weights: no space left on the disk"), "weights: no space left on the disk"),
        (ZeroDivisionError("of\nnothing"), "ZeroDivisionError: of nothing"),
    ):
        monkeypatch.setitem(run_study.STEPS, "test", Mock(side_effect=problem))
        with pytest.raises(type(problem)):
            run_study.carry_out(Task(copy, FIRST, "test"))
        assert atomic.read_json(failure)["reason"] == f"test: {reason}"
    run_study.carry_out(Task(copy, FIRST, "train"))
    assert failure.is_file(), "an earlier step that is done says nothing of a later one"
    monkeypatch.setitem(run_study.STEPS, "test", Mock())
    run_study.carry_out(Task(copy, FIRST, "test"))
    assert not failure.exists()
    (copy / "study.yaml").rename(copy / "elsewhere.yaml")
    with pytest.raises(UserError):
        run_study.carry_out(Task(copy, FIRST, "test"))
    assert "study.yaml" in atomic.read_json(failure)["reason"], "before the step has begun too"


@pytest.mark.parametrize(("count", "together"), [(2, True), (1, False)])
def test_robust_runs_wait_only_if_they_must(count: int, together: bool, radiographs: Path, tmp_path: Path) -> None:
    asked: list[set[str]] = []

    def refuse(_: object, tasks: list[Task], after: object = None) -> list[Failure]:
        asked.append({task.run for task in tasks})
        return [Failure(task.run, "not done") for task in tasks]

    engine: Any = SimpleNamespace(threads=1, preflight=Mock(), map=refuse)
    recipe = tiny(models=networks("resnet10t", "test_resnet"), selection={"count": count})
    document = Study(recipe, radiographs, tmp_path / "out", engine).run()
    first = {"resnet10t-standard-s0", SECOND}
    assert asked[0] == (first | {"resnet10t-fgsm-s0", "test_resnet-fgsm-s0"} if together else first)
    assert not document.runs
    assert {failure.run for failure in document.failures} == asked[0]


def test_what_is_not_there_is_said_before_any_work(radiographs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        study(tiny(models=[RESNET | {"weights": "gone.safetensors"}]), radiographs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_classes_go_through_the_same_protocol(tmp_path: Path) -> None:
    radiographs = write_files.write(tmp_path / "images", {"Train": 9, "Val": 4, "Test": 4}, size=48)
    for folder in radiographs.rglob("Non-COVID"):
        shutil.rmtree(folder)
    document = study(tiny(models=networks("test_resnet")), radiographs, tmp_path / "out").plain()
    assert document["classes"] == ["COVID-19", "Normal"]
    assert all(len(run["clean"]["confusion"]) == 2 for run in document["runs"])


def test_accuracy_without_the_lungs_stands_in_every_run(done: Path, radiographs: Path) -> None:
    for run in atomic.read_json(done / "study.json")["runs"]:
        assert set(run["shortcuts"]) == set(registry.VIEWS)
        assert all(part["n"] == 15 and 0 <= part["accuracy"]["value"] <= 1 for part in run["shortcuts"].values())
        assert {a["attack"] for a in run["attacks"]} == {"fgsm", "pgd"}
    data = load_dataset(radiographs, split="Test", size=32)
    views = {name[0]: pixels for name, _, pixels in generate_views(data, np.arange(4), torch.ones(4, 1, 32, 32))}
    assert views["border_only"][..., 3:-3, 3:-3].max() == 0
    assert views["border_only"][..., :3, :].min() == 1


def test_what_is_not_there_is_said_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"something.else": np.zeros(3, np.float32)}, tmp_path / "alien.safetensors")
    monkeypatch.setattr(factory, "_from_hub", Mock(side_effect=UserError("no ImageNet weights")))
    alien = RESNET | {"weights": str(tmp_path / "alien.safetensors")}
    for keys, said in (
        ({"explanation": {"methods": ["layercam@layer9"]}}, "unknown layer 'layer9'"),
        ({"explanation": {"methods": ["gradcan"]}}, "gradcam"),
        ({"evaluation": {"attacks": [{"name": "transfer", "surrogate": "gone"}]}}, "gone: no such run folder"),
        ({"models": [RESNET | {"weights": "gone.safetensors"}]}, "no such file 'gone.safetensors'; or choose"),
        ({"models": [RESNET | {"label": "own"}, alien]}, "do not fit test_resnet"),
        ({"models": ["test_resnet"]}, "no ImageNet weights"),
        ({"models": ["ResNet5"]}, "did you mean"),
        ({"defences": ["fgms"]}, "did you mean fgsm"),
        ({"defences": ["fsgm"]}, "valid: standard, fgsm"),
        ({"models": [RESNET], "defences": ["ibp"]}, "test_resnet-ibp-s0: .*cannot be bounded"),
    ):
        with pytest.raises(UserError, match=said):
            preflight.check_study(tiny(**keys), tmp_path)
    for explanation in (RECIPE["explanation"], {"methods": ["gradcam"]}):
        preflight.check_study(tiny(explanation=explanation), tmp_path)


def test_a_run_that_is_refused_leaves_its_folder_to_the_command_that_is_right(tmp_path: Path) -> None:
    images, out = write_files.write(tmp_path / "images", {"Train": 6, "Val": 3}, size=32), tmp_path / "run"
    with pytest.raises(UserError, match=r"unknown healthy class .* did you mean Normal"):
        run_folder.train(run_recipe(epochs=1, counterfactuals={"share": 0.3, "healthy_class": "Nrmal"}), images, out)
    run_folder.train(run_recipe(epochs=1), images, out)
    assert (out / "training.json").is_file()


def test_weights_of_seeds_that_come_later_are_asked_for_again(tmp_path: Path) -> None:
    moved = [RESNET | {"weights": "gone.safetensors"}]
    for name in ("standard", "fgsm"):
        atomic.write_json(tmp_path / "runs" / f"test_resnet-{name}-s0" / "training.json", {})
    alone = tiny(models=moved, seeds=[0])
    assert preflight._trained(alone, alone.models[0], tmp_path)
    with pytest.raises(UserError, match="no such file"):
        preflight.check_names(tiny(models=moved, seeds=[0, 1]), tmp_path)


def test_masks_that_are_not_there_are_said_before_the_training(tmp_path: Path) -> None:
    data = load_dataset(write_noise(tmp_path / "images", ("a", "b")), "Train", 32, workers=1)
    preflight.check_masks(tiny(), data)
    lesions = {"counterfactuals": {"share": 0.3, "healthy_class": "a"}}
    for keys, kind in (({"background": "mask"}, "lung"), (lesions, "infection")):
        with pytest.raises(UserError, match=f"no training image has a mask of kind (lung|{kind}), which test_"):
            preflight.check_masks(tiny(training=keys), data)


def write_noise(folder: Path, classes: tuple[str, ...], without: str = "") -> Path:
    random = np.random.default_rng(0)
    for name in (f"{split}/{name}" for split in ("Train", "Val", "Test") for name in classes):
        if name != without:
            (folder / name).mkdir(parents=True)
            Image.fromarray(random.integers(0, 255, (32, 32), np.uint8)).save(folder / name / "0.png")
    return folder


def test_one_class_alone_or_missing_from_a_split_is_refused(tmp_path: Path) -> None:
    for data, said in (
        (write_noise(tmp_path / "one", ("a",)), "one class alone"),
        (write_noise(tmp_path / "val", ("a", "b"), "Val/b"), r"no image of b in the split Val \(val\)"),
    ):
        parts = {role: load_dataset(data, split, 32, workers=1) for role, split in (("train", "Train"), ("val", "Val"))}
        with pytest.raises(UserError, match=said):
            preflight.check_classes(parts)


def test_lists_with_semicolons_are_read_and_dropped_rows_are_said(tmp_path: Path) -> None:
    listed = write_noise(tmp_path / "images", ("a",)) / "list.csv"
    listed.write_text("path;class;split\nTrain/a/0.png;a;Train\nVal/a/0.png;;Val\nTest/a/0.png;b;Test\n")
    manifest = read_manifest(listed)
    assert len(manifest.table) == 2
    assert any("1 rows of list.csv have no image or no class" in note for note in manifest.notes)
    renamed = manifest.with_labels({"a": "x", "b": "x", "nobody": "x"})
    assert any("these data lack: nobody" in note for note in renamed.notes)


def test_a_damaged_check_of_the_data_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = SimpleNamespace(to_dict=lambda: {"verdict": "none"}, verdict="none")
    monkeypatch.setattr("trustcxr.data.checks.check.check_data", lambda *_, **__: made)
    monkeypatch.setattr(run_study, "read_manifest", lambda *_, **__: None)
    (tmp_path / "data-check.json").write_text("")
    assert atomic.read_json(run_study.write_data_check(tiny(), tmp_path, tmp_path, []))["verdict"] == "none"


def test_the_check_of_the_data_looks_at_the_classes_of_the_study(tmp_path: Path) -> None:
    for number, name in enumerate(("Train/a", "Train/A", "Test/a", "Test/b")):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("L", (32, 32), 60 * number).save(tmp_path / "images" / name / f"{number}.png")
    for labels, alike in (({}, True), ({"A": "a", "b": "b"}, False)):
        (out := tmp_path / f"{alike}").mkdir()
        recipe = tiny(data={"size": 32, "labels": labels})
        found = atomic.read_json(run_study.write_data_check(recipe, tmp_path / "images", out, []))
        assert ("differ only in capitals or blanks: 'a' (2 images) and 'A' (1 image)" in found["verdict"]) == alike
        assert found["classes"] == (["A", "a", "b"] if alike else ["a", "b"])


def test_the_data_check_is_made_again_if_a_mask_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_files.write(tmp_path / "images", {"Train": 4, "Val": 4, "Test": 4}, size=32)

    def check() -> tuple[dict[str, Any], str]:
        capsys.readouterr()
        parts = [load_dataset(images, split=split, size=32) for split in ("Train", "Val", "Test")]
        path = run_study.write_data_check(tiny(), images, tmp_path, parts)
        return atomic.read_json(path), capsys.readouterr().err

    first, said = check()
    assert "data check:" in said
    assert check() == (first, "")
    gone = sorted(images.rglob("Test/**/infection masks/*.png"))
    for mask in gone:
        mask.unlink()
    then, said = check()
    assert "data-check.json: of other images or masks: checked again" in said
    count, left = (found["files"]["masks"]["infection"]["n"] for found in (first, then))
    assert count - left == len(gone) > 0
