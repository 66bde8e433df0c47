"""Whether answers are what a network's last layer made, with nothing after it that squashes them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trustcxr.audit.formats.outputs import sole
from trustcxr.audit.formats.wrapper import plain_name

_LAYERS = {"linear", "addmm", "matmul", "mm", "conv2d", "convolution", "_convolution"}
_SUMS = {"mean", "sum", "add", "sub", "__add__", "__sub__", "stack", "cat", "__getitem__", "chunk"}
_FORMS = {"flatten", "reshape", "view", "squeeze", "float"}
# What bounds numbers, and by what a sigmoid is written out: a layer behind it makes no logits of them.
_BOUNDS = {"sigmoid", "softmax", "_softmax", "tanh", "hardtanh", "hardsigmoid", "clamp", "clip", "expit", "exp"}
_BOUNDS |= {"div", "true_divide", "__truediv__", "__rtruediv__", "__div__", "__rdiv__", "reciprocal"}


def is_layer_output(net: nn.Module, given: Tensor) -> bool:
    """Whether `net` answers what it is given, (B, channels, size, size), with numbers of its last layer.

    Those are numbers that a linear layer or a convolution made, and means, sums and differences of such: they are
    logits, wherever they lie. False where something comes after it, where what goes into it was bounded just before, as
    by a sigmoid, or where torch cannot see how they were made.
    """
    with torch.no_grad(), _Layers() as seen:
        return seen.made(sole(net(given)))


class _Layers(TorchFunctionMode):
    """Remembers what layers made, and sums of it, as long as nobody changes it in place."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, tuple[Tensor, int]] = {}  # by id, which stays the tensor's own while that is kept
        self.bounded: dict[int, Tensor] = {}  # what a bounding function made, and sums and layers of it

    def made(self, value: Any) -> bool:
        """Whether it is one of those."""
        tensor, version = self.known.get(id(value), (None, 0))
        return tensor is not None and tensor._version == version

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let the call through; note what it made where that is a layer's, or a sum of what layers made."""
        result, name, parts = func(*args, **(kwargs or {})), plain_name(func), _tensors(args)
        bounds = name in _BOUNDS or name.rstrip("_") in _BOUNDS
        bounded = bounds or (name in _LAYERS | _SUMS | _FORMS and any(id(part) in self.bounded for part in parts))
        of_layers = name in _LAYERS or (name in _SUMS | _FORMS and bool(parts) and all(map(self.made, parts)))
        for made in _tensors((result,)):
            if bounded:
                self.bounded[id(made)] = made
            elif of_layers:
                self.known[id(made)] = (made, made._version)
        return result


def _tensors(args: tuple[Any, ...]) -> list[Tensor]:
    return [part for a in args for part in (a if isinstance(a, list | tuple) else (a,)) if isinstance(part, Tensor)]
