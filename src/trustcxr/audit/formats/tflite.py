"""Check TFLite files, and run them by LiteRT: as they are, without gradients."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trustcxr.audit.formats.outputs import import_extra, one_line
from trustcxr.errors import UserError

_LITERT = "ai_edge_litert.interpreter"
_IDENTIFIER = b"TFL3"  # bytes 4 to 7 of every TFLite file
_MEMORY, _SECONDS = 8 << 30, 300  # limits of the first run
_KINDS = {"SOFTMAX": "probabilities", "LOGISTIC": "sigmoid", "FULLY_CONNECTED": "logits", "ADD": "logits"}
_FORMS = {"QUANTIZE", "DEQUANTIZE", "RESHAPE", "DELEGATE"}
# A damaged file can end the process that opens it, so the first run is in another.
_FIRST_RUN = f"""
import resource, sys
from {_LITERT} import Interpreter
resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY}, {_MEMORY}))
net = Interpreter(sys.argv[1], num_threads=1)
net.allocate_tensors()
net.invoke()
"""


class TfliteNet(nn.Module):
    """A TFLite file in LiteRT: images (B, C, H, W) in real values -> its first output in real values.

    Whole numbers of a quantised input or output stand for real values: (number - zero point) * scale.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.where = str(path)
        _check_file(path)
        self._content, self._local = path.read_bytes(), threading.local()
        with _quiet():
            net = self._interpreter()
        inputs = net.get_input_details()
        if len(inputs) != 1 or len(inputs[0]["shape"]) != 4:
            raise UserError(f"{path}: it takes {len(inputs)} inputs. One is needed, the images")
        self.outputs = len(net.get_output_details())
        _, *sides = map(int, inputs[0]["shape"])
        self.channels_last = sides[2] in (1, 3) or sides[0] not in (1, 3)
        height, width, self.channels = sides if self.channels_last else (*sides[1:], sides[0])
        self.shape, self.size = (self.channels, height, width), height if height == width else None

    def forward(self, images: Tensor) -> Tensor:
        """Return the first output, one image at a time; UserError if it does not take the images."""
        if tuple(images.shape[1:]) != self.shape:
            raise UserError(
                f"{self.where}: it takes images of (channels, height, width) {self.shape}, not "
                f"{tuple(images.shape[1:])}: see input.size and input.channels of the model file"
            )
        net, values = self._interpreter(), images.detach().cpu().numpy().astype(np.float32)
        input_details, output_details = net.get_input_details()[0], net.get_output_details()[0]
        values, rows = values.transpose(0, 2, 3, 1) if self.channels_last else values, []
        for image in values:
            net.set_tensor(input_details["index"], _to_stored(image[None], input_details))
            net.invoke()
            rows.append(_to_real(net.get_tensor(output_details["index"]), output_details))
        return torch.from_numpy(np.concatenate(rows)).to(images.device)

    def _interpreter(self) -> Any:
        """Return the interpreter of this thread."""
        if not hasattr(self._local, "net"):
            litert, threads = import_extra(_LITERT, "TFLite", "tflite"), torch.get_num_threads()
            self._local.net = litert.Interpreter(model_content=self._content, num_threads=threads)
            self._local.net.allocate_tensors()
        return self._local.net

    @property
    def kind(self) -> str | None:
        """Return the kind of output that the last operator makes; None if that is not known."""
        return next((_KINDS.get(name) for name in reversed(self._operators()) if name not in _FORMS), None)

    @property
    def range(self) -> tuple[float, float] | None:
        """Return the real values of the smallest and the largest number of a quantised input; None for floats."""
        input_details = self._interpreter().get_input_details()[0]
        if not np.issubdtype(input_details["dtype"], np.integer):
            return None
        ends = np.iinfo(input_details["dtype"])
        black, white = _to_real(np.array([ends.min, ends.max]), input_details).tolist()
        return round(black, 3), round(white, 3)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what is quantised; empty if nothing is."""
        net = self._interpreter()
        parts = [
            f"its {name} is {end['dtype'].__name__} in steps of {end['quantization'][0] or 1:.4g}"
            for name, end in (("input", net.get_input_details()[0]), ("output", net.get_output_details()[0]))
            if np.issubdtype(end["dtype"], np.integer)
        ]
        if not parts and not {"QUANTIZE", "DEQUANTIZE"} & set(self._operators()):
            return ()
        return (f"quantised: {' and '.join(parts) or 'it computes in whole numbers inside'}",)

    def _operators(self) -> list[str]:
        return [str(operator["op_name"]) for operator in self._interpreter()._get_ops_details()]


def _to_stored(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """Return real values as a tensor stores them."""
    if not np.issubdtype(tensor["dtype"], np.integer):
        return values.astype(tensor["dtype"])
    (scale, zero), ends = tensor["quantization"], np.iinfo(tensor["dtype"])
    return np.clip(np.round(values / (scale or 1)) + zero, ends.min, ends.max).astype(tensor["dtype"])


def _to_real(stored: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """Return the real values of a stored tensor."""
    if not np.issubdtype(tensor["dtype"], np.integer):
        return stored.astype(np.float32)
    scale, zero = tensor["quantization"]
    return ((stored.astype(np.float64) - zero) * (scale or 1)).astype(np.float32)


def _check_file(path: Path) -> None:
    """Raise UserError for a file that is damaged, or that LiteRT does not open and run."""
    import_extra(_LITERT, "TFLite", "tflite")
    with path.open("rb") as file:
        if file.read(8)[4:] != _IDENTIFIER:
            raise UserError(f"{path}: not a TFLite file, or damaged: it has no {_IDENTIFIER.decode()} in its head")
    command = [sys.executable, "-P", "-c", _FIRST_RUN, str(path)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"{path}: LiteRT runs longer than {_SECONDS} s on one image. It was ended") from None
    if ended.returncode < 0:
        raise UserError(f"{path}: LiteRT crashed on it (signal {-ended.returncode}): it is damaged. Export it again")
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-1:] or [f"exit code {ended.returncode}"]
        raise UserError(f"{path}: LiteRT does not take it ({one_line(Exception(last[0]))})")


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what native code writes to standard error, such as LiteRT's note of its delegate."""
    sys.stderr.flush()
    saved, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)
