"""What training computes in, on the machine at hand."""

from typing import Literal

import torch

from trustcxr import attacks

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
_NEEDS = {"16-mixed": "a card", "bf16-mixed": "a processor that computes in bfloat16"}
_DTYPES = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def kind() -> str:
    """The kind of device that training has here."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def used(asked: Precision, device: str) -> Precision:
    """What a kind of device ("cpu", "cuda") can do of what was asked.

    float16 needs a card. bfloat16 that a processor only imitates takes many times as long as float32.
    """
    if asked == "32-true" or device == "cuda":
        return asked
    return "bf16-mixed" if attacks.computes_in_bfloat16(device) else "32-true"


def lower(asked: Precision, device: str) -> torch.dtype | None:
    """The type of numbers that passes are lowered to there; None for float32."""
    return _DTYPES[used(asked, device)]


def instead(asked: Precision, device: str) -> str:
    """A line that says what is used in the place of what was asked; empty where that is used."""
    found = used(asked, device)
    return "" if found == asked else f"{asked} needs {_NEEDS[asked]}: {found} is used in its place"
