"""Check ONNX files, run them by onnxruntime, and convert them to torch for gradients.

onnxruntime's outputs are the reference. The graph run in torch (`onnx_operators`) is used if it agrees to within 1e-4,
first on noise and then on images (`loading.verify_conversion`). Else the net has no gradients.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trustcxr.audit.formats.onnx_operators import OPERATORS, Attributes, Operator, Unknown
from trustcxr.audit.formats.outputs import import_extra, one_line
from trustcxr.errors import UserError

AGREE = 1e-4  # largest difference of a conversion from onnxruntime, relative to the largest output or 1
_MOST = 2**31  # bytes of a tensor that is computed from constants
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


class OnnxNet(nn.Module):
    """An ONNX file in onnxruntime: images in its own format (B, C, H, W) -> its first output, without gradients."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.where = str(path)
        model = read_onnx(path)
        runtime = import_extra("onnxruntime", "ONNX", "onnx")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = runtime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as problem:
            raise UserError(f"{path}: onnxruntime does not take it ({one_line(problem)})") from None
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            raise UserError(f"{path}: it takes {len(inputs)} inputs; one is needed, the images")
        self.input, self.shape = inputs[0].name, list(inputs[0].shape)
        if len(self.shape) == 4 and self.shape[3] in (1, 3) and self.shape[1] not in (1, 3):
            raise UserError(
                f"{path}: it takes images as ({', '.join(map(str, self.shape))}), channels last; export it with "
                "channels before height and width, as tf2onnx does with --inputs-as-nchw"
            )
        if len(self.shape) != 4:
            raise UserError(f"{path}: its input has {len(self.shape)} dimensions; images (B, C, H, W) have four")
        self.dtype = {"tensor(float16)": np.float16, "tensor(double)": np.float64}.get(inputs[0].type, np.float32)
        self.output, self.outputs = self.session.get_outputs()[0].name, len(self.session.get_outputs())

    @property
    def batch(self) -> int | None:
        """Return the one batch size that it takes; None for any."""
        return self.shape[0] if isinstance(self.shape[0], int) else None

    def forward(self, images: Tensor) -> Tensor:
        """Return the first output, without a gradient; UserError if it does not run."""
        values = images.detach().cpu().numpy().astype(self.dtype)
        try:
            (output,) = self.session.run([self.output], {self.input: values})
        except Exception as problem:
            raise UserError(
                f"{self.where}: onnxruntime fails on images {values.shape} ({one_line(problem)}): see input.size and "
                "input.channels of the model file"
            ) from None
        return torch.from_numpy(np.asarray(output)).to(images.device)


def load_onnx(path: Path, images: Tensor) -> "tuple[OnnxNet, ConvertedNet | None, str]":
    """Load a file, and its conversion to torch if both agree on `images` (in its own format), else the reason."""
    original = OnnxNet(path)
    probe = images if original.batch is None else images[:1].expand(original.batch, -1, -1, -1)
    with torch.no_grad():
        expected = original(probe)
    try:
        net = ConvertedNet(path).eval()
        with torch.no_grad():
            difference = largest_difference(net(probe), expected)
    except Exception as problem:  # an unknown operator, or an unsupported use of one
        return original, None, f"it cannot be converted to torch ({one_line(problem)})"
    return (original, net, "") if difference <= AGREE else (original, None, describe_difference(difference))


def takes_any_batch(net: nn.Module, original: OnnxNet, images: Tensor) -> bool:
    """Return whether a conversion of a file with a fixed batch answers `images` (B, C, H, W) at once as one by one."""
    try:
        with torch.no_grad():
            expected = [original(image.expand(original.batch, -1, -1, -1))[:1] for image in images]
            return largest_difference(net(images), torch.cat(expected)) <= AGREE
    except Exception:  # a shape that is written into the graph
        return False


def largest_difference(outputs: Tensor, expected: Tensor) -> float:
    """Return the largest difference from the expected outputs, relative to the largest of these or 1."""
    return float((outputs - expected).abs().max()) / max(1.0, float(expected.abs().max()))


def describe_difference(difference: float) -> str:
    """Return why a conversion with that difference is not used."""
    return f"its conversion to torch answers otherwise (by {difference:.1e}, where {AGREE:.0e} is let pass)"


def read_onnx(path: Path) -> Any:
    """Read the model of an ONNX file with its external data; UserError for a damaged or unsafe file.

    External data must be in the file's own folder, tensors as large as declared, operators ONNX's own.
    """
    onnx = import_extra("onnx", "ONNX", "onnx")
    try:
        model = onnx.load(str(path), load_external_data=False)
        graphs = list(_graphs(model.graph))
    except Exception as problem:
        raise UserError(f"{path}: not readable as ONNX ({one_line(problem)})") from None
    if not model.graph.node:
        raise UserError(f"{path}: not readable as ONNX (no operator in it)")
    for opset in model.opset_import:
        if opset.domain not in _DOMAINS:
            raise UserError(f"{path}: operators of '{opset.domain}' are not ONNX's own: they are code and were not run")
    constants = {}
    for graph in graphs:
        for tensor in _tensors(graph):
            _check_tensor(tensor, path, onnx)
            constants[tensor.name] = tensor
        for node in graph.node:
            _check_filled(node, constants, path, onnx)
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except Exception as problem:
        raise UserError(f"{path}: its external data cannot be read ({one_line(problem)})") from None
    return model


def external_files(path: Path) -> list[Path]:
    """List the files with external tensors of an ONNX file that `read_onnx` has accepted, by name."""
    onnx = import_extra("onnx", "ONNX", "onnx")
    model = onnx.load(str(path), load_external_data=False)
    tensors = (t for graph in _graphs(model.graph) for t in _tensors(graph))
    entries = (entry for t in tensors if t.data_location == onnx.TensorProto.EXTERNAL for entry in t.external_data)
    return [path.parent / name for name in sorted({entry.value for entry in entries if entry.key == "location"})]


class ConvertedNet(nn.Module):
    """An ONNX graph in torch, operator by operator: images in its own format -> its first output, with gradients."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        graph, onnx = read_onnx(path), import_extra("onnx", "ONNX", "onnx")
        opset = max([o.version for o in graph.opset_import if o.domain in ("", "ai.onnx")], default=1)
        graph = graph.graph
        self._stored = {}
        for number, tensor in enumerate(graph.initializer):
            self._stored[tensor.name] = f"t{number}"
            values = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
            values = values.to(memory_format=torch.channels_last) if values.ndim == 4 else values
            self.register_buffer(f"t{number}", values)
        self._input = next(i.name for i in graph.input if i.name not in self._stored)
        self._output, self.outputs = graph.output[0].name, len(graph.output)
        self._steps = [
            (_operator(node), list(node.input), list(node.output), _attributes(node, opset, onnx))
            for node in _pool_first(list(graph.node), self._output)
        ]

    def forward(self, images: Tensor) -> Tensor:
        """Return the first output."""
        values: dict[str, Any] = {name: getattr(self, buffer) for name, buffer in self._stored.items()}
        if images.ndim == 4:  # convolution and max-pooling are several times faster with channels last
            images = images.to(memory_format=torch.channels_last)  # `contiguous` leaves one channel as it is
        values |= {"": None, self._input: images}
        for run, inputs, outputs, attributes in self._steps:
            result = run([values[name] for name in inputs], attributes)
            values.update(zip(outputs, result if isinstance(result, tuple) else (result,), strict=False))
        return values[self._output]


def _pool_first(nodes: list[Any], output: str) -> list[Any]:
    """Put a max-pooling before the rectifier that feeds it alone: the same numbers, and a quarter of the rectifying."""
    uses = Counter(name for node in nodes for name in node.input) + Counter([output])
    makers = {node.output[0]: index for index, node in enumerate(nodes) if node.op_type == "Relu"}
    for index, pool in enumerate(nodes):
        if pool.op_type != "MaxPool" or len(pool.output) > 1 or uses[pool.input[0]] != 1:
            continue
        first = makers.get(pool.input[0])
        if first is not None:
            relu, between = nodes[first], pool.input[0]
            pool.input[0], relu.input[0] = relu.input[0], between
            relu.output[0], pool.output[0] = pool.output[0], between
            nodes[first], nodes[index] = pool, relu
    return nodes


def _operator(node: Any) -> Operator:
    if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
        raise Unknown(f"operator {node.op_type}")
    return OPERATORS[node.op_type]


def _attributes(node: Any, opset: int, onnx: Any) -> Attributes:
    attributes: Attributes = {"opset": opset, "outputs": len(node.output)}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            value = torch.from_numpy(onnx.numpy_helper.to_array(value).copy())
        elif isinstance(value, bytes):
            value = value.decode()
        attributes[attribute.name] = value if isinstance(value, Tensor | str | int | float) else list(value)
    return attributes


def _graphs(graph: Any) -> Iterator[Any]:
    """Yield the graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(inner)


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield the stored tensors of a graph."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                if node.output and node.op_type == "Constant":
                    attribute.t.name = attribute.t.name or node.output[0]
                yield attribute.t
            yield from attribute.tensors


def _check_tensor(tensor: Any, path: Path, onnx: Any) -> None:
    """Raise UserError if the tensor's data are outside the file's folder, or fewer than its shape needs."""
    bits = {onnx.TensorProto.INT4: 4, onnx.TensorProto.UINT4: 4}.get(tensor.data_type)
    if tensor.data_type == onnx.TensorProto.STRING:
        return
    try:
        item = bits / 8 if bits else np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    except KeyError:
        raise UserError(f"{path}: tensor '{tensor.name}' is of a kind that is not known") from None
    claimed = math.prod(tensor.dims)
    if min(tensor.dims, default=0) < 0:
        raise UserError(f"{path}: tensor '{tensor.name}' has a negative side")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        available = _external_bytes(tensor, path)
    elif tensor.HasField("raw_data"):
        available = len(tensor.raw_data)
    else:
        fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
        available = int(item * max(len(getattr(tensor, field)) for field in fields))
    if claimed * item > available:
        raise UserError(f"{path}: tensor '{tensor.name}' claims {int(claimed * item)} bytes where {available} are")


def _external_bytes(tensor: Any, path: Path) -> int:
    """Return the bytes of the tensor in its own file; UserError for a file outside the model's folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, folder = entries.get("location", ""), path.parent.resolve()
    try:
        inside = (folder / location).resolve()
        length = inside.stat().st_size if inside.is_relative_to(folder) else -1
        offset, claimed = int(entries.get("offset", 0)), int(entries.get("length", 0))
    except (OSError, ValueError):
        raise UserError(f"{path}: external data '{location}' of '{tensor.name}' cannot be found beside it") from None
    if length < 0 or Path(location).is_absolute():
        raise UserError(f"{path}: external data '{location}' lies outside the model's own folder: it was not opened")
    return min(claimed or length - offset, length - offset)


def _check_filled(node: Any, constants: Mapping[str, Any], path: Path, onnx: Any) -> None:
    """Raise UserError if constants would fill memory: ConstantOfShape, Expand or Tile of a huge shape."""
    index = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}.get(node.op_type)
    if index is None or len(node.input) <= index or node.input[index] not in constants:
        return
    tensor = constants[node.input[index]]
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        sides = [int(n) for n in onnx.numpy_helper.to_array(tensor).flatten()]
        if math.prod(max(n, 1) for n in sides) * 4 > _MOST:
            raise UserError(f"{path}: {node.op_type} of {sides} would fill {math.prod(sides) * 4 >> 30} GB of memory")
