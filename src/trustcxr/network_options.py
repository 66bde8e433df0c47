"""Other layers in a network's place, and networks side by side: what a recipe's model may say beside a name."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trustcxr.errors import UserError, unknown

NORMALISATIONS = ("batch", "frozen", "group")
# Smooth stand-ins for ReLU (Xie et al. 2020, "Smooth adversarial training"), whose gradient has no jumps.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": lambda: nn.Softplus(beta=10),
}


class SideBySide(nn.Module):
    """Networks that see the same image: their logits are averaged.

    An average of networks errs less than each (Hansen and Salamon 1990), and an attack must turn most of them at once.
    `means` and `stds` are those of the pixels that each was made for; images come as the first one wants them.
    """

    def __init__(self, nets: Sequence[nn.Module], means: Sequence[float], stds: Sequence[float]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.means, self.stds = tuple(means), tuple(stds)

    def seen_by(self, place: int, images: Tensor) -> Tensor:
        """Images (B, 1, H, W), normalised for the first network, as the one at `place` was made for."""
        if (self.means[place], self.stds[place]) == (self.means[0], self.stds[0]):
            return images
        return (images * self.stds[0] + self.means[0] - self.means[place]) / self.stds[place]

    def forward_features(self, images: Tensor) -> Tensor:
        """The networks' last feature maps (B, K, h, w) one after another: (B, sum of K, h, w)."""
        maps = [net.forward_features(self.seen_by(i, images)) for i, net in enumerate(self.nets)]  # type: ignore[operator]
        for net, found in zip(self.nets, maps, strict=True):
            if found.ndim != 4 or found.shape[1] != net.num_features or found.shape[2:] != maps[0].shape[2:]:
                raise UserError(
                    "networks side by side need last feature maps (B, K, h, w) of the same h and w, not "
                    + " and ".join(str(tuple(m.shape)) for m in maps)
                )
        return torch.cat(maps, 1)

    def forward_head(self, features: Tensor) -> Tensor:
        """What `forward_features` gives -> logits (B, C)."""
        parts = features.split([net.num_features for net in self.nets], 1)
        return torch.stack([net.forward_head(p) for net, p in zip(self.nets, parts, strict=True)]).mean(0)  # type: ignore[operator]


def apply(
    net: nn.Module, name: str, *, normalisation: str = "batch", activation: str = "own", first_pool: bool = True
) -> None:
    """Change a network's layers in place; `name` is the network's, for the errors.

    Raises UserError for an option that is not there, or a network without a layer that it would change.
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
    if not first_pool:
        _leave_out_first_pool(net, name)


def _leave_out_first_pool(net: nn.Module, name: str) -> None:
    pools = [place for place, module in net.named_modules() if isinstance(module, nn.MaxPool2d)]
    if not pools:
        raise UserError(f"first_pool: false leaves out the first max pooling; {name} has none")
    parent, _, child = pools[0].rpartition(".")
    setattr(net.get_submodule(parent), child, nn.Identity())


def _replace(net: nn.Module, kind: type | tuple[type, ...], make: Callable[[nn.Module], nn.Module]) -> int:
    """Put `make(layer)` in the place of each layer of a kind; how many there were."""
    found = [(parent, name, child) for parent in net.modules() for name, child in parent.named_children()]
    found = [(parent, name, child) for parent, name, child in found if isinstance(child, kind)]
    for parent, name, child in found:
        setattr(parent, name, make(child))
    return len(found)


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
