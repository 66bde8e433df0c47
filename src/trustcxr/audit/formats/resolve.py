"""From what a model file names to a network: each kind of file, weights of a timm network, a function of one's own."""

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
from trustcxr.audit.formats.torch_programs import ExportedNet, fixed_batch, is_torchscript, load_torchscript
from trustcxr.errors import UserError, unknown

Gradients = Literal["own", "converted", "none"]
SUFFIXES = (".pt2", ".pt", ".onnx", ".safetensors", ".pth")
AS_THEY_ARE = "TorchScript runs as it is: its own gradients are used, and no BPDA is tried where they stop inside it"


@dataclass(frozen=True)
class ResolvedSource:
    """A network and how it was had.

    kind: "torch.export", "TorchScript", "ONNX", "weights", "python". gradients: "own", "converted" (a stand-in that
    answers alike has them) or "none". batch: the one size of batch that it takes, None for any. original: of a network
    whose gradients are converted, the one that the file is, without any.
    """

    net: nn.Module
    kind: str
    gradients: Gradients = "own"
    batch: int | None = None
    notes: tuple[str, ...] = ()
    original: nn.Module | None = None


def open_source(declared: ModelFile, probe: Tensor, *, trust_code: bool) -> ResolvedSource:
    """The network that a model file names. `probe` are images as it wants them, to compare conversions on.

    Raises UserError for a file that is not sound, is of no known kind, or could run code that was not trusted.
    """
    if declared.python:
        return _python(declared.python, trust_code, declared.folder)
    path = Path(str(declared.source))
    if not path.is_file():
        where = "" if declared.folder is None else ", looked for from the folder of the model file that names it"
        raise UserError(f"{path}: no such file{where}; give one that ends in {', '.join(SUFFIXES)}")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: {unknown('kind of model file', path.suffix, SUFFIXES)}")
    if declared.timm:
        return _weights(path, declared)
    if path.suffix == ".onnx":
        return _onnx(path, probe)
    if path.suffix == ".pt2":
        check_trusted(str(path), trust_code)
        net = ExportedNet(path)
        return ResolvedSource(net, "torch.export", batch=net.batch)
    if path.suffix == ".pt" and is_torchscript(path):
        check_trusted(str(path), trust_code)
        program = load_torchscript(path)
        return ResolvedSource(program, "TorchScript", batch=fixed_batch(program, probe), notes=(AS_THEY_ARE,))
    raise UserError(f"{path}: weights alone; say which network they are of with timm: NAME")


def check_trusted(source: str, trust_code: bool) -> None:
    """Raise UserError unless the code of a model's maker is trusted."""
    if not trust_code:
        raise UserError(
            f"{source}: it can run its maker's code when it is loaded. Give --trust-code (trust_code=True) if you "
            "trust the maker, or take the model as ONNX or safetensors"
        )


def _onnx(path: Path, probe: Tensor) -> ResolvedSource:
    from trustcxr.audit.formats.onnx import load_onnx

    net, converted, why = load_onnx(path, probe)
    outputs = net.outputs
    first = f"it has {outputs} outputs, of which the first was taken for its answer, and no other looked at"
    notes = (first,) if outputs > 1 else ()
    if converted is not None:
        return ResolvedSource(converted, "ONNX", "converted", net.batch, notes, original=net)
    return ResolvedSource(net, "ONNX", "none", net.batch, (no_gradients(why), *notes))


def no_gradients(why: str) -> str:
    """The note of a network that is attacked without gradients."""
    return f"no gradients: {why}; attacks without gradients alone"


def _weights(path: Path, declared: ModelFile) -> ResolvedSource:
    import timm

    from trustcxr.audit.formats.weight_files import read_tensors
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
    state = read_tensors(path)
    own = net.state_dict()
    missing = [k for k in own if k not in state and "num_batches_tracked" not in k]
    alien = [k for k in state if k not in own or state[k].shape != own[k].shape]
    if missing or alien:
        first = (alien + missing)[0]
        shapes = (
            f" of {tuple(state[first].shape)}, the network's is {tuple(own[first].shape)}"
            if first in state and first in own
            else ""
        )
        raise UserError(
            f"{path}: not the weights of {name} with {len(declared.output.classes)} classes and "
            f"{declared.input.channels} channels: {len(missing)} missing, {len(alien)} that do not fit "
            f"(first: {first}{shapes})"
        )
    net.load_state_dict(state, strict=False)
    return ResolvedSource(net, "weights")


def _python(target: str, trust_code: bool, folder: Path | None) -> ResolvedSource:
    """What "module:function" names, looked for in the model file's folder, then in the working folder."""
    check_trusted(f"python: {target}", trust_code)
    module_name, _, attribute = target.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    if folder is not None:
        _look_first_in(folder, module_name)
    try:
        made: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            made = getattr(made, part)
    except (ImportError, AttributeError) as problem:
        where = Path.cwd() if folder is None else f"{folder} and {Path.cwd()}"
        raise UserError(f"python: {target} cannot be had ({problem}); it was looked for in {where}") from None
    if inspect.isclass(made) or (callable(made) and not isinstance(made, nn.Module) and _takes_nothing(made)):
        made = made()
    return from_object(made, target)


def _look_first_in(folder: Path, name: str) -> None:
    """Have modules imported from this folder before any other; UserError where the name is another module's already."""
    place, top = str(folder.resolve()), name.partition(".")[0]
    if place in sys.path:
        sys.path.remove(place)
    sys.path.insert(0, place)
    importlib.invalidate_caches()
    there = PathFinder.find_spec(top, [place])
    if there is None or there.origin is None or top not in sys.modules:
        return
    known = getattr(sys.modules[top], "__file__", None)
    if known is None or Path(known).resolve() != Path(there.origin).resolve():
        raise UserError(f"python: {there.origin}: another module named {top} is loaded already; give it another name")


def hash_code(target: str) -> tuple[str | None, int | None]:
    """SHA-256 of the source behind an imported "module:function", and its bytes; None where there is no source.

    The source is all of the module's package, or its own file and those beside it that it imports.
    """
    name = target.partition(":")[0]
    package, file = sys.modules[name.partition(".")[0]], getattr(sys.modules[name], "__file__", None)
    if places := [Path(place) for place in getattr(package, "__path__", ())]:
        files = [(path, path.relative_to(place)) for place in places for path in place.rglob("*.py")]
    elif file is not None and Path(file).suffix == ".py":
        finder = ModuleFinder(path=[str(Path(file).parent)])
        finder.run_script(file)
        beside = [getattr(part, "__file__", None) for part in finder.modules.values()]
        files = [(Path(path), Path(path).relative_to(Path(file).parent)) for path in beside if path is not None]
    else:
        return None, None
    found, size = sha256(), 0
    for path, named in sorted(files, key=lambda pair: pair[1].as_posix()):
        content = path.read_bytes()
        found.update(f"{named.as_posix()}\n{len(content)}\n".encode() + content)
        size += len(content)
    return found.hexdigest(), size


def from_object(made: Any, name: str) -> ResolvedSource:
    """A module, or a function from images (B, C, H, W) as it wants them to scores (B, classes), as a network."""
    if isinstance(made, nn.Module):
        training = [m for m in made.modules() if m.training and next(m.children(), None) is None]
        note = "it was in training mode, and is examined in evaluation mode"
        return ResolvedSource(made, "python", notes=(note,) if training else ())
    if not callable(made):
        raise UserError(f"{name} is {type(made).__name__}: give a torch module, or a function from images to scores")
    return ResolvedSource(FunctionNet(made), "python")


def _takes_nothing(function: Callable[..., Any]) -> bool:
    try:
        taken = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    named = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not inspect.Parameter.empty or p.kind in named for p in taken)


class FunctionNet(nn.Module):
    """A function from images to scores, which may be of numpy, as a module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        """Images as the function wants them -> its scores as a tensor."""
        try:
            scores = self.function(images)
        except RuntimeError:
            if not images.requires_grad:
                raise
            scores = self.function(images.detach())  # one of numpy, which takes no tensor that is followed
        return scores if isinstance(scores, Tensor) else torch.as_tensor(np.asarray(scores)).to(images)
