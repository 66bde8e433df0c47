"""Import packages of external networks, read their outputs, and run those that take one batch size alone."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from trustcxr.errors import UserError

_INTERPRETER = "The following operation failed in the TorchScript interpreter"
_RAISED = re.compile(r"[\w.]*(Error|Exception)\b.*: ")


def import_extra(module: str, files: str, extra: str) -> Any:
    """Import a package that files of a kind need; UserError, with the extra to install, if it is missing."""
    try:
        return import_module(module)
    except ImportError:
        package = module.partition(".")[0].replace("_", "-")
        raise UserError(f"{files} files need {package}: pip install 'trustcxr[{extra}]'") from None


def unwrap_single(output: Any) -> Any:
    """Return the only element of a list, tuple or dict; any other output as it is."""
    if isinstance(output, list | tuple) and len(output) == 1:
        return output[0]
    return next(iter(output.values())) if isinstance(output, dict) and len(output) == 1 else output


def one_line(problem: Exception) -> str:
    """Return the first line of an error; of TorchScript the line below its own traceback."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()] or [type(problem).__name__]
    if lines[0].startswith(_INTERPRETER):
        line = next((line for line in reversed(lines) if _RAISED.match(line)), lines[-1])
        return line.removeprefix("builtins.").removeprefix("RuntimeError: ")[:160]
    return lines[0][:160]


@contextmanager
def refuse(fault: str, hint: str = "") -> Iterator[None]:
    """Turn any error inside into a UserError: the fault, the first line of the error, the hint. UserErrors pass."""
    try:
        yield
    except UserError:
        raise
    except Exception as problem:  # foreign code raises many kinds
        raise UserError(f"{fault} ({one_line(problem)}){hint}") from None


def check_trusted(source: str, trust_code: bool) -> None:
    """Raise UserError unless the code of a model's maker is trusted."""
    if not trust_code:
        raise UserError(
            f"{source}: it can run its maker's code when it is loaded. Give --trust-code (trust_code=True) if you "
            "trust the maker, or take the model as ONNX or safetensors"
        )


class FixedBatch(nn.Module):
    """Run a net that takes one batch size on any number of images: the last image fills up the last batch."""

    def __init__(self, net: nn.Module, size: int) -> None:
        super().__init__()
        self.net, self.size = net, size

    def forward(self, images: Tensor) -> Tensor:
        """Return the net's outputs (B, ...) for images (B, ...)."""
        outputs = []
        for part in images.split(self.size):
            filled = torch.cat([part, part[-1:].expand(self.size - len(part), -1, -1, -1)])
            output = unwrap_single(self.net(filled))
            if not isinstance(output, Tensor):
                raise UserError(f"the model answers with {type(output).__name__}, not with a tensor of a row an image")
            outputs.append(output[: len(part)])
        return torch.cat(outputs)
