"""The pixel store: right pixels, never stale, survives being cut off, shared, and starved of disk."""

import errno
import itertools
import os
import pickle
import shutil
import signal
import subprocess
import sys
import zlib
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from small_runs import flip
from trustcxr.data import Dataset, load_dataset, read_image, read_manifest, read_mask
from trustcxr.data import cache as store
from trustcxr.errors import UserError
from trustcxr.runs.test_data import report_skipped
from trustcxr.study.run_study import describe_data

ROLES = {"train": "Train", "test": "Test"}


@pytest.fixture
def radiographs(tmp_path: Path) -> Path:
    """12 images of two classes and two splits, with lung masks for one class."""
    rng, root = np.random.default_rng(0), tmp_path / "images"
    for split, name, i in itertools.product(("Test", "Train"), "ab", range(3)):
        save(rng.integers(0, 255, (40, 30), dtype=np.uint8), root / split / name / f"{i}.png")
        if name == "a":
            save((rng.random((40, 30)) > 0.5) * np.uint8(255), root / split / "masks/lung/a" / f"{i}.png")
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def save(pixels: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def train(radiographs: Path, cache: Path, size: int = 32, **options: Any) -> Dataset:
    return load_dataset(radiographs, "Train", size, cache=cache, **options)


def test_pixels_and_masks_are_those_of_the_files(radiographs: Path, cache: Path) -> None:
    data = train(radiographs, cache)
    assert data.images.shape == (6, 1, 32, 32)
    assert isinstance(data.images, np.memmap)
    assert data.images.dtype == np.uint8
    for i, row in data.table.iterrows():
        with Image.open(radiographs / row["path"]) as image:
            expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
        assert np.array_equal(data.images[i, 0], expected)
    assert data.has_mask("lung").tolist() == [True] * 3 + [False] * 3
    assert set(np.unique(data.masks("lung"))) == {0, 1}
    with Image.open(radiographs / data.table["lung_mask"][0]) as mask:
        expected = np.asarray(mask.resize((32, 32), Image.Resampling.NEAREST)) > 127
    assert np.array_equal(data.masks("lung")[0], expected)
    assert not data.masks("lung")[3:].any()
    with pytest.raises(UserError, match="unknown kind of mask 'longs': did you mean lung"):
        data.masks("longs")
    assert not data.masks("infection").any()
    assert not data.has_mask("infection").any()
    # A batch is what the map holds, and a pickle is small.
    assert np.array_equal(data.batch([5, 0]), data.images[[5, 0]])
    with pytest.raises(IndexError):
        data.batch([6])
    copy = pickle.loads(pickle.dumps(data))
    assert np.array_equal(copy.images, data.images)
    assert len(pickle.dumps(data)) < data.images.nbytes


def test_aspect_ratio_is_squeezed_padded_or_cropped(radiographs: Path, cache: Path) -> None:
    squeezed = train(radiographs, cache, 40)
    padded, cropped = (train(radiographs, cache, n, resize=how) for n, how in ((40, "pad"), (30, "crop")))
    image, file = read_image(radiographs / padded.table["path"][0]), radiographs / padded.table["lung_mask"][0]
    assert image.shape == (40, 30)
    assert squeezed.images[:, :, :, :5].max() > 0
    assert padded.images[:, :, :, :5].max() == 0
    assert np.array_equal(padded.images[0, 0, :, 5:35], image)
    assert np.array_equal(padded.masks("lung")[0, :, 5:35], read_mask(file))
    assert cropped.resize == "crop"
    assert np.array_equal(cropped.images[0, 0], image[5:35])
    assert np.array_equal(cropped.masks("lung")[0], read_mask(file)[5:35])
    Image.open(file).resize((40, 40), Image.Resampling.NEAREST).save(file)  # of the same field, itself a square
    for before in (padded, cropped):
        again = train(radiographs, cache, before.size, resize=before.resize)
        assert (again.masks("lung")[0] == before.masks("lung")[0]).mean() > 0.85
    assert not train(radiographs, cache, 40, resize="pad").masks("lung")[0, :, :5].any()
    with pytest.raises(UserError, match="unknown resize 'stretch'"):
        train(radiographs, cache, 40, resize="stretch")


def test_a_changed_file_never_meets_the_old_store(radiographs: Path, cache: Path) -> None:
    before = train(radiographs, cache)
    old = np.array(before.images)
    file = radiographs / before.table["path"][2]
    stamp = file.stat().st_mtime_ns
    Image.new("L", (30, 40), 200).save(file)
    os.utime(file, ns=(stamp, stamp + 1))
    assert (train(radiographs, cache).images[2] == 200).all()
    assert np.array_equal(before.images, old)  # a reader of the old store is not disturbed


def test_images_of_the_same_names_sizes_and_dates_never_meet_the_store(cache: Path, tmp_path: Path) -> None:
    """As uncompressed images of two hospitals, unpacked from archives that keep one date for all."""
    for hospital, level in (("A", 40), ("B", 200)):
        for number in range(3):
            save(np.full((32, 32), level, np.uint8), file := tmp_path / hospital / "Train" / "a" / f"{number}.bmp")
            os.utime(file, (1_000_000_000, 1_000_000_000))
        assert train(tmp_path / hospital, cache).images.mean() == level


def test_what_a_missing_package_left_unread_is_read_later(radiographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, keys = read_manifest(radiographs), []
    for there in (False, True):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, there=there: there or None)
        keys.append(store.key(manifest, 32, "squeeze"))
    assert keys[0] != keys[1]


def test_nothing_is_decoded_twice(radiographs: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(radiographs, cache)
    monkeypatch.setattr(store, "read_image_at", lambda *_: pytest.fail("decoded again"))
    assert len(load_dataset(radiographs, "Test", 32, cache=cache)) == 6


def test_a_broken_image_is_reported_and_left_out(radiographs: Path, cache: Path) -> None:
    broken = radiographs / "Train/a/1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    (radiographs / "Train/masks/lung/a/2.png").write_bytes(b"")
    data = train(radiographs, cache)
    assert data.sample_ids.tolist() == [f"Train/{n}.png" for n in ("a/0", "a/2", "b/0", "b/1", "b/2")]
    assert data.skipped["path"].tolist() == ["Train/a/1.png"]
    assert data.skipped["reason"].str.len().gt(5).all()
    for i, path in enumerate(data.table["path"]):
        expected = Image.fromarray(read_image(radiographs / path)).resize((32, 32), Image.Resampling.BILINEAR)
        assert np.array_equal(data.images[i, 0], expected)
    assert data.bad_masks["path"].tolist() == ["Train/masks/lung/a/2.png"]
    assert data.has_mask("lung").tolist() == [True, False, False, False, False]
    assert data.masks("lung")[0].any()
    assert not data.masks("lung")[1:].any()
    assert len(load_dataset(radiographs, "Test", 32, cache=cache).skipped) == 0
    manifest = read_manifest(radiographs)  # which names the samples otherwise
    manifest.table["sample_id"] = [f"{row:02}" for row in range(len(manifest.table))]
    manifest.write(radiographs / "named.csv")
    named = train(radiographs / "named.csv", cache)
    assert len(list((cache / "stores").glob("*/index.json"))) == 1, "the files are the same"
    assert named.skipped[["sample_id", "path"]].values.tolist() == [["07", "Train/a/1.png"]]
    assert named.bad_masks[["sample_id", "kind"]].values.tolist() == [["08", "lung"]]
    assert named.has_mask("lung").tolist() == data.has_mask("lung").tolist()


def test_what_is_not_there_is_said(radiographs: Path, cache: Path, tmp_path: Path) -> None:
    for split, said in (("Val", "no split 'Val'; there"), ("Tset", r"no split 'Tset'; did you mean Test\? there")):
        with pytest.raises(UserError, match=f"{said} is Test, Train"):
            load_dataset(radiographs, split, 32)
    read_manifest(radiographs).write(tmp_path / "list.csv")
    (radiographs / "Train/a/1.png").unlink()
    with pytest.raises(UserError, match=r"a/1.png: no such file: .*list.csv lists it. Correct or .* --clean"):
        train(tmp_path / "list.csv", cache)
    (tmp_path / "d/a").mkdir(parents=True)
    (tmp_path / "d/a/x.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 1 images is readable"):
        load_dataset(tmp_path / "d", size=32, cache=cache)


def test_what_is_unreadable_is_counted(radiographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the radiologists' masks of a class are fewer than they were drawn, and nobody knows."""
    numbered, broken = radiographs / "Train/masks/lung/a/0.png", radiographs / "Test/a/0.png"
    Image.new("L", (30, 40), 2).save(numbered)
    broken.write_bytes(broken.read_bytes()[:60])
    splits = {role: load_dataset(radiographs, name, 32, cache=tmp_path / "b") for role, name in ROLES.items()}
    report_skipped(*splits.values())
    images, masks = sorted(line for line in capsys.readouterr().err.splitlines() if "unreadable" in line)
    assert images.startswith("1 unreadable images of Test are left out; the first: Test/")
    assert masks.startswith("1 unreadable masks of Train count as absent; the first: Train/masks/lung/")
    assert masks.endswith("a mask whose brightest level is 2: expected black and white, or 0 and 1")
    described = describe_data(radiographs, splits)
    assert (described.skipped, described.counts["Test"]) == (1, {"a": 2, "b": 3})


KILLED = """
import os, signal, sys
from pathlib import Path
from trustcxr.data import cache, load_dataset, worker_pool
cache._CHUNK = cache._LAST_CHUNK = 1
worker_pool.FEW = int(sys.argv[4])
owner = cache.Progress if sys.argv[3] == "advance" else Path
real, calls = getattr(owner, sys.argv[3]), []
def killed(self, *given):
    calls.append(self)
    if len(calls) == (3 if owner is cache.Progress else 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *given)
setattr(owner, sys.argv[3], killed)
load_dataset(sys.argv[1], "Train", 32, cache=sys.argv[2], workers=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "few"), [("advance", 400), ("advance", 0), ("replace", 400), ("rename", 400)])
def test_a_process_killed_while_it_decodes_leaves_nothing_that_is_read(
    radiographs: Path, cache: Path, tmp_path: Path, moment: str, few: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """By threads and by processes, and while rows of unreadable images are taken out."""
    (radiographs / "Train/a/0.png").write_bytes(b"")  # so that rows move
    Image.new("L", (30, 40)).save(radiographs / "Train/masks/lung/a/2.png")  # an empty mask, which stays a hole
    ended = subprocess.run([sys.executable, "-c", KILLED, radiographs, cache, moment, str(few)], check=False)
    assert ended.returncode == -signal.SIGKILL
    (left,) = (f for f in (cache / "stores").iterdir() if f.is_dir())
    assert left.suffix == ".building"
    (left / "images.u8").write_bytes(b"half")
    data, fresh = train(radiographs, cache), train(radiographs, tmp_path / "other")
    assert "damaged" not in capsys.readouterr().err
    held = ["hashes.bin", "images.u8", "index.json", "lung_mask.u8"]
    assert [f.name for f in (cache / "stores").iterdir() if f.is_dir()] == [fresh._store.folder.name]
    assert sorted(f.name for f in data._store.folder.iterdir()) == held
    assert [(data._store.folder / f).read_bytes() == (fresh._store.folder / f).read_bytes() for f in held] == [True] * 4
    assert data.skipped["path"].tolist() == ["Train/a/0.png"]


def test_rows_without_pixels_take_no_room(tmp_path: Path) -> None:
    pixels = np.zeros((40, 64, 64), np.uint8)
    pixels[[3, 4, 39]] = np.arange(1, 65, dtype=np.uint8)
    with open(tmp_path / "images.u8", "w+b", buffering=0) as file:
        file.truncate(50 * 64**2)
        store._write_rows(file, pixels, 5)
    assert np.array_equal(np.fromfile(tmp_path / "images.u8", np.uint8).reshape(-1, 64, 64)[5:45], pixels)
    assert (tmp_path / "images.u8").stat().st_blocks * 512 <= 4 * 64**2


def test_a_full_disk_leaves_the_old_store(radiographs: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = train(radiographs, cache)
    monkeypatch.setattr(store, "_write_rows", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(UserError, match=r"no space left.*TRUSTCXR_CACHE") as caught:
        train(radiographs, cache, 24, workers=1)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert np.array_equal(train(radiographs, cache).images, old.images)
    assert len(train(radiographs, cache, 24)) == 6


SCRIPT = """
import sys
from trustcxr.data import cache, load_dataset, worker_pool
cache._CHUNK, worker_pool.FEW = 4, 0  # processes, although there is little to do
print(int(load_dataset(sys.argv[1], "Train", 32, cache=sys.argv[2], workers=2).images.sum()))
"""


def cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize("name", ["images.u8", "lung_mask.u8", "index.json", "hashes.bin"])
@pytest.mark.parametrize("damage", [cut_short, Path.unlink, flip])
def test_a_damaged_store_is_said_to_be_and_built_again(
    damage: Any, name: str, radiographs: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read = partial(train, radiographs, cache, every=damage is flip)
    before = read()
    pixels, masks, known = np.array(before.images), np.array(before.masks("lung")), list(before.image_sums)
    damage(next(cache.rglob(name)))
    if damage is flip and name.endswith(".u8"):
        read(every=False)
        assert "damaged" not in capsys.readouterr().err, "by its size alone"
    again = read()
    assert f"damaged store ({name} has changed)" in capsys.readouterr().err
    assert np.array_equal(again.images, pixels)
    assert np.array_equal(again.masks("lung"), masks)
    assert list(again.image_sums) == known
    read()
    assert "damaged" not in capsys.readouterr().err


def test_hashes_are_of_the_pixels_alone(radiographs: Path, cache: Path) -> None:
    (radiographs / "Test/a/0.png").write_bytes(b"")
    data = load_dataset(radiographs, size=32, cache=cache)
    assert data.image_sums.tolist() == [blake2b(row.tobytes(), digest_size=16).hexdigest() for row in data.images]
    for name, value in data._store.sums.items():
        assert f"{zlib.crc32((data._store.folder / f'{name}.u8').read_bytes()):08x}" == value


def test_a_fingerprint_is_of_what_the_images_are_and_not_of_where_they_lie(radiographs: Path, cache: Path) -> None:
    data, copy = train(radiographs, cache), Path(shutil.copytree(radiographs, cache.parent / "elsewhere"))
    assert train(copy, cache).fingerprint == data.fingerprint == data.fingerprints()["Train"]
    assert load_dataset(radiographs, "Test", 32, cache=cache).fingerprint == data.fingerprints()["Test"]
    Image.new("L", (30, 40), 200).save(copy / data.table["path"][2])
    changed = train(copy, cache)
    assert changed.fingerprint != data.fingerprint
    assert changed.fingerprints()["Test"] == data.fingerprints()["Test"]
    assert [a == b for a, b in zip(changed.image_sums, data.image_sums, strict=True)].count(False) == 1
    assert train(radiographs, cache, labels={"a": "b", "b": "a"}).fingerprint != data.fingerprint


def test_a_script_without_a_main_guard_builds_in_processes(radiographs: Path, cache: Path, tmp_path: Path) -> None:
    (script := tmp_path / "script.py").write_text(SCRIPT)
    words, options = [sys.executable, script, radiographs, cache], {"stdout": subprocess.PIPE, "text": True}
    two = [subprocess.Popen(words, **options) for _ in range(2)]  # and both at once
    sums = [p.communicate(timeout=120)[0].split() for p in two]
    assert sums == [[str(int(train(radiographs, tmp_path / "other").images.sum()))]] * 2
