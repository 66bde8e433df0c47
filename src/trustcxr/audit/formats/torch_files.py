"""Load PyTorch files: weights as tensors alone; torch.export programs and TorchScript, which can run code."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trustcxr.audit.formats.outputs import one_line, unwrap_single
from trustcxr.errors import UserError

_BATCHES = (1, 4, 8, 16, 32, 64)  # sizes to try besides 2, if a trace takes one alone


class ExportedNet(nn.Module):
    """Run the program of a .pt2 file: images in its own format -> its output.

    `shape` is the shape it was exported for, None for a side that may be any. Its mode is fixed at export.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            program = torch.export.load(path)
            self.program = program.module()
        except Exception as problem:  # torch raises many kinds
            raise UserError(f"{path}: not readable as a torch.export program ({one_line(problem)})") from None
        names = program.graph_signature.user_inputs
        if len(names) != 1:
            raise UserError(f"{path}: it takes {len(names)} inputs. Export it so that it takes the images alone")
        images = next(node.meta.get("val") for node in program.graph.nodes if node.name == names[0])
        if not isinstance(images, Tensor):
            raise UserError(f"{path}: its input is {type(images).__name__}. Export it so that it takes images alone")
        self.shape = [side if isinstance(side, int) else None for side in images.shape]

    @property
    def batch(self) -> int | None:
        """Return the one batch size that it takes; None for any."""
        return self.shape[0] if self.shape else None

    def train(self, mode: bool = True) -> "ExportedNet":
        """Set the flag of this module alone: an exported program refuses to change its mode."""
        self.training = mode
        return self

    def forward(self, images: Tensor) -> Any:
        """Return the program's output."""
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
        raise UserError(f"{path}: not readable as TorchScript ({one_line(problem)})") from None


def fixed_batch(program: Callable[[Tensor], Any], images: Tensor) -> int | None:
    """Return the one batch size that a program takes, such as a trace that recorded it; None for any.

    None too if it takes none of the usual sizes: then it fails for another reason.
    """

    def takes(count: int) -> bool:
        try:
            with torch.no_grad():
                output = unwrap_single(program(images[:1].repeat(count, 1, 1, 1)))
        except Exception:  # whatever it raises
            return False
        return not isinstance(output, Tensor) or output.ndim == 0 or len(output) == count

    if takes(2):
        return None if takes(3) else 2
    return next((count for count in _BATCHES if takes(count)), None)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a safetensors file or a table that torch saved. No code is run.

    An enclosing `state_dict` or `model` key and DataParallel's prefix are removed. Raises UserError for a file that
    holds anything but tensors, or tensors whose data are missing.
    """
    from safetensors.torch import load_file

    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else _load_saved(path)
    except UserError:
        raise
    except Exception as problem:  # torch and safetensors raise many kinds
        raise UserError(
            f"{path}: cannot be read as tensors alone ({type(problem).__name__}); nothing in it was run. Of a whole "
            "model that was pickled, save the weights: torch.save(model.state_dict(), 'weights.pth'); or export it: "
            "torch.onnx.export"
        ) from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path}: expected a table of tensors by name, found something else")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _load_saved(path: Path) -> Any:
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            raise UserError(f"{path}: not an archive that torch 1.6 or newer wrote; save the weights as .safetensors")
    # Mapped, a tensor that claims more bytes than the file has is an error; read, torch would believe the claim.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file that `read_tensors` has accepted."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}
