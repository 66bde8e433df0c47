"""Load any external model: from a model file, a file of a known kind, a module or a function."""

import hashlib
import importlib
import inspect
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from trustcxr.audit.formats.model_file import InputSpec, Kind, ModelFile, OutputSpec, Reported, read_model_file
from trustcxr.audit.formats.outputs import FixedBatch, check_trusted, one_line, refuse, unwrap_single
from trustcxr.audit.formats.wrapper import TINY, WrappedModel
from trustcxr.errors import UserError, unknown
from trustcxr.recipes.parsing import validate
from trustcxr.storage import layout
from trustcxr.storage.atomic import read_table

Gradients = Literal["own", "converted", "none"]
SUFFIXES = (".pt2", ".pt", ".onnx", ".keras", ".h5", ".tflite", ".safetensors", ".pth")
_UNCHANGED = "TorchScript runs as it is: its own gradients are used, and no BPDA is tried where they stop inside it"
TABLES = (".csv", ".parquet")
_PROBES = 2  # images of noise in the first comparison of a conversion
_BATCH = 16  # images of one forward pass in the later comparison
_BATCHES = (1, 4, 8, 16, 32, 64)  # sizes to try besides 2, if a trace takes one alone
KEYS = ("sample_id", "id", "image", "path", "file", "filename")
_ROUNDED = 0.02  # tolerance of the sum of an image's probabilities


@dataclass(frozen=True)
class Origin:
    """The source of a model: its kind, file, checksum, size, gradients and notes.

    Of kind "python" sha256 and bytes are of the source code (`hash_code`), of ONNX of its external data too.
    """

    kind: str
    path: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    parameters: int | None = None
    gradients: Gradients = "own"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ResolvedSource:
    """The network that a model file names."""

    net: nn.Module
    kind: str  # "torch.export", "TorchScript", "ONNX", "Keras", "TFLite", "weights" or "python"
    gradients: Gradients = "own"  # "converted": of an equivalent network in torch
    notes: tuple[str, ...] = ()
    original: nn.Module | None = None  # in its own runtime, if the gradients are converted


@dataclass
class ExternalModel:
    """A model that others trained, in the form that evaluation and explanation take."""

    model: WrappedModel | None  # pixel space -> logits, in evaluation mode; None if only scores are available
    name: str
    origin: Origin
    input: InputSpec
    output: OutputSpec
    reported: Reported
    criteria: str | None  # file of acceptance criteria
    predictions: pd.DataFrame | None = None  # the scores: columns sample_id and logits
    original: WrappedModel | None = None  # in its own runtime, without gradients, if `model` is a conversion

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return torch.device("cpu") if self.model is None else self.model.scale.device

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes or findings, in the order of the outputs."""
        return self.output.classes

    @property
    def size(self) -> int:
        """Return the side of its images in pixels."""
        return self.input.size


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
    if not isinstance(model, str | Path):
        declared = validate(ModelFile, parts | {"python": f":{type(model).__name__}"}, where)
        return _wrap(declared, resolve_object(model, where), Origin("python"), on)
    path, key = Path(model), "source"
    if path.suffix in TABLES:
        key = "predictions"
    elif path.suffix not in SUFFIXES and not path.exists() and ":" in str(model):
        key = "python"
    return _open(validate(ModelFile, parts | {key: str(model)}, where), trust_code, on)


def _open(declared: ModelFile, trust_code: bool, on: torch.device | str | None) -> ExternalModel:
    if declared.predictions:
        path = Path(declared.predictions)
        table, notes = read_scores(path, declared.output)
        notes = ("only its scores are available: nothing was attacked, corrupted or explained", *notes)
        origin = Origin("predictions", str(path), *_checksum(path), gradients="none", notes=notes)
        parts = declared.input, declared.output, declared.reported, declared.criteria
        return ExternalModel(None, declared.name or path.stem, origin, *parts, predictions=table)
    probe = WrappedModel(nn.Identity(), declared.input, declared.output).prepare(_noise(declared.input.size))
    resolved = open_source(declared, probe, trust_code=trust_code)
    return _wrap(declared, resolved, _origin(declared, resolved.kind), on)


def _noise(size: int) -> Tensor:
    return torch.rand((_PROBES, 1, size, size), generator=torch.Generator().manual_seed(0))


def _wrap(declared: ModelFile, source: ResolvedSource, origin: Origin, on: torch.device | str | None) -> ExternalModel:
    def wrap(net: nn.Module) -> WrappedModel:
        return WrappedModel(net, declared.input, declared.output).eval()

    model = wrap(source.net)
    if on is not None and source.kind not in ("ONNX", "TFLite"):
        model = model.to(on)
    gradients, notes = source.gradients, list(source.notes)
    if gradients != "none" and not _has_gradient(model, declared, origin):
        gradients = "none"
        notes.append("no gradients: its answers do not depend on the image in a way that torch can follow")
    # A file that is run operator by operator stores its weights as buffers.
    stored: list[Tensor] = [p for p in model.parameters() if p.is_floating_point()] or list(model.net.buffers())
    weights = sum(tensor.numel() for tensor in stored)
    origin = replace(origin, parameters=weights or None, gradients=gradients, notes=tuple(notes))
    name = declared.name or Path(origin.path or str(declared.python).strip(":")).stem
    original = None if source.original is None else wrap(source.original)
    parts = declared.input, declared.output, declared.reported, declared.criteria
    return ExternalModel(model, name, origin, *parts, original=original)


def _has_gradient(model: WrappedModel, declared: ModelFile, origin: Origin) -> bool:
    """Run the model on two images of noise and tell whether it has a gradient; UserError if it fails on them."""
    where, size = str(origin.path or declared.python), declared.input.size
    images = _noise(size).to(model.scale.device)
    try:
        with torch.enable_grad():
            logits = model(images.requires_grad_(True))
        model.find_cam_layer(images.detach())
    except UserError as problem:
        raise UserError(f"{where}: {problem}") from None
    except Exception as problem:  # whatever a foreign forward pass raises
        channels = "1 channel" if declared.input.channels == 1 else f"{declared.input.channels} channels"
        fault = f"{where}: it does not take images of {channels} and {size} pixels ({one_line(problem)})"
        raise UserError(f"{fault}: see input.size and input.channels") from None
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
    note = no_gradients(f"on {len(images)} images {why}")
    origin = replace(subject.origin, gradients="none", notes=(note, *subject.origin.notes))
    return replace(subject, model=original, original=None, origin=origin), None


def _origin(declared: ModelFile, kind: str) -> Origin:
    if declared.source is None:
        return Origin(kind, declared.python, *hash_code(str(declared.python)))
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


def open_source(declared: ModelFile, probe: Tensor, *, trust_code: bool) -> ResolvedSource:
    """Open the network that a model file names. A conversion is compared on `probe`, images in its own format.

    Raises UserError for a file that is damaged, of an unknown kind, or could run code that is not trusted.
    """
    if declared.python:
        return _open_python(declared.python, trust_code, declared.folder)
    path = Path(str(declared.source))
    if not path.is_file():
        where = "" if declared.folder is None else " in the folder of the model file"
        raise UserError(f"{path}: no such file{where}; give one that ends in {', '.join(SUFFIXES)}")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: {unknown('kind of model file', path.suffix, SUFFIXES)}")
    if declared.timm:
        return _open_weights(path, declared)
    if path.suffix == ".onnx":
        return _open_onnx(path, probe)
    if path.suffix in (".keras", ".h5"):
        from trustcxr.audit.formats.keras import KerasNet

        model = KerasNet(path, trust_code=trust_code)
        return ResolvedSource(model, "Keras", notes=_first_output(model.outputs))
    if path.suffix == ".tflite":
        from trustcxr.audit.formats.tflite import TfliteNet

        net = TfliteNet(path)
        net(probe[:1])
        notes = (no_gradients("a TFLite file is run as it is"), *net.notes, *_first_output(net.outputs))
        return ResolvedSource(net, "TFLite", "none", notes)
    if path.suffix == ".pt2":
        check_trusted(str(path), trust_code)
        program = ExportedNet(path)
        return ResolvedSource(_in_batches(program, program.batch), "torch.export")
    if path.suffix == ".pt" and is_torchscript(path):
        check_trusted(str(path), trust_code)
        script = load_torchscript(path)
        return ResolvedSource(_in_batches(script, fixed_batch(script, probe)), "TorchScript", notes=(_UNCHANGED,))
    raise UserError(
        f"{path}: weights alone. Say which network they are of with timm: NAME; of a network of its own write "
        "python: module:function, a function that builds it and loads the weights"
    )


def _open_onnx(path: Path, probe: Tensor) -> ResolvedSource:
    from trustcxr.audit.formats.onnx import load_onnx, takes_any_batch

    net, converted, why = load_onnx(path, probe)
    notes, original = _first_output(net.outputs), _in_batches(net, net.batch)
    if converted is None:
        return ResolvedSource(original, "ONNX", "none", (no_gradients(why), *notes))
    at_once = net.batch is None or takes_any_batch(converted, net, probe)
    return ResolvedSource(_in_batches(converted, None if at_once else net.batch), "ONNX", "converted", notes, original)


def _in_batches(net: nn.Module, size: int | None) -> nn.Module:
    """Return a net that takes any number of images, from one that takes `size` alone (None for any)."""
    return net if size is None else FixedBatch(net, size)


def _first_output(outputs: int) -> tuple[str, ...]:
    """Return the note of a network with several outputs."""
    text = f"it has {outputs} outputs, of which the first was taken for its answer, and no other looked at"
    return (text,) if outputs > 1 else ()


def no_gradients(why: str) -> str:
    """Return the note of a network that is attacked without gradients."""
    return f"no gradients: {why}; attacks without gradients alone"


def _open_weights(path: Path, declared: ModelFile) -> ResolvedSource:
    import timm

    from trustcxr.models.factory import architecture, build, is_own_network, load_matching, read_tensors

    name, classes, channels = architecture(str(declared.timm)), len(declared.output.classes), declared.input.channels
    if channels == 1:
        net = build(name, classes=classes).net
    elif is_own_network(name):
        raise UserError(f"{path}: {name} takes images of 1 channel: write input.channels: 1")
    else:
        net = timm.create_model(name, num_classes=classes, in_chans=channels)
    fault = f"{path}: not the weights of {name} with {classes} classes and {channels} channels"
    load_matching(net, read_tensors(path), fault)
    return ResolvedSource(net.to(memory_format=torch.channels_last), "weights")  # type: ignore[call-overload]


def _open_python(target: str, trust_code: bool, folder: Path | None) -> ResolvedSource:
    """Import "module:function" from the model file's folder, else from the working folder, and call it."""
    check_trusted(f"python: {target}", trust_code)
    module_name, _, attribute = target.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    if folder is not None:
        _put_first(folder, module_name)
    try:
        result: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            result = getattr(result, part)
    except (ImportError, AttributeError) as problem:
        where = Path.cwd() if folder is None else f"{folder} and {Path.cwd()}"
        raise UserError(f"python: {target} cannot be had ({problem}); it was looked for in {where}") from None
    if inspect.isclass(result) or (
        callable(result) and not isinstance(result, nn.Module) and _takes_no_arguments(result)
    ):
        make = result
        try:
            result = make()
        except Exception as problem:
            raise UserError(f"python: {target} failed: {type(problem).__name__}: {str(problem)[:300]}") from problem
        if isinstance(result, nn.Module) and _draws_weights(result, make):
            raise UserError(
                f"python: {target} has other weights each time it is called: they are random. "
                "Name a function that returns the network with its trained weights"
            )
    return resolve_object(result, target)


def _draws_weights(net: nn.Module, make: Callable[[], Any]) -> bool:
    """Return True if a second network has other weights; False also where that cannot be seen."""
    try:
        pairs = zip(net.parameters(), make().parameters(), strict=True)
        return any(one.shape != other.shape or not torch.allclose(one, other, equal_nan=True) for one, other in pairs)
    except Exception:  # it can be made only once, or its weights take their shape from the first image
        return False


def _put_first(folder: Path, name: str) -> None:
    """Put a folder first in the import path; UserError if another module of that name is loaded."""
    entry, top = str(folder.resolve()), name.partition(".")[0]
    if entry in sys.path:
        sys.path.remove(entry)
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    spec = PathFinder.find_spec(top, [entry])
    if spec is None or spec.origin is None or top not in sys.modules:
        return
    if Path(getattr(sys.modules[top], "__file__", None) or "").resolve() != Path(spec.origin).resolve():
        raise UserError(f"python: {spec.origin}: another module named {top} is loaded already; give it another name")


def hash_code(target: str) -> tuple[str | None, int | None]:
    """Return the SHA-256 and the bytes of the source of an imported "module:function"; None if there is no source.

    The source is all of the module's package, or its own file and those in its folder that it imports.
    """
    name = target.partition(":")[0]
    package, file = sys.modules[name.partition(".")[0]], getattr(sys.modules[name], "__file__", None)
    if folders := [Path(folder) for folder in getattr(package, "__path__", ())]:
        files = [(path, path.relative_to(folder)) for folder in folders for path in folder.rglob("*.py")]
    elif file is not None and Path(file).suffix == ".py":
        finder = ModuleFinder(path=[str(Path(file).parent)])
        finder.run_script(file)
        paths = [getattr(part, "__file__", None) for part in finder.modules.values()]
        files = [(Path(path), Path(path).relative_to(Path(file).parent)) for path in paths if path is not None]
    else:
        return None, None
    digest, size = hashlib.sha256(), 0
    for path, relative in sorted(files, key=lambda pair: pair[1].as_posix()):
        content = path.read_bytes()
        digest.update(f"{relative.as_posix()}\n{len(content)}\n".encode() + content)
        size += len(content)
    return digest.hexdigest(), size


def resolve_object(model: Any, name: str) -> ResolvedSource:
    """Return a module, or a function from images (B, C, H, W) in its own format to scores (B, classes), as a source."""
    if isinstance(model, nn.Module):
        training = [m for m in model.modules() if m.training and next(m.children(), None) is None]
        note = "it was in training mode, and is examined in evaluation mode"
        return ResolvedSource(model, "python", notes=(note,) if training else ())
    if not callable(model):
        raise UserError(f"{name} is {type(model).__name__}: give a torch module, or a function from images to scores")
    return ResolvedSource(FunctionNet(model), "python")


def _takes_no_arguments(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):
        return False
    return True


class FunctionNet(nn.Module):
    """A function from images to scores, possibly of numpy, as a module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        """Return the function's scores as a tensor."""
        try:
            scores = self.function(images)
        except RuntimeError:
            if not images.requires_grad:
                raise
            scores = self.function(images.detach())  # numpy takes no tensor that requires a gradient
        return scores if isinstance(scores, Tensor) else torch.as_tensor(np.asarray(scores)).to(images)


class ExportedNet(nn.Module):
    """Run the program of a .pt2 file: images in its own format -> its output.

    `shape` is the shape it was exported for, None for a side that may be any. Its mode is fixed at export.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        with refuse(f"{path}: not readable as a torch.export program"):
            program = torch.export.load(path)
            self.program = program.module()
        names = program.graph_signature.user_inputs
        if len(names) != 1:
            raise UserError(f"{path}: it takes {len(names)} inputs. Export it so that it takes the images alone")
        images = next(node.meta.get("val") for node in program.graph.nodes if node.name == names[0])
        if not isinstance(images, Tensor):
            raise UserError(f"{path}: its input is {type(images).__name__}. Export it so that it takes images alone")
        self.shape = [side if isinstance(side, int) else None for side in images.shape]

    @property
    def batch(self) -> int | None:
        """Return the one batch size that it takes; None for any."""
        return self.shape[0] if self.shape else None

    def train(self, mode: bool = True) -> "ExportedNet":
        """Set the flag of this module alone: an exported program refuses to change its mode."""
        self.training = mode
        return self

    def forward(self, images: Tensor) -> Any:
        """Return the program's output."""
        return self.program(images)


def is_torchscript(path: Path) -> bool:
    """Return whether the file is a TorchScript archive, rather than a table of tensors that shares its ending."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def load_torchscript(path: Path) -> nn.Module:
    """Load a TorchScript file, in evaluation mode on the CPU."""
    with refuse(f"{path}: not readable as TorchScript"):
        script = torch.jit.load(str(path), map_location="cpu")
    return script.eval()


def fixed_batch(program: Callable[[Tensor], Any], images: Tensor) -> int | None:
    """Return the one batch size that a program takes, such as a trace that recorded it; None for any.

    None too if it takes none of the usual sizes: then it fails for another reason.
    """

    def takes(count: int) -> bool:
        try:
            with torch.no_grad():
                output = unwrap_single(program(images[:1].repeat(count, 1, 1, 1)))
        except Exception:  # whatever it raises
            return False
        return not isinstance(output, Tensor) or output.ndim == 0 or len(output) == count

    if takes(2):
        return None if takes(3) else 2
    return next((count for count in _BATCHES if takes(count)), None)


def read_scores(path: Path, output: OutputSpec) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read a table of columns sample_id and logits, (C,) float32 a row, and notes on scores that contradict `output`.

    The file has a column of image ids (one of KEYS) and one for each class, `X` or, as `trustcxr predict` writes it,
    `probability X`. Scores declared as logits that look like probabilities are converted. Raises UserError for a
    missing column, a repeated id, or a score that is no number.
    """
    table = read_table(path, text=KEYS).rename(columns=lambda name: str(name).removeprefix("probability "))
    lowered = {str(c).lower(): c for c in table.columns}
    key = next((lowered[k] for k in KEYS if k in lowered), None)
    listed = ", ".join(str(c) for c in table.columns[:12]) + (", ..." if len(table.columns) > 12 else "")
    if key is None:
        raise UserError(f"{path}: no column of the images' ids; name it sample_id (there is {listed})")
    if missing := [name for name in output.classes if name not in table.columns]:
        raise UserError(f"{path}: no column '{missing[0]}' for that class; there is {listed}")
    if twice := [name for name in output.classes if list(table.columns).count(name) > 1]:
        raise UserError(f"{path}: two columns of the class '{twice[0]}', one with 'probability' before it; remove one")
    if not len(table):
        raise UserError(f"{path}: no row, so no image has a score")
    ids = table[key].astype(str)
    if ids.duplicated().any():
        raise UserError(f"{path}: {ids[ids.duplicated()].iloc[0]} is there twice in column {key}")
    try:
        scores = table[list(output.classes)].to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{path}: a score in {', '.join(output.classes)} is not a number") from None
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores).all(1))[0])
        raise UserError(f"{path}: the score of {ids.iloc[row]} is missing. Give one, or leave the row out")
    logits, notes = _logits(scores, output, path)
    return pd.DataFrame({"sample_id": ids, "logits": list(logits.astype(np.float32))}), notes


def _logits(scores: np.ndarray, output: OutputSpec, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the logits (N, C) of scores (N, C), and a note if these look like another kind than declared."""
    inside, gaps = bool(scores.min() >= 0 and scores.max() <= 1), np.abs(scores.sum(1) - 1)
    sums_to_1 = inside and scores.shape[1] > 1 and gaps.max() <= _ROUNDED
    if output.kind == "logits" and sums_to_1:
        note = "its scores sum to 1 for each image, so they were taken as probabilities and not as logits"
        return np.log(scores.clip(TINY)), (f"{note}: write output.kind: probabilities",)
    if output.kind == "logits":
        note = "its scores all lie in [0, 1], which logits seldom do, and were taken as logits: see output.kind"
        return scores, (note,) if inside else ()
    if not inside:
        ends = f"{scores.min():g} to {scores.max():g}"
        raise UserError(f"{path}: scores from {ends} are no {output.kind}: declare output.kind: logits")
    if output.kind == "sigmoid":
        note = "its scores sum to 1 for each image, as those of classes do, and were taken as one sigmoid a finding"
        between = scores.clip(1e-12, 1 - 1e-12)
        return np.log(between) - np.log1p(-between), (f"{note}: see output.kind",) if sums_to_1 else ()
    if gaps.max() > _ROUNDED:
        raise UserError(f"{path}: probabilities of an image sum to {scores[gaps.argmax()].sum():.3g}, not to 1")
    return np.log(scores.clip(TINY)), ()
