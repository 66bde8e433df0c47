"""Several data sets in one training: their shares, their masks, and no image that another one validates or tests on."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from small_runs import PowerCut, cut_at, recipe, same, weights
from trustcxr.data import load_dataset, phantom
from trustcxr.data.dataset import Dataset, JoinedDataset
from trustcxr.data.loader import BatchRows, loader
from trustcxr.errors import UserError
from trustcxr.explain import ood
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.study_recipe import StudyRecipe
from trustcxr.report import methods_text
from trustcxr.runs import run_folder, training_data
from trustcxr.runs.training_data import add_data, check_added
from trustcxr.storage import atomic
from trustcxr.storage.schemas import StudyDocument
from trustcxr.study.cost import count_images
from trustcxr.study.run_study import StudyFolder
from trustcxr.training import fit_run

LABELS = np.array([0] * 40 + [1] * 20 + [0] * 100 + [2] * 8)
COUNTS = {"Train": {"COVID-19": 6, "Normal": 6}}
NUMBERS = np.array([0] * 60 + [1] * 108)


def drawn(epoch: int = 0, **options: Any) -> np.ndarray:
    rows = BatchRows(LABELS, 16, balanced=True, **options)
    rows.set_epoch(epoch)
    return np.array([row for batch in rows for row in batch])


def with_added(*added: dict[str, Any], **training: Any) -> RunRecipe:
    base = recipe(balanced=True, **training).model_dump()
    return validate(RunRecipe, base | {"data": {"size": 32, "add": list(added)}}, "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first data set with masks, and one of other images of another size without masks and without Normal."""
    base = tmp_path_factory.mktemp("added")
    phantom.write(base / "first", {"Train": 6, "Val": 4, "Test": 4}, size=64, seed=0)
    drawn_images = phantom.write(base / "drawn", {"Train": 8}, size=96, seed=5)
    for name in ("COVID-19", "Non-COVID"):
        (base / "more" / "Train" / name).mkdir(parents=True)
        for number, file in enumerate(sorted(drawn_images.rglob(f"Train/{name}/images/*.png"))[:8]):
            shutil.copy(file, base / "more" / "Train" / name / f"other-{number}.png")
    return base


def load(folder: Path, split: str = "Train") -> Dataset:
    return load_dataset(folder / "first", split, 32)


def more(share: float = 0.25, **keys: Any) -> RunRecipe:
    return with_added({"path": "more", "share": share}, **keys)


@pytest.fixture
def joined(folder: Path) -> JoinedDataset:
    both = add_data(load(folder), more().data)
    assert isinstance(both, JoinedDataset)
    return both


def test_each_data_set_has_its_share_of_each_class() -> None:
    shares = {"numbers": NUMBERS, "shares": (0.75, 0.25)}
    rows = drawn(**shares)
    assert np.bincount(LABELS[rows]).tolist() == [56, 56, 56]
    counts = {(k, n): int(((LABELS[rows] == k) & (NUMBERS[rows] == n)).sum()) for k in range(3) for n in range(2)}
    assert counts == {(0, 0): 42, (0, 1): 14, (1, 0): 56, (1, 1): 0, (2, 0): 0, (2, 1): 56}
    often = np.bincount(rows, minlength=len(LABELS))
    assert set(often[:40]) == {1, 2}, "each image once before any is drawn again"
    assert rows.tolist() != drawn(1, **shares).tolist()
    sources = np.array(["a"] * 60 + ["b", "c", "c", "c"] * 27)
    rows = drawn(**shares, sources=sources)
    added = rows[(LABELS[rows] == 0) & (NUMBERS[rows] == 1)]
    assert np.unique(sources[added], return_counts=True)[1].tolist() == [7, 7], "and of its share each source as much"
    alone = np.zeros(len(LABELS), dtype=int)
    assert drawn(numbers=alone, shares=(1.0,)).tolist() == drawn().tolist()
    tiny = drawn(numbers=NUMBERS, shares=(0.999, 0.001))
    assert len(tiny) == len(LABELS)
    assert not ((LABELS[tiny] == 0) & (NUMBERS[tiny] == 1)).any(), "a share below half an image draws none"


def test_images_are_joined_at_one_size_and_have_no_masks(folder: Path, joined: JoinedDataset) -> None:
    first = load(folder)
    assert (len(first), len(joined), joined.images.shape[1:]) == (18, 34, (1, 32, 32))
    assert joined.split == "Train+more/Train"
    assert joined.sample_ids[18] == "more/Train/COVID-19/other-0.png"
    for rows in ([33, 0, 18, 17, 33], [1]):
        assert np.array_equal(joined.batch(rows), joined.images[rows])
    assert np.array_equal(joined.images[:18], first.images)
    assert joined.fingerprints() == first.fingerprints(), "by which test images are recognised"
    assert joined.has_mask("lung").tolist() == [True] * 18 + [False] * 16
    assert not joined.masks("infection")[18:].any()
    assert joined.masks("lung")[:18].any(axis=(1, 2)).all()
    refit = JoinedDataset(joined, val := load(folder, "Val"))
    assert (refit.split, refit.shares) == ("Train+more/Train+Val", (0.75, 0.25))
    assert refit.numbers.tolist() == [0] * 18 + [1] * 16 + [0] * 12
    assert refit.labels.tolist() == [*joined.labels, *val.labels]
    assert np.array_equal(refit.images, np.concatenate([joined.images, val.images]))
    assert np.array_equal(refit.masks("lung"), np.concatenate([joined.masks("lung"), val.masks("lung")]))
    batches = loader(joined, 4, shuffle=True, balanced=True)
    assert np.bincount(joined.numbers[np.concatenate([batch[2] for batch in batches])]).tolist() == [29, 5]


def test_parts_of_a_batch_are_those_of_one_process(joined: JoinedDataset) -> None:
    options = {"balanced": True, "seed": 3, "numbers": joined.numbers, "shares": joined.shares}
    whole = list(BatchRows(joined.labels, 8, **options))
    parts = [list(BatchRows(joined.labels, 8, part=(k, 2), **options)) for k in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_shares_need_balanced_classes_and_a_rest() -> None:
    for wrong, message in (
        ([{"path": "more", "share": 1.0}], r"key 'data.add.0.share': expected a number less than 1"),
        ([{"path": "more"}], r"key 'data.add.0.share': Field required"),
        ([{"path": "more", "share": 0.1, "weight": 2}], r"unknown key 'data.add.0.weight'"),
        ([{"path": name, "share": 0.55} for name in "ab"], r"shares are together 1.1, so the first data set has none"),
    ):
        with pytest.raises(UserError, match=message):
            with_added(*wrong)
    unbalanced = {"model": {"name": "resnet18"}, "data": {"add": [{"path": "a", "share": 0.5}]}}
    with pytest.raises(UserError, match=r"data.add: a has a share of each class, .* set training.balanced: true"):
        validate(RunRecipe, unbalanced, "test")


def test_a_data_set_that_cannot_be_added_is_refused(folder: Path) -> None:
    for added, message in (
        ({"path": "nowhere", "share": 0.1}, "nowhere: no such file or folder"),
        ({"path": "first", "share": 0.1}, "data.add: first is a data set of this training already. Leave it out"),
        ({"path": "more", "share": 0.1, "leave_out": ["x.png"]}, "data.add: more has no sample x.png. Correct"),
        ({"path": "more", "share": 0.1, "labels": {"COVID-19": "Flu", "Non-COVID": None}}, "Flu not among them"),
    ):
        with pytest.raises(UserError, match=message):
            add_data(load(folder), with_added(added).data)
    assert add_data(train := load(folder), with_added().data) is train


@pytest.mark.parametrize("split", ["Val", "Test"])
def test_an_image_that_another_data_set_holds_out_is_refused(split: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "more", tmp_path / "more")
    held = sorted((folder / "first").rglob(f"{split}/COVID-19/images/*.png"))[1]
    moved = np.roll(np.asarray(Image.open(held).convert("L")), 1, axis=1)
    (tmp_path / "more" / "Train" / "Normal").mkdir()
    Image.fromarray(moved).resize((80, 80)).save(tmp_path / "more" / "Train" / "Normal" / "moved.png")
    added = {"path": str(tmp_path / "more"), "share": 0.1}
    said = r"more: holds 1 image to train on .* leave_out: \[Train/Normal/moved.png\]"
    with pytest.raises(UserError, match=said) as refused:
        run_folder.train(with_added(added), folder / "first", tmp_path / "run")
    assert f"{split}/COVID-19/{held.name}" in str(refused.value)
    assert not (tmp_path / "run" / "run.yaml").exists(), "the folder can be used for another"
    clean = with_added(added | {"leave_out": ["Train/Normal/moved.png"]}).data
    check_added(add_data(load(folder), clean), clean, refit=False)


def test_an_image_of_the_first_that_the_added_one_holds_out_is_refused(folder: Path, tmp_path: Path) -> None:
    for split, name in (("Train", "own"), ("Val", "chosen")):
        source = sorted((folder / "first").rglob(f"{split}/COVID-19/images/*.png"))[0]
        (tmp_path / name / "Test" / "COVID-19").mkdir(parents=True)
        shutil.copytree(folder / "more" / "Train", tmp_path / name / "Train")
        shutil.copy(source, tmp_path / name / "Test" / "COVID-19" / "copy.png")
    own, chosen = (with_added({"path": str(tmp_path / name), "share": 0.1}).data for name in ("own", "chosen"))
    said = r"first: holds 1 image to train on that .*"
    with pytest.raises(UserError, match=rf"{said}own validates .*Test/COVID-19/copy.png"):
        check_added(add_data(load(folder), own), own, refit=False)
    images = add_data(load(folder), chosen)
    check_added(images, chosen, refit=False)
    with pytest.raises(UserError, match=rf"{said}chosen validates"):
        check_added(images, chosen, refit=True)


@pytest.mark.slow
@pytest.mark.parametrize("refit", [False, True])
def test_two_data_sets_resume_alike(refit: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"epochs": 2, "batch_size": 8, "refit": refit}
    whole, first = tmp_path / "whole", folder / "first"
    run_folder.train(more(**options), first, whole)
    with monkeypatch.context() as patch:
        cut_at(patch, 6)
        with pytest.raises(PowerCut):
            run_folder.train(more(**options), first, tmp_path / "cut")
    run_folder.train(more(**options), first, tmp_path / "cut")
    assert same(weights(whole), weights(tmp_path / "cut"))
    run_folder.train(more(0.5, **options), first, tmp_path / "other")
    assert not same(weights(whole), weights(tmp_path / "other")), "the share matters"
    described = atomic.read_yaml(whole / "run.yaml")["data"]
    split = "Train+more/Train" + "+Val" * refit
    assert (described["root_name"], described["split"], described["images"]) == ("first", split, 34 + 12 * refit)
    assert described["shares"] == [0.75, 0.25]
    assert described["fingerprints"] == load(folder).fingerprints()
    listed = atomic.read_table(whole / "training_images.parquet")["sample_id"].tolist()
    assert sum(name.startswith("more/") for name in listed) == 16
    with pytest.raises(UserError, match="holds another run"):
        run_folder.train(recipe(balanced=True, **options), first, whole)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(first, elsewhere / "first")
    shutil.copytree(folder / "more", elsewhere / "moved")
    moved = with_added({"path": "moved", "share": 0.25}, **options)
    run_folder.train(moved, elsewhere / "first", whole)
    assert same(weights(whole), weights(tmp_path / "cut")), "trained already, from other paths"
    next((elsewhere / "moved").rglob("*.png")).unlink()
    with pytest.raises(UserError, match="was trained on other images or classes"):
        run_folder.train(moved, elsewhere / "first", whole)


def test_the_runs_of_a_study_compare_the_same_images_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(training_data, "check_overlap", lambda *given: calls.append(given))
    monkeypatch.setattr(training_data, "_COMPARED", set())
    data = more().data
    for refit in (False, False, True):
        check_added(add_data(load(folder), data), data, refit=refit)
    assert len(calls) == 2


def test_images_without_masks_are_counted_and_not_guided(folder: Path, joined: JoinedDataset) -> None:
    masked = more(counterfactuals={"share": 0.5})
    lungs, without = fit_run._lungs(joined, masked)
    assert lungs is not None
    assert (lungs.shape, without) == ((34, 32, 32), 16)
    lesions = fit_run._lesions(joined, masked)
    assert lesions is not None
    assert lesions.any(axis=(1, 2)).tolist() == [*load(folder).masks("infection").any(axis=(1, 2)), *[False] * 16]


def test_a_study_counts_and_loads_the_images_of_both(folder: Path, joined: JoinedDataset, tmp_path: Path) -> None:
    study = {"name": "two", "models": ["test_resnet"], "training": {"balanced": True}}
    study |= {"data": {"size": 32, "add": [{"path": "more", "share": 0.25}]}}
    counts = count_images(StudyRecipe.model_validate(study), folder / "first")
    assert counts["train"] == 34
    assert sum(len(batch) for batch in ood.batches(joined)) == 34
    text = methods_text.write_methods(StudyDocument(recipe=study, data={"root_name": "first", "counts": COUNTS}), [])
    assert "also trained on images of more (25% of each class)" in text["Data"]
    atomic.write_yaml(tmp_path / "study.yaml", {"recipe": study})
    atomic.write_yaml(tmp_path / "data.yaml", {"path": str(folder / "first")})
    images = StudyFolder.load(tmp_path).images("train")
    assert images.fingerprint == load(folder).fingerprint
