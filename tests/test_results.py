"""Run and study folders: written whole or not at all, and one line for a folder that is not one."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from trustcxr.errors import UserError
from trustcxr.storage import atomic, layout

NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "write", "broken"),
    [
        ("m.json", atomic.write_json, {"a": object()}),
        ("run.yaml", atomic.write_yaml, {"a": object()}),
        ("t.parquet", atomic.write_table, pd.DataFrame({"a": [1, "x", object()]})),
        ("p.npz", atomic.write_arrays, {"a": np.array([object()])}),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(name: str, write: Any, broken: Any, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("as it was")
    with pytest.raises(Exception):  # noqa: B017, PT011 (each writer has its own)
        write(path, broken)
    assert path.read_text() == "as it was"
    assert [p.name for p in tmp_path.iterdir()] == [name]


def _write_for_ever(path: Path) -> None:
    for number in range(10**9):
        atomic.write_json(path, {"number": number, "filling": ["x" * 100] * 2000})


def test_a_table_that_may_not_be_read_is_not_said_to_be_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (path := tmp_path / "predictions.parquet").touch()
    monkeypatch.setattr(pd, "read_parquet", forbidden)
    with pytest.raises(UserError) as refused:
        atomic.read_table(path)
    assert str(refused.value) == f"{path}: cannot be read: permission denied"


def test_a_table_without_a_row_is_as_good_as_none(tmp_path: Path) -> None:
    table = pd.DataFrame({"sample_id": ["a"], "logits": [[0.5, 1.0]]})
    for name in ("t.parquet", "t.csv"):
        atomic.write_table(tmp_path / name, table)
        assert atomic.is_readable(tmp_path / name)
        atomic.write_table(tmp_path / name, table[:0])
        assert not atomic.is_readable(tmp_path / name)


def test_a_process_that_is_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    writer = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path,), daemon=True)
    writer.start()
    deadline = time.monotonic() + 30
    while not path.is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    for _ in range(20):
        assert len(atomic.read_json(path)["filling"]) == 2000
        time.sleep(0.002)
    assert writer.pid
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert len(atomic.read_json(path)["filling"]) == 2000


def test_json_holds_no_nan_and_plain_numbers(tmp_path: Path) -> None:
    content = {
        "nan": NAN, "infinite": [float("inf"), -float("inf")], "numpy": np.float32(0.5), "whole": np.int64(3),
        "truth": np.bool_(True), "array": np.array([[1.0, NAN]]), "pair": (1, NAN), "epsilons": {0.02: np.float64(NAN)},
        "text": "é, NaN", "none": None,
    }  # fmt: skip
    atomic.write_json(tmp_path / "m.json", content)
    text = (tmp_path / "m.json").read_text(encoding="utf-8")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in a JSON document")

    assert json.loads(text, parse_constant=refuse) == {
        "nan": None, "infinite": [None, None], "numpy": 0.5, "whole": 3, "truth": True, "array": [[1.0, None]],
        "pair": [1, None], "epsilons": {"0.02": None}, "text": "é, NaN", "none": None,
    }  # fmt: skip
    assert text.endswith("}\n")
    assert "é" in text, "names are legible in the file"


def test_yaml_comes_back_in_order(tmp_path: Path) -> None:
    content = {"name": "é", "classes": ("COVID-19", "Normal"), "rate": 1e-4, "nothing": NAN, "recipe": {"b": 1, "a": 2}}
    atomic.write_yaml(tmp_path / "run.yaml", content)
    again = atomic.read_yaml(tmp_path / "run.yaml")
    assert again == {**content, "classes": ["COVID-19", "Normal"], "nothing": None}
    assert list(again) == list(content)


def test_what_is_read_twice_is_not_shared(tmp_path: Path) -> None:
    """Whoever reads a recipe may change what it was given: the next reader has what stands in the file."""
    path = tmp_path / "recipe.yaml"
    path.write_text("models: [{name: a}]\n")
    atomic.read_yaml(path)["models"][0]["name"] = "b"  # type: ignore[index]
    assert atomic.read_yaml(path) == {"models": [{"name": "a"}]}
    path.write_text("models: [{name: c}]\n")
    assert atomic.read_yaml(path) == {"models": [{"name": "c"}]}


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_come_back(ending: str, tmp_path: Path) -> None:
    table = pd.DataFrame({"epoch": [0, 1], "val_accuracy": [0.5, NAN], "name": ["a,b", "é"]}, index=[7, 9])
    path = tmp_path / f"history.{ending}"
    atomic.write_table(path, table)
    pd.testing.assert_frame_equal(atomic.read_table(path), table.reset_index(drop=True))


def test_logits_come_back_as_float32(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    path = tmp_path / "predictions.parquet"
    atomic.write_table(path, pd.DataFrame({"logits": list(logits)}))
    again = np.stack(atomic.read_table(path)["logits"])
    assert again.dtype == np.float32
    assert np.array_equal(again, logits)


def test_arrays_need_no_unpickling(tmp_path: Path) -> None:
    arrays = {"image": np.zeros((2, 3, 3), np.uint8), "sample_id": np.array(["a", "é"])}
    atomic.write_arrays(tmp_path / "example_maps.npz", arrays)
    with np.load(tmp_path / "example_maps.npz", allow_pickle=False) as again:
        assert sorted(again) == ["image", "sample_id"]
        assert again["sample_id"].tolist() == ["a", "é"]
    with pytest.raises(TypeError, match="names is neither numbers nor text"):
        atomic.write_arrays(tmp_path / "example_maps.npz", {"names": np.array(["a", None])})


@pytest.mark.parametrize(
    ("read", "name", "broken"),
    [
        (atomic.read_json, "metrics.json", b"{'a': 1"),
        (atomic.read_json, "metrics.json", b"\xff\xfe\xfd"),
        (atomic.read_yaml, "run.yaml", b"a: [1"),
        (atomic.read_table, "t.parquet", b"PAR1 not really"),
        (atomic.read_table, "t.csv", b""),
    ],
)
def test_a_broken_file_is_one_line_with_its_path(read: Any, name: str, broken: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(UserError, match="no such file"):
        read(path)
    path.write_bytes(broken)
    with pytest.raises(UserError) as problem:
        read(path)
    assert str(path) in str(problem.value)
    assert "\n" not in str(problem.value)


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"a: !!python/object/apply:os.mkdir ['{tmp_path / 'ran'}']")
    with pytest.raises(UserError, match="not readable as YAML"):
        atomic.read_yaml(tmp_path / "run.yaml")
    assert not (tmp_path / "ran").exists()


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ((), r"run.yaml and model.safetensors missing\): give the folder of a run"),
        (("model.safetensors",), r"\(run.yaml missing\): give the folder of a run"),
        (
            ("run.yaml", "checkpoint/last.ckpt"),
            r"model.safetensors missing\): its training is not finished: run the same",
        ),
        (("study.yaml", "runs/vgg-s0/run.yaml", "runs/a-s0/run.yaml"), "it is a study; its runs are a-s0, vgg-s0 in"),
    ],
)
def test_a_folder_that_is_no_run(names: tuple[str, ...], text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=text) as problem:
        layout.check_run(touch(tmp_path, *names))
    assert "\n" not in str(problem.value)
    assert str(tmp_path) in str(problem.value)


@pytest.mark.parametrize("check", [layout.check_run, layout.check_study])
def test_a_folder_that_is_not_there(check: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such (run|study) folder.*trustcxr study"):
        check(tmp_path / "gone")
    with pytest.raises(UserError, match=r"no such|a file, not the folder of a run"):
        check(touch(tmp_path, "file") / "file")


def test_a_study_folder_is_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the folder that `trustcxr study --out` wrote"):
        layout.check_study(tmp_path)
    with pytest.raises(UserError, match="started but not finished: run the same `trustcxr study` again"):
        layout.check_study(touch(tmp_path, "study.yaml"))
    assert layout.check_study(touch(tmp_path, "study.json")) == tmp_path
