"""A run in a study whose files are gone or damaged: what is made again, and that nothing of other weights stays."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pack import Pack
from small_runs import recipe
from trustcxr.errors import UserError
from trustcxr.evaluation.run import load_run
from trustcxr.explain import familiarity
from trustcxr.results import files, folders
from trustcxr.study import mending, run_folder
from trustcxr.study.run_folder import RunFolder
from trustcxr.training import loop

OF_WEIGHTS = ("validation.parquet", "predictions.parquet", "certified.parquet", "metrics.json", "panels.npz")


@pytest.fixture(scope="module")
def films(pack: Pack) -> tuple[Any, Any]:
    return pack.training_images()


@pytest.fixture(scope="module")
def refit(films: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained, and once more on validation images too; validated, with what its films are like."""
    folder = tmp_path_factory.mktemp("made") / "run"
    loop.fit(recipe(epochs=1, refit=True), *films, folder)
    RunFolder(folder).validate(films[1])
    familiarity.save(familiarity.fit(load_run(folder), *films), folder)
    return folder


@pytest.fixture
def run(refit: Path, tmp_path: Path) -> Path:
    """A copy of it with the other files that a study leaves."""
    folder = Path(shutil.copytree(refit, tmp_path / "run"))
    for name in ("predictions.parquet", "certified.parquet"):
        shutil.copyfile(folder / "validation.parquet", folder / name)
    files.write_json(folder / "metrics.json", {"clean": {}})
    files.write_arrays(folder / "panels.npz", {"image": [1.0]})
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_a_run_that_is_whole_is_left_alone(run: Path) -> None:
    before = names(run)
    mending.mend(run)
    assert names(run) == before


@pytest.mark.parametrize("gone", [("training.json",), ("training.json", "model.safetensors"), ("run.yaml",)])
def test_nothing_that_was_measured_of_weights_before_stays_beside_new_ones(
    run: Path, gone: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    told = ("report.html", "model_card.md", "model.onnx", "model.yaml", "evaluations/other-Test/metrics.json")
    for name in told:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    for name in gone:
        (run / name).unlink()
    mending.mend(run)
    assert [(run / "weights-before-1" / name).read_text() for name in told] == list(told)
    assert not names(run) & {name.partition("/")[0] for name in told}, "no page and no export tells of weights before"
    assert not names(run) & {*OF_WEIGHTS, "familiarity.safetensors", "training.json"}
    assert capsys.readouterr().err.count("trained again") == 1


def test_a_training_that_goes_on_keeps_what_it_has(run: Path) -> None:
    for name in (*OF_WEIGHTS, "familiarity.safetensors", "training.json", "model.safetensors"):
        (run / name).unlink()
    before = names(run)
    mending.mend(run)
    assert names(run) == before >= {"run.yaml", "history.csv", "films.parquet", "validated"}


@pytest.mark.parametrize("name", ["panels.npz", "familiarity.safetensors"])
def test_a_damaged_file_that_no_figure_is_made_from_is_made_again_alone(run: Path, name: str) -> None:
    before = names(run)
    (run / name).write_bytes((run / name).read_bytes()[:50])
    mending.mend(run)
    assert names(run) == before - {name}


def test_what_films_are_like_is_fitted_again_for_other_weights(run: Path, refit: Path) -> None:
    stored = (run / "familiarity.safetensors").read_bytes()
    assert familiarity.load(run) is not None
    about = files.checksum(run / "model.safetensors").encode()
    (run / "familiarity.safetensors").write_bytes(stored.replace(about, about[::-1]))
    mending.mend(run)
    assert "familiarity.safetensors" not in names(run)


def test_damaged_proofs_are_made_again_with_the_figures(run: Path) -> None:
    (run / "certified.parquet").write_bytes(b"")
    mending.mend(run)
    assert names(run) & set(OF_WEIGHTS) == {"validation.parquet", "predictions.parquet"}


def test_weights_that_validation_judged_are_trained_again_where_they_are_still_asked_for(
    run: Path, films: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    weights = run / folders.BEFORE_REFIT / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    before = names(run)
    mending.mend(run)
    assert names(run) == before, "validated and described: nothing asks for them"
    (run / "validation.parquet").unlink()
    mending.mend(run)
    assert names(run) == {"history.csv"}
    assert "validated" in capsys.readouterr().err
    whole = RunFolder(run)
    whole.train(recipe(epochs=1, refit=True), *films)
    whole.validate(films[1])


def test_a_training_cut_off_in_its_refit_trains_damaged_weights_of_validation_again(run: Path) -> None:
    for name in (*OF_WEIGHTS, "familiarity.safetensors", "training.json", "model.safetensors"):
        (run / name).unlink()
    (run / folders.BEFORE_REFIT / "model.safetensors").write_bytes(b"")
    (run / "run.yaml").write_text("")
    mending.mend(run)
    assert names(run) == {"history.csv", "films.parquet"}


def test_the_command_trains_a_run_again_that_lost_its_weights(
    films: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data, asked = tmp_path / "run", films[0].root, recipe(epochs=1)
    run_folder.train(asked, data, out)
    whole = (out / "model.safetensors").read_bytes()
    shutil.copyfile(out / "films.parquet", out / "predictions.parquet")
    (out / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(UserError, match="holds another run"):
        run_folder.train(recipe(epochs=2), data, out)
    capsys.readouterr()
    run_folder.train(asked, data, out)
    assert (out / "model.safetensors").read_bytes() == whole
    assert not (out / "predictions.parquet").exists()
    said = capsys.readouterr().err
    assert "model.safetensors: damaged or replaced" in said
    assert "already trained" not in said
    run_folder.train(asked, data, out)
    assert "already trained" in capsys.readouterr().err


def test_a_run_whose_recipe_cannot_be_read_is_not_trained_over(run: Path) -> None:
    (run / "run.yaml").write_text("")
    with pytest.raises(UserError, match=r"found nothing; restore it, or choose another --out"):
        RunFolder(run).refuse_another(recipe())
