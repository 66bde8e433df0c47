"""What training computes in, on the machine at hand."""

from typing import Literal

import torch

from trustcxr import attacks

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
_NEEDS = {"16-mixed": "a card", "bf16-mixed": "a processor that computes in bfloat16"}
_DTYPES = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def device_kind() -> str:
    """The kind of device that training has here."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def supported_precision(precision: Precision, device: str) -> Precision:
    """What a kind of device ("cpu", "cuda") can do of what was asked.

    float16 needs a card. bfloat16 that a processor only imitates takes many times as long as float32.
    """
    if precision == "32-true" or device == "cuda":
        return precision
    return "bf16-mixed" if attacks.computes_in_bfloat16(device) else "32-true"


def autocast_dtype(precision: Precision, device: str) -> torch.dtype | None:
    """The type of numbers that passes are lowered to there; None for float32."""
    return _DTYPES[supported_precision(precision, device)]


def describe_substitute(precision: Precision, device: str) -> str:
    """A line that says what is used in the place of what was asked; empty where that is used."""
    actual = supported_precision(precision, device)
    return "" if actual == precision else f"{precision} needs {_NEEDS[precision]}: {actual} is used in its place"
