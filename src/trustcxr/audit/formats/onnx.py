"""Check ONNX files, run them by onnxruntime, and convert them to torch for gradients.

onnxruntime's outputs are the reference. The graph run in torch, by OPERATORS, is used if it agrees to within 1e-4,
first on noise and then on images (`loading.verify_conversion`). Else the net has no gradients.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr.audit.formats.outputs import import_extra, one_line, refuse
from trustcxr.errors import UserError

AGREE = 1e-4  # largest difference of a conversion from onnxruntime, relative to the largest output or 1
_FEWEST_MAPS = 32  # of a convolution, from which a matrix product is the faster way to its gradient
_MOST = 2**31  # bytes of a tensor that is computed from constants
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
Attributes = dict[str, Any]
Operator = Callable[[list[Any], Attributes], Any]
# By ONNX's number of each data type.
DTYPES = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64}
DTYPES |= {9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}


class Unknown(Exception):
    """An operator, or a use of one, that is not converted."""


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
        with refuse(f"{path}: onnxruntime does not take it"):
            content, providers = model.SerializeToString(), ["CPUExecutionProvider"]
            self.session = runtime.InferenceSession(content, options, providers=providers)
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
        hint = ": see input.size and input.channels of the model file"
        with refuse(f"{self.where}: onnxruntime fails on images {values.shape}", hint):
            (output,) = self.session.run([self.output], {self.input: values})
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
    with refuse(f"{path}: not readable as ONNX"):
        model = onnx.load(str(path), load_external_data=False)
        graphs = list(_graphs(model.graph))
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
    with refuse(f"{path}: its external data cannot be read"):
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
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

    takes_equal_channels = True  # of stride 0: one channel in memory

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
        self._steps = []
        nodes = _pool_first(list(graph.node), self._output)
        last = [node for node in nodes if node.op_type == "Conv"][-1:]
        for node in nodes:
            if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
                raise Unknown(f"operator {node.op_type}")
            attributes = _attributes(node, opset, onnx) | {"last": node in last}
            self._steps.append((OPERATORS[node.op_type], list(node.input), list(node.output), attributes))

    def forward(self, images: Tensor) -> Tensor:
        """Return the first output."""
        values: dict[str, Any] = {name: getattr(self, buffer) for name, buffer in self._stored.items()}
        # Convolution and max-pooling are several times faster with channels last. Equal channels stay one in memory.
        if images.ndim == 4 and images.stride(1) != 0:
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
        first = makers.get(pool.input[0]) if pool.op_type == "MaxPool" and len(pool.output) == 1 else None
        if first is not None and uses[pool.input[0]] == 1:
            relu, between = nodes[first], pool.input[0]
            pool.input[0], relu.input[0] = relu.input[0], between
            relu.output[0], pool.output[0] = pool.output[0], between
            nodes[first], nodes[index] = pool, relu
    return nodes


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


def _numbers(i: list[Any], index: int, a: Attributes, name: str = "") -> list[int] | None:
    """Return the whole numbers of an input, else those of an attribute (before opset 13); None without both."""
    if len(i) > index and i[index] is not None:
        return [int(number) for number in i[index].tolist()]
    return a.get(name)


def _sides(first: list[int], last: list[int]) -> list[int]:
    """Return padding in the order of torch: the last axis first, both ends of each."""
    return [side for pair in zip(reversed(first), reversed(last), strict=True) for side in pair]


def _padded(x: Tensor, a: Attributes, *, value: float = 0.0) -> tuple[Tensor, list[int]]:
    """Return the input, padded if its padding is uneven, and the remaining even padding."""
    window, how = a["kernel_shape"], a.get("auto_pad", "NOTSET")
    if how in ("SAME_UPPER", "SAME_LOWER"):
        strides, spread = a.get("strides", [1] * len(window)), a.get("dilations", [1] * len(window))
        total = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, s, k, d in zip(x.shape[2:], strides, window, spread, strict=True)
        ]
        first = [t // 2 if how == "SAME_UPPER" else t - t // 2 for t in total]
        last = [t - f for t, f in zip(total, first, strict=True)]
    else:
        pads = a.get("pads", [0] * 2 * len(window)) if how == "NOTSET" else [0] * 2 * len(window)
        first, last = pads[: len(window)], pads[len(window) :]
    if first == last:
        return x, list(first)
    return F.pad(x, _sides(first, last), value=value), [0] * len(window)


def _conv(i: list[Any], a: Attributes) -> Tensor:
    x, weight, bias = (*i, None)[:3]
    if weight.ndim != 4:
        raise Unknown("Conv of other than images")
    groups = a.get("group", 1)
    if groups == 1 < x.shape[1] and x.stride(1) == 0:  # equal channels: by one for all
        x, weight = x[:, :1].to(memory_format=torch.channels_last), weight.sum(1, keepdim=True)
    x, padding = _padded(x, {"kernel_shape": list(weight.shape[2:])} | a)
    strides, dilations = a.get("strides", [1, 1]), a.get("dilations", [1, 1])
    # Grad-CAM and planted examples need the steps inside the last one.
    if weight.shape[1] == 1 == groups and len(weight) >= _FEWEST_MAPS and x.requires_grad and not a["last"]:
        return _GreyConvolution.apply(x, weight, bias, strides, padding, dilations)
    return F.conv2d(x, weight, bias, strides, padding, dilations, groups)


class _GreyConvolution(torch.autograd.Function):
    """A convolution of one channel, with its gradient in the image by one matrix product: a third of the time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        """Return maps (B, K, h, w) of images (B, 1, H, W)."""
        ctx.save_for_backward(x, weight)
        ctx.options = dict(zip(("stride", "padding", "dilation"), options, strict=True))
        return F.conv2d(x, weight, bias, **ctx.options)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient in the images, from that in the maps."""
        x, weight = ctx.saved_tensors
        maps = gradient.movedim(1, 3).flatten(1, 2).transpose(1, 2)  # (B, K, h * w), without a copy
        columns = weight.to(gradient).flatten(1).T @ maps
        images = F.fold(columns, x.shape[2:], weight.shape[2:], **ctx.options)
        return images.to(x), None, None, None, None, None


def _max_pool(i: list[Any], a: Attributes) -> Tensor:
    x, padding = _padded(i[0], a, value=-torch.inf)
    window, strides = a["kernel_shape"], a.get("strides", [1] * len(a["kernel_shape"]))
    return F.max_pool2d(x, window, strides, padding, a.get("dilations", 1), bool(a.get("ceil_mode", 0)))


def _average_pool(i: list[Any], a: Attributes) -> Tensor:
    x, padding = _padded(i[0], a)
    counted = bool(a.get("count_include_pad", 0))
    if x is not i[0] and not counted:
        raise Unknown("AveragePool with uneven padding")
    strides = a.get("strides", [1] * len(a["kernel_shape"]))
    return F.avg_pool2d(x, a["kernel_shape"], strides, padding, bool(a.get("ceil_mode", 0)), counted)


def _gemm(i: list[Any], a: Attributes) -> Tensor:
    x, y, bias = (*i, None)[:3]
    x, y = (x.T if a.get("transA") else x), (y if a.get("transB") else y.T)
    alpha, beta = a.get("alpha", 1.0), a.get("beta", 1.0)
    if alpha == 1.0 and beta == 1.0 and (bias is None or bias.ndim == 1):
        return F.linear(x, y, bias)
    return alpha * F.linear(x, y) + (0 if bias is None else beta * bias)


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def run(i: list[Any], a: Attributes) -> Tensor:
        axes = _numbers(i, 1, a, "axes")
        if not axes and a.get("noop_with_empty_axes"):
            return i[0]
        return function(i[0], tuple(axes or range(i[0].ndim)), bool(a.get("keepdims", 1)))

    return run


def _clip(i: list[Any], a: Attributes) -> Tensor:
    ends = (*i[1:], None, None)[:2] if len(i) > 1 else (a.get("min"), a.get("max"))
    low, high = (float(end) if isinstance(end, Tensor) else end for end in ends)
    return i[0].clamp(low, high)


def _reshape(i: list[Any], a: Attributes) -> Tensor:
    sides = i[1].tolist()
    if not a.get("allowzero"):
        sides = [i[0].shape[axis] if n == 0 else n for axis, n in enumerate(sides)]
    return torch.reshape(i[0], sides)


def _squeeze(i: list[Any], a: Attributes) -> Tensor:
    axes = _numbers(i, 1, a, "axes")
    return i[0].squeeze() if axes is None else i[0].squeeze(tuple(axes))


def _unsqueeze(i: list[Any], a: Attributes) -> Tensor:
    x, axes = i[0], _numbers(i, 1, a, "axes") or []
    for axis in sorted(n % (x.ndim + len(axes)) for n in axes):
        x = x.unsqueeze(axis)
    return x


def _slice(i: list[Any], a: Attributes) -> Tensor:
    x, starts, ends = i[0], _numbers(i, 1, a, "starts") or [], _numbers(i, 2, a, "ends") or []
    axes, steps = _numbers(i, 3, a, "axes") or range(len(starts)), _numbers(i, 4, a) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        rows = range(x.shape[axis])[start:end:step]
        x = x.index_select(axis, torch.tensor(list(rows), dtype=torch.long, device=x.device))
    return x


def _split(i: list[Any], a: Attributes) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    each = -(-i[0].shape[axis] // a.get("num_outputs", a["outputs"]))
    return i[0].split(_numbers(i, 1, a, "split") or each, axis)


def _gather(i: list[Any], a: Attributes) -> Tensor:
    axis = a.get("axis", 0) % i[0].ndim
    index = i[1].long()
    index = torch.where(index < 0, index + i[0].shape[axis], index)
    return i[0].index_select(axis, index.flatten()).reshape(*i[0].shape[:axis], *index.shape, *i[0].shape[axis + 1 :])


def _pad(i: list[Any], a: Attributes) -> Tensor:
    pads = _numbers(i, 1, a, "pads") or []
    if len(i) > 3 and i[3] is not None:
        raise Unknown("Pad of named axes")
    value = float(i[2]) if len(i) > 2 and i[2] is not None else a.get("value", 0.0)
    sides = _sides(pads[: len(pads) // 2], pads[len(pads) // 2 :])
    mode = a.get("mode", "constant")
    if mode == "constant":
        return F.pad(i[0], sides, value=value)
    return F.pad(i[0], sides[:4], mode={"edge": "replicate", "reflect": "reflect"}[mode])


def _resize(i: list[Any], a: Attributes) -> Tensor:
    x, mode = i[0], a.get("mode", "nearest")
    coordinates = a.get("coordinate_transformation_mode", "half_pixel")
    sides = (_numbers(i, 3, a) or [int(n * float(s)) for n, s in zip(x.shape, i[2].tolist(), strict=True)])[2:]
    if mode == "linear" and coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        smooth = bool(a.get("antialias", 0))
        return F.interpolate(x, sides, mode="bilinear", align_corners=coordinates == "align_corners", antialias=smooth)
    if mode == "nearest" and coordinates == "asymmetric":
        return F.interpolate(x, sides, mode="nearest")
    raise Unknown(f"Resize {mode}, {coordinates}")


def _layer_norm(i: list[Any], a: Attributes) -> Tensor:
    x, scale, bias = (*i, None)[:3]
    axis = a.get("axis", -1) % x.ndim
    return F.layer_norm(x, x.shape[axis:], scale, bias, a.get("epsilon", 1e-5))


def _softmax(i: list[Any], a: Attributes, squash: Callable[..., Tensor] = F.softmax) -> Tensor:
    if a["opset"] >= 13:
        return squash(i[0], a.get("axis", -1))
    axis = a.get("axis", 1) % i[0].ndim  # before 13: all axes from this one on, together
    return squash(i[0].flatten(axis), -1).reshape(i[0].shape)


def _constant(i: list[Any], a: Attributes) -> Tensor:
    for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        if name in a:
            return torch.as_tensor(a[name])
    raise Unknown("Constant of this kind")


def _filled(i: list[Any], a: Attributes) -> Tensor:
    value = torch.as_tensor(a.get("value", 0.0)).reshape(())
    return torch.full(i[0].tolist(), value.item(), dtype=value.dtype)


def _quantise(i: list[Any], a: Attributes) -> Tensor:
    x, scale, zero = (*i, torch.zeros((), dtype=torch.uint8))[:3]
    scale, shift = _along(scale, x, a), _along(zero, x, a)
    ends = torch.iinfo(zero.dtype)
    return (torch.round(x / scale) + shift).clamp(ends.min, ends.max)  # floats, so that a gradient can pass


def _dequantise(i: list[Any], a: Attributes) -> Tensor:
    x, scale = i[0], i[1]
    zero = i[2] if len(i) > 2 and i[2] is not None else torch.zeros(())
    return (x.to(scale.dtype) - _along(zero, x, a)) * _along(scale, x, a)


def _along(values: Tensor, x: Tensor, a: Attributes) -> Tensor:
    values = values.float()
    if values.numel() == 1:
        return values.reshape(())
    sides = [1] * x.ndim
    sides[a.get("axis", 1)] = -1
    return values.reshape(sides)


def _plain(function: Callable[..., Any], takes: int = 1) -> Operator:
    return lambda i, a: function(*i[:takes])


def _all(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda i, a: reduce(function, i)


OPERATORS: dict[str, Operator] = {
    "Conv": _conv,
    "BatchNormalization": lambda i, a: F.batch_norm(i[0], i[3], i[4], i[1], i[2], eps=a.get("epsilon", 1e-5)),
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": lambda i, a: F.instance_norm(i[0], weight=i[1], bias=i[2], eps=a.get("epsilon", 1e-5)),
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda i, a: i[0].mean(tuple(range(2, i[0].ndim)), keepdim=True),
    "GlobalMaxPool": lambda i, a: i[0].amax(tuple(range(2, i[0].ndim)), keepdim=True),
    "Gemm": _gemm,
    "Div": lambda i, a: torch.div(*i, rounding_mode=None if i[0].is_floating_point() else "trunc"),
    "Sum": _all(torch.add),
    "Max": _all(torch.maximum),
    "Min": _all(torch.minimum),
    "Relu": _plain(F.relu),
    "LeakyRelu": lambda i, a: F.leaky_relu(i[0], a.get("alpha", 0.01)),
    "PRelu": lambda i, a: torch.where(i[0] > 0, i[0], i[0] * i[1]),
    "Elu": lambda i, a: F.elu(i[0], a.get("alpha", 1.0)),
    "Gelu": lambda i, a: F.gelu(i[0], approximate=a.get("approximate", "none")),
    "HardSigmoid": lambda i, a: (a.get("alpha", 0.2) * i[0] + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": _plain(F.hardswish),
    "Softplus": _plain(F.softplus),
    "Softmax": _softmax,
    "LogSoftmax": lambda i, a: _softmax(i, a, F.log_softmax),
    "Clip": _clip,
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep)),
    "Reshape": _reshape,
    "Flatten": lambda i, a: i[0].reshape(i[0].shape[: a.get("axis", 1)].numel(), -1),
    "Transpose": lambda i, a: i[0].permute(*a.get("perm", reversed(range(i[0].ndim)))),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": lambda i, a: torch.cat(i, a["axis"]),
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Expand": lambda i, a: i[0].expand(torch.broadcast_shapes(i[0].shape, i[1].tolist())),
    "Pad": _pad,
    "Resize": _resize,
    "Where": _plain(torch.where, 3),
    "Equal": _plain(torch.eq, 2),
    "Greater": _plain(torch.gt, 2),
    "Less": _plain(torch.lt, 2),
    "Not": _plain(torch.logical_not),
    "Cast": lambda i, a: i[0].to(DTYPES[a["to"]]),
    "Shape": lambda i, a: torch.tensor(list(i[0].shape[a.get("start", 0) : a.get("end")]), dtype=torch.long),
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Identity": _plain(lambda x: x),
    "Dropout": _plain(lambda x: x),
    "QuantizeLinear": _quantise,
    "DequantizeLinear": _dequantise,
}
# Operators with the same name in torch, by their number of inputs.
_SAME_NAME = {1: "Abs Ceil Erf Exp Floor Log Neg Reciprocal Round Sigmoid Sign Sqrt Tanh", 2: "Add MatMul Mul Pow Sub"}
for _inputs, _names in _SAME_NAME.items():
    OPERATORS |= {name: _plain(getattr(torch, name.lower()), _inputs) for name in _names.split()}
