"""Open the network that a model file names: a file of a known kind, weights of a timm network, a Python function."""

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib.machinery import PathFinder
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from trustcxr.audit.formats.model_file import ModelFile
from trustcxr.audit.formats.outputs import FixedBatch, check_trusted
from trustcxr.audit.formats.torch_files import ExportedNet, fixed_batch, is_torchscript, load_torchscript, read_tensors
from trustcxr.errors import UserError, unknown

Gradients = Literal["own", "converted", "none"]
SUFFIXES = (".pt2", ".pt", ".onnx", ".keras", ".h5", ".tflite", ".safetensors", ".pth")
UNCHANGED = "TorchScript runs as it is: its own gradients are used, and no BPDA is tried where they stop inside it"


@dataclass(frozen=True)
class ResolvedSource:
    """A network and its source."""

    net: nn.Module
    kind: str  # "torch.export", "TorchScript", "ONNX", "Keras", "TFLite", "weights" or "python"
    gradients: Gradients = "own"  # "converted": of an equivalent network in torch
    batch: int | None = None  # the one batch size that it takes; None for any
    notes: tuple[str, ...] = ()
    original: nn.Module | None = None  # in its own runtime, if the gradients are converted


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
        return _open_tflite(path, probe)
    if path.suffix == ".pt2":
        check_trusted(str(path), trust_code)
        net = ExportedNet(path)
        return ResolvedSource(net, "torch.export", batch=net.batch)
    if path.suffix == ".pt" and is_torchscript(path):
        check_trusted(str(path), trust_code)
        program = load_torchscript(path)
        return ResolvedSource(program, "TorchScript", batch=fixed_batch(program, probe), notes=(UNCHANGED,))
    raise UserError(
        f"{path}: weights alone. Say which network they are of with timm: NAME; of a network of its own write "
        "python: module:function, a function that builds it and loads the weights"
    )


def _open_onnx(path: Path, probe: Tensor) -> ResolvedSource:
    from trustcxr.audit.formats.onnx import load_onnx, takes_any_batch

    net, converted, why = load_onnx(path, probe)
    notes = _first_output(net.outputs)
    if converted is not None and net.batch is not None and takes_any_batch(converted, net, probe):
        return ResolvedSource(converted, "ONNX", "converted", None, notes, original=FixedBatch(net, net.batch))
    if converted is not None:
        return ResolvedSource(converted, "ONNX", "converted", net.batch, notes, original=net)
    return ResolvedSource(net, "ONNX", "none", net.batch, (no_gradients(why), *notes))


def _open_tflite(path: Path, probe: Tensor) -> ResolvedSource:
    from trustcxr.audit.formats.tflite import TfliteNet

    net = TfliteNet(path)
    net(probe[:1])
    notes = (net.note,) if net.note else ()
    why = "a TFLite file is run as it is"
    return ResolvedSource(net, "TFLite", "none", notes=(no_gradients(why), *notes, *_first_output(net.outputs)))


def _first_output(outputs: int) -> tuple[str, ...]:
    """Return the note of a network with several outputs."""
    text = f"it has {outputs} outputs, of which the first was taken for its answer, and no other looked at"
    return (text,) if outputs > 1 else ()


def no_gradients(why: str) -> str:
    """Return the note of a network that is attacked without gradients."""
    return f"no gradients: {why}; attacks without gradients alone"


def _open_weights(path: Path, declared: ModelFile) -> ResolvedSource:
    import timm

    from trustcxr.models import evidence_networks
    from trustcxr.models.factory import build
    from trustcxr.models.plain import PLAIN_MODELS
    from trustcxr.models.zoo import architecture

    name, classes, channels = architecture(str(declared.timm)), len(declared.output.classes), declared.input.channels
    if name in PLAIN_MODELS or evidence_networks.is_evidence_network(name):
        if channels != 1:
            raise UserError(f"{path}: {name} takes images of 1 channel: write input.channels: 1")
        net: nn.Module = build(name, classes=classes).net
    else:
        net = timm.create_model(name, num_classes=classes, in_chans=channels)
    state, expected = read_tensors(path), net.state_dict()
    missing = [k for k in expected if k not in state and "num_batches_tracked" not in k]
    alien = [k for k in state if k not in expected or state[k].shape != expected[k].shape]
    if missing or alien:
        first, shapes = (alien + missing)[0], ""
        if first in state and first in expected:
            shapes = f" of {tuple(state[first].shape)}, the network's is {tuple(expected[first].shape)}"
        raise UserError(
            f"{path}: not the weights of {name} with {classes} classes and {channels} channels: {len(missing)} "
            f"missing, {len(alien)} that do not fit (first: {first}{shapes})"
        )
    net.load_state_dict(state, strict=False)
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
        try:
            made, again = result(), result()
        except Exception as problem:
            raise UserError(f"python: {target} failed: {type(problem).__name__}: {str(problem)[:300]}") from problem
        if isinstance(made, nn.Module) and not _same_weights(made, again):
            raise UserError(
                f"python: {target} has other weights each time it is called: they are random. "
                "Name a function that returns the network with its trained weights"
            )
        result = made
    return resolve_object(result, target)


def _same_weights(net: nn.Module, again: nn.Module) -> bool:
    pairs = zip(net.parameters(), again.parameters(), strict=True)
    return all(one.shape == other.shape and torch.equal(one, other) for one, other in pairs)


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
    loaded = getattr(sys.modules[top], "__file__", None)
    if loaded is None or Path(loaded).resolve() != Path(spec.origin).resolve():
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
    digest, size = sha256(), 0
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
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not inspect.Parameter.empty or p.kind in variadic for p in parameters)


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
