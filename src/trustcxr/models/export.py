"""Write a model as ONNX or a program of torch.export: any batch, one size of image."""

import warnings
from collections.abc import Mapping
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trustcxr.errors import UserError, lookup

OPSET = 18  # of ONNX; common runtimes support it
FORMATS: Mapping[str, str] = {"onnx": ".onnx", "torch-export": ".pt2"}  # file extensions
INPUT, OUTPUT = "images", "logits"
_EXAMPLES = 2  # images for tracing: one would fix the batch size


def check_export(kind: str, out: Path) -> None:
    """Raise UserError for an unknown format, a wrong file extension or a missing package."""
    ending = lookup(FORMATS, "format", kind)
    if out.suffix != ending:
        raise UserError(f"--out {out}: a file of format {kind} ends in {ending}")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if kind == "onnx" and find_spec(package) is None:
            raise UserError(f"ONNX files need {package}: pip install 'trustcxr[onnx]'")


def write(model: nn.Module, size: int, path: Path, kind: str) -> None:
    """Write a model from pixel space (B, 1, size, size) to logits (B, C) as a file of that format.

    The model does not change. Raises UserError if it cannot be traced, OSError from the disk.
    """
    # Training uses channels_last; other programs read the contiguous format.
    model = deepcopy(model).eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    example = torch.rand((_EXAMPLES, 1, size, size), generator=torch.Generator().manual_seed(0))
    example = example.to(next(model.parameters()).device)
    options: dict[str, Any] = {"dynamic_shapes": ({0: torch.export.Dim("batch", min=1, max=2**16)},)}
    traced: Any
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own parts, about each other
            if kind == "onnx":
                options |= {"input_names": [INPUT], "output_names": [OUTPUT], "opset_version": OPSET}
                traced = torch.onnx.export(model, (example,), dynamo=True, verbose=False, **options)
            else:
                traced = torch.export.export(model, (example,), **options)
    except Exception as problem:
        first = next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
        raise UserError(f"this model cannot be written as {kind}: {first[:200]}") from None
    if kind == "onnx":
        traced.save(str(path), external_data=False)
    else:
        torch.export.save(traced, path)
