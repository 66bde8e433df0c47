"""Replace layers of a network: normalisation, activation."""

from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trustcxr.errors import UserError, unknown

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
