"""A run whose training is lost or damaged is trained again: nothing is deleted, nothing of other weights stays."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pack import Pack
from small_runs import recipe
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import load_run
from trustcxr.explain import ood
from trustcxr.runs import run_folder
from trustcxr.runs.run_folder import RunFolder
from trustcxr.storage import atomic, layout
from trustcxr.training import fit_run


@pytest.fixture(scope="module")
def images(pack: Pack) -> tuple[Any, Any]:
    return pack.training_images()


@pytest.fixture(scope="module")
def refit(images: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained, and once more on validation images too; validated, with what its images are like."""
    folder = tmp_path_factory.mktemp("made") / "run"
    fit_run.fit(recipe(epochs=1, refit=True), *images, folder)
    RunFolder(folder).validate(images[1])
    ood.save(ood.fit(load_run(folder), *images), folder)
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


def test_a_run_that_can_be_used_is_left_alone(run: Path) -> None:
    (run / "predictions.parquet").write_bytes(b"")  # damaged: measured again when its step comes
    before = content(run)
    run_folder.supersede_damaged(run)
    assert content(run) == before


@pytest.mark.parametrize("gone", [("training.json",), ("training.json", "model.safetensors"), ("run.yaml",)])
def test_all_that_a_lost_training_left_is_moved_away_and_nothing_is_deleted(
    run: Path, gone: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in gone:
        (run / name).unlink()
    before = content(run)
    run_folder.supersede_damaged(run)
    assert names(run) == {"superseded-1"}
    assert content(run / "superseded-1") == before
    assert capsys.readouterr().err.count("trained again; all that was there is moved to superseded-1") == 1


def test_a_move_that_is_cut_off_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "model.safetensors").write_bytes(b"")
    before, moved, real = content(run), list[Path](), Path.rename

    def killed(self: Path, target: Path) -> Path:
        if len(moved) % 3 == 2:
            moved.append(self)
            raise KeyboardInterrupt
        moved.append(self)
        return real(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    for _ in range(20):
        try:
            run_folder.supersede_damaged(run)
            break
        except KeyboardInterrupt:
            continue
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


def test_without_the_weights_that_validation_judged_a_run_says_what_to_do(run: Path, images: tuple[Any, Any]) -> None:
    shutil.rmtree(run / layout.BEFORE_REFIT)
    run_folder.supersede_damaged(run)
    RunFolder(run).validate(images[1])  # current: nobody asks for them
    (run / "validation.parquet").unlink()
    with pytest.raises(UserError, match="Restore the folder, or train again"):
        RunFolder(run).validate(images[1])


def test_the_command_trains_a_run_again_that_lost_its_weights(
    images: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data, asked = tmp_path / "run", images[0].root, recipe(epochs=1)
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
