"""The protocol end to end: what it writes, that it goes on, that it chooses on validation alone."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from test_cli import run as command
from trustcxr import cli, registry, report
from trustcxr.data.phantom import write_files
from trustcxr.errors import OUT_OF_MEMORY, CannotWrite, NotFiniteError, UserError, is_out_of_memory
from trustcxr.evaluation import metrics
from trustcxr.evaluation.trained_run import load_run
from trustcxr.explain import ood
from trustcxr.recipes import parsing
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.study_recipe import StudyRecipe
from trustcxr.storage import atomic
from trustcxr.storage.prediction_table import logits_of
from trustcxr.storage.schemas import Ranked
from trustcxr.study import comparison, engines, run_study, status
from trustcxr.study.engines import Failure, Task
from trustcxr.study.engines.base import Outcomes, Work
from trustcxr.study.run_study import Study
from trustcxr.study.verify_study import verify
from trustcxr.training import fit_run as loop
from trustcxr.training.step import TrainingStep

RECIPE = {
    "name": "tiny",
    "data": {"size": 32},
    "models": [{"name": "test_efficientnet", "weights": "none"}, {"name": "test_resnet", "weights": "none"}],
    "training": {"epochs": 1, "batch_size": 12},
    "selection": {"count": 1},
    "defences": [{"name": "fgsm", "epsilon": 0.02}],
    "evaluation": {
        "attacks": [{"name": "fgsm", "epsilons": [0.01, 0.02]}, {"name": "pgd", "epsilons": [0.02], "steps": 2}],
        "bootstrap": 100,
    },
    # The last map has one cell at 32 pixels, and no figures; the one before it has some.
    "explanation": {
        "methods": ["gradcam", "layercam", "layercam@-2"],
        "corruptions": ["jpeg", "letters"],
        "sample": 2,
        "panels": 2,
    },
}

FIRST, SECOND = "test_efficientnet-standard-s0", "test_resnet-standard-s0"


def tiny(**changes: object) -> StudyRecipe:
    return parsing.validate(StudyRecipe, RECIPE | changes, "test")


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files.write(tmp_path_factory.mktemp("images") / "phantom", {"Train": 12, "Val": 4, "Test": 5}, size=48)


@pytest.fixture(scope="module")
def done(radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "tiny"
    Study(tiny(), radiographs, out, engines.get("local")).run()
    return out


def test_a_study_holds_every_run_and_every_number(done: Path) -> None:
    document = atomic.read_json(done / "study.json")
    names = [run["run"] for run in document["runs"]]
    assert len(names) == 3
    assert sum(run["defence"] == "fgsm" for run in document["runs"]) == 1
    for run in document["runs"]:
        folder = done / "runs" / run["run"]
        for name in ("model.safetensors", "history.csv", "predictions.parquet", "saliency.parquet", "metrics.json"):
            assert (folder / name).is_file()
        assert run["split"] == "Test"
        assert [(a["attack"], a["epsilon"]) for a in run["attacks"]] == [("fgsm", 0.01), ("fgsm", 0.02), ("pgd", 0.02)]
        again = metrics.from_predictions(
            atomic.read_table(folder / "predictions.parquet"), tuple(document["classes"]), resamples=100
        )
        assert again.plain()["clean"]["accuracy"]["ci"] == pytest.approx(run["clean"]["accuracy"]["ci"])
        assert [a["accuracy"]["value"] for a in again.plain()["attacks"]] == pytest.approx(
            [a["accuracy"]["value"] for a in run["attacks"]]
        )
    assert document["notice"] == "Research software. Not for diagnosis."
    assert document["data"]["counts"]["Test"] == {"COVID-19": 5, "Non-COVID": 5, "Normal": 5}
    measured = {row["measure"] for row in document["comparisons"]}
    assert {"clean accuracy", "fgsm accuracy @0.02", "pgd accuracy @0.02", "infection_energy"} <= measured


def test_a_run_is_whole_before_the_next_begins(done: Path) -> None:
    """A study that is cut off has finished rows, and not only weights."""
    ended = {name: (done / "runs" / name / "metrics.json").stat().st_mtime_ns for name in (FIRST, SECOND)}
    began = {name: (done / "runs" / name / "model.safetensors").stat().st_mtime_ns for name in (FIRST, SECOND)}
    assert ended[FIRST] <= began[SECOND]


def test_every_run_of_a_study_knows_what_its_images_are_like(done: Path) -> None:
    for folder in (done / "runs").iterdir():
        known, run = ood.load(folder), load_run(folder, on="cpu")
        assert known is not None
        assert len(known.scores) == int((known.scores <= known.threshold).sum()) == 12  # 95 % of them, rounded up
        torch.manual_seed(0)
        noise = torch.rand(5, 1, run.size, run.size)
        assert bool((known.score(run, noise) > known.threshold).all())


def test_the_best_are_chosen_on_validation(done: Path) -> None:
    document = atomic.read_json(done / "study.json")
    selection = document["selection"]
    assert selection["split"] == "Val"
    values = [row["value"] for row in selection["ranking"]]
    assert values == sorted(values, reverse=True)
    assert [row["chosen"] for row in selection["ranking"]] == [True, False]
    for row in selection["ranking"]:
        table = atomic.read_table(done / "runs" / f"{row['model']}-standard-s0" / "validation.parquet")
        assert set(table["split"]) == {"Val"}
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
def test_a_study_with_failures_is_printed_too_and_ends_with_1(
    radiographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, out = [{"name": "test_resnet", "weights": "none"}], tmp_path / "out"
    atomic.write_yaml(tmp_path / "tiny.yaml", RECIPE | {"models": models})
    no_network_of(monkeypatch, "test_resnet")
    options = ["--data", radiographs, "--out", out, "--no-check", "--json"]
    printed = command("study", tmp_path / "tiny.yaml", *options, expect=1)
    assert SECOND in [failure["run"] for failure in json.loads(printed.stdout)["failures"]]
    assert f"missing: {SECOND}" in printed.stderr


@pytest.mark.slow
def test_cut_off_it_goes_on(radiographs: Path, tmp_path: Path, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = loop.fit, []

    def cut_off(recipe: RunRecipe, *rest: object, **options: object) -> object:
        calls.append(recipe.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(recipe, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "fit", cut_off)
    study = Study(tiny(), radiographs, tmp_path / "tiny", engines.get("local"))
    with pytest.raises(KeyboardInterrupt):
        study.run()
    assert not (tmp_path / "tiny" / "study.json").exists()
    document = Study(tiny(), radiographs, tmp_path / "tiny", engines.get("local")).run()
    assert calls[0] not in calls[1:]
    finished = atomic.read_json(done / "study.json")
    assert [r["clean"]["accuracy"]["value"] for r in document.plain()["runs"]] == [
        r["clean"]["accuracy"]["value"] for r in finished["runs"]
    ]


def test_another_recipe_in_the_same_folder_is_refused(done: Path, radiographs: Path) -> None:
    with pytest.raises(UserError, match=r"another study: recipe\.training\.epochs was \d+, is \d+"):
        Study(tiny(training={"epochs": 2, "batch_size": 12}), radiographs, done, engines.get("local")).run()


@pytest.mark.slow
def test_a_study_grows_by_seeds_in_its_own_folder(
    done: Path, radiographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(done, tmp_path / "tiny"))
    before = {path: path.read_bytes() for path in out.glob("runs/*/*.*") if path.suffix in (".safetensors", ".parquet")}
    trained: list[str] = []
    real, local = loop.fit, engines.get("local")

    def fit(recipe: RunRecipe, *rest: Any, **options: Any) -> object:
        trained.append(recipe.name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return real(recipe, *rest, **options)

    monkeypatch.setattr(loop, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        Study(tiny(seeds=[0, 1]), radiographs, out, local).run()
    said = capsys.readouterr().err
    assert "it has grown from 1 seed (0) to 2 seeds (0, 1): runs that are finished stay" in said
    states = {one.run: one.state for one in status.status(out).runs}
    assert (states[FIRST], states["test_resnet-standard-s1"]) == ("done", "waiting")
    assert "if chosen" in states.values(), "what was chosen by one seed is open again"
    document = Study(tiny(seeds=[0, 1]), radiographs, out, local).run()
    assert "it has grown" not in capsys.readouterr().err
    assert all(name.endswith("-s1") or "fgsm" in name for name in trained), "what is finished stays"
    assert {path: path.read_bytes() for path in before} == before
    assert {run.run for run in document.runs} >= {FIRST, SECOND, FIRST[:-1] + "1", SECOND[:-1] + "1"}
    assert sorted(row.n or 0 for row in document.over_seeds[0].figures)[0] == 2
    assert {one.state for one in status.status(out).runs} == {"done"}
    assert "Over seeds" in report.write(out).read_text(encoding="utf-8")
    found = verify(out)
    assert (found.differences, found.unchecked) == ([], [])
    study_yaml = (out / "study.yaml").read_bytes()
    with pytest.raises(UserError, match=r"holds 2 seeds \(0, 1\) of this study, not 1 seed \(0\): use another --out"):
        Study(tiny(), radiographs, out, local).run()
    training = tiny().training.model_dump(mode="json")
    for keys in (
        {"seeds": [1, 2]},
        {"seeds": [0, 1, 2], "training": {"epochs": 2, "batch_size": 12}},
        {"seeds": [0, 1], "training": training | {"weight_decay": training["weight_decay"] + 5e-10}},
    ):
        with pytest.raises(UserError, match="holds another study: recipe"):
            Study(tiny(**keys), radiographs, out, local).run()
    assert (out / "study.yaml").read_bytes() == study_yaml


@pytest.mark.slow
def test_robust_runs_that_more_seeds_no_longer_choose_are_named_and_left_out(
    done: Path, radiographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(done, tmp_path / "tiny"))
    (was,) = [run.parent.name for run in out.glob("runs/*-fgsm-*/metrics.json")]
    real = comparison.ranked

    def other(*given: Any) -> list[Ranked]:
        return [row.model_copy(update={"chosen": not row.chosen}) for row in real(*given)]

    monkeypatch.setattr(comparison, "ranked", other)
    document = Study(tiny(seeds=[0, 1]), radiographs, out, engines.get("local")).run()
    assert f"no longer chosen, by all seeds together: {was}; kept, and out of" in capsys.readouterr().err
    assert was not in {run.run for run in document.runs}
    assert (out / "runs" / was / "metrics.json").is_file()


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
def test_one_run_that_fails_does_not_lose_the_study(
    radiographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, out = [{"name": name, "weights": "none"} for name in ("test_efficientnet", "test_resnet")], tmp_path / "out"
    with monkeypatch.context() as patch:
        no_network_of(patch, "test_resnet")
        document = Study(tiny(models=models), radiographs, out, engines.get("local")).run()
    assert [f["run"] for f in document.plain()["failures"]] == ["test_resnet-standard-s0"]
    assert document.plain()["failures"][0]["reason"] == "train: a loss that is no number"
    assert "no number" in atomic.read_json(out / "runs" / "test_resnet-standard-s0" / "failure.json")["reason"]
    assert [run["run"] for run in document.plain()["runs"]] == ["test_efficientnet-standard-s0"]
    assert document.plain()["selection"]["ranking"] == [], "a network that is missing might have been the best"
    report.write(out)
    left = shutil.copytree(out, tmp_path / "left")
    without = Study(tiny(models=models[:1]), radiographs, left, engines.get("local")).run()
    assert [row["model"] for row in without.plain()["selection"]["ranking"]] == ["test_efficientnet"]
    assert [(one["run"], one["reason"]) for one in without.plain()["selection"]["left_out"]] == [
        ("test_resnet-standard-s0", "train: a loss that is no number")
    ]
    assert len(without.plain()["runs"]) == 2, "its robust run is no longer waited for"
    text = "Left out of the study, since training failed: test_resnet-standard-s0 (train: a loss that is no number)."
    assert text in report.write(left).read_text(encoding="utf-8")
    with pytest.raises(UserError, match="test_efficientnet-standard-s0: trained, and so counted in this study"):
        Study(tiny(models=models[1:]), radiographs, out, engines.get("local")).run()
    shown = ("example_maps.npz",)  # images are chosen by all runs
    done = [p for p in out.glob("runs/test_efficientnet-standard-s0/*") if p.is_file() and p.name not in shown]
    stamps = {p: p.stat().st_mtime_ns for p in done}
    again = Study(tiny(models=models), radiographs, out, engines.get("local")).run()
    assert again.plain()["failures"] == []
    assert len(again.plain()["runs"]) == 3
    assert not list(out.glob("runs/*/failure.json"))
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps, "only what was missing is tried again"


@pytest.mark.parametrize("ask", [torch.empty, np.empty, bytearray])
def test_memory_that_is_not_there_is_one_line_whoever_asked_for_it(
    ask: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(**_: object) -> None:
        ask(1 << 50)

    monkeypatch.setattr(cli, "app", work)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"trustcxr: {OUT_OF_MEMORY}\n"
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.slow
def test_a_network_whose_loss_is_no_number_fails_alone(
    radiographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TrainingStep._on

    def diverging(self: TrainingStep, *batch: Any) -> Any:
        loss, right = real(self, *batch)
        return (loss * float("nan") if self.recipe.model.name == "test_resnet" else loss), right

    monkeypatch.setattr(TrainingStep, "_on", diverging)
    models = [{"name": name, "weights": "none"} for name in ("test_efficientnet", "test_resnet")]
    document = Study(
        tiny(models=models, selection={"count": 2}), radiographs, tmp_path / "out", engines.get("local")
    ).run()
    assert [run.run for run in document.runs] == [FIRST, FIRST.replace("standard", "fgsm")]
    failures = document.plain()["failures"]
    assert [failure["run"] for failure in failures] == ["test_resnet-standard-s0", "test_resnet-fgsm-s0"]
    assert all("in the first epoch" in failure["reason"] for failure in failures)


def test_a_disk_that_refuses_is_recorded_before_the_study_stops(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(done, tmp_path / "out"))

    def full(*_: object) -> None:
        raise CannotWrite("model.safetensors: no space left on the disk (79.0 MB are needed)")

    monkeypatch.setitem(run_study.STEPS, "test", full)
    with pytest.raises(CannotWrite):
        run_study.carry_out(Task(out, "test_efficientnet-standard-s0", "test"))
    reason = atomic.read_json(out / "runs" / "test_efficientnet-standard-s0" / "failure.json")["reason"]
    assert reason == "test: model.safetensors: no space left on the disk (79.0 MB are needed)"


def test_whatever_a_step_raises_is_recorded_as_it_does_and_taken_away_once_that_step_is_done(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = Path(shutil.copytree(done, tmp_path / "out")), {"fails": True}
    failure = out / "runs" / FIRST / "failure.json"

    def faulty(*_: object) -> None:
        if asked["fails"]:
            raise ZeroDivisionError("of\nnothing")

    monkeypatch.setitem(run_study.STEPS, "test", faulty)
    with pytest.raises(ZeroDivisionError):
        run_study.carry_out(Task(out, FIRST, "test"))
    assert atomic.read_json(failure)["reason"] == "test: ZeroDivisionError: of nothing"
    run_study.carry_out(Task(out, FIRST, "train"))
    assert failure.is_file(), "an earlier step that is done says nothing of a later one"
    asked["fails"] = False
    run_study.carry_out(Task(out, FIRST, "test"))
    assert not failure.exists()
    (out / "study.yaml").rename(out / "elsewhere.yaml")
    with pytest.raises(UserError):
        run_study.carry_out(Task(out, FIRST, "test"))
    assert "study.yaml" in atomic.read_json(failure)["reason"], "before the step has begun too"


class Refusing:
    """An engine that does nothing, and keeps what it was asked at once."""

    threads = 1

    def __init__(self) -> None:
        self.asked: list[set[str]] = []

    def preflight(self, study: Path) -> None:
        pass

    def map(self, work: Work, tasks: Sequence[Task], after: Callable[[], object] = lambda: None) -> Outcomes:
        self.asked.append({task.run for task in tasks})
        return [Failure(task.run, "not done") for task in tasks]


@pytest.mark.parametrize(("count", "together"), [(2, True), (1, False)])
def test_robust_runs_wait_for_the_standard_ones_only_where_they_need_them(
    count: int, together: bool, radiographs: Path, tmp_path: Path
) -> None:
    models = [{"name": name, "weights": "none"} for name in ("resnet10t", "test_resnet")]
    defences = [{"name": "fgsm", "epsilon": 0.02}]
    recipe, engine = tiny(models=models, selection={"count": count}, defences=defences), Refusing()
    document = Study(recipe, radiographs, tmp_path / "out", engine).run()
    first = {"resnet10t-standard-s0", "test_resnet-standard-s0"}
    assert engine.asked[0] == (first | {"resnet10t-fgsm-s0", "test_resnet-fgsm-s0"} if together else first)
    assert not document.runs
    assert {failure.run for failure in document.failures} == engine.asked[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": [{"name": "ResNet5"}]}, "did you mean"),
        ({"models": [{"name": "test_efficientnet", "weights": "gone.safetensors"}]}, "no such file"),
        ({"defences": [{"name": "fsgm"}]}, "valid: standard, fgsm"),
        ({"explanation": {"methods": ["gradcan"]}}, "gradcam"),
    ],
)
def test_what_a_recipe_asks_for_in_vain_is_said_before_any_work(
    changes: dict[str, object], words: str, radiographs: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        Study(tiny(**changes), radiographs, tmp_path / "out", engines.get("local")).run()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_broken_image_is_reported_counted_and_skipped(tmp_path: Path) -> None:
    radiographs = write_files.write(tmp_path / "images", {"Train": 9, "Val": 4, "Test": 4}, size=48)
    victims = sorted(radiographs.rglob("Train/Normal/images/*.png"))
    for victim in [p for p in victims if p.name == victims[0].name]:
        victim.write_bytes(victim.read_bytes()[:100])
    recipe = tiny(models=[{"name": "test_efficientnet", "weights": "none"}], defences=[])
    document = Study(recipe, radiographs, tmp_path / "out", engines.get("local")).run()
    assert document.plain()["data"]["skipped"] == 1
    assert document.plain()["data"]["counts"]["Train"]["Normal"] == 8


@pytest.mark.slow
def test_two_classes_go_through_the_same_protocol(tmp_path: Path) -> None:
    radiographs = write_files.write(tmp_path / "images", {"Train": 9, "Val": 4, "Test": 4}, size=48)
    for folder in radiographs.rglob("Non-COVID"):
        shutil.rmtree(folder)
    document = Study(
        tiny(models=[{"name": "test_resnet", "weights": "none"}]), radiographs, tmp_path / "out", engines.get("local")
    ).run()
    assert document.plain()["classes"] == ["COVID-19", "Normal"]
    assert all(len(run["clean"]["confusion"]) == 2 for run in document.plain()["runs"])


def test_training_saw_no_test_image(done: Path, radiographs: Path) -> None:
    tables = [pd.read_parquet(p) for p in done.glob("runs/*/validation.parquet")]
    assert {split for t in tables for split in t["split"]} == {"Val"}
    tested = pd.read_parquet(next(done.glob("runs/*/predictions.parquet")))
    assert set(tested["split"]) == {"Test"}
    assert not set(tested["sample_id"]) & {s for t in tables for s in t["sample_id"]}


def test_accuracy_without_the_lungs_stands_in_every_run(done: Path, radiographs: Path) -> None:
    from trustcxr.data import load_dataset
    from trustcxr.evaluation.predictions import generate_views

    for run in atomic.read_json(done / "study.json")["runs"]:
        assert set(run["shortcuts"]) == set(registry.VIEWS)
        assert all(part["n"] == 15 and 0 <= part["accuracy"]["value"] <= 1 for part in run["shortcuts"].values())
        assert {a["attack"] for a in run["attacks"]} == {"fgsm", "pgd"}
    data = load_dataset(radiographs, split="Test", size=32)
    rows = np.arange(4)
    images = torch.ones(4, 1, 32, 32)
    views = {name[0]: pixels[:, 0].numpy() for name, _, pixels in generate_views(data, rows, images)}
    lungs = data.masks("lung")[:4]
    assert lungs.any()
    np.testing.assert_array_equal(views["lungs_blacked_out"], 1 - lungs)
    np.testing.assert_array_equal(views["lungs_only"], lungs)
    assert views["border_only"][:, 3:-3, 3:-3].max() == 0
    assert views["border_only"][:, :3].min() == 1
