"""Tell whether outputs come straight from a network's last layer, with nothing after it that squashes them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trustcxr.audit.formats.outputs import unwrap_single
from trustcxr.audit.formats.wrapper import plain_name, tensors_in

_LAYERS = {"linear", "addmm", "matmul", "mm", "conv2d", "convolution", "_convolution"}
_SUMS = {"mean", "sum", "add", "sub", "__add__", "__sub__", "stack", "cat", "__getitem__", "chunk"}
_FORMS = {"flatten", "reshape", "view", "squeeze", "float"}
# Functions that bound numbers, and those that a written-out sigmoid uses: a layer behind them makes no logits.
_BOUNDS = {"sigmoid", "softmax", "_softmax", "tanh", "hardtanh", "hardsigmoid", "clamp", "clip", "expit", "exp"}
_BOUNDS |= {"div", "true_divide", "__truediv__", "__rtruediv__", "__div__", "__rdiv__", "reciprocal"}


def is_layer_output(net: nn.Module, inputs: Tensor) -> bool:
    """Return whether `net` answers its inputs (B, channels, size, size) with numbers of its last layer.

    Such numbers come from a linear layer or a convolution, or are means, sums and differences of them: they are logits,
    even if they lie in [0, 1]. False if another function follows, if the layer's input was bounded just before, or if
    torch cannot see how they were computed.
    """
    with torch.no_grad(), _Layers() as seen:
        return seen.is_from_layer(unwrap_single(net(inputs)))


class _Layers(TorchFunctionMode):
    """Record the outputs of layers, and sums of them, that are not changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, tuple[Tensor, int]] = {}  # by id, which stays taken as long as the tensor is here
        self.bounded: dict[int, Tensor] = {}  # outputs of bounding functions, and sums and layers of them

    def is_from_layer(self, value: Any) -> bool:
        """Return whether the value is a recorded output."""
        tensor, version = self.outputs.get(id(value), (None, 0))
        return tensor is not None and tensor._version == version

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call and record its output if it comes from layers."""
        result, name, parts = func(*args, **(kwargs or {})), plain_name(func), tensors_in(args)
        bounds = name in _BOUNDS or name.rstrip("_") in _BOUNDS
        bounded = bounds or (name in _LAYERS | _SUMS | _FORMS and any(id(part) in self.bounded for part in parts))
        terms = [part for part in parts if not isinstance(part, nn.Parameter)]  # without a layer's own bias
        layers = name in _LAYERS or (name in _SUMS | _FORMS and bool(terms) and all(map(self.is_from_layer, terms)))
        for output in tensors_in((result,)):
            if bounded:
                self.bounded[id(output)] = output
            elif layers:
                self.outputs[id(output)] = (output, output._version)
        return result
