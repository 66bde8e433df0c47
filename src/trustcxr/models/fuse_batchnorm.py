"""BatchNorm folded into the convolutions before it, for the passes of an attack: while a model is trained, in an audit.

In evaluation BatchNorm is a scale and a shift of each channel, which the convolution before it can do by itself (Jacob
et al. 2018, section 3.2). An attack's pass then reads and writes each feature map once less, forward and backward.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trustcxr.models.preserve_state import preserve_state

Pair = tuple[str, str]  # the places of a convolution and of the BatchNorm that alone reads it
Part = TypeVar("Part")
_ALIKE = 1e-4  # of the largest logit: what a folded network may answer otherwise
_PAIRS: WeakKeyDictionary[nn.Module, list[Pair]] = WeakKeyDictionary()


class _Tracer(fx.Tracer):
    """Takes convolution and BatchNorm as a whole, timm's own kinds of them too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.Conv2d, _BatchNorm)) or super().is_leaf_module(m, module_qualified_name)


@contextmanager
def fold_batchnorm(*networks: nn.Module) -> Iterator[None]:
    """The networks as they are in evaluation mode, faster: inside, their weights are stand-ins without a gradient.

    Inside they must be in evaluation mode and must not be saved, hooked or trained. Outside nothing has changed. What
    cannot be followed (forward passes that depend on their input, layers used twice) stays as it is.
    """
    undo: list[Callable[[], None]] = []
    try:
        for network in networks:
            undo += _fold(network, find_pairs(network))
        yield
    finally:
        for put_back in undo:
            put_back()


def make_fused_copy(model: nn.Module, images: Tensor) -> nn.Module:
    """The model with BatchNorm folded away in a copy of its network, to search on; itself where that cannot be done.

    It answers in evaluation mode as the model does, to rounding, which is tried on `images` (B, 1, H, W); what an
    attack finds is to be judged on the model itself. All but the network is shared with the model, hooks too.
    """
    try:
        other = _copied(model)
        if other is model:
            return model
        with preserve_state(model), preserve_state(other), torch.no_grad():
            expected, answers = model(images), other(images)
    except Exception:  # whatever a foreign module raises that cannot be copied, or looks into its own layers
        return model
    return other if torch.allclose(answers, expected, rtol=_ALIKE, atol=_ALIKE * float(expected.abs().max())) else model


def _copied(model: nn.Module) -> nn.Module:
    """A copy of the model with its innermost network folded; itself where there is nothing to fold."""
    for name in ("net", "model"):  # what stands around a network: normalisation, a finding's decision
        inner = model._modules.get(name)
        if inner is not None:
            network = _copied(inner)
            if network is inner:
                return model
            other = copy(model)
            other._modules = {**model._modules, name: network}
            return other
    if not (layers := find_pairs(model)):
        return model
    network = deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _fold(network, layers)
    return network


def _fold(network: nn.Module, layers: list[Pair]) -> list[Callable[[], None]]:
    """Fold these layers of the network; what is returned puts them back, called one after the other."""
    undo: list[Callable[[], None]] = []
    for first, second in layers:
        conv, norm = network.get_submodule(first), network.get_submodule(second)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, _BatchNorm) and norm.running_mean is not None:
            parent, _, last = second.rpartition(".")
            undo.append(_put(vars(conv), "_parameters", _weights(conv, norm)))
            undo.append(_put(network.get_submodule(parent)._modules, last, _rest(norm)))
    return undo


def find_pairs(network: nn.Module) -> list[Pair]:
    """Each convolution of the network whose one reader is a BatchNorm, and that BatchNorm; found once for a network."""
    if network not in _PAIRS:
        _PAIRS[network] = _find(network)
    return _PAIRS[network]


def _find(network: nn.Module) -> list[Pair]:
    try:
        graph = _Tracer().trace(network)
    except Exception:  # whatever a foreign forward pass raises on stand-ins: it is then left as it is
        return []
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [str(node.target) for node in calls]
    layers = []
    for node in calls:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        conv, norm = (network.get_submodule(str(n.target)) for n in (before, node))
        once = targets.count(str(before.target)) == targets.count(str(node.target)) == 1
        if once and type(conv) is nn.Conv2d and isinstance(norm, _BatchNorm):
            layers.append((str(before.target), str(node.target)))
    return layers


def _put(table: dict[str, Part], key: str, value: Part) -> Callable[[], None]:
    """Put a value in the place of another; what is returned puts that other one back."""
    before, table[key] = table[key], value
    return lambda: table.update({key: before})


def _weights(conv: nn.Conv2d, norm: _BatchNorm) -> dict[str, Tensor | None]:
    """Weight and bias of a convolution that does what both do in evaluation."""
    with torch.no_grad():
        scale = torch.rsqrt(norm.running_var + norm.eps)  # type: ignore[operator, arg-type]
        scale = scale if norm.weight is None else scale * norm.weight
        bias = -scale * norm.running_mean if conv.bias is None else scale * (conv.bias - norm.running_mean)  # type: ignore[operator]
        return {
            "weight": conv.weight * scale.view(-1, 1, 1, 1),
            "bias": bias if norm.bias is None else bias + norm.bias,
        }


def _rest(norm: nn.Module) -> nn.Module:
    """What a layer does beside the norm: timm's BatchNormAct2d is a norm, a dropout and an activation in one."""
    rest = [getattr(norm, part) for part in ("drop", "act") if isinstance(getattr(norm, part, None), nn.Module)]
    return nn.Sequential(*rest).eval()
