"""Describe the state of a model, to tell whether it remembers what it was asked."""

from collections import deque
from collections.abc import Mapping
from hashlib import blake2b
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trustcxr.audit.formats.wrapper import WrappedModel

_DEEPEST = 6  # of containers and objects inside each other
_OWN = frozenset(vars(nn.Module()))  # torch's attributes of a module: flags, hooks and tables


def describe_state(model: nn.Module, images: Tensor) -> dict[str, str]:
    """Run a model on images (B, 1, H, W), and return a digest of each weight, buffer and attribute of its modules.

    The last activations, which some models store, are those of the same images each time. So they do not differ.
    """
    with torch.no_grad():
        model(images)
    inner = model.net if isinstance(model, WrappedModel) else model
    state = {
        name: _digest(tensor, 0)
        for tensors in (inner.named_parameters(), inner.named_buffers())
        for name, tensor in tensors
    }
    for name, module in inner.named_modules():
        state |= {f"{name}.{key}".lstrip("."): digest for key, digest in _attributes(module, 0).items()}
    return state


def changed_parts(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return the names of what differs between two states."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _attributes(module: nn.Module, depth: int) -> dict[str, str]:
    return {key: _digest(value, depth + 1) for key, value in vars(module).items() if key not in _OWN}


def _digest(value: Any, depth: int) -> str:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
    if isinstance(value, np.ndarray):
        content = np.ascontiguousarray(value).tobytes() if value.dtype != object else b""
        return f"{value.dtype}{value.shape}{blake2b(content, digest_size=8).hexdigest()}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return blake2b(repr(value).encode(), digest_size=8).hexdigest()
    if depth >= _DEEPEST:
        return type(value).__name__
    if isinstance(value, nn.Module):
        tensors = [*value.named_parameters(), *value.named_buffers(), *value.named_children()]
        return _join([*_attributes(value, depth).items(), *((k, _digest(v, depth + 1)) for k, v in tensors)])
    if isinstance(value, Mapping):
        return _join((str(key), _digest(part, depth + 1)) for key, part in value.items())
    if isinstance(value, list | tuple | deque):
        return _join((str(number), _digest(part, depth + 1)) for number, part in enumerate(value))
    if isinstance(value, set | frozenset):
        return _join((digest, "") for digest in sorted(_digest(part, depth + 1) for part in value))
    if isinstance(value, MethodType):
        value = value.__func__
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell.cell_contents is not value]
        return _join((str(number), _digest(cell, depth + 1)) for number, cell in enumerate(cells))
    return type(value).__name__ + _join((k, _digest(v, depth + 1)) for k, v in getattr(value, "__dict__", {}).items())


def _join(parts: Any) -> str:
    digest = blake2b(digest_size=8)
    for name, part in parts:
        digest.update(f"{name}={part};".encode())
    return digest.hexdigest()
