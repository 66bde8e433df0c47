"""Implement the ONNX operators of image classifiers in torch, with gradients, by the ONNX specification.

An operator is a function (inputs, attributes) -> tensor or tuple of tensors. An omitted input is None, and an omitted
attribute has the specification's default.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attributes = dict[str, Any]
Operator = Callable[[list[Any], Attributes], Any]
# By ONNX's number of each data type.
DTYPES = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64}
DTYPES |= {9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}


class Unknown(Exception):
    """An operator, or a use of one, that is not converted."""


def _whole(values: Tensor | Sequence[int]) -> list[int]:
    return [int(v) for v in (values.tolist() if isinstance(values, Tensor) else values)]


def _padded(x: Tensor, a: Attributes, *, value: float = 0.0) -> tuple[Tensor, list[int]]:
    """Return the input, padded if its padding is uneven, and the remaining even padding."""
    window = a["kernel_shape"]
    how = a.get("auto_pad", "NOTSET")
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
    sides = [side for pair in zip(reversed(first), reversed(last), strict=True) for side in pair]
    return F.pad(x, sides, value=value), [0] * len(window)


def _conv(i: list[Any], a: Attributes) -> Tensor:
    x, weight, bias = (*i, None)[:3]
    if weight.ndim != 4:
        raise Unknown("Conv of other than images")
    x, padding = _padded(x, {"kernel_shape": list(weight.shape[2:])} | a)
    return F.conv2d(x, weight, bias, a.get("strides", 1), padding, a.get("dilations", 1), a.get("group", 1))


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


def _batch_norm(i: list[Any], a: Attributes) -> Tensor:
    x, scale, bias, mean, var = i[:5]
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, a.get("epsilon", 1e-5))


def _gemm(i: list[Any], a: Attributes) -> Tensor:
    x, y, bias = (*i, None)[:3]
    x, y = (x.T if a.get("transA") else x), (y if a.get("transB") else y.T)
    alpha, beta = a.get("alpha", 1.0), a.get("beta", 1.0)
    if alpha == 1.0 and beta == 1.0 and (bias is None or bias.ndim == 1):
        return F.linear(x, y, bias)
    return alpha * F.linear(x, y) + (0 if bias is None else beta * bias)


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def run(i: list[Any], a: Attributes) -> Tensor:
        axes = _axes(i, a)
        if not axes:
            if a.get("noop_with_empty_axes"):
                return i[0]
            axes = list(range(i[0].ndim))
        return function(i[0], tuple(axes), bool(a.get("keepdims", 1)))

    return run


def _clip(i: list[Any], a: Attributes) -> Tensor:
    low, high = ((*i[1:], None, None)[:2]) if len(i) > 1 else (a.get("min"), a.get("max"))
    number = lambda v: float(v) if isinstance(v, Tensor) else v  # noqa: E731
    return i[0].clamp(number(low), number(high))


def _reshape(i: list[Any], a: Attributes) -> Tensor:
    sides = _whole(i[1])
    if not a.get("allowzero"):
        sides = [i[0].shape[axis] if n == 0 else n for axis, n in enumerate(sides)]
    return torch.reshape(i[0], sides)


def _axes(i: list[Any], a: Attributes) -> list[int] | None:
    return _whole(i[1]) if len(i) > 1 and i[1] is not None else a.get("axes")


def _squeeze(i: list[Any], a: Attributes) -> Tensor:
    axes = _axes(i, a)
    return i[0].squeeze() if axes is None else i[0].squeeze(tuple(axes))


def _unsqueeze(i: list[Any], a: Attributes) -> Tensor:
    x, axes = i[0], _axes(i, a) or []
    for axis in sorted(n % (x.ndim + len(axes)) for n in axes):
        x = x.unsqueeze(axis)
    return x


def _slice(i: list[Any], a: Attributes) -> Tensor:
    x = i[0]
    starts, ends = (_whole(i[1]), _whole(i[2])) if len(i) > 1 else (a["starts"], a["ends"])
    axes = _whole(i[3]) if len(i) > 3 and i[3] is not None else a.get("axes", list(range(len(starts))))
    steps = _whole(i[4]) if len(i) > 4 and i[4] is not None else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        rows = range(x.shape[axis])[start:end:step]
        x = x.index_select(axis, torch.tensor(list(rows), dtype=torch.long, device=x.device))
    return x


def _split(i: list[Any], a: Attributes) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    parts = _whole(i[1]) if len(i) > 1 and i[1] is not None else a.get("split")
    if parts is None:
        count = a.get("num_outputs", a["outputs"])
        return i[0].split(-(-i[0].shape[axis] // count), axis)
    return i[0].split(list(parts), axis)


def _gather(i: list[Any], a: Attributes) -> Tensor:
    axis = a.get("axis", 0) % i[0].ndim
    index = i[1].long()
    index = torch.where(index < 0, index + i[0].shape[axis], index)
    return i[0].index_select(axis, index.flatten()).reshape(*i[0].shape[:axis], *index.shape, *i[0].shape[axis + 1 :])


def _pad(i: list[Any], a: Attributes) -> Tensor:
    pads = _whole(i[1]) if len(i) > 1 else a["pads"]
    if len(i) > 3 and i[3] is not None:
        raise Unknown("Pad of named axes")
    value = float(i[2]) if len(i) > 2 and i[2] is not None else a.get("value", 0.0)
    half = len(pads) // 2
    sides = [n for pair in zip(reversed(pads[:half]), reversed(pads[half:]), strict=True) for n in pair]
    mode = {"constant": "constant", "edge": "replicate", "reflect": "reflect"}[a.get("mode", "constant")]
    if mode == "constant":
        return F.pad(i[0], sides, value=value)
    return F.pad(i[0], sides[:4], mode=mode)


def _resize(i: list[Any], a: Attributes) -> Tensor:
    x = i[0]
    coordinates = a.get("coordinate_transformation_mode", "half_pixel")
    if len(i) > 3 and i[3] is not None:
        sides = _whole(i[3])[2:]
    else:
        sides = [int(n * float(s)) for n, s in zip(x.shape[2:], i[2].tolist()[2:], strict=True)]
    mode = a.get("mode", "nearest")
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
    return torch.full(_whole(i[0]), value.item(), dtype=value.dtype)


def _expand(i: list[Any], a: Attributes) -> Tensor:
    return i[0].expand(torch.broadcast_shapes(i[0].shape, _whole(i[1])))


def _flatten(i: list[Any], a: Attributes) -> Tensor:
    axis = a.get("axis", 1)
    return i[0].reshape(i[0].shape[:axis].numel(), -1)


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


def _divide(i: list[Any], a: Attributes) -> Tensor:
    return i[0] / i[1] if i[0].is_floating_point() else torch.div(i[0], i[1], rounding_mode="trunc")


def _plain(function: Callable[..., Any], takes: int = 1) -> Operator:
    return lambda i, a: function(*i[:takes])


def _all(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def run(i: list[Any], a: Attributes) -> Tensor:
        result = i[0]
        for other in i[1:]:
            result = function(result, other)
        return result

    return run


OPERATORS: dict[str, Operator] = {
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": lambda i, a: F.instance_norm(i[0], weight=i[1], bias=i[2], eps=a.get("epsilon", 1e-5)),
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda i, a: i[0].mean(tuple(range(2, i[0].ndim)), keepdim=True),
    "GlobalMaxPool": lambda i, a: i[0].amax(tuple(range(2, i[0].ndim)), keepdim=True),
    "Gemm": _gemm,
    "Div": _divide,
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
    "Flatten": _flatten,
    "Transpose": lambda i, a: i[0].permute(*a.get("perm", reversed(range(i[0].ndim)))),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": lambda i, a: torch.cat(i, a["axis"]),
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Expand": _expand,
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
