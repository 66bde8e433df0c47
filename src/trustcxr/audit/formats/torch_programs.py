"""Load torch.export programs (.pt2) and TorchScript (.pt) by torch's own loaders, which can run the maker's code."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trustcxr.audit.formats.outputs import in_a_line, sole
from trustcxr.errors import UserError

_BATCHES = (1, 4, 8, 16, 32, 64)  # beside 2, of which a trace may take one alone


class ExportedNet(nn.Module):
    """Run the program of a .pt2 file: images as it wants them -> whatever it answers.

    `shape` is what it was exported for, None for a side that may be any. Its mode was fixed when it was exported.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            program = torch.export.load(path)
            self.program = program.module()
        except Exception as problem:  # torch raises many kinds
            raise UserError(f"{path}: not readable as a torch.export program ({in_a_line(problem)})") from None
        names = program.graph_signature.user_inputs
        if len(names) != 1:
            raise UserError(f"{path}: it takes {len(names)} inputs. Export it so that it takes the images alone")
        images = next(node.meta.get("val") for node in program.graph.nodes if node.name == names[0])
        if not isinstance(images, Tensor):
            raise UserError(
                f"{path}: its input is {type(images).__name__}. Export it so that it takes the images alone"
            )
        self.shape = [side if isinstance(side, int) else None for side in images.shape]

    @property
    def batch(self) -> int | None:
        """The one size of batch that it takes; None for any."""
        return self.shape[0] if self.shape else None

    def train(self, mode: bool = True) -> "ExportedNet":
        """Set the flag of this module alone: an exported program refuses to change its mode."""
        self.training = mode
        return self

    def forward(self, images: Tensor) -> Any:
        """Return the program's answer to images as it wants them."""
        return self.program(images)


def is_torchscript(path: Path) -> bool:
    """Return whether the file is a TorchScript archive, rather than a table of tensors that shares its ending."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def load_torchscript(path: Path) -> nn.Module:
    """Load a TorchScript file, in evaluation mode on the CPU."""
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except Exception as problem:
        raise UserError(f"{path}: not readable as TorchScript ({in_a_line(problem)})") from None


def fixed_batch(program: Callable[[Tensor], Any], images: Tensor) -> int | None:
    """Return the one size of batch that a program takes, as of a trace that wrote `len(images)` down; None for any.

    None too if it takes none of the usual sizes: then it is not for their number that it fails.
    """

    def takes(count: int) -> bool:
        try:
            with torch.no_grad():
                answer = sole(program(images[:1].repeat(count, 1, 1, 1)))
        except Exception:  # whatever it raises
            return False
        return not isinstance(answer, Tensor) or answer.ndim == 0 or len(answer) == count

    if takes(2):
        return None if takes(3) else 2
    return next((count for count in _BATCHES if takes(count)), None)
