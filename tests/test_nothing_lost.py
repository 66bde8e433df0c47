"""A training that is cut off loses nothing in silence; one that is lost or damaged is done again, nothing deleted."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from small_runs import PowerCut, Splits, cut_at, flip, made_up, recipe, same, weights
from trustcxr.data import load_dataset
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import load_run
from trustcxr.explain import ood
from trustcxr.runs import run_folder
from trustcxr.runs.run_folder import RunFolder
from trustcxr.storage import atomic, layout, locks
from trustcxr.training import checkpoint, fit_run


def cut(radiographs: Splits, folder: Path, **options: Any) -> None:
    """Train and be cut off in the second epoch."""
    with pytest.MonkeyPatch.context() as patch:
        cut_at(patch, 4)
        with pytest.raises(PowerCut):
            fit_run.fit(recipe(**options), *radiographs, folder)


def test_a_checkpoint_cut_off_while_it_is_written_leaves_the_one_before(tmp_path: Path) -> None:
    path, io = tmp_path / "checkpoint" / "last.ckpt", checkpoint.WholeCheckpoints()
    io.save_checkpoint({"epoch": 0}, path)
    cut = type("Cut", (), {"__reduce__": Mock(side_effect=PowerCut)})
    with pytest.raises(PowerCut):
        io.save_checkpoint({"large": torch.zeros(1000), "then": cut()}, path)
    assert checkpoint.load_checkpoint(tmp_path) == {"epoch": 0}
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_checkpoints_need_no_temp_folder(radiographs: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mkstemp", "NamedTemporaryFile", "mkdtemp"):
        monkeypatch.setattr(tempfile, name, Mock(side_effect=AssertionError("written elsewhere first")))
    cut(radiographs, tmp_path)
    assert checkpoint.load_checkpoint(tmp_path) is not None


@pytest.mark.parametrize("name", ["last.ckpt", "best.safetensors"])
def test_one_flipped_bit_in_a_checkpoint_is_said_and_training_starts_anew(
    name: str, radiographs: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(folder: str, *accuracies: float) -> None:
        made_up(monkeypatch, [(accuracy,) for accuracy in accuracies])
        fit_run.fit(recipe(), *radiographs, tmp_path / folder)

    fit("whole", 0.9, 0.5)
    made_up(monkeypatch, [(0.9,), (0.5,)])
    cut(radiographs, tmp_path / "parts")
    flip(tmp_path / "parts" / "checkpoint" / name)
    if name == "best.safetensors":
        with pytest.raises(UserError, match=r"best\.safetensors: damaged.*the same command trains them anew"):
            fit("parts", 0.5)
    fit("parts", 0.9, 0.5)
    if name == "last.ckpt":
        assert "training starts again" in capsys.readouterr().err
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_the_best_weights_survive_a_cut(radiographs: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second epoch is better, and its checkpoint is not written; trained again, with other bits, it is worse."""
    saved, save = list[int](), checkpoint.WholeCheckpoints.save_checkpoint

    def once(*given: Any, **options: Any) -> None:
        saved.append(1)
        if len(saved) == 2:
            raise PowerCut
        save(*given, **options)

    made_up(monkeypatch, [(0.5,), (0.9,)])
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.WholeCheckpoints, "save_checkpoint", once)
        with pytest.raises(PowerCut):
            fit_run.fit(recipe(), *radiographs, tmp_path / "parts")
    kept = tmp_path / "parts" / "checkpoint"
    first, later = load_file(kept / checkpoint.BEST), load_file(kept / checkpoint.NEXT)
    assert not same(first, later)
    made_up(monkeypatch, [(0.4,)])
    again = fit_run.fit(recipe(), *radiographs, tmp_path / "parts")
    assert (again.best_epoch, again.best_value, again.epochs) == (0, 0.5, 2)
    assert same(first, weights(tmp_path / "parts"))


def test_an_unreadable_checkpoint_stays(radiographs: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(radiographs, tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()}
    no_room = RuntimeError("unable to mmap 160 bytes from file <last.ckpt>: Cannot allocate memory (12)")
    stale = OSError(116, "Stale file handle")
    for problem, why in ((stale, "Stale file handle"), (MemoryError(), "out of memory"), (no_room, "out of memory")):
        monkeypatch.setattr(torch, "load", Mock(side_effect=problem))
        with pytest.raises(UserError, match=rf"cannot be read now \({why}\)"):
            checkpoint.load_checkpoint(tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()} == before
    # As a place in a damaged file may be that is in none.
    monkeypatch.setattr(torch, "load", Mock(side_effect=OSError(22, "Invalid argument")))
    assert checkpoint.load_checkpoint(tmp_path) is None
    assert not (tmp_path / "checkpoint").exists()


def test_an_early_stop_survives_a_kill(radiographs: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = [(0.5,), (0.4,), (0.4,), (0.9,), (0.9,)]
    made_up(monkeypatch, accuracies)
    whole = fit_run.fit(recipe(epochs=5, patience=2), *radiographs, tmp_path / "whole")
    assert (whole.stopped, whole.epochs) == ("early", 3)
    made_up(monkeypatch, accuracies)
    with monkeypatch.context() as patch:
        patch.setattr(fit_run, "_finish", Mock(side_effect=PowerCut))
        with pytest.raises(PowerCut):
            fit_run.fit(recipe(epochs=5, patience=2), *radiographs, tmp_path / "parts")
    made_up(monkeypatch, accuracies[3:])
    again = fit_run.fit(recipe(epochs=5, patience=2), *radiographs, tmp_path / "parts")
    assert again.plain() | {"seconds": 0} == whole.plain() | {"seconds": 0}
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_training_does_not_go_on_with_other_images_of_the_same_name(radiographs: Splits, tmp_path: Path) -> None:
    def load(root: Path) -> list[Any]:
        return [load_dataset(root, split=split, size=32) for split in ("Train", "Val")]

    cut(radiographs, tmp_path / "run")
    root = Path(shutil.copytree(radiographs[0].root, tmp_path / "phantom"))
    Image.new("L", (32, 32), 90).save(root / radiographs[0].table["path"][3])
    with pytest.raises(UserError, match=r"was trained on other images.*Choose another --out"):
        fit_run.fit(recipe(), *load(root), tmp_path / "run")
    copy = Path(shutil.copytree(radiographs[0].root, tmp_path / "copy" / "renamed"))
    assert fit_run.fit(recipe(), *load(copy), tmp_path / "run").epochs == 2, "the same images, elsewhere"


def test_a_run_whose_files_do_not_belong_together_is_refused(run: Path) -> None:
    content = atomic.read_yaml(run / "run.yaml")
    without = {key: value for key, value in content.items() if key != "checksums"}
    for changed, said in (
        (content | {"classes": content["classes"][::-1]}, "in another order"),
        (without, r"run\.yaml: cut off"),
        (without | {"checksums": None}, r"run\.yaml: cut off"),
    ):
        atomic.write_yaml(run / "run.yaml", changed)
        with pytest.raises(UserError, match=said):
            load_run(run)
    atomic.write_yaml(run / "run.yaml", content)
    flip(run / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: damaged or replaced") as caught:
        load_run(run)
    assert "\n" not in str(caught.value)


def test_a_folder_of_what_was_refused_is_not_left_behind(tmp_path: Path) -> None:
    def refused(folder: Path) -> None:
        with locks.folder_lock(folder):
            if folder.name == "begun":
                (folder / "history.csv").write_text("epoch\n")
            raise UserError("refused")

    (tmp_path / "there").mkdir()
    for name in ("new", "there", "begun"):
        with pytest.raises(UserError, match="refused"):
            refused(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun", "there"]
    assert (tmp_path / "begun" / "history.csv").is_file()


@pytest.fixture(scope="module")
def refit(radiographs: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained, and once more on validation images too; validated, with what its images are like."""
    folder = tmp_path_factory.mktemp("made") / "run"
    fit_run.fit(recipe(epochs=1, refit=True), *radiographs, folder)
    RunFolder(folder).validate(radiographs[1])
    ood.save(ood.fit(load_run(folder), *radiographs), folder)
    return folder


@pytest.fixture
def run(refit: Path, tmp_path: Path) -> Path:
    """A copy of it with other files that a study, commands and reports leave."""
    folder = Path(shutil.copytree(refit, tmp_path / "run"))
    atomic.write_json(folder / "metrics.json", {"clean": {}})
    for name in ("report.html", "model.onnx", "evaluations/other-Test-01234567/metrics.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def content(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_can_be_used_or_is_of_a_later_version_is_left_alone(run: Path) -> None:
    (run / "predictions.parquet").write_bytes(b"")  # damaged: measured again when its step comes
    document, before = atomic.read_yaml(run / "run.yaml"), content(run)
    run_folder.supersede_damaged(run)
    assert content(run) == before
    document["recipe"]["training"]["of_the_future"] = 1
    atomic.write_yaml(run / "run.yaml", document)
    before = content(run)
    run_folder.supersede_damaged(run)
    assert content(run) == before


@pytest.mark.parametrize("gone", [("training.json",), ("training.json", "model.safetensors"), ("run.yaml",)])
def test_a_lost_training_is_moved_away(run: Path, gone: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    for name in gone:
        (run / name).unlink()
    before = content(run)
    run_folder.supersede_damaged(run)
    assert names(run) == {"superseded-1"}
    assert content(run / "superseded-1") == before
    assert capsys.readouterr().err.count("trained again; all that was there is moved to superseded-1") == 1


@pytest.mark.parametrize("last", ["patience:", "rotation: 1", "healthy_class: Normal\n"])
def test_a_run_whose_recipe_lost_its_end_is_not_believed(run: Path, last: str) -> None:
    load_run(run)
    whole = (run / "run.yaml").read_text()
    (run / "run.yaml").write_text(whole[: whole.index(last) + len(last)])
    with pytest.raises(UserError):  # the first is no recipe; the others are, and not that of the training
        load_run(run)
    run_folder.supersede_damaged(run)
    assert names(run) == {"superseded-1"}


def test_a_move_that_is_cut_off_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "model.safetensors").write_bytes(b"")
    before, moved, real = content(run), list[Path](), Path.rename

    def killed(self: Path, target: Path) -> Path:
        moved.append(self)
        if len(moved) % 3 == 0:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    for _ in range(20):
        with suppress(KeyboardInterrupt):
            run_folder.supersede_damaged(run)
    assert all(name.startswith("superseded-") for name in names(run))
    assert sorted(content(run).values()) == sorted(before.values())
    assert len(names(run)) > 1


def test_a_training_that_goes_on_keeps_what_it_has(run: Path) -> None:
    for name in ("validation.parquet", "metrics.json", "training.json", "model.safetensors"):
        (run / name).unlink()
    before = content(run)
    run_folder.supersede_damaged(run)
    assert content(run) == before
    (run / layout.BEFORE_REFIT / "model.safetensors").write_bytes(b"")
    run_folder.supersede_damaged(run)
    assert names(run / layout.BEFORE_REFIT) == {"superseded-1"}, "what validation judges is trained again first"


def test_without_the_weights_that_validation_judged_a_run_says_what_to_do(run: Path, radiographs: Splits) -> None:
    shutil.rmtree(run / layout.BEFORE_REFIT)
    run_folder.supersede_damaged(run)
    RunFolder(run).validate(radiographs[1])  # current: nobody asks for them
    (run / "validation.parquet").unlink()
    with pytest.raises(UserError, match="Restore the folder, or train again"):
        RunFolder(run).validate(radiographs[1])


def test_lost_weights_are_trained_anew(radiographs: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, data, asked = tmp_path / "run", radiographs[0].root, recipe(epochs=1)
    run_folder.train(asked, data, out)
    _, place = run_folder.evaluate(out, data, attacks=["fgsm"])
    whole = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(UserError, match="holds another run"):
        run_folder.train(recipe(epochs=2), data, out)
    capsys.readouterr()
    run_folder.train(asked, data, out)
    assert (out / "model.safetensors").read_bytes() == whole
    assert not place.exists()
    assert (out / "superseded-1" / "evaluations" / place.name / "metrics.json").is_file()
    said = capsys.readouterr().err
    assert "model.safetensors: damaged or replaced" in said
    assert "already trained" not in said
    run_folder.train(asked, data, out)
    assert "already trained" in capsys.readouterr().err


def test_a_run_whose_recipe_cannot_be_read_is_not_trained_over(run: Path) -> None:
    (run / "run.yaml").write_text("")
    with pytest.raises(UserError, match=r"found nothing; restore it, or move .* away"):
        RunFolder(run).check_recipe(recipe())
