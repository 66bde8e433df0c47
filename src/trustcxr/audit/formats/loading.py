"""Any model, loaded: a model file, a file of one of the known kinds, a module or a function -> `Given`."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from trustcxr.audit.formats.model_file import (
    InputSpec,
    Kind,
    ModelFile,
    OutputSpec,
    Reported,
    read_model_file,
    validate_part,
)
from trustcxr.audit.formats.outputs import InBatches, in_a_line, refused_images
from trustcxr.audit.formats.resolve import (
    SUFFIXES,
    Gradients,
    ResolvedSource,
    from_object,
    hash_code,
    no_gradients,
    open_source,
)
from trustcxr.audit.formats.wrapper import WrappedModel
from trustcxr.errors import UserError
from trustcxr.storage import layout
from trustcxr.storage.schemas import RunDocument, TrainingDocument

if TYPE_CHECKING:
    import pandas as pd

TABLES = (".csv", ".parquet")
_PROBES = 2  # images of noise that conversions are compared on at first
_AT_ONCE = 32  # images that they are compared on at once, later


@dataclass(frozen=True)
class Origin:
    """What was given: kind, file and its checksum, whether gradients are its own, and what is worth saying.

    Of kind "python" sha256 and bytes are of the source (`sources.code_of`), of ONNX of its external data too.
    """

    kind: str
    path: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    parameters: int | None = None
    gradients: Gradients = "own"
    notes: tuple[str, ...] = ()


@dataclass
class ExternalModel:
    """A model that somebody gave us, as evaluation and explanation take it.

    model: pixel space -> logits, in evaluation mode; None where only its scores were given, in `predictions` (columns
    sample_id and logits). kind: what the logits are of; of "sigmoid" one a finding, judged at `thresholds`. original:
    where `model` is a conversion that has gradients, the same as its own runtime runs it, without.
    """

    model: WrappedModel | None
    classes: tuple[str, ...]
    size: int
    name: str
    origin: Origin
    input: InputSpec
    output: OutputSpec
    predictions: "pd.DataFrame | None" = None
    metrics: RunDocument | None = None
    training: TrainingDocument = field(default_factory=TrainingDocument)
    reported: Reported = field(default_factory=Reported)
    original: WrappedModel | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device("cpu") if self.model is None else self.model.scale.device

    @property
    def kind(self) -> Kind:
        """logits, probabilities or sigmoid, as declared."""
        return self.output.kind

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """The operating point of each finding, as a probability; None where the answer is the highest class."""
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
    """A model from a model file (.yaml), a model's own file, "module:function", a module or a function.

    `classes` in the order of the outputs, `output` (logits, probabilities, sigmoid), `thresholds`, `timm` (the network
    of a weight file) and `taken` (size, channels, range, mean, std, resize) are what a model file says, and are refused
    beside one. `trust_code` lets a file run code of its maker's. `on` is the device.
    A module is not copied: it is itself put into evaluation mode and onto that device.
    Raises UserError, in one line, for whatever cannot be loaded; nothing that was not trusted is run.
    """
    if isinstance(model, str | Path) and Path(model).suffix in layout.MODEL_FILES:
        if classes is not None or thresholds is not None or timm or taken or output != "logits":
            raise UserError(f"{model}: a model file says all this itself; change it there")
        declared = read_model_file(Path(model))
        return _opened(declared.model_copy(update={"name": name or declared.name or Path(model).stem}), trust_code, on)
    where = f"load_model({model if isinstance(model, str | Path) else type(model).__name__})"
    if isinstance(model, str | Path) and not Path(model).is_dir():
        layout.check_model(model)
    if classes is None:
        raise UserError(f"{where}: say its classes, in the order of its outputs: classes=[...]")
    said: dict[str, object] = {"kind": output, "classes": list(classes), "thresholds": None}
    if thresholds is not None:
        said["thresholds"] = np.asarray(thresholds).tolist()
    parts = {"input": taken, "output": said, "timm": timm, "name": name}
    if isinstance(model, str | Path):
        declared = validate_part(ModelFile, _source(str(model)) | parts, where)
        return _opened(declared, trust_code, on)
    declared = validate_part(ModelFile, {"python": f":{type(model).__name__}"} | parts, where)
    found = from_object(model, where)
    return _given(declared, found, Origin("python"), on)


def _source(model: str) -> dict[str, str]:
    """Which key of a model file this is."""
    path = Path(model)
    if path.suffix in TABLES:
        return {"predictions": model}
    if path.suffix not in SUFFIXES and not path.exists() and ":" in model:
        return {"python": model}
    return {"source": model}


def _opened(declared: ModelFile, trust_code: bool, on: torch.device | str | None) -> ExternalModel:
    if declared.predictions:
        return _table(declared)
    taken = declared.input
    probe = torch.rand((_PROBES, 1, taken.size, taken.size), generator=torch.Generator().manual_seed(0))
    probe = WrappedModel(nn.Identity(), taken, declared.output).prepare(probe)
    found = open_source(declared, probe, trust_code=trust_code)
    return _given(declared, found, _origin(declared, found.kind), on)


def _table(declared: ModelFile) -> ExternalModel:
    from trustcxr.audit.formats.score_table import read_scores

    path = Path(str(declared.predictions))
    table, notes = read_scores(path, declared.output)
    notes = ("only its scores were given: nothing was attacked, corrupted or explained", *notes)
    origin = Origin("predictions", str(path), *_checksum(path), gradients="none", notes=notes)
    given = declared.output
    return ExternalModel(
        None,
        given.classes,
        declared.input.size,
        declared.name or path.stem,
        origin,
        declared.input,
        given,
        table,
        reported=declared.reported,
    )


def _given(declared: ModelFile, found: ResolvedSource, origin: Origin, on: torch.device | str | None) -> ExternalModel:
    model = _adapted(found.net, found, declared)
    if on is not None and found.kind != "ONNX":
        model = model.to(on)
    gradients, notes = found.gradients, list(found.notes)
    if gradients != "none" and not _tried(model, declared, origin):
        gradients = "none"
        notes.append("no gradients: its answers do not depend on the image in a way that torch can follow")
    # The weights of a file that is run operator by operator are buffers.
    weights = sum(p.numel() for p in model.parameters()) or sum(b.numel() for b in model.net.buffers())
    origin = Origin(origin.kind, origin.path, origin.sha256, origin.bytes, weights or None, gradients, tuple(notes))
    name = declared.name or Path(origin.path or str(declared.python).strip(":")).stem
    given = declared.output
    return ExternalModel(
        model,
        given.classes,
        declared.input.size,
        name,
        origin,
        declared.input,
        given,
        reported=declared.reported,
        original=None if found.original is None else _adapted(found.original, found, declared),
    )


def _adapted(net: nn.Module, found: ResolvedSource, declared: ModelFile) -> WrappedModel:
    net = net if found.batch is None else InBatches(net, found.batch)
    return WrappedModel(net, declared.input, declared.output).eval()


def _tried(model: WrappedModel, declared: ModelFile, origin: Origin) -> bool:
    """Run it once on two grey images: whether a gradient comes back. UserError where it does not take them."""
    size = declared.input.size
    images = torch.rand((_PROBES, 1, size, size), generator=torch.Generator().manual_seed(0)).to(model.scale.device)
    try:
        with torch.enable_grad():
            logits = model(images.requires_grad_(True))
        model.find_cam_layer(images.detach())
    except UserError as problem:
        raise UserError(f"{origin.path or declared.python}: {problem}") from None
    except Exception as problem:  # whatever a foreign forward pass raises
        where = str(origin.path or declared.python)
        raise refused_images(where, declared.input.channels, size, problem) from None
    return bool(logits.requires_grad)


def open_on(given: ExternalModel, images: Tensor) -> tuple[ExternalModel, float | None]:
    """What was given, its conversion held against the original on images (N, 1, H, W), before it is believed.

    Where they answer alike it is as it was, and the second value says how far apart they are; where they do not, or the
    conversion fails, it is the original, which has no gradients, and a note says why.
    Raises UserError where the original itself does not take the images.
    """
    from trustcxr.audit.formats.onnx import AGREE, apart, describe_difference

    model, original = given.model, given.original
    if model is None or original is None:
        return given, None
    with torch.no_grad():
        wanted = torch.cat([original.answers(part) for part in images.split(_AT_ONCE)])
        try:
            differ = apart(torch.cat([model.answers(part) for part in images.split(_AT_ONCE)]), wanted)
            if differ <= AGREE:
                return given, differ
            why = describe_difference(differ)
        except Exception as problem:  # an operator that is used in a way that is not known
            why = f"its conversion to torch fails ({in_a_line(problem)})"
    note = no_gradients(f"on {len(images)} images {why}")
    origin = replace(given.origin, gradients="none", notes=(note, *given.origin.notes))
    return replace(given, model=original, original=None, origin=origin), None


def _origin(declared: ModelFile, kind: str) -> Origin:
    if declared.source is None:
        return Origin(kind, declared.python, *hash_code(str(declared.python)))
    source = Path(declared.source)
    return Origin(kind, declared.source, *_checksum(source, *(_beside(source) if kind == "ONNX" else ())))


def _beside(source: Path) -> list[Path]:
    from trustcxr.audit.formats.onnx import external_files

    return external_files(source)


def _checksum(*paths: Path) -> tuple[str, int]:
    """SHA-256 of a file, and of those that belong to it one after the other, and the bytes of all."""
    found = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: found)
    return found.hexdigest(), sum(path.stat().st_size for path in paths)
