"""Model files that want to run code, read other files or fill memory: nothing runs, one line each."""

import json
import pickle
import zipfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from foreign_models import CLASSES, IMAGENET, RunsWhenRead, WritesAFile, exported, onnx, refused, small
from test_models import Trap
from trustcxr.audit.formats import load
from trustcxr.errors import UserError

SUFFIXES = (".pt2", ".pt", ".pth", ".onnx", ".safetensors", ".keras", ".h5", ".tflite")


@pytest.fixture(autouse=True)
def _nothing_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(b"\0" * 64)
    yield
    assert not (tmp_path / "written").exists(), "code of the file was run"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("how", ["pickle", "torch.save", "old torch.save"])
def test_a_pickle_with_code_under_any_suffix(suffix: str, how: str, tmp_path: Path) -> None:
    path, touch = tmp_path / f"m{suffix}", Trap(tmp_path / "written")
    if how == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": touch}))
    else:
        torch.save({"state_dict": touch}, path, _use_new_zipfile_serialization=how == "torch.save")
    refused(path, ".", **({"timm": "test_resnet"} if suffix in (".pth", ".safetensors", ".pt") else {}))


def write_pickle(path: Path, content: bytes) -> None:
    """Replace data.pkl in the archive."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()} | {"m/data.pkl": content}
    with zipfile.ZipFile(path, "w") as archive:
        for name, record in records.items():
            archive.writestr(name, record)


def test_a_program_runs_nothing_unless_it_is_trusted(tmp_path: Path) -> None:
    """torch's loaders run code of the file: a class's __setstate__, operators that write files."""
    path = tmp_path / "m.pt"
    for net in (RunsWhenRead(), WritesAFile()):
        torch.jit.script(net.eval()).save(str(path))
        refused(path, r"can run its maker's code .* Give --trust-code .* ONNX or safetensors")
    assert load(path, classes=CLASSES, trust_code=True, **IMAGENET).model is not None
    (tmp_path / "written").unlink()  # it was trusted
    refused(exported(small(), tmp_path / "m.pt2"), r"can run its maker's code .* Give --trust-code")


def test_weights_whose_storage_or_tensor_claims_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save({"weight": torch.zeros(300)}, path)
    with zipfile.ZipFile(path) as archive:
        content = archive.read("m/data.pkl")
    assert content.count(b"M,\x01") == 2, "numbers of the storage, and the shape"
    before, between, after = content.split(b"M,\x01")
    five_gigabytes = b"\x8a\x05" + (10**9 * 5 // 4).to_bytes(5, "little")
    write_pickle(path, before + five_gigabytes + between + b"M,\x01" + after)
    with pytest.raises(UserError, match=r"test_resnet|cannot be read"):
        load(path, timm="test_resnet", classes=CLASSES, **IMAGENET)
    write_pickle(path, before + b"M,\x01" + between + b"J\xff\xff\xff\x7f" + after)
    refused(path, "cannot be read as tensors alone", timm="test_resnet")
    header = json.dumps({"w": {"dtype": "F32", "shape": [1250000000], "data_offsets": [0, 5 * 10**9]}}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    refused(path, "cannot be read as tensors alone", timm="test_resnet")


def an_onnx(path: Path) -> tuple[Any, Any]:
    library = pytest.importorskip("onnx")
    return library, library.load(onnx(small(), path))


def test_onnx_with_data_outside_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "model" / "m.onnx"
    path.parent.mkdir()
    library, model = an_onnx(path)
    (path.parent / "link").symlink_to(tmp_path / "secret")
    for location in ("../secret", str(tmp_path / "secret"), "link", "nothing"):
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = library.TensorProto.EXTERNAL
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=location)
        path.write_bytes(model.SerializeToString())
        refused(path, "external data")


def test_onnx_that_claims_or_fills_gigabytes_or_has_operators_of_others(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    library, sound = an_onnx(path)
    (large, filled, foreign), helper = (deepcopy(sound) for _ in range(3)), library.helper
    large.graph.initializer[0].dims[:] = [1250000000]
    filled.graph.initializer.append(helper.make_tensor("much", library.TensorProto.INT64, [2], [50_000, 50_000]))
    filled.graph.node.insert(0, helper.make_node("ConstantOfShape", ["much"], ["filled"]))
    foreign.opset_import.append(helper.make_opsetid("their.own", 1))
    for model, match in (
        (large, "claims 5000000000 bytes where"),
        (filled, "ConstantOfShape of .* would fill 9 GB"),
        (foreign, "operators of 'their.own'"),
    ):
        path.write_bytes(model.SerializeToString())
        refused(path, match)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\0" * 100, b"\x80\x02."], ids=["empty", "zip", "0", "pickle"])
def test_a_file_that_is_nothing(suffix: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(data)
    refused(path, ".", **({"timm": "test_resnet"} if suffix in (".pth", ".safetensors") else {}))
