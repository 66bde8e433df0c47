"""Model files that want to run code, read other files or fill memory: nothing runs, one line each."""

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from foreign_models import (
    CLASSES,
    IMAGENET,
    OpensAFile,
    OpensNothing,
    RunsWhenRead,
    WritesAFile,
    exported,
    onnx,
    small,
    traced,
)
from trustcxr.errors import UserError
from trustcxr.models.adapters import describe_file, load


class Touch:
    """A pickle of this makes a file when it is opened."""

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


@pytest.mark.parametrize("suffix", [".pt2", ".pt", ".pth", ".onnx", ".safetensors"])
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


def code(tmp_path: Path) -> bytes:
    saved = io.BytesIO()
    torch.save({"x": Touch(tmp_path / "written")}, saved)
    return saved.getvalue()


def test_an_exported_program_whose_weights_are_pickles(tmp_path: Path) -> None:
    path, name = exported(small(), tmp_path / "m.pt2"), "data/weights/model_weights_config.json"
    config = json.loads(record(path, name))
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    rewritten(path, {name: json.dumps(config).encode(), f"data/weights/{first['path_name']}": code(tmp_path)})
    refused(path, "is a pickle, which could run code")


def test_an_exported_program_with_a_pickle_beside_it_is_read_without_it(tmp_path: Path) -> None:
    path = exported(small(), tmp_path / "m.pt2")
    rewritten(path, {"data/sample_inputs/model.pt": code(tmp_path), "data/constants/opaque_obj_0": code(tmp_path)})
    load(path, classes=CLASSES, **IMAGENET)


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",
        "torch.save",
        "torch.ops.os.system",
        "_operator.attrgetter",
        "math.dist",
        "#x",
    ],
)
def test_an_exported_program_that_calls_more_than_operators(target: str, tmp_path: Path) -> None:
    path = exported(small(), tmp_path / "m.pt2")
    document = json.loads(record(path, "models/model.json"))
    document["graph_module"]["graph"]["nodes"][0]["target"] = target
    refused(rewritten(path, {"models/model.json": json.dumps(document).encode()}), "not an operator that only computes")


def test_an_exported_program_with_text_that_torch_would_run_is_read_without_it(tmp_path: Path) -> None:
    path = exported(small(), tmp_path / "m.pt2")
    document = json.loads(record(path, "models/model.json"))
    document["guards_code"] = ["__import__('pathlib').Path('written').touch()"]
    for sizes in document["graph_module"]["graph"]["tensor_values"].values():
        for side in sizes["sizes"]:
            if "as_expr" in side:
                side["as_expr"]["expr_str"] = "__import__('pathlib').Path('written').touch()"
    rewritten(path, {"models/model.json": json.dumps(document).encode()})
    load(path, classes=CLASSES, **IMAGENET)


def test_an_exported_program_that_claims_five_gigabytes(tmp_path: Path) -> None:
    path, name = exported(small(), tmp_path / "m.pt2"), "data/weights/model_weights_config.json"
    for changed in ({"sizes": [{"as_int": 10**9}], "strides": [{"as_int": 1}]}, {"storage_offset": {"as_int": 10**12}}):
        config = json.loads(record(path, name))
        next(iter(config["config"].values()))["tensor_meta"].update(changed)
        refused(rewritten(path, {name: json.dumps(config).encode()}), "bytes where")


@pytest.mark.parametrize("text", [b"not json", b"{}", b'{"schema_version": {"major": 8}}', b"[" * 100_000])
def test_an_exported_program_that_is_none(text: bytes, tmp_path: Path) -> None:
    refused(rewritten(exported(small(), tmp_path / "m.pt2"), {"models/model.json": text}), "not a torch.export program")


def test_torchscript_that_opens_or_writes_a_file(tmp_path: Path) -> None:
    for net, operator in ((OpensAFile(), "from_file"), (WritesAFile(), "save")):
        torch.jit.script(net.eval()).save(str(tmp_path / "m.pt"))
        refused(tmp_path / "m.pt", f"aten::{operator}")
    assert load(tmp_path / "m.pt", classes=CLASSES, trust_code=True, **IMAGENET).model is not None
    (tmp_path / "written").unlink()  # it was trusted


def test_torchscript_that_runs_as_soon_as_it_is_read(tmp_path: Path) -> None:
    torch.jit.script(RunsWhenRead().eval()).save(str(tmp_path / "m.pt"))
    refused(tmp_path / "m.pt", "code that runs as soon as the file is read")


Records = list[tuple[str, bytes]]


def zipped(path: Path, records: Records) -> Path:
    """A zip archive with these records, in this order, a name twice where it is there twice."""
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, content in records:
            archive.writestr(name, content)
    return path


def records_of(net: torch.nn.Module, path: Path) -> Records:
    torch.jit.script(net.eval()).save(str(path))
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def harmless(records: Records) -> Records:
    """The same names with nothing in them that runs."""
    return [(name, b"\n" if name.endswith(".py") else content) for name, content in records]


HIDDEN: dict[str, Callable[[Records], Records]] = {
    "another ending": lambda r: [(name.replace(".py", ".PY"), content) for name, content in r],
    "no ending": lambda r: [(name.replace(".py", ".pyx"), content) for name, content in r],
    "another folder": lambda r: [(name.replace("/code/", "/Code/"), content) for name, content in r],
    "two folders": lambda r: r + [("second/" + name.partition("/")[2], content) for name, content in harmless(r)],
    "harmless folder first": lambda r: [(f"second/{n.partition('/')[2]}", c) for n, c in harmless(r)] + r,
    "no folder": lambda r: [(name.partition("/")[2], content) for name, content in r],
    "letter case": lambda r: r + [(n.replace("code", "CODE"), c) for n, c in harmless(r) if "/code/" in n],
    "twice": lambda r: r + [(name, content) for name, content in harmless(r) if "/code/" in name],
    "the format before 1.4": lambda r: [*harmless(r), (r[0][0].partition("/")[0] + "/model.json", b"{}")],
    "tensors in another case": lambda r: [(n.replace("constants.pkl", "constants.PKL"), c) for n, c in harmless(r)],
}


@pytest.mark.parametrize("how", HIDDEN)
def test_torchscript_whose_code_hides_in_its_archive(how: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    refused(zipped(path, HIDDEN[how](records_of(RunsWhenRead(), path))), "torch writes")


def test_torchscript_that_two_readers_read_as_two_archives(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    evil = zipped(path, records_of(RunsWhenRead(), path)).read_bytes()
    good = zipped(path, harmless(records_of(RunsWhenRead(), path))).read_bytes()
    table = int.from_bytes(good[-6:-2], "little")
    for content in (
        evil[:-22] + good,  # the table is looked for from the file's end, or where it is said to be
        good + b"\0" * 8,
        good[:-2] + b"\3\0new",
        good[:4] + b"PTMF" + good[8:],  # what torch takes for its other format
        good[:table] + b"\0" * 4 + good[table:-6] + (table + 4).to_bytes(4, "little") + good[-2:],
    ):
        path.write_bytes(content)
        refused(path, "not an archive as torch writes it|not an archive that torch wrote")


def test_torchscript_whose_record_ends_sooner_in_the_table_than_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    zipped(path, records_of(RunsWhenRead(), path))
    content = bytearray(path.read_bytes())
    first = content.index(b"PK\1\2")
    content[first + 20] -= 1  # the least byte of how long it is
    path.write_bytes(content)
    refused(path, "do not lie one behind the other")


def test_torchscript_that_runs_as_soon_as_a_default_is_worked_out(tmp_path: Path) -> None:
    path = traced(small(), tmp_path / "m.pt")
    with zipfile.ZipFile(path) as archive:  # the name of the file hangs on what was traced before in this process
        code = [n.partition("/")[2] for n in archive.namelist() if "/code/" in n and n.endswith(".py")]
    name = next(n for n in code if b": Tensor) -> Tensor:" in record(path, n))
    text = record(path, name).decode()
    writes = 'def bad() -> int:\n  t = torch\n  t.save(torch.zeros([1]), "written")\n  return 1\n'
    place = f"__torch__.{name.removeprefix('code/__torch__/').removesuffix('.py').replace('/', '.')}"
    changed = text.replace(": Tensor) -> Tensor:", f": Tensor, more: int={place}.bad()) -> Tensor:", 1) + writes
    assert changed != text + writes
    refused(rewritten(path, {name: changed.encode()}), "code that runs as soon as the file is read")


def test_torchscript_whose_hook_writes_a_file(tmp_path: Path) -> None:
    def hook(self: Any, images: tuple[torch.Tensor]) -> None:
        torch.save(images[0], "written")

    net = OpensNothing()
    net.register_forward_pre_hook(hook)
    path = tmp_path / "m.pt"
    records = [(n, c.replace(b"    torch.save(", b"    t = torch\n    t.save(")) for n, c in records_of(net, path)]
    refused(zipped(path, records), "aten::save")


@pytest.mark.slow
def test_torchscript_as_torch_writes_it_is_read_in_every_way_of_writing(tmp_path: Path) -> None:
    net = torch.jit.script(small())
    torch.jit.save(net, tmp_path / "with more.pt", _extra_files={"Notes.txt": "of its maker"})
    torch.jit.freeze(net).save(str(tmp_path / "größer.pt"))
    with pytest.warns(DeprecationWarning, match="Lite"):
        net._save_for_lite_interpreter(str(tmp_path / "lite.pt"))
    with (tmp_path / "stream.pt").open("wb") as file:
        torch.jit.save(net, file)
    for path in sorted(tmp_path.glob("*.pt")):
        assert load(path, classes=CLASSES, **IMAGENET).origin.kind == "TorchScript"


def test_torchscript_with_the_operators_of_others(tmp_path: Path) -> None:
    path = traced(small(), tmp_path / "m.pt")
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".py")).partition("/")[2]
    refused(
        rewritten(path, {name: b"def forward(self, x):\n  return ops.os.system('touch written')\n"}), "ops.os.system"
    )


def five_gigabytes(path: Path) -> Path:
    """A TorchScript or torch.save archive whose first storage says that it is ten thousand times as long."""
    content = record(path, "data.pkl")
    place = content.index(b"cpu") + 3
    while content[place : place + 1] not in (b"K", b"M", b"J"):
        place += 1
    length = {b"K": 2, b"M": 3, b"J": 5}[content[place : place + 1]]
    more = b"\x8a\x05" + (10**9 * 5 // 4).to_bytes(5, "little")
    return rewritten(path, {"data.pkl": content[:place] + more + content[place + length :]})


def test_a_tensor_of_five_gigabytes_claimed_in_torchscript_and_in_weights(tmp_path: Path) -> None:
    refused(five_gigabytes(traced(small(), tmp_path / "m.pt")), "a tensor of 1250000000 numbers is claimed")
    torch.save({"weight": torch.zeros(300)}, tmp_path / "m.pth")
    refused(five_gigabytes(tmp_path / "m.pth"), "a tensor of 1250000000 numbers is claimed", timm="test_resnet")


def test_a_tensor_of_five_gigabytes_claimed_in_safetensors(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1250000000], "data_offsets": [0, 5 * 10**9]}}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    refused(path, "cannot be read as tensors alone", timm="test_resnet")


def test_a_record_that_unpacks_to_much_more(tmp_path: Path) -> None:
    path = exported(small(), tmp_path / "m.pt2")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/extra/bomb", b"\0" * (65 * 2**20))
    refused(path, "compressed records that unpack to more than 64 MB")


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


@pytest.mark.parametrize("suffix", [".pt2", ".pt", ".pth", ".onnx", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\0" * 100, b"\x80\x02."], ids=["empty", "zip", "zeros", "pickle"]
)
def test_a_file_that_is_nothing(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    refused(path, ".", **({"timm": "test_resnet"} if suffix in (".pth", ".safetensors") else {}))
