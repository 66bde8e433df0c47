"""The disk refuses, a file is no file, a name is no text: one line each, and what was there before is whole."""

import errno
import io
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from trustcxr.data import load_dataset
from trustcxr.data.checks.check import check_data
from trustcxr.data.checks.row_file import RowFile
from trustcxr.data.images.greyscale import UnreadableImage
from trustcxr.data.images.read import is_dicom, read_image, read_mask
from trustcxr.data.layouts import read_manifest
from trustcxr.data.phantom import write_files
from trustcxr.errors import CannotWrite, UserError
from trustcxr.storage import atomic, os_errors

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX's")


def at_once(work: Callable[[], object], seconds: float = 20) -> object:
    """What `work` answers or raises; fails where it is still waiting after some seconds."""
    answer: Future[object] = Future()

    def tried() -> None:
        try:
            answer.set_result(work())
        except Exception as problem:
            answer.set_result(problem)

    threading.Thread(target=tried, daemon=True).start()
    return answer.result(seconds)  # raises TimeoutError if it hangs


def half_write(target: Path, problem: Exception) -> None:
    with atomic.atomic_write(target) as temporary:
        temporary.write_text("half")
        raise problem


@pytest.fixture
def images(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for split, name, i in itertools.product(("Train", "Val", "Test"), "ab", range(4)):
        (folder := tmp_path / "images" / split / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40, 40), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS])
def test_a_write_that_the_disk_refuses_is_one_line_and_the_old_file_is_whole(tmp_path: Path, number: int) -> None:
    target = tmp_path / "metrics.json"
    atomic.write_json(target, {"old": 1})
    with pytest.raises(CannotWrite, match=r"metrics.json: cannot be written: .*; what was there before is whole"):
        half_write(target, OSError(number, os.strerror(number)))
    assert atomic.read_json(target) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_what_is_needed_and_what_is_free_is_said(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(CannotWrite, match=r"79\.0 MB at least are needed, [\d,.]+ [MG]B are free"),
        os_errors.writing(tmp_path / "checkpoint", needed=lambda: 79_000_000),
    ):
        raise full
    path = tmp_path / "predictions.parquet"
    with pytest.raises(CannotWrite, match=r"\(4 bytes at least are needed"):
        half_write(path, full)
    path.write_bytes(bytes(2_500))
    with pytest.raises(CannotWrite, match=r"\(2\.5 kB at least are needed"):
        half_write(path, full)


def test_synthetic_images_are_written_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, other = tmp_path / ".out.999999999.building", tmp_path / f".out.{os.getppid()}.building"
    for folder in (left / "images", other, tmp_path / "mine.999999999.building"):
        folder.mkdir(parents=True)
    real, full = write_files._write_image, OSError(errno.ENOSPC, "No space left on device")
    calls = Mock(side_effect=[None, None, None, full])
    monkeypatch.setattr(write_files, "_write_image", lambda *given: (calls(), list(real(*given)))[1])
    with pytest.raises(CannotWrite, match="no space left"):
        write_files.write(tmp_path / "out", {"Train": 2}, size=32)
    monkeypatch.undo()
    there = {other, tmp_path / "mine.999999999.building"}
    assert set(tmp_path.iterdir()) == there, "what a killed process left is swept, and nothing of one that lives"
    assert (write_files.write(tmp_path / "out", {"Train": 2}, size=32) / "manifest.csv").is_file()


def test_synthetic_images_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for wrong, complaint in (
        ({"counts": {"Train": -3}}, "-3 images of each class in Train: out of range. Choose 1 to"),
        ({"counts": {"Train": 0}}, "no images"),
        ({"size": 10**6}, "size 1000000: out of range. Choose 32 to 4096"),
        ({"seed": -1}, "seed -1: out of range. Choose 0 to"),
    ):
        options: Any = {"counts": {"Train": 1}, "size": 32} | wrong
        with pytest.raises(UserError, match=complaint):
            write_files.write(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_pipe_or_a_device_is_no_image_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe.png")
    (zero := tmp_path / "zero.png").symlink_to("/dev/zero")
    for path, what in ((pipe, "a named pipe"), (zero, "a device")):
        for read in (read_image, read_mask):
            answer = at_once(partial(read, path))
            assert isinstance(answer, UnreadableImage)
            assert what in str(answer)
    assert at_once(partial(is_dicom, pipe)) is False
    for read in (atomic.read_json, atomic.read_yaml):
        assert "named pipe" in str(at_once(partial(read, pipe)))


def test_pipes_among_images_are_findings_and_the_rest_is_read(images: Path) -> None:
    os.mkfifo(images / "Train" / "a" / "pipe.png")
    found: Any = at_once(lambda: check_data(images, probes=False, workers=1))
    (finding,) = (f for f in found.findings if f.kind == "unreadable")
    assert "named pipe" in finding.items[0]["detail"]
    data: Any = at_once(lambda: load_dataset(images, split="Train", size=32, workers=1))
    assert len(data) == 8
    os.mkfifo(images / "list.csv")
    assert "a named pipe" in str(at_once(lambda: read_manifest(images / "list.csv")))


def test_links_to_themselves_and_names_that_are_no_text_are_counted_and_escaped(images: Path) -> None:
    (images / "Train" / "loop").symlink_to("loop")
    (images / "Train" / "a" / "self.png").symlink_to("self.png")
    (images / "Train" / "b" / "0.png").rename(os.fsdecode(os.fsencode(images) + b"/Train/b/caf\xe9.png"))
    found = check_data(images, probes=False, workers=1)
    by_kind = {f.kind: f for f in found.findings}
    passed = " ".join(item["path"] + item["detail"] for item in by_kind["passed_over"].items)
    assert by_kind["passed_over"].count == 2
    assert "caf\\udce9.png" in passed
    assert "loop" in passed
    assert by_kind["unreadable"].count == 1
    found.text().encode("utf-8")
    data = load_dataset(images, split="Train", size=32, workers=1)
    assert len(data) == 7
    assert any("2 files or folders are skipped" in note for note in data.notes)


def test_a_file_s_name_moves_no_cursor_and_makes_no_line_in_the_terminal(images: Path) -> None:
    bad = images / "Train" / "b" / "\x1b[2J\nVerdict  Nothing.png"
    bad.write_bytes((images / "Train" / "a" / "0.png").read_bytes())
    bad.with_name("\x1b]0;x.png").write_bytes(b"no image")
    said = check_data(images, probes=False, workers=1).text()
    assert r"\x1b[2J\nVerdict  Nothing.png" in said
    assert r"\x1b]0;x.png" in said
    assert all(line.isprintable() for line in said.split("\n"))
    assert said.count("\nVerdict  ") == 1


def test_a_folder_without_permission_is_a_finding(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, closed = os.scandir, images / "Train" / "closed"
    closed.mkdir()
    forbidden = Mock(side_effect=PermissionError(errno.EACCES, "Permission denied"))
    monkeypatch.setattr(os, "scandir", lambda folder: (forbidden if str(folder) == str(closed) else real)(folder))
    found = check_data(images, probes=False, workers=1)
    (finding,) = (f for f in found.findings if f.kind == "passed_over")
    assert "permission denied" in finding.items[0]["detail"]


def test_a_full_disk_of_temporary_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    monkeypatch.setattr("trustcxr.data.checks.row_file.TemporaryFile", Mock(return_value=_FullDisk("/dev/full", "wb")))
    rows = RowFile(100_000, (64, 64), np.uint8)
    with pytest.raises(CannotWrite) as refused:
        rows.write(0, np.zeros((64, 64, 64), np.uint8))
    assert str(refused.value).startswith(f"{tmp_path}: cannot be written: no space left on the disk (409.6 MB")


class _FullDisk(io.FileIO):
    """A file that can be of any length and takes no byte."""

    def truncate(self, size: int | None = None) -> int:
        return size or 0
