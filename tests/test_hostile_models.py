"""Model files that want to run code, read other files or fill memory: nothing runs, one line each."""

import json
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from foreign_models import CLASSES, IMAGENET, RunsWhenRead, WritesAFile, exported, onnx, small
from trustcxr.audit.formats import describe_file, load
from trustcxr.errors import UserError


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture(autouse=True)
def _nothing_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(b"\0" * 64)
    yield
    assert not (tmp_path / "written").exists(), "code of the file was run"


def refused(path: Path, match: str, **options: Any) -> None:
    for call in (lambda: load(path, classes=CLASSES, **IMAGENET, **options), lambda: describe_file(path)):
        with pytest.raises(UserError, match=match) as caught:
            call()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pt2", ".pt", ".pth", ".onnx", ".safetensors", ".keras", ".h5", ".tflite"])
@pytest.mark.parametrize("how", ["pickle", "torch.save", "old torch.save"])
def test_a_pickle_with_code_under_any_suffix(suffix: str, how: str, tmp_path: Path) -> None:
    path, touch = tmp_path / f"m{suffix}", Touch(tmp_path / "written")
    if how == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": touch}))
    else:
        torch.save({"state_dict": touch}, path, _use_new_zipfile_serialization=how == "torch.save")
    refused(path, ".", **({"timm": "test_resnet"} if suffix in (".pth", ".safetensors", ".pt") else {}))


def rewritten(path: Path, change: dict[str, bytes]) -> Path:
    """The zip archive with some of its records (named without their folder) changed or added."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    folder = next(iter(records)).partition("/")[0]
    records |= {f"{folder}/{name}": content for name, content in change.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return path


def record(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(n for n in archive.namelist() if n.partition("/")[2] == name))


def test_a_program_runs_nothing_unless_it_is_trusted(tmp_path: Path) -> None:
    """torch's loaders run code of the file: a class's __setstate__, operators that write files."""
    path = tmp_path / "m.pt"
    for net in (RunsWhenRead(), WritesAFile()):
        torch.jit.script(net.eval()).save(str(path))
        refused(path, r"can run its maker's code .* Give --trust-code .* ONNX or safetensors")
    assert load(path, classes=CLASSES, trust_code=True, **IMAGENET).model is not None
    (tmp_path / "written").unlink()  # it was trusted
    refused(exported(small(), tmp_path / "m.pt2"), r"can run its maker's code .* Give --trust-code")


def five_gigabytes(path: Path) -> Path:
    """A torch.save archive whose first storage says that it is ten thousand times as long."""
    content = record(path, "data.pkl")
    place = content.index(b"cpu") + 3
    while content[place : place + 1] not in (b"K", b"M", b"J"):
        place += 1
    length = {b"K": 2, b"M": 3, b"J": 5}[content[place : place + 1]]
    more = b"\x8a\x05" + (10**9 * 5 // 4).to_bytes(5, "little")
    return rewritten(path, {"data.pkl": content[:place] + more + content[place + length :]})


def test_a_tensor_of_five_gigabytes_claimed_in_weights(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(300)}, tmp_path / "m.pth")
    path = five_gigabytes(tmp_path / "m.pth")
    with pytest.raises(UserError, match=r"test_resnet|cannot be read"):
        load(path, timm="test_resnet", classes=CLASSES, **IMAGENET)


def test_a_tensor_that_reaches_beyond_its_storage(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(300)}, tmp_path / "m.pth")
    content = record(tmp_path / "m.pth", "data.pkl")
    assert content.count(b"M,\x01") == 2, "numbers of the storage, and the shape"
    place = content.rindex(b"M,\x01")
    path = rewritten(tmp_path / "m.pth", {"data.pkl": content[:place] + b"J\xff\xff\xff\x7f" + content[place + 3 :]})
    refused(path, "cannot be read as tensors alone", timm="test_resnet")


def test_a_tensor_of_five_gigabytes_claimed_in_safetensors(tmp_path: Path) -> None:
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


def test_onnx_that_claims_five_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    _, model = an_onnx(path)
    tensor = model.graph.initializer[0]
    del tensor.dims[:]
    tensor.dims.extend([1250000000])
    path.write_bytes(model.SerializeToString())
    refused(path, "claims 5000000000 bytes where")


def test_onnx_that_fills_memory_from_a_few_bytes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    library, model = an_onnx(path)
    helper = library.helper
    model.graph.initializer.append(helper.make_tensor("much", library.TensorProto.INT64, [2], [50_000, 50_000]))
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["much"], ["filled"]))
    path.write_bytes(model.SerializeToString())
    refused(path, "ConstantOfShape of .* would fill 9 GB")


def test_onnx_with_operators_of_others(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    library, model = an_onnx(path)
    model.opset_import.append(library.helper.make_opsetid("their.own", 1))
    path.write_bytes(model.SerializeToString())
    refused(path, "operators of 'their.own'")


@pytest.mark.parametrize("suffix", [".pt2", ".pt", ".pth", ".onnx", ".safetensors", ".keras", ".h5", ".tflite"])
@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\0" * 100, b"\x80\x02."], ids=["empty", "zip", "zeros", "pickle"]
)
def test_a_file_that_is_nothing(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    refused(path, ".", **({"timm": "test_resnet"} if suffix in (".pth", ".safetensors") else {}))
