"""Order of the batches, and augmentation against torchvision's."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from scipy import ndimage
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

from trustcxr.data import load_dataset, phantom
from trustcxr.data.dataset import JoinedDataset, read_sources
from trustcxr.data.loader import BatchRows, augment, loader, to_pixels
from trustcxr.errors import UserError
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.study_recipe import StudyRecipe
from trustcxr.recipes.training_recipe import Augment
from trustcxr.runs import preflight
from trustcxr.training.fit_run import fit

NOTHING: dict[str, float] = dict.fromkeys(("rotation", "shift", "scale", "brightness", "contrast", "flip"), 0.0)


class Pixels:
    """A data set of which image i is all of grey level i."""

    def __init__(self, labels: np.ndarray, size: int = 4) -> None:
        self.labels, self.size = np.asarray(labels), size

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: list[int]) -> np.ndarray:
        grey = np.asarray(rows, dtype=np.uint8)[:, None, None, None]
        return np.broadcast_to(grey, (len(rows), 1, self.size, self.size)).copy()


def order(sampler: BatchRows, epoch: int = 0) -> list[int]:
    sampler.set_epoch(epoch)
    return [row for batch in sampler for row in batch]


def test_without_shuffling_rows_come_in_order() -> None:
    batches = list(BatchRows(np.zeros(10), 4))
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    labels = np.zeros(50)
    first = order(BatchRows(labels, 8, shuffle=True, seed=3), 2)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    sampler = BatchRows(labels, 8, shuffle=True, seed=3)
    order(sampler, 0)
    order(sampler, 1)
    assert order(sampler, 2) == first, "epochs before this one must not matter: a resumed run is the same run"
    assert sorted(first) == list(range(50))
    assert order(BatchRows(labels, 8, shuffle=True, seed=3), 3) != first
    assert order(BatchRows(labels, 8, shuffle=True, seed=4), 2) != first
    # Neither do the batch size nor what is dropped: only where the order is cut.
    assert order(BatchRows(labels, 16, shuffle=True, seed=3), 2) == first
    assert order(BatchRows(labels, 16, shuffle=True, seed=3, drop_last=True), 2) == first[:48]


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


def test_a_column_to_balance_by_is_one_of_the_data_and_says_something(tmp_path: Path) -> None:
    phantom.write(tmp_path / "images", {"Train": 4, "Val": 4}, size=32, seed=0)
    radiographs, val = (load_dataset(tmp_path / "images", split=split, size=32) for split in ("Train", "Val"))
    assert read_sources(radiographs, "") is None
    both = [*radiographs.table["class"], *val.table["class"]]
    assert read_sources(JoinedDataset(radiographs, val), "class").tolist() == both  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"column \(training.balanced_by\) 'sourse': did you mean source\? valid"):
        read_sources(radiographs, "sourse")
    radiographs.table["source"] = [None] * len(radiographs)
    with pytest.raises(UserError, match=r"no image of Train has a value in column source. Leave out"):
        read_sources(radiographs, "source")


def test_training_draws_by_source_and_a_study_asks_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phantom.write(tmp_path / "images", {"Train": 4, "Val": 4, "Test": 4}, size=32, seed=0)
    train, val = (load_dataset(tmp_path / "images", split=split, size=32) for split in ("Train", "Val"))
    train.table["source"] = ["a", "b"] * 6
    training = {"epochs": 1, "batch_size": 6, "balanced": True, "balanced_by": "source"}
    recipe = {"model": {"name": "test_resnet", "weights": "none"}, "data": {"size": 32}, "training": training}
    seen: list[np.ndarray] = []
    usual = BatchRows.__init__
    monkeypatch.setattr(
        BatchRows, "__init__", lambda self, *a, **k: seen.append(k.get("sources")) or usual(self, *a, **k)
    )
    fit(RunRecipe.model_validate(recipe), train, val, tmp_path / "run")
    assert [one.tolist() for one in seen if one is not None] == [["a", "b"] * 6]
    wrong = RunRecipe.model_validate(recipe | {"training": training | {"balanced_by": "hospital"}})
    with pytest.raises(UserError, match=r"unknown column \(training.balanced_by\) 'hospital'"):
        fit(wrong, train, val, tmp_path / "refused")
    assert not (tmp_path / "refused" / "run.yaml").exists(), "the folder can be used for another"
    study = {"name": "by-source", "models": [recipe["model"]], "training": training | {"balanced_by": "hospital"}}
    with pytest.raises(UserError, match=r"unknown column \(training.balanced_by\) 'hospital'"):
        preflight.check_masks(StudyRecipe.model_validate(study), train)


@pytest.mark.parametrize(
    ("count", "size", "drop", "sizes"),
    [
        (10, 4, True, [4, 4]),
        (3, 4, True, [3]),  # a data set of one short batch is not dropped whole
        (1, 4, False, [1]),
        (5, 4, True, [4]),
    ],
)
def test_sizes_of_batches(count: int, size: int, drop: bool, sizes: list[int]) -> None:
    sampler = BatchRows(np.zeros(count), size, shuffle=True, drop_last=drop)
    assert [len(batch) for batch in sampler] == sizes
    assert len(sampler) == len(sizes)


def test_loader_gives_pixels_labels_and_rows() -> None:
    dataset: Any = Pixels(np.array([0, 1, 2, 1, 0, 2, 2]))
    batches = loader(dataset, 3, shuffle=True, seed=5)
    assert len(batches) == 3
    batches.sampler.set_epoch(4)
    seen = list(batches)
    rows = torch.cat([part[2] for part in seen]).tolist()
    assert rows == order(BatchRows(dataset.labels, 3, shuffle=True, seed=5), 4)
    for images, labels, chosen in seen:
        assert images.dtype == torch.uint8
        assert images.shape == (len(chosen), 1, 4, 4)
        assert torch.equal(images[:, 0, 0, 0].long(), chosen)
        assert labels.dtype == torch.long
        assert torch.equal(labels, torch.as_tensor(dataset.labels)[chosen])


def test_lightning_picks_the_epoch(tmp_path: Any) -> None:
    class Recorder(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.rows: list[list[int]] = []

        def on_train_epoch_start(self) -> None:
            self.rows.append([])

        def training_step(self, batch: Any, number: int) -> Tensor:
            self.rows[-1] += batch[2].tolist()
            return self.weight.sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    dataset: Any = Pixels(np.zeros(12, dtype=int))
    module = Recorder()
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler")
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", default_root_dir=tmp_path, **dict.fromkeys(off, False))
    trainer.fit(module, loader(dataset, 4, shuffle=True, seed=1))
    assert module.rows == [order(BatchRows(dataset.labels, 4, shuffle=True, seed=1), epoch) for epoch in range(3)]


def test_to_pixels_is_in_zero_to_one() -> None:
    raw = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    pixels = to_pixels(raw)
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, vision.convert_image_dtype(raw, torch.float32))
    assert int(raw.max()) == 255, "the raw images stay as they are"


@pytest.fixture
def radiographs() -> Tensor:
    """Smooth images, so that two ways of interpolating agree."""
    coarse = torch.rand((6, 1, 6, 6), generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, 48, mode="bicubic", align_corners=False).clamp(0, 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


def shifted_draw(seed: int, number: int, skip: int) -> Tensor:
    """The draws in [-1, 1] that augment makes after `skip` draws."""
    generator = seeded(seed)
    for _ in range(skip):
        torch.rand(number, generator=generator)
    return torch.rand(number, generator=generator) * 2 - 1


def test_shift_agrees_with_scipy(radiographs: Tensor) -> None:
    side = radiographs.shape[-1]
    moved = augment(radiographs, seeded(4), **NOTHING | {"shift": 0.1})
    across = 0.1 * side * shifted_draw(4, len(radiographs), 3)
    down = 0.1 * side * shifted_draw(4, len(radiographs), 4)
    for image, right, below, changed in zip(radiographs, across.tolist(), down.tolist(), moved, strict=True):
        exact = ndimage.shift(image[0].numpy(), (-below, -right), order=1)
        assert np.allclose(changed[0, 8:-8, 8:-8], exact[8:-8, 8:-8], atol=0.02), (right, below)


def test_rotation_and_scale_together_agree_with_torchvision(radiographs: Tensor) -> None:
    ours = augment(radiographs, seeded(4), **NOTHING | {"rotation": 30.0, "scale": 0.4})
    angles, zooms = 30 * shifted_draw(4, len(radiographs), 0), 1 + 0.4 * shifted_draw(4, len(radiographs), 1)
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
    assert torch.allclose(added[:, 0], 0.2 * shifted_draw(4, len(radiographs), 6), atol=1e-5)
    sharper = augment(middle, seeded(4), **NOTHING | {"contrast": 0.5})
    assert torch.allclose(sharper.mean((1, 2, 3)), middle.mean((1, 2, 3)), atol=1e-5)
    gain = 1 + 0.5 * shifted_draw(4, len(radiographs), 5)
    assert torch.allclose(sharper.std((1, 2, 3)), middle.std((1, 2, 3)) * gain, atol=1e-5)


def test_augment_recipe_has_the_same_defaults(radiographs: Tensor) -> None:
    options = SimpleNamespace(**Augment().model_dump())
    assert options.flip == 0
    assert torch.equal(augment(radiographs, seeded(), **vars(options)), augment(radiographs, seeded()))
