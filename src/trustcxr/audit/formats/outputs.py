"""What a network that was given to us answers with, or why it does not; networks that take one size of batch alone."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from trustcxr.errors import UserError

_INTERPRETER = "The following operation failed in the TorchScript interpreter"
_RAISED = re.compile(r"[\w.]*(Error|Exception)\b.*: ")


def sole(answer: Any) -> Any:
    """What a list, tuple or table of one holds; any other answer as it is."""
    if isinstance(answer, list | tuple) and len(answer) == 1:
        return answer[0]
    return next(iter(answer.values())) if isinstance(answer, dict) and len(answer) == 1 else answer


def in_a_line(problem: Exception) -> str:
    """What a foreign library complains of: the first line, and of TorchScript the one below its own traceback."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()] or [type(problem).__name__]
    if lines[0].startswith(_INTERPRETER):
        said = next((line for line in reversed(lines) if _RAISED.match(line)), lines[-1])
        return said.removeprefix("builtins.").removeprefix("RuntimeError: ")[:160]
    return lines[0][:160]


def refused_images(where: str, channels: int, size: int, problem: Exception) -> UserError:
    """A UserError for a network that fails on images as they were declared."""
    many = "channel" if channels == 1 else "channels"
    return UserError(
        f"{where}: it does not take images of {channels} {many} and {size} pixels ({in_a_line(problem)}): see "
        "input.size and input.channels"
    )


class InBatches(nn.Module):
    """A net that takes one size of batch alone, for any: the last batch is filled up with its last image."""

    def __init__(self, net: nn.Module, size: int) -> None:
        super().__init__()
        self.net, self.size = net, size

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, ...) -> the net's answers (B, ...)."""
        answers = []
        for part in images.split(self.size):
            filled = torch.cat([part, part[-1:].expand(self.size - len(part), -1, -1, -1)])
            answer = sole(self.net(filled))
            if not isinstance(answer, Tensor):
                raise UserError(
                    f"the model answers with {type(answer).__name__}, not with a tensor of one row an image"
                )
            answers.append(answer[: len(part)])
        return torch.cat(answers)
