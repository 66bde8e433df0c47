"""Load any external model: from a model file, a file of a known kind, a module or a function."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from trustcxr.audit.formats import resolve
from trustcxr.audit.formats.model_file import InputSpec, Kind, ModelFile, OutputSpec, Reported, read_model_file
from trustcxr.audit.formats.outputs import FixedBatch, one_line, refused_images
from trustcxr.audit.formats.wrapper import WrappedModel
from trustcxr.errors import UserError
from trustcxr.recipes.parsing import validate
from trustcxr.storage import layout

TABLES = (".csv", ".parquet")
_PROBES = 2  # images of noise in the first comparison of a conversion
_BATCH = 32  # images of one forward pass in the later comparison


@dataclass(frozen=True)
class Origin:
    """The source of a model: its kind, file, checksum, size, gradients and notes.

    Of kind "python" sha256 and bytes are of the source code (`resolve.hash_code`), of ONNX of its external data too.
    """

    kind: str
    path: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    parameters: int | None = None
    gradients: resolve.Gradients = "own"
    notes: tuple[str, ...] = ()


@dataclass
class ExternalModel:
    """A model that others trained, in the form that evaluation and explanation take."""

    model: WrappedModel | None  # pixel space -> logits, in evaluation mode; None if only scores are available
    classes: tuple[str, ...]
    size: int
    name: str
    origin: Origin
    input: InputSpec
    output: OutputSpec
    predictions: pd.DataFrame | None = None  # the scores: columns sample_id and logits
    reported: Reported = field(default_factory=Reported)
    criteria: str | None = None  # file of acceptance criteria
    original: WrappedModel | None = None  # in its own runtime, without gradients, if `model` is a conversion

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return torch.device("cpu") if self.model is None else self.model.scale.device

    @property
    def kind(self) -> Kind:
        """Return the declared kind of output: logits, probabilities or sigmoid."""
        return self.output.kind

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """Return the operating point of each finding, a probability; None if the highest class is the answer."""
        return self.output.operating_points


def load(
    model: str | Path | nn.Module | Callable[..., Any],
    *,
    classes: Sequence[str] | None = None,
    output: Kind = "logits",
    thresholds: Sequence[float] | None = None,
    timm: str | None = None,
    name: str | None = None,
    trust_code: bool = False,
    on: torch.device | str | None = None,
    **taken: Any,
) -> ExternalModel:
    """Load a model from a model file (.yaml), a model's own file, "module:function", a module or a function.

    `classes` in the order of the outputs, `output` (logits, probabilities, sigmoid), `thresholds`, `timm` (the network
    of a weight file) and `taken` (size, channels, range, mean, std, resize) replace a model file and are not allowed
    with one. `trust_code` allows a file to run its maker's code. `on` is the device. A module is not copied: it is set
    to evaluation mode and moved itself. Raises UserError if the model cannot be loaded.
    """
    if isinstance(model, str | Path) and Path(model).suffix in layout.MODEL_FILES:
        if classes is not None or thresholds is not None or timm or taken or output != "logits":
            raise UserError(f"{model}: a model file says all this itself; change it there")
        declared = read_model_file(Path(model))
        return _open(declared.model_copy(update={"name": name or declared.name or Path(model).stem}), trust_code, on)
    where = f"load_model({model if isinstance(model, str | Path) else type(model).__name__})"
    if isinstance(model, str | Path) and not Path(model).is_dir():
        layout.check_model(model)
    if classes is None:
        raise UserError(f"{where}: say its classes, in the order of its outputs: classes=[...]")
    numbers = None if thresholds is None else np.asarray(thresholds).tolist()
    described = {"kind": output, "classes": list(classes), "thresholds": numbers}
    parts = {"input": taken, "output": described, "timm": timm, "name": name}
    if isinstance(model, str | Path):
        return _open(validate(ModelFile, _source(str(model)) | parts, where), trust_code, on)
    declared = validate(ModelFile, {"python": f":{type(model).__name__}"} | parts, where)
    return _wrap(declared, resolve.resolve_object(model, where), Origin("python"), on)


def _source(model: str) -> dict[str, str]:
    """Return the key of a model file that names this model, with its value."""
    path = Path(model)
    if path.suffix in TABLES:
        return {"predictions": model}
    if path.suffix not in resolve.SUFFIXES and not path.exists() and ":" in model:
        return {"python": model}
    return {"source": model}


def _open(declared: ModelFile, trust_code: bool, on: torch.device | str | None) -> ExternalModel:
    if declared.predictions:
        return _open_table(declared)
    spec = declared.input
    probe = torch.rand((_PROBES, 1, spec.size, spec.size), generator=torch.Generator().manual_seed(0))
    probe = WrappedModel(nn.Identity(), spec, declared.output).prepare(probe)
    resolved = resolve.open_source(declared, probe, trust_code=trust_code)
    return _wrap(declared, resolved, _origin(declared, resolved.kind), on)


def _open_table(declared: ModelFile) -> ExternalModel:
    from trustcxr.audit.formats.score_table import read_scores

    path = Path(str(declared.predictions))
    table, notes = read_scores(path, declared.output)
    notes = ("only its scores are available: nothing was attacked, corrupted or explained", *notes)
    origin = Origin("predictions", str(path), *_checksum(path), gradients="none", notes=notes)
    return _external(declared, None, origin, declared.name or path.stem, predictions=table)


def _external(
    declared: ModelFile, model: WrappedModel | None, origin: Origin, name: str, **parts: Any
) -> ExternalModel:
    classes, size = declared.output.classes, declared.input.size
    parts |= {"reported": declared.reported, "criteria": declared.criteria}
    return ExternalModel(model, classes, size, name, origin, declared.input, declared.output, **parts)


def _wrap(
    declared: ModelFile, source: resolve.ResolvedSource, origin: Origin, on: torch.device | str | None
) -> ExternalModel:
    def wrap(net: nn.Module) -> WrappedModel:
        net = net if source.batch is None else FixedBatch(net, source.batch)
        return WrappedModel(net, declared.input, declared.output).eval()

    model = wrap(source.net)
    if on is not None and source.kind not in ("ONNX", "TFLite"):
        model = model.to(on)
    gradients, notes = source.gradients, list(source.notes)
    if gradients != "none" and not _has_gradient(model, declared, origin):
        gradients = "none"
        notes.append("no gradients: its answers do not depend on the image in a way that torch can follow")
    # A file that is run operator by operator stores its weights as buffers.
    weights = sum(p.numel() for p in model.parameters() if p.is_floating_point()) or sum(
        b.numel() for b in model.net.buffers()
    )
    origin = replace(origin, parameters=weights or None, gradients=gradients, notes=tuple(notes))
    name = declared.name or Path(origin.path or str(declared.python).strip(":")).stem
    original = None if source.original is None else wrap(source.original)
    return _external(declared, model, origin, name, original=original)


def _has_gradient(model: WrappedModel, declared: ModelFile, origin: Origin) -> bool:
    """Run the model on two images of noise and tell whether it has a gradient; UserError if it fails on them."""
    where, size = str(origin.path or declared.python), declared.input.size
    images = torch.rand((_PROBES, 1, size, size), generator=torch.Generator().manual_seed(0)).to(model.scale.device)
    try:
        with torch.enable_grad():
            logits = model(images.requires_grad_(True))
        model.find_cam_layer(images.detach())
    except UserError as problem:
        raise UserError(f"{where}: {problem}") from None
    except Exception as problem:  # whatever a foreign forward pass raises
        raise refused_images(where, declared.input.channels, size, problem) from None
    return bool(logits.requires_grad)


def verify_conversion(subject: ExternalModel, images: Tensor) -> tuple[ExternalModel, float | None]:
    """Compare a model's conversion with its original on images (N, 1, H, W): the largest difference if they agree.

    Else return the original, without gradients and with the reason, and None. UserError if it does not take the images.
    """
    from trustcxr.audit.formats.onnx import AGREE, describe_difference, largest_difference

    model, original = subject.model, subject.original
    if model is None or original is None:
        return subject, None
    with torch.no_grad():
        expected = torch.cat([original.answers(part) for part in images.split(_BATCH)])
        try:
            difference = largest_difference(torch.cat([model.answers(part) for part in images.split(_BATCH)]), expected)
            if difference <= AGREE:
                return subject, difference
            why = describe_difference(difference)
        except Exception as problem:  # an operator in an unsupported use
            why = f"its conversion to torch fails ({one_line(problem)})"
    note = resolve.no_gradients(f"on {len(images)} images {why}")
    origin = replace(subject.origin, gradients="none", notes=(note, *subject.origin.notes))
    return replace(subject, model=original, original=None, origin=origin), None


def _origin(declared: ModelFile, kind: str) -> Origin:
    if declared.source is None:
        return Origin(kind, declared.python, *resolve.hash_code(str(declared.python)))
    hashed = hash_onnx if kind == "ONNX" else _checksum
    return Origin(kind, declared.source, *hashed(Path(declared.source)))


def hash_onnx(path: Path) -> tuple[str, int]:
    """Return the SHA-256 and the bytes of an ONNX file that `read_onnx` accepts, with its external data."""
    from trustcxr.audit.formats.onnx import external_files

    return _checksum(path, *external_files(path))


def _checksum(*paths: Path) -> tuple[str, int]:
    """Return the SHA-256 of files one after the other, and their bytes."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest(), sum(path.stat().st_size for path in paths)
