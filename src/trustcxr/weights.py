"""Weights on disk: safetensors alone, so that nothing is ever unpickled."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from trustcxr.errors import UserError
from trustcxr.results import files


def save_weights(model: nn.Module, path: Path) -> None:
    """The weights alone, as safetensors."""
    with files.replacing(path) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, temporary)


def load_weights(model: nn.Module, path: Path) -> None:
    """Weights from safetensors, every one of them; UserError where they do not fit."""
    try:
        model.load_state_dict(load_file(path))
    except Exception as problem:
        # torch's first line names the class alone; the second says which weights are missing or do not fit.
        reason = " ".join(line.strip() for line in str(problem).splitlines()[:2])
        raise UserError(f"{path}: not the weights of this model ({reason[:200]})") from problem
