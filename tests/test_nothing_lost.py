"""A training that is cut off, or whose files are damaged, loses nothing in silence."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pack import Pack
from small_runs import PowerCut, cut_at, made_up, recipe, same, weights
from trustcxr.data import load_dataset
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import load_run
from trustcxr.storage import atomic, locks
from trustcxr.training import checkpoint, fit_run


@pytest.fixture(scope="module")
def images(pack: Pack) -> tuple[Any, Any]:
    return pack.training_images()


@pytest.fixture(scope="module")
def made(pack: Pack) -> Path:
    return pack.run("standard")


@pytest.fixture
def trained(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(images: tuple[Any, Any], folder: Path, **options: Any) -> None:
    """Train and be cut off in the second epoch."""
    with pytest.MonkeyPatch.context() as patch:
        cut_at(patch, 4)
        with pytest.raises(PowerCut):
            fit_run.fit(recipe(**options), *images, folder)


def test_a_checkpoint_cut_off_while_it_is_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint" / "last.ckpt"
    io = checkpoint.WholeCheckpoints()
    io.save_checkpoint({"epoch": 0}, path)

    class Cut:
        def __reduce__(self) -> Any:
            raise PowerCut

    with pytest.raises(PowerCut):
        io.save_checkpoint({"large": torch.zeros(1000), "then": Cut()}, path)
    assert checkpoint.load_checkpoint(tmp_path) == {"epoch": 0}
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_never_passes_through_the_temporary_folder(
    images: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    def never(*_: object, **__: object) -> None:
        raise AssertionError("written elsewhere first")

    for name in ("mkstemp", "NamedTemporaryFile", "mkdtemp"):
        monkeypatch.setattr(tempfile, name, never)
    cut(images, tmp_path)
    assert checkpoint.load_checkpoint(tmp_path) is not None


@pytest.mark.parametrize("name", ["last.ckpt", "best.safetensors"])
def test_one_flipped_bit_in_a_checkpoint_is_said_and_training_starts_anew(
    name: str, images: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    accuracies = [(0.9,), (0.5,)]
    made_up(monkeypatch, accuracies)
    fit_run.fit(recipe(), *images, tmp_path / "whole")
    made_up(monkeypatch, accuracies)
    cut(images, tmp_path / "parts")
    flip(tmp_path / "parts" / "checkpoint" / name)
    if name == "best.safetensors":
        made_up(monkeypatch, accuracies[1:])
        with pytest.raises(UserError, match=r"best\.safetensors: damaged.*the same command trains them anew"):
            fit_run.fit(recipe(), *images, tmp_path / "parts")
    made_up(monkeypatch, accuracies)
    fit_run.fit(recipe(), *images, tmp_path / "parts")
    if name == "last.ckpt":
        assert "training starts again" in capsys.readouterr().err
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_cut_off_between_an_epochs_two_files_the_best_weights_before_are_still_there(
    images: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second epoch is better, and its checkpoint is not written; trained again, with other bits, it is worse."""
    saved: list[int] = []
    save = checkpoint.WholeCheckpoints.save_checkpoint

    def once(self: Any, content: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        saved.append(1)
        if len(saved) == 2:
            raise PowerCut
        save(self, content, path, storage_options)

    made_up(monkeypatch, [(0.5,), (0.9,)])
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.WholeCheckpoints, "save_checkpoint", once)
        with pytest.raises(PowerCut):
            fit_run.fit(recipe(), *images, tmp_path / "parts")
    kept = tmp_path / "parts" / "checkpoint"
    first, later = load_file(kept / checkpoint.BEST), load_file(kept / checkpoint.NEXT)
    assert not same(first, later)
    made_up(monkeypatch, [(0.4,)])
    again = fit_run.fit(recipe(), *images, tmp_path / "parts")
    assert (again.best_epoch, again.best_value, again.epochs) == (0, 0.5, 2)
    assert same(first, weights(tmp_path / "parts"))


def test_a_checkpoint_that_cannot_be_read_for_now_is_left(
    images: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(images, tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()}
    no_room = RuntimeError("unable to mmap 160 bytes from file <last.ckpt>: Cannot allocate memory (12)")
    for problem, why in (
        (OSError(116, "Stale file handle"), "Stale file handle"),
        (MemoryError(), "out of memory"),
        (no_room, "out of memory"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.torch, "load", lambda *_, p=problem, **__: (_ for _ in ()).throw(p))
            with pytest.raises(UserError, match=rf"cannot be read now \({why}\)"):
                checkpoint.load_checkpoint(tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()} == before
    with monkeypatch.context() as patch:  # as a place in a damaged file may be that is in none
        patch.setattr(checkpoint.torch, "load", lambda *_, **__: (_ for _ in ()).throw(OSError(22, "Invalid argument")))
        assert checkpoint.load_checkpoint(tmp_path) is None
    assert not (tmp_path / "checkpoint").exists()


def test_killed_after_its_early_stop_a_run_does_not_train_on(
    images: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = [(0.5,), (0.4,), (0.4,), (0.9,), (0.9,)]
    made_up(monkeypatch, accuracies)
    whole = fit_run.fit(recipe(epochs=5, patience=2), *images, tmp_path / "whole")
    assert (whole.stopped, whole.epochs) == ("early", 3)
    made_up(monkeypatch, accuracies)
    with monkeypatch.context() as patch:
        patch.setattr(fit_run, "_finish", lambda *_: (_ for _ in ()).throw(PowerCut))
        with pytest.raises(PowerCut):
            fit_run.fit(recipe(epochs=5, patience=2), *images, tmp_path / "parts")
    made_up(monkeypatch, accuracies[3:])
    again = fit_run.fit(recipe(epochs=5, patience=2), *images, tmp_path / "parts")
    assert again.plain() | {"seconds": 0} == whole.plain() | {"seconds": 0}
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_what_a_killed_evaluation_of_other_images_left_is_swept(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("evaluations/images", "report-tables", "checkpoint", ".")]
    left = [place / ".predictions.999999999.parquet" for place in places]
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    with locks.folder_lock(tmp_path):
        pass
    assert not [file for file in left if file.exists()]


def test_a_training_does_not_go_on_with_other_images_of_the_same_name(images: tuple[Any, Any], tmp_path: Path) -> None:
    cut(images, tmp_path / "run")
    root = Path(shutil.copytree(images[0].root, tmp_path / "phantom"))
    Image.new("L", (32, 32), 90).save(root / images[0].table["path"][3])
    others = [load_dataset(root, split=split, size=32) for split in ("Train", "Val")]
    with pytest.raises(UserError, match=r"was trained on other images.*Choose another --out"):
        fit_run.fit(recipe(), others[0], others[1], tmp_path / "run")
    copy = Path(shutil.copytree(images[0].root, tmp_path / "copy" / "renamed"))
    moved = [load_dataset(copy, split=split, size=32) for split in ("Train", "Val")]
    assert fit_run.fit(recipe(), moved[0], moved[1], tmp_path / "run").epochs == 2, "the same images, elsewhere"


def test_weights_with_one_bit_changed_are_refused(trained: Path) -> None:
    flip(trained / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: damaged or replaced") as caught:
        load_run(trained)
    assert "\n" not in str(caught.value)


def test_classes_in_another_order_are_refused(trained: Path) -> None:
    content = atomic.read_yaml(trained / "run.yaml")
    atomic.write_yaml(trained / "run.yaml", content | {"classes": content["classes"][::-1]})
    with pytest.raises(UserError, match="in another order"):
        load_run(trained)


@pytest.mark.parametrize("left", [{}, {"checksums": None}])
def test_a_run_that_lost_its_checksums_is_refused(left: dict[str, None], trained: Path) -> None:
    content = atomic.read_yaml(trained / "run.yaml")
    del content["checksums"]
    atomic.write_yaml(trained / "run.yaml", content | left)
    with pytest.raises(UserError, match=r"run\.yaml: cut off"):
        load_run(trained)


def test_a_folder_of_what_was_refused_is_not_left_behind(tmp_path: Path) -> None:
    def refused(folder: Path, *, begun: bool = False) -> None:
        with locks.folder_lock(folder):
            if begun:
                (folder / "history.csv").write_text("epoch\n")
            raise UserError("refused")

    with pytest.raises(UserError, match="refused"):
        refused(tmp_path / "new")
    assert not list(tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    for name, begun in (("there", False), ("begun", True)):
        with pytest.raises(UserError, match="refused"):
            refused(tmp_path / name, begun=begun)
    assert (tmp_path / "there").is_dir()
    assert (tmp_path / "begun" / "history.csv").is_file()
