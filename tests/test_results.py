"""Run and study folders: written whole or not at all, and one line for a folder that is not one."""

import itertools
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

from study_fixture import make_study
from trustcxr.errors import UserError
from trustcxr.storage import atomic, layout, prediction_table

NAN, PATH = float("nan"), Path("there") / "predictions.parquet"


@pytest.mark.parametrize(
    ("name", "write", "content"),
    [
        ("m.json", atomic.write_json, {"a": object()}),
        ("run.yaml", atomic.write_yaml, {"a": object()}),
        ("t.parquet", atomic.write_table, pd.DataFrame({"a": [1, "x", object()]})),
        ("p.npz", atomic.write_arrays, {"a": np.array([object()])}),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(name: str, write: Any, content: Any, tmp_path: Path) -> None:
    (path := tmp_path / name).write_text("as it was")
    with pytest.raises(Exception):  # noqa: B017, PT011 (each writer has its own)
        write(path, content)
    assert path.read_text() == "as it was"
    assert [p.name for p in tmp_path.iterdir()] == [name]


def _write_for_ever(path: Path) -> None:
    for number in range(10**9):
        atomic.write_json(path, {"number": number, "filling": ["x" * 100] * 2000})


def test_a_forbidden_table_is_not_said_to_be_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path := tmp_path / "predictions.parquet").touch()
    monkeypatch.setattr(pd, "read_parquet", Mock(side_effect=PermissionError(13, "Permission denied")))
    with pytest.raises(UserError) as refused:
        atomic.read_table(path)
    assert str(refused.value) == f"{path}: cannot be read: permission denied"


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
    assert json.loads(text, parse_constant=pytest.fail) == {
        "nan": None, "infinite": [None, None], "numpy": 0.5, "whole": 3, "truth": True, "array": [[1.0, None]],
        "pair": [1, None], "epsilons": {"0.02": None}, "text": "é, NaN", "none": None,
    }  # fmt: skip
    assert text.endswith("}\n")
    assert "é" in text, "names are legible in the file"


def test_yaml_comes_back_in_order_and_is_not_shared(tmp_path: Path) -> None:
    """Whoever reads a recipe may change what it was given: the next reader has what stands in the file."""
    content = {"name": "é", "classes": ("COVID-19", "Normal"), "rate": 1e-4, "nothing": NAN, "recipe": {"b": 1, "a": 2}}
    atomic.write_yaml(path := tmp_path / "run.yaml", content)
    again = atomic.read_yaml(path)
    assert again == {**content, "classes": ["COVID-19", "Normal"], "nothing": None}
    assert list(again) == list(content)
    again["recipe"]["b"] = 3  # type: ignore[index]
    assert atomic.read_yaml(path)["recipe"] == {"b": 1, "a": 2}
    path.write_text("models: [{name: c}]\n")
    assert atomic.read_yaml(path) == {"models": [{"name": "c"}]}


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_come_back(ending: str, tmp_path: Path) -> None:
    table = pd.DataFrame({"epoch": [0, 1], "val_accuracy": [0.5, NAN], "name": ["a,b", "é"]}, index=[7, 9])
    path = tmp_path / f"history.{ending}"
    atomic.write_table(path, table)
    pd.testing.assert_frame_equal(atomic.read_table(path), table.reset_index(drop=True))
    assert atomic.is_readable(path)
    atomic.write_table(path, table[:0])
    assert not atomic.is_readable(path), "a table without a row is as good as none"


def test_logits_come_back_as_float32(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    path = tmp_path / "predictions.parquet"
    atomic.write_table(path, pd.DataFrame({"logits": list(logits)}))
    assert atomic.is_readable(path)
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
    ("name", "broken"),
    [
        ("metrics.json", b"{'a': 1"),
        ("metrics.json", b"\xff\xfe\xfd"),
        ("run.yaml", b"a: [1"),
        ("run.yaml", b"a: &a [*a]"),
        ("run.yaml", b"[" * 3000),
        ("run.yaml", b"&a {b: *a}"),
        ("run.yaml", b"a: !!python/object/apply:os.mkdir [ran]"),
        ("t.parquet", b"PAR1 not really"),
        ("t.csv", b""),
    ],
)
def test_a_broken_file_is_one_line_with_its_path(name: str, broken: bytes, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    read = {".json": atomic.read_json, ".yaml": atomic.read_yaml}.get(Path(name).suffix, atomic.read_table)
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / name)
    (tmp_path / name).write_bytes(broken)
    with pytest.raises(UserError, match="not readable as YAML" if name == "run.yaml" else None) as problem:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(problem.value)
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "ran").exists(), "YAML runs no code"


def test_yaml_that_unfolds_to_millions_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join(['*' + a] * 9)}]" for a, b in itertools.pairwise("abcdefghijk")]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="unfold to more than"):
        atomic.read_yaml(tmp_path / "bomb.yaml")


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


def test_a_folder_that_is_no_study_or_not_there(tmp_path: Path) -> None:
    file = touch(tmp_path / "of", "file") / "file"
    for check in (layout.check_run, layout.check_study):
        with pytest.raises(UserError, match=r"no such (run|study) folder.*trustcxr study"):
            check(tmp_path / "gone")
        with pytest.raises(UserError, match=r"no such|a file, not the folder of a run"):
            check(file)
    with pytest.raises(UserError, match="give the folder that `trustcxr study --out` wrote"):
        layout.check_study(tmp_path)
    with pytest.raises(UserError, match="started but not finished: run the same `trustcxr study` again"):
        layout.check_study(touch(tmp_path, "study.yaml"))
    assert layout.check_study(touch(tmp_path, "study.json")) == tmp_path


@pytest.fixture
def predictions(tmp_path: Path) -> pd.DataFrame:
    study = make_study(tmp_path / "study", models=("ResNet18",), defences=("fgsm",), images=30, resamples=20, panels=0)
    return atomic.read_table(study / "runs" / "resnet18-fgsm-s0" / "predictions.parquet")


def test_predictions_as_they_are_written_are_whole(predictions: pd.DataFrame) -> None:
    for count in (3, None):
        prediction_table.check_table(predictions, PATH, count)
    prediction_table.check_table(predictions.query("attack == 'clean'"), PATH)
    with pytest.raises(UserError, match="expected 2 in each row, as many as there are classes"):
        prediction_table.check_table(predictions, PATH, 2)
    with pytest.raises(UserError, match="the label 99, of 3 classes"):
        prediction_table.check_table(first(predictions, label=99), PATH)


def first(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The table with other values in its first row."""
    return table.assign(**{column: [value, *table[column].iloc[1:]] for column, value in values.items()})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda t: t.drop(columns="label"), "no column label"),
        (lambda t: t.drop(columns=["group", "logits"]), "no column group, logits"),
        (lambda t: t[:0], "no rows"),
        (lambda t: t[t["attack"] != "clean"], "images without a row of the image as it is, such as Test/"),
        (lambda t: t.drop(index=t.index[t["attack"] == "clean"][0]), "1 images without a row of the image as it is"),
        (lambda t: pd.concat([t, t]), "330 of 660 rows there twice, of one image under one condition"),
        (lambda t: first(t, label=99), "the label 99, of 3 classes numbered from 0"),
        (lambda t: first(t, label=NAN), "rows without label"),
        (lambda t: t.assign(label="Normal"), "no numbers in label"),
        (lambda t: t.assign(epsilon=None), "rows without epsilon"),
        (lambda t: first(t, logits=[1.0, 2.0]), "2 and 3 logits in a row; expected 3 in each row"),
        (lambda t: first(t, logits=[1.0, NAN, 2.0]), "1 of 330 rows hold NaN"),
        (lambda t: first(t, logits=["a", "b", "c"]), "no numbers in logits"),
    ],
)
def test_damaged_predictions_are_one_line_that_names_the_file(
    damage: Callable[[pd.DataFrame], pd.DataFrame], said: str, predictions: pd.DataFrame
) -> None:
    with pytest.raises(UserError) as refused:
        prediction_table.check_table(damage(predictions), PATH, 3)
    assert str(refused.value).startswith(f"{PATH}: damaged: ")
    assert said in str(refused.value)
    assert str(refused.value).endswith("; restore it, or make it anew")
