"""Order of the batches, and augmentation against torchvision's."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

from small_runs import MODEL, recipe
from trustcxr.data import load_dataset, phantom
from trustcxr.data.dataset import Dataset, JoinedDataset, read_sources
from trustcxr.data.loader import BatchRows, augment, loader, to_pixels
from trustcxr.errors import UserError
from trustcxr.recipes.study_recipe import StudyRecipe
from trustcxr.recipes.training_recipe import Augment
from trustcxr.runs import preflight
from trustcxr.training.fit_run import fit
from trustcxr.training.step import TrainingStep

NOTHING: dict[str, float] = dict.fromkeys(("rotation", "shift", "scale", "brightness", "contrast", "flip"), 0.0)


def order(sampler: BatchRows, epoch: int = 0) -> list[int]:
    sampler.set_epoch(epoch)
    return [row for batch in sampler for row in batch]


def test_without_shuffling_rows_come_in_order() -> None:
    batches = list(BatchRows(np.zeros(10), 4))
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def rows(size: int = 8, seed: int = 3, **options: Any) -> BatchRows:
        return BatchRows(np.zeros(50), size, shuffle=True, seed=seed, **options)

    first, sampler = order(rows(), 2), rows()
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    order(sampler, 0)
    order(sampler, 1)
    assert order(sampler, 2) == first, "epochs before this one must not matter: a resumed run is the same run"
    assert sorted(first) == list(range(50))
    assert first not in (order(rows(), 3), order(rows(seed=4), 2))
    # Neither do the batch size nor what is dropped: only where the order is cut.
    assert order(rows(16), 2) == first
    assert order(rows(16, drop_last=True), 2) == first[:48]


@pytest.mark.parametrize("shuffle", [False, True])
def test_balanced_draws_every_class_equally_often(shuffle: bool) -> None:
    labels = np.array([0] * 90 + [1] * 9 + [2] * 21)
    rows = order(BatchRows(labels, 16, shuffle=shuffle, balanced=True))
    assert len(rows) == 120
    assert np.bincount(labels[rows]).tolist() == [40, 40, 40]
    drawn = np.bincount(rows, minlength=120)
    assert drawn[:90].max() == 1
    assert set(drawn[90:99]) == {4, 5}, "every image of a rare class is drawn before any is drawn again"
    assert set(drawn[99:]) == {1, 2}
    assert np.bincount(labels[rows[:60]], minlength=3).min() > 10, "classes are mixed"
    assert rows != order(BatchRows(labels, 16, shuffle=shuffle, balanced=True), 1)
    alike = np.full(120, "one hospital")
    assert order(BatchRows(labels, 16, shuffle=shuffle, balanced=True, sources=alike)) == rows, "as without sources"


def test_balanced_by_source_draws_each_equally_often_within_its_class() -> None:
    labels = np.array([0] * 90 + [1] * 30)
    sources = np.array(["a"] * 80 + ["b"] * 6 + [""] * 4 + ["a"] * 3 + ["c"] * 27)
    rows = np.array(order(BatchRows(labels, 16, balanced=True, sources=sources, seed=1)))
    assert np.bincount(labels[rows]).tolist() == [60, 60]
    drawn = pd.Series(list(zip(labels[rows].tolist(), sources[rows], strict=True))).value_counts()
    assert drawn.to_dict() == {(0, "a"): 20, (0, "b"): 20, (0, ""): 20, (1, "a"): 30, (1, "c"): 30}
    often = np.bincount(rows, minlength=120)
    assert set(often[80:86]) == {3, 4}, "every image of a rare source is drawn before any is drawn again"


def test_no_source_is_left_out_for_good_where_there_are_many() -> None:
    labels, sources = np.array([0] * 90 + [1] * 30), np.array([f"patient {n:02}" for n in range(120)])
    rows = BatchRows(labels, 16, balanced=True, sources=sources)
    often = np.sum([np.bincount(order(rows, epoch), minlength=120) for epoch in range(50)], axis=0)
    assert often[:90].min() > 20, "60 of 90 are drawn in each epoch"
    assert often[:90].max() < 47


@pytest.fixture
def splits(tmp_path: Path) -> tuple[Dataset, Dataset]:
    """Synthetic images to train on and to validate, 12 each."""
    phantom.write(tmp_path / "images", {"Train": 4, "Val": 4}, size=32, seed=0)
    train, val = (load_dataset(tmp_path / "images", split=split, size=32) for split in ("Train", "Val"))
    return train, val


def test_a_column_to_balance_by_is_one_of_the_data_and_says_something(splits: tuple[Dataset, Dataset]) -> None:
    train, val = splits
    assert read_sources(train, "") is None
    both = [*train.table["class"], *val.table["class"]]
    assert read_sources(JoinedDataset(train, val), "class").tolist() == both  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"column \(training.balanced_by\) 'sourse': did you mean source\? valid"):
        read_sources(train, "sourse")
    train.table["source"] = [None] * len(train)
    with pytest.raises(UserError, match=r"no image of Train has a value in column source. Leave out"):
        read_sources(train, "source")


def test_training_draws_by_source_and_a_study_asks_first(
    splits: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits[0].table["source"] = ["a", "b"] * 6
    by_source = {"epochs": 1, "batch_size": 6, "balanced": True, "balanced_by": "source"}
    seen: list[Any] = []
    usual = BatchRows.__init__
    monkeypatch.setattr(BatchRows, "__init__", lambda *a, **k: seen.append(k.get("sources")) or usual(*a, **k))
    fit(recipe(**by_source), *splits, tmp_path / "run")
    assert [one.tolist() for one in seen if one is not None] == [["a", "b"] * 6]
    unknown = by_source | {"balanced_by": "hospital"}
    with pytest.raises(UserError, match=r"unknown column \(training.balanced_by\) 'hospital'"):
        fit(recipe(**unknown), *splits, tmp_path / "refused")
    assert not (tmp_path / "refused" / "run.yaml").exists(), "the folder can be used for another"
    study = {"name": "by-source", "models": [{"name": MODEL, "weights": "none"}], "training": unknown}
    with pytest.raises(UserError, match=r"unknown column \(training.balanced_by\) 'hospital'"):
        preflight.check_masks(StudyRecipe.model_validate(study), splits[0])


@pytest.mark.parametrize(
    ("count", "drop", "sizes"),
    [(10, True, [4, 4]), (3, True, [3]), (1, False, [1]), (5, True, [4])],
    ids=["the rest dropped", "one short batch is not dropped whole", "one image", "one more than a batch"],
)
def test_sizes_of_batches(count: int, drop: bool, sizes: list[int]) -> None:
    sampler = BatchRows(np.zeros(count), 4, shuffle=True, drop_last=drop)
    assert [len(batch) for batch in sampler] == sizes
    assert len(sampler) == len(sizes)


def test_each_batch_comes_so_many_times_in_a_row() -> None:
    once = list(BatchRows(np.zeros(10), 4, shuffle=True, seed=3))
    thrice = BatchRows(np.zeros(10), 4, shuffle=True, seed=3, repeats=3)
    assert len(thrice) == 9
    assert list(thrice) == [rows for rows in once for _ in range(3)]
    whole = BatchRows(np.zeros(10), 4, repeats=3, drop_last=True)
    assert len(whole) == len(list(whole)) == 6


def test_loader_gives_pixels_labels_and_rows(splits: tuple[Dataset, Dataset]) -> None:
    train, _ = splits
    batches = loader(train, 5, shuffle=True, seed=5)
    assert len(batches) == 3
    batches.sampler.set_epoch(4)
    seen = list(batches)
    rows = torch.cat([part[2] for part in seen]).tolist()
    assert rows == order(BatchRows(train.labels, 5, shuffle=True, seed=5), 4)
    for images, labels, chosen in seen:
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.long)
        assert torch.equal(images, torch.from_numpy(train.batch(chosen.tolist())))
        assert torch.equal(labels, torch.as_tensor(train.labels)[chosen])


def test_training_picks_the_epoch(
    splits: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    real = TrainingStep.training_step
    monkeypatch.setattr(TrainingStep, "training_step", lambda *a: rows.extend(a[1][2].tolist()) or real(*a))
    fit(recipe(epochs=3, batch_size=4, seed=1), *splits, tmp_path / "run")
    sampler = BatchRows(splits[0].labels, 4, shuffle=True, seed=1)
    assert rows == [row for epoch in range(3) for row in order(sampler, epoch)]


def test_to_pixels_is_in_zero_to_one() -> None:
    raw = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    pixels = to_pixels(raw)
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, vision.convert_image_dtype(raw, torch.float32))
    assert int(raw.max()) == 255, "the raw images stay as they are"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def radiographs() -> Tensor:
    """Smooth images, so that two ways of interpolating agree."""
    coarse = torch.rand((6, 1, 6, 6), generator=seeded())
    return torch.nn.functional.interpolate(coarse, 48, mode="bicubic", align_corners=False).clamp(0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_dtype_and_range_are_kept(radiographs: Tensor, dtype: torch.dtype) -> None:
    before = radiographs.to(dtype, copy=True)
    images = before.clone()
    changed = augment(images, seeded(), rotation=45, shift=0.3, scale=0.5, brightness=0.5, contrast=0.9, flip=0.5)
    assert (changed.shape, changed.dtype) == (images.shape, dtype)
    assert 0 <= float(changed.min()) < float(changed.max()) <= 1
    assert torch.equal(images, before)


def on_the_right(images: Tensor) -> Tensor:
    """Share of the bright pixels that lie in the right half of the picture: (B,)."""
    bright = (images > images.amax((1, 2, 3), keepdim=True) / 2 + images.amin((1, 2, 3), keepdim=True) / 2).float()
    return bright[..., images.shape[-1] // 2 :].sum((1, 2, 3)) / bright.sum((1, 2, 3))


def test_defaults_change_every_image_and_mirror_none() -> None:
    """A heart on the left stays on the left: no flips unless asked for."""
    images = torch.zeros(200, 1, 32, 32)
    images[:, :, 12:20, 20:28] = 1
    changed = augment(images, seeded())
    assert float(on_the_right(changed).min()) > 0.9
    assert bool(((changed - images).abs().amax((1, 2, 3)) > 0.01).all())
    mirrored = augment(images, seeded(), flip=0.5)
    assert 0.35 < float((on_the_right(mirrored) < 0.5).float().mean()) < 0.65


def test_flip_mirrors_left_to_right(radiographs: Tensor) -> None:
    assert torch.allclose(augment(radiographs, seeded(), **NOTHING | {"flip": 1.0}), radiographs.flip(-1), atol=1e-5)


def test_generator_decides(radiographs: Tensor) -> None:
    torch.manual_seed(0)
    first = augment(radiographs, seeded(1))
    torch.manual_seed(9)
    assert torch.equal(first, augment(radiographs, seeded(1)))
    assert not torch.equal(first, augment(radiographs, seeded(2)))
    assert not torch.allclose(first[0] - radiographs[0], first[1] - radiographs[1]), "each image has draws of its own"


def drawn(skip: int) -> Tensor:
    """The draws in [-1, 1] that augment makes of `seeded(4)` for six images, after `skip` draws."""
    return torch.rand((skip + 1, 6), generator=seeded(4))[skip] * 2 - 1


def test_shift_agrees_with_scipy(radiographs: Tensor) -> None:
    moved = augment(radiographs, seeded(4), **NOTHING | {"shift": 0.1})
    across, down = (0.1 * radiographs.shape[-1] * drawn(skip) for skip in (3, 4))
    for image, right, below, changed in zip(radiographs, across.tolist(), down.tolist(), moved, strict=True):
        exact = ndimage.shift(image[0].numpy(), (-below, -right), order=1)
        assert np.allclose(changed[0, 8:-8, 8:-8], exact[8:-8, 8:-8], atol=0.02), (right, below)


def test_rotation_and_scale_together_agree_with_torchvision(radiographs: Tensor) -> None:
    ours = augment(radiographs, seeded(4), **NOTHING | {"rotation": 30.0, "scale": 0.4})
    angles, zooms = 30 * drawn(0), 1 + 0.4 * drawn(1)
    for image, angle, zoom, changed in zip(radiographs, angles.tolist(), zooms.tolist(), ours, strict=True):
        theirs = vision.affine(image, -angle, [0, 0], zoom, [0.0], InterpolationMode.BILINEAR)
        assert torch.allclose(changed[:, 16:-16, 16:-16], theirs[:, 16:-16, 16:-16], atol=0.02), (angle, zoom)


def test_what_comes_in_from_outside_is_black() -> None:
    white = torch.ones(64, 1, 32, 32)
    moved = augment(white, seeded(), **NOTHING | {"shift": 0.3})
    assert float(moved.amin((1, 2, 3)).median()) == 0
    assert float(moved.mean()) < 0.95


def test_brightness_adds_and_contrast_keeps_the_mean(radiographs: Tensor) -> None:
    middle = radiographs * 0.3 + 0.35  # far from black and white, so that nothing is clamped
    brighter = augment(middle, seeded(4), **NOTHING | {"brightness": 0.2})
    added = (brighter - middle).flatten(1)
    assert torch.allclose(added, added[:, :1].expand_as(added), atol=1e-5)
    assert torch.allclose(added[:, 0], 0.2 * drawn(6), atol=1e-5)
    sharper = augment(middle, seeded(4), **NOTHING | {"contrast": 0.5})
    assert torch.allclose(sharper.mean((1, 2, 3)), middle.mean((1, 2, 3)), atol=1e-5)
    assert torch.allclose(sharper.std((1, 2, 3)), middle.std((1, 2, 3)) * (1 + 0.5 * drawn(5)), atol=1e-5)


def test_augment_recipe_has_the_same_defaults(radiographs: Tensor) -> None:
    options = Augment().model_dump()
    assert options["flip"] == 0
    assert torch.equal(augment(radiographs, seeded(), **options), augment(radiographs, seeded()))
