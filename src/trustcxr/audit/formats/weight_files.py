"""Weights in a file, read as tensors alone: safetensors, or a table of tensors that torch saved."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trustcxr.errors import UserError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name. A `state_dict` or `model` around them is taken off, and what DataParallel puts before names.

    Raises UserError for a file that holds anything but tensors, or tensors that are not in it. No code is run.
    """
    try:
        state: Any = _safetensors(path) if path.suffix == ".safetensors" else _saved(path)
    except UserError:
        raise
    except Exception as problem:  # torch and safetensors raise many kinds
        raise UserError(
            f"{path}: cannot be read as tensors alone ({type(problem).__name__}); nothing in it was run"
        ) from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path}: expected a table of tensors by name, found something else")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def metadata(path: Path) -> dict[str, str]:
    """Return the words that a safetensors file carries about itself; `read_tensors` has read it."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _saved(path: Path) -> Any:
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            raise UserError(f"{path}: not an archive that torch 1.6 or newer wrote; save the weights as .safetensors")
    # Mapped, a tensor that claims more than the file holds is an error; read, torch would believe the claim.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
