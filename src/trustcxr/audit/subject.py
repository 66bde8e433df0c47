"""Open the model of an audit, a run or an external model, and describe it."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trustcxr.audit import formats
from trustcxr.audit.formats import ExternalModel
from trustcxr.audit.formats.loading import SUFFIXES, TABLES, Origin
from trustcxr.errors import UserError, unknown
from trustcxr.evaluation import hub, trained_models
from trustcxr.evaluation.trained_run import Run, device, load_run
from trustcxr.registry import DEFENCES
from trustcxr.storage import atomic, layout
from trustcxr.storage.os_errors import shell_quote
from trustcxr.storage.schemas import AuditedModel

Subject = Run | ExternalModel


def load_subject(
    model: str | Path | nn.Module | Callable[..., Any], *, on: torch.device | str | None = None, **options: Any
) -> Subject:
    """Load a run (folder, name or `hf://` address), a model file (.yaml), a model's own file, a module or a function.

    Runs and external models both have model, classes, size, name and device. `options` are those of `formats.load`:
    classes, size, channels, range, mean, std, resize, output, thresholds, timm, name and trust_code. Nothing is
    unpickled, and no code of a file's maker runs unless it is trusted. Raises UserError if the model cannot be loaded.

    Example:
        >>> import torch
        >>> external = load_subject(torch.nn.Flatten(), classes=[str(n) for n in range(64)], size=8)
        >>> external.model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 64])
    """
    if isinstance(model, str | Path):
        trained_models.check_name(model)
    if isinstance(model, str | Path) and _is_run(model):
        run = load_run(model, on=on)
        if options:
            raise UserError(f"{model}: a run says all this itself; leave out {', '.join(options)}")
        return run
    return formats.load(model, on=on or device(), **options)


def open_model(model: str | Path, *, trust_code: bool = False) -> Subject:
    """Load a run or a model file; UserError for a model's own file, which needs a model file."""
    path, kinds = Path(model), (*SUFFIXES, *TABLES)
    if _is_run(model):
        return load_subject(model)
    if path.suffix in kinds and not path.exists():
        raise UserError(f"{model}: no such file")
    is_code = ":" in str(model) and path.suffix not in layout.MODEL_FILES and not path.exists()
    if is_code or path.suffix in kinds:
        target = shell_quote(path.with_name("model.yaml") if path.exists() else "model.yaml")
        raise UserError(
            f"{model}: needs a model file that describes its input and output. Create one: trustcxr audit "
            f"{shell_quote(str(model))} --init > {target}"
        )
    if path.is_file() and path.suffix not in layout.MODEL_FILES:
        raise UserError(f"{model}: {unknown('kind of model', path.suffix, (*layout.MODEL_FILES, *kinds))}")
    return load_subject(model, trust_code=trust_code)


def _is_run(model: str | Path) -> bool:
    """Return whether this is a folder, the name of a trained model, or an address of a hub."""
    return Path(model).is_dir() or trained_models.is_name(model) or hub.is_address(model)


def is_multilabel(subject: Subject) -> bool:
    """Return whether the model has one sigmoid a finding."""
    return isinstance(subject, ExternalModel) and subject.output.kind == "sigmoid"


def describe_model(subject: Subject) -> AuditedModel:
    """Return the part `model` of audit.json."""
    if isinstance(subject, Run):
        defence = subject.recipe.defence
        against = f", L-infinity {defence.epsilon:g}" if DEFENCES[defence.name].attacks else ""
        reported = {"threat_model": f"{defence.name}{against}", "training_data": training_data_name(subject)}
    else:
        reported = subject.reported.model_dump()
    return AuditedModel.model_validate({"name": subject.name, "reported": reported} | asdict(_origin(subject)))


def is_another(earlier: AuditedModel, subject: Subject) -> bool:
    """Return whether an audit is of another model, rather than of this one with its file changed or moved."""
    origin = _origin(subject)
    moved = earlier.path is not None and Path(earlier.path).resolve() != Path(origin.path or "").resolve()
    return earlier.name != subject.name or (moved and earlier.sha256 != origin.sha256)


def training_data_name(run: Run) -> str:
    """Return the name of the data folder that a run was trained on; empty if it is unknown."""
    return str(atomic.section(atomic.read_yaml(run.folder / layout.RUN_FILE), "data").get("root_name") or "")


def _origin(subject: Subject) -> Origin:
    if not isinstance(subject, Run):
        return subject.origin
    weights, folder = subject.folder / layout.WEIGHTS_FILE, str(subject.folder)
    parameters = sum(p.numel() for p in subject.model.parameters())
    return Origin("run", folder, atomic.checksum(weights), weights.stat().st_size, parameters)
