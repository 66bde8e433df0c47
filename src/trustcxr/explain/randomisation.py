"""Test if saliency depends on the weights: cascading randomisation (Adebayo et al. 2018), and random networks.

The cascade makes a model random from the logits down to the pixels: the part that runs last comes first, a lung gate at
the end. The networks of an ensemble go in step. A random network keeps only the lung gate as trained.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial
from itertools import chain, count, zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trustcxr.errors import UserError
from trustcxr.explain import measures
from trustcxr.explain.base import Target, target_classes
from trustcxr.models.classifier import Ensemble, LungGate
from trustcxr.models.preserve_state import preserve_state


class Stage(NamedTuple):
    """Similarity to the trained model's maps, (B,) each, with `part` and all parts before it made random.

    `part`: dotted name, of an ensemble one for each network, joined by " + ". `null`, bool: the map has vanished.
    """

    part: str
    ssim: Tensor
    rank_correlation: Tensor
    null: Tensor


def cascade(
    model: nn.Module,
    x: Tensor,
    maps: Callable[[nn.Module, Tensor], list[Tensor]],
    target: Target = None,
    *,
    seed: int = 0,
) -> Iterator[list[Stage]]:
    """Make a copy of the network random part by part, from the logits to the pixels; yield a `Stage` for each map.

    A method whose maps stay does not explain the model. `x`: images (B, 1, H, W) in [0, 1]. `maps`: (network, classes)
    -> maps (B, H, W) of some methods. `target`: None for the class that the trained model predicts. The parts are the
    network's stages. Weights are drawn from a normal distribution with the mean and spread of each tensor; BatchNorm
    statistics stay. Raises UserError for a model whose weights torch does not see.
    """
    with preserve_state(model, autocast_cache=False), torch.inference_mode(False), torch.no_grad():
        network = _copied(model)
        with _order_of_calls(network) as called:
            classes = target_classes(target, network(x.clone()))
    trained = maps(network, classes)
    generator = torch.Generator().manual_seed(seed)
    for name, parameters in _parts(network, called):
        _randomise(parameters, generator)
        pairs = zip(trained, maps(network, classes), strict=True)
        yield [
            Stage(name, measures.ssim(a, b), measures.rank_correlation(a, b), measures.null_map(b)) for a, b in pairs
        ]


def random_network(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Return a copy of the model with random weights, as in `cascade`, and its lung gate as trained.

    Raises UserError for a model whose weights torch does not see, such as an exported file.
    """
    with torch.inference_mode(False):
        network, generator = _copied(model), torch.Generator().manual_seed(seed)
        gate = {id(parameter) for parameter in _gate_parameters(network)}
        _randomise([parameter for parameter in network.parameters() if id(parameter) not in gate], generator)
    return network


def _copied(model: nn.Module) -> nn.Module:
    """Copy the model. Raises UserError if it has no weights or cannot be copied."""
    advice = "give the network as a module, or as weights with timm: NAME"
    if next(model.parameters(), None) is None:
        raise UserError(f"random weights: the model has none that can be drawn anew; {advice}")
    try:
        return deepcopy(model)
    except (TypeError, RuntimeError) as problem:
        why = str(problem).splitlines()[0][:160]
        raise UserError(f"random weights: the model cannot be copied ({why}); {advice}") from None


@contextmanager
def _order_of_calls(model: nn.Module) -> Iterator[dict[str, int]]:
    """Record for each module by name the order of its last call, from 1, while the model runs inside."""
    called: dict[str, int] = {}
    numbers = count(1)

    def note(name: str, *_: Any) -> None:
        called[name] = next(numbers)

    with ExitStack() as hooks:
        for name, module in list(model.named_modules())[1:]:
            hooks.enter_context(module.register_forward_hook(partial(note, name)))
        yield called


def _parts(model: nn.Module, called: dict[str, int]) -> Iterator[tuple[str, list[nn.Parameter]]]:
    """Yield the parts in the order of the cascade: the last run first, networks in step, the gate last."""
    gate, net, done = _gate_parameters(model), getattr(model, "net", None), dict[str, int]()
    # The network of a Classifier is one module, `net`: its parts are one level further down, as those of an ensemble's.
    starts = ["net." if isinstance(net, nn.Module) else ""]
    if isinstance(net, Ensemble):
        starts = [f"net.nets.{index}." for index in range(len(net.nets))]
    networks: list[dict[str | None, list[nn.Parameter]]] = [{} for _ in starts]
    for name, parameter in reversed(list(model.named_parameters())):
        if any(parameter is other for other in gate):
            continue
        owner = name.rpartition(".")[0]
        index, start = next((pair for pair in enumerate(starts) if f"{owner}.".startswith(pair[1])), (0, ""))
        part = (start + owner[len(start) :].partition(".")[0]).rstrip(".")
        networks[index].setdefault(part, []).append(parameter)
        # What is never called, such as a token, comes with the pixels.
        done[part] = max(done.get(part, 0), called.get(owner, 0))
    for step in zip_longest(*(sorted(parts, key=lambda part: -done[str(part)]) for parts in networks)):
        parameters = [parts.get(name, []) for parts, name in zip(networks, step, strict=True)]
        yield " + ".join(filter(None, step)), list(chain(*parameters))
    if gate:
        yield "gate", gate


def _gate_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the lung gate, the last first; none without a gate."""
    gate = getattr(model, "gate", None)
    return list(gate.parameters())[::-1] if isinstance(gate, LungGate) else []


@torch.no_grad()
def _randomise(parameters: Sequence[nn.Parameter], generator: torch.Generator) -> None:
    for parameter in parameters:
        values = parameter.detach().float()
        spread = values.std(correction=0) if values.numel() > 1 else values.abs().mean()
        drawn = torch.randn(values.shape, generator=generator).to(values.device)
        parameter.copy_(values.mean() + spread * drawn)
