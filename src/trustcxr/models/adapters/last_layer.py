"""Whether answers are what a network's last layer made, with nothing after it that squashes them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trustcxr.models.adapters.adapted import plain_name
from trustcxr.models.adapters.answers import sole

_LAYERS = {"linear", "addmm", "matmul", "mm", "conv2d", "convolution", "_convolution"}
_SUMS = {"mean", "sum", "add", "sub", "__add__", "__sub__", "stack", "cat", "__getitem__", "chunk"}
_FORMS = {"flatten", "reshape", "view", "squeeze", "float"}


def answers_of_a_layer(net: nn.Module, given: Tensor) -> bool:
    """Whether `net` answers what it is given, (B, channels, size, size), with numbers of its last layer.

    Those are numbers that a linear layer or a convolution made, and means, sums and differences of such: they are
    logits, wherever they lie. False where something comes after it, or where torch cannot see how they were made.
    """
    with torch.no_grad(), _Layers() as seen:
        return seen.made(sole(net(given)))


class _Layers(TorchFunctionMode):
    """Remembers what layers made, and sums of it, as long as nobody changes it in place."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, tuple[Tensor, int]] = {}  # by id, which stays the tensor's own while that is kept

    def made(self, value: Any) -> bool:
        """Whether it is one of those."""
        tensor, version = self.known.get(id(value), (None, 0))
        return tensor is not None and tensor._version == version

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let the call through; note what it made where that is a layer's, or a sum of what layers made."""
        result, name = func(*args, **(kwargs or {})), plain_name(func)
        for made in result if isinstance(result, list | tuple) else (result,):
            if isinstance(made, Tensor) and (name in _LAYERS or (name in _SUMS | _FORMS and self._of_layers(args))):
                self.known[id(made)] = (made, made._version)
        return result

    def _of_layers(self, args: tuple[Any, ...]) -> bool:
        parts = [
            part for a in args for part in (a if isinstance(a, list | tuple) else (a,)) if isinstance(part, Tensor)
        ]
        return bool(parts) and all(self.made(part) for part in parts)
