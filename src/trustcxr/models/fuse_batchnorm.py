"""Fold BatchNorm into the convolutions before it, for faster passes of attacks in training and audits.

In evaluation BatchNorm scales and shifts each channel, which the convolution can do (Jacob et al. 2018, section 3.2).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import copy, deepcopy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trustcxr.models.preserve_state import preserve_state

Pair = tuple[str, str]  # names of a convolution and of the BatchNorm that alone uses its output
_TOLERANCE = 1e-4  # share of the largest logit
_PAIRS: WeakKeyDictionary[nn.Module, list[Pair]] = WeakKeyDictionary()


class _Tracer(fx.Tracer):
    """Trace convolution and BatchNorm as leaves, also timm's kinds."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.Conv2d, _BatchNorm)) or super().is_leaf_module(m, module_qualified_name)


@contextmanager
def fold_batchnorm(*networks: nn.Module) -> Iterator[None]:
    """Fold the networks' BatchNorm inside the block, and restore it afterwards.

    Inside they must be in evaluation mode and must not be saved, hooked or trained. Networks that cannot be traced, and
    layers used twice, stay unchanged.
    """
    with ExitStack() as undo:
        for network in networks:
            _fold(network, find_pairs(network), undo)
        yield


def make_fused_copy(model: nn.Module, images: Tensor) -> nn.Module:
    """Return the model with a folded copy of its network, for attacks; the model itself if that fails.

    Logits agree up to rounding, which is checked on `images` (B, 1, H, W); confirm adversarial images on the model. All
    but the network is shared, hooks too.
    """
    try:
        other = _copied(model)
        if other is model:
            return model
        with preserve_state(model), preserve_state(other), torch.no_grad():
            expected, answers = model(images), other(images)
    except Exception:  # an external module may raise anything
        return model
    allowed = _TOLERANCE * float(expected.abs().max())
    return other if torch.allclose(answers, expected, rtol=_TOLERANCE, atol=allowed) else model


def _copied(model: nn.Module) -> nn.Module:
    """Copy the model with its innermost network folded; return the model if there is nothing to fold."""
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
    _fold(network, layers, ExitStack())
    return network


def _fold(network: nn.Module, layers: list[Pair], undo: ExitStack) -> None:
    """Fold these layers of the network, so that `undo` restores them."""
    for first, second in layers:
        conv: Any = network.get_submodule(first)
        norm: Any = network.get_submodule(second)
        parent, _, last = second.rpartition(".")
        siblings = network.get_submodule(parent)._modules
        undo.callback(vars(conv).update, _parameters=conv._parameters)
        undo.callback(siblings.update, {last: norm})
        conv._parameters, siblings[last] = _weights(conv, norm), nn.Sequential(*after_norm(norm)).eval()


def find_pairs(network: nn.Module) -> list[Pair]:
    """Return each convolution with a BatchNorm as only user, and that BatchNorm; cached for each network."""
    if network in _PAIRS:
        return _PAIRS[network]
    pairs = _PAIRS[network] = list[Pair]()
    attributes = set(vars(network))
    try:
        graph = _Tracer().trace(network)
    except Exception:  # an external forward pass may raise anything when traced
        return pairs
    finally:
        for name in set(vars(network)) - attributes:  # the tracer stores constants of the forward pass
            delattr(network, name)
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [str(node.target) for node in calls]
    for node in calls:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        conv, norm = (network.get_submodule(str(n.target)) for n in (before, node))
        once = targets.count(str(before.target)) == targets.count(str(node.target)) == 1
        if once and type(conv) is nn.Conv2d and isinstance(norm, _BatchNorm) and norm.running_mean is not None:
            pairs.append((str(before.target), str(node.target)))
    return pairs


def _weights(conv: Any, norm: Any) -> dict[str, Tensor]:
    """Return weight and bias of the folded convolution."""
    with torch.no_grad():
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        bias = -scale * norm.running_mean if conv.bias is None else scale * (conv.bias - norm.running_mean)
        bias = bias if norm.bias is None else bias + norm.bias
        return {"weight": conv.weight * scale.view(-1, 1, 1, 1), "bias": bias}


def after_norm(layer: nn.Module) -> list[nn.Module]:
    """Return dropout and activation of timm's BatchNormAct2d, which is all three in one layer."""
    return [getattr(layer, part) for part in ("drop", "act") if isinstance(getattr(layer, part, None), nn.Module)]
