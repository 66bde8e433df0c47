"""What a network that was given to us answers with, and networks that take one size of batch alone."""

from typing import Any

import torch
from torch import Tensor, nn

from trustcxr.errors import UserError


def sole(answer: Any) -> Any:
    """What a list, tuple or table of one holds; any other answer as it is."""
    if isinstance(answer, list | tuple) and len(answer) == 1:
        return answer[0]
    return next(iter(answer.values())) if isinstance(answer, dict) and len(answer) == 1 else answer


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
