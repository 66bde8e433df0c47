"""torch.export programs (.pt2), read without torch.export.load, which unpickles and runs text of the file.

The file is a zip archive: a graph in JSON, and tensors as raw bytes. The graph is run here operator by operator, and
only operators that compute on tensors are let through (`operators`).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from trustcxr.errors import UserError
from trustcxr.models.adapters.archives import Archive
from trustcxr.models.adapters.operators import Values, exported_operator, refused

# The numbers that torch's schema (major version 8) has for these.
_DTYPES = {1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16}
_DTYPES |= {7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16}
_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format}
_SCHEMA = 8
_CLAIM = "torch.ops.aten._assert_tensor_metadata."  # that a tensor has the dtype and device of whoever exported
_PLAIN = ("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string", "as_strings")


Argument = dict[str, Any]  # of a call: one entry, its kind ("as_tensor") and what it is


class _Input(TypedDict):
    name: str
    arg: Argument
    kind: int


class _Node(TypedDict):
    """A call of the graph."""

    target: str
    inputs: list[_Input]
    outputs: list[Argument]


class _Sizes(TypedDict):
    sizes: list[dict[str, int]]


class _Graph(TypedDict):
    nodes: list[_Node]
    tensor_values: dict[str, _Sizes]


class _Spec(TypedDict, total=False):
    """What an input or output of the graph is: its argument, and the name of the stored tensor where it is one."""

    arg: Argument
    parameter_name: str
    buffer_name: str
    tensor_constant_name: str


class _Signature(TypedDict):
    input_specs: list[dict[str, _Spec]]
    output_specs: list[dict[str, _Spec]]


class _Module(TypedDict):
    graph: _Graph
    signature: _Signature


class _Program(TypedDict):
    """The part of the JSON that is read here."""

    graph_module: _Module
    schema_version: dict[str, int]


class _Meta(TypedDict):
    dtype: int
    sizes: list[dict[str, int]]
    strides: list[dict[str, int]]
    storage_offset: dict[str, int] | None


class _StoredTensor(TypedDict):
    """Where the bytes of a tensor are, and how they lie."""

    path_name: str
    use_pickle: bool
    tensor_meta: _Meta


class _Step(NamedTuple):
    """An operator that is let through, and what it is called with."""

    call: Callable[..., Any]
    args: list[Argument]
    kwargs: dict[str, Argument]
    outputs: list[Argument]


class ExportedNet(nn.Module):
    """The graph of a .pt2 file as a module: one image tensor in, whatever it answers out."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        archive = Archive(path)
        self.where = str(path)
        document = _document(archive)
        self._names: dict[str, str] = {}  # the graph's name of a tensor -> ours
        self._inputs: list[str] = []
        self.shape: list[int | None] = []  # what it takes; None for a side that may be any
        try:
            self._read(archive, document)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as problem:
            raise UserError(
                f"{path}: not a torch.export program as torch writes it ({type(problem).__name__})"
            ) from None
        if len(self._inputs) != 1:
            raise UserError(f"{path}: it takes {len(self._inputs)} inputs; one is needed, the images")

    def _read(self, archive: Archive, document: _Program) -> None:
        graph, signature = document["graph_module"]["graph"], document["graph_module"]["signature"]
        self._take(archive, signature["input_specs"], graph)
        self._steps = [self._step(node) for node in graph["nodes"] if not node["target"].startswith(_CLAIM)]
        self._outputs = [_output_name(spec) for spec in signature["output_specs"] if "user_output" in spec]

    def forward(self, images: Tensor) -> Any:
        """Images as the program wants them -> its answer, a tensor or a tuple.

        Raises ValueError for channels or a size that it was not exported for: run operator by operator it might take
        them, and answer what nobody meant.
        """
        for given, side in zip(images.shape[1:], self.shape[1:], strict=False):
            if side is not None and given != side:
                wants, has = (" x ".join(map(str, shape)) for shape in (self.shape[1:], images.shape[1:]))
                raise ValueError(f"it was exported for images of {wants}, and is given {has}")
        values: Values = {self._inputs[0]: images}
        values |= {name: getattr(self, own) for name, own in self._names.items()}
        for step in self._steps:
            named = {k: _value(a, values) for k, a in step.kwargs.items()}
            _bind(step.outputs, step.call(*[_value(a, values) for a in step.args], **named), values)
        answers = [values[name] for name in self._outputs]
        return answers[0] if len(answers) == 1 else tuple(answers)

    @property
    def batch(self) -> int | None:
        """The one size of batch that it takes; None for any."""
        return self.shape[0] if self.shape else None

    def _take(self, archive: Archive, specs: list[dict[str, _Spec]], graph: _Graph) -> None:
        stored = _stored(archive)
        for spec in specs:
            ((kind, content),) = spec.items()
            name = content["arg"].get("name") or content["arg"].get("as_tensor", {}).get("name", "")
            if kind == "user_input":
                self._inputs.append(name)
                value = graph["tensor_values"].get(name)
                self.shape = [s.get("as_int") for s in value["sizes"]] if value else []
                continue
            key = str(next((v for k, v in content.items() if k.endswith("_name")), None))
            if kind not in ("parameter", "buffer", "tensor_constant") or key not in stored:
                raise refused(f"an input of kind {kind} ({key})", self.where)
            own = f"t{len(self._names)}"
            self._names[name] = own
            self.register_buffer(own, stored[key])

    def _step(self, node: _Node) -> _Step:
        call = exported_operator(node["target"], self.where)
        args = [i["arg"] for i in node["inputs"] if i.get("kind") != 2]
        kwargs = {i["name"]: i["arg"] for i in node["inputs"] if i.get("kind") == 2}
        return _Step(call, args, kwargs, node["outputs"])


def _document(archive: Archive) -> _Program:
    models = [n for n in archive.names if n.startswith("models/") and n.endswith(".json")]
    if len(models) != 1:
        hint = "export it again with torch.export.save of torch 2.8 or newer"
        raise UserError(f"{archive.path}: {len(models) or 'no'} program in it: {hint}")
    try:
        document: _Program = json.loads(archive.read(models[0]))
        major = int(document["schema_version"]["major"])
        document["graph_module"]["graph"]["nodes"], document["graph_module"]["signature"]["input_specs"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{archive.path}: '{models[0]}' in it is not a torch.export program") from None
    if major != _SCHEMA:
        raise UserError(f"{archive.path}: schema {major} of torch.export, where {_SCHEMA} is read: export it again")
    return document


def _stored(archive: Archive) -> dict[str, Tensor]:
    """Every tensor of the file by name. Tensors that share their bytes in the file share them here."""
    found: dict[str, Tensor] = {}
    for kind in ("weights", "constants"):
        for name in archive.names:
            if name.startswith(f"data/{kind}/") and name.endswith("_config.json"):
                for key, entry in json.loads(archive.read(name))["config"].items():
                    found[key] = _tensor(archive, f"data/{kind}/", key, entry)
    return found


def _tensor(archive: Archive, folder: str, key: str, entry: _StoredTensor) -> Tensor:
    if entry.get("use_pickle") or not entry.get("tensor_meta"):
        raise UserError(f"{archive.path}: '{key}' in it is a pickle, which could run code: it was not opened")
    meta = entry["tensor_meta"]
    dtype = _DTYPES.get(meta["dtype"])
    sizes, strides = [_int(s) for s in meta["sizes"]], [_int(s) for s in meta["strides"]]
    offset = _int(meta.get("storage_offset") or {"as_int": 0})
    if dtype is None or min((offset, *sizes, *strides), default=0) < 0:
        raise UserError(f"{archive.path}: '{key}' in it is of a kind that is not read")
    if 0 in sizes:
        return torch.empty(sizes, dtype=dtype)
    reach = offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) + 1
    if reach * dtype.itemsize > (held := archive.size(folder + entry["path_name"])):
        raise UserError(f"{archive.path}: '{key}' claims {reach * dtype.itemsize} bytes where {max(held, 0)} are")
    content = bytearray(archive.read(folder + entry["path_name"]))
    flat = torch.frombuffer(content, dtype=dtype, count=len(content) // dtype.itemsize)
    return torch.as_strided(flat, sizes, strides, offset).clone()


def _int(value: dict[str, int]) -> int:
    return int(value["as_int"])


def _output_name(spec: dict[str, _Spec]) -> str:
    return str(spec["user_output"]["arg"].get("as_tensor", {}).get("name"))


def _value(arg: Argument, values: Values) -> Any:
    """An argument of the JSON as torch wants it."""
    ((kind, content),) = arg.items()
    if kind == "as_tensor" or (kind in ("as_sym_int", "as_sym_bool", "as_sym_float") and "as_name" in content):
        return values[content.get("name") or content["as_name"]]
    if kind in _PLAIN:
        return content
    if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
        return next(iter(content.values()))
    if kind in ("as_tensors", "as_optional_tensors"):
        return [values[t["name"]] if "name" in t else _value(t, values) for t in content]
    if kind in ("as_sym_ints", "as_sym_floats", "as_sym_bools"):
        return [values[s["as_name"]] if "as_name" in s else next(iter(s.values())) for s in content]
    simple = {"as_none": None, "as_layout": torch.strided, "as_device": torch.device("cpu")}
    if kind in simple:
        return simple[kind]
    if kind == "as_scalar_type":
        return _DTYPES[content]
    if kind == "as_memory_format":
        return _FORMATS[content]
    raise UserError(f"the program hands over a {kind.removeprefix('as_')}, which is not read here")


def _bind(outputs: list[Argument], result: Any, values: Values) -> None:
    """Keep what a call returned under the names that the graph has for it; a check of the program returns nothing."""
    if not outputs:
        return
    if len(outputs) == 1 and "as_tensors" not in outputs[0]:
        result = [result]
    elif len(outputs) == 1:
        outputs = [{"as_tensor": t} for t in outputs[0]["as_tensors"]]
    for output, part in zip(outputs, result, strict=False):
        ((_, content),) = output.items()
        if isinstance(content, dict):
            values[str(content.get("name") or content.get("as_name"))] = part
