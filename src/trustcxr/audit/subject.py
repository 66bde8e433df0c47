"""Open any model to audit: a run, or an external model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trustcxr.audit import formats
from trustcxr.audit.formats import ExternalModel
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import Run, device, load_run
from trustcxr.storage import layout

Subject = Run | ExternalModel


def load_model(
    model: str | Path | nn.Module | Callable[..., Any], *, on: torch.device | str | None = None, **options: Any
) -> Subject:
    """A model to examine: the folder of a run, a model file (.yaml), a model's own file, a module or a function.

    A run comes as `load_run` gives it, all else as `adapters.Given`; both have model, classes, size, name and device.
    `options` are those of `adapters.load`: classes, size, channels, range, mean, std, resize, output, thresholds, timm,
    name and trust_code. Nothing is unpickled, and no code of a file's maker runs unless it is trusted.
    Raises UserError for whatever cannot be loaded.

    Example:
        >>> import torch
        >>> from trustcxr.audit.subject import load_model
        >>> given = load_model(torch.nn.Flatten(), classes=[str(n) for n in range(64)], size=8)
        >>> given.model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 64])
    """
    if isinstance(model, str | Path) and Path(model).is_dir():
        layout.check_run(Path(model))
        if options:
            raise UserError(f"{model}: a run says all this itself; leave out {', '.join(options)}")
        return load_run(model, on=on)
    return formats.load(model, on=on or device(), **options)
