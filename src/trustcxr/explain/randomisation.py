"""Does the saliency depend on what the model has learnt? Cascading randomisation (Adebayo et al. 2018), and a control.

The cascade makes a model random from the logits down to the pixels. Its parts go by when they are run: what runs last
is random first. A lung gate, which decides what is seen and not what is made of it, is the last. The networks of an
ensemble go in step: the part nearest the logits of each, then the next of each, until the deepest is at its pixels.

The control is the map of the same model with random weights, the gate alone as it was trained: what a map has that this
one has too is not of what the network has learnt.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import count, zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trustcxr.errors import UserError
from trustcxr.explain import measures, methods
from trustcxr.explain.base import SaliencyMethod, Target, target_classes
from trustcxr.models.classifier import Ensemble
from trustcxr.models.lung_gate import LungGate
from trustcxr.models.preserve_state import preserve_state


class Stage(NamedTuple):
    """Similarity to the trained model's maps, with this part and all before it in the cascade made random."""

    part: str
    """The dotted name of the part that was made random last; of an ensemble one of each network, joined by " + "."""
    ssim: Tensor
    """(B,): structural similarity with the trained model's map."""
    rank_correlation: Tensor
    """(B,): Spearman's rank correlation with it."""
    null: Tensor
    """(B,), bool: the map has vanished, so that nothing was compared."""


class Part(NamedTuple):
    """A part of a model, by its dotted name, and its parameters."""

    name: str
    parameters: list[nn.Parameter]


def cascading_randomisation(
    model: nn.Module, x: Tensor, method: SaliencyMethod, target: Target = None, *, depth: int = 1, seed: int = 0
) -> Iterator[Stage]:
    """Make the network random part by part, from the logits down to the pixels, and compare maps as it goes.

    A method whose maps stay as they were does not explain the model. `x`: images (B, 1, H, W) in [0, 1]. `method`: any
    of `METHODS`. `target`: None for the class that the trained model predicts; it stays the same throughout. `depth`:
    parts are the network's modules at this depth of dotted names (1: stages; 2: blocks). `seed`: of the random weights.

    Weights are drawn from a normal distribution with the mean and spread that each tensor had, so that the signal keeps
    about its scale and maps do not differ for that reason; statistics of BatchNorm stay. The model itself is not
    touched: a copy is. Yields a `Stage` a part. Raises UserError for a model whose weights torch does not see.
    """
    for part, (both,) in _cascade(
        model, x, lambda network, classes: [method(network, x, classes)], target, depth, seed
    ):
        yield Stage(part, *both)


def cascade(
    model: nn.Module, x: Tensor, names: Sequence[str], target: Target = None, *, depth: int = 1, seed: int = 0
) -> Iterator[tuple[str, dict[str, dict[str, Tensor]]]]:
    """`cascading_randomisation` of several methods by name at once; CAMs of one layer share their passes.

    Yields a part's name and, for each method, (B,) tensors `randomised_ssim`, `randomised_rank_correlation` and
    `randomised_null`. A layer is given by name or number, so that it is found in the copy too.
    """

    def maps(network: nn.Module, classes: Tensor) -> list[Tensor]:
        return list(methods.maps(network, x, classes, names).values())

    keys = ("randomised_ssim", "randomised_rank_correlation", "randomised_null")
    for part, similarities in _cascade(model, x, maps, target, depth, seed) if names else ():
        yield (
            part,
            {name: dict(zip(keys, values, strict=True)) for name, values in zip(names, similarities, strict=True)},
        )


def _cascade(
    model: nn.Module,
    x: Tensor,
    maps: Callable[[nn.Module, Tensor], list[Tensor]],
    target: Target,
    depth: int,
    seed: int,
) -> Iterator[tuple[str, list[tuple[Tensor, Tensor, Tensor]]]]:
    with preserve_state(model, autocast_cache=False), torch.inference_mode(False), torch.no_grad():
        network = _copied(model)
        with _order_of_calls(network) as called:
            classes = target_classes(target, network(x.clone()))
    trained = maps(network, classes)
    generator = torch.Generator().manual_seed(seed)
    for part in _parts(network, called, depth):
        _randomise(part.parameters, generator)
        yield (
            part.name,
            [
                (measures.ssim(a, b), measures.rank_correlation(a, b), measures.null_map(b))
                for a, b in zip(trained, maps(network, classes), strict=True)
            ],
        )


def random_network(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """A copy of the model whose weights are drawn as those of `cascading_randomisation`, a lung gate as it is trained.

    Without a gate all of it is random. The same seed draws the same weights. Raises UserError for a model whose weights
    torch does not see, as of an exported file.
    """
    with torch.inference_mode(False):
        network, generator = _copied(model), torch.Generator().manual_seed(seed)
        gate = _of_the_gate(network)
        _randomise([parameter for parameter in network.parameters() if id(parameter) not in gate], generator)
    return network


def _copied(model: nn.Module) -> nn.Module:
    """A copy to be made random. Raises UserError where none of it could be: it would be the model itself."""
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
    """For each module by name the place at which it was done last, from 1 on, while the model runs inside."""
    called: dict[str, int] = {}
    numbers = count(1)

    def note(name: str) -> Callable[..., None]:
        def done(*_: Any) -> None:
            called[name] = next(numbers)

        return done

    hooks = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


def _parts(model: nn.Module, called: dict[str, int], depth: int) -> list[Part]:
    """The parts in the order in which they are made random: the last run first, networks in step, the gate last."""
    gate, of_gate, starts = _of_the_gate(model), list[nn.Parameter](), _starts(model)
    networks: list[dict[str, list[nn.Parameter]]] = [{} for _ in starts]
    done: dict[str, int] = {}
    for name, parameter in reversed(list(model.named_parameters())):
        if id(parameter) in gate:
            of_gate.append(parameter)
            continue
        owner = name.rpartition(".")[0]
        index, start = next((pair for pair in enumerate(starts) if f"{owner}.".startswith(pair[1])), (0, ""))
        part = (start + ".".join(owner[len(start) :].split(".")[:depth])).rstrip(".")
        networks[index].setdefault(part, []).append(parameter)
        # What is never called, such as a token, comes with the pixels.
        done[part] = max(done.get(part, 0), called.get(owner, 0))
    cascades = [sorted(parts, key=lambda part: -done[part]) for parts in networks]
    parts_in_order = []
    for step in zip_longest(*cascades):
        both = [(parts, name) for parts, name in zip(networks, step, strict=True) if name is not None]
        parts_in_order.append(
            Part(" + ".join(name for _, name in both), [p for parts, name in both for p in parts[name]])
        )
    return [*parts_in_order, Part("gate", of_gate)] if of_gate else parts_in_order


def _starts(model: nn.Module) -> list[str]:
    """How the names of each network's parameters begin."""
    net = getattr(model, "net", None)
    if isinstance(net, Ensemble):
        return [f"net.nets.{index}." for index in range(len(net.nets))]
    # A Classifier's network is one module, `net`: its parts are one level further down.
    return ["net." if isinstance(net, nn.Module) else ""]


def _of_the_gate(model: nn.Module) -> set[int]:
    gate = getattr(model, "gate", None)
    return {id(parameter) for parameter in gate.parameters()} if isinstance(gate, LungGate) else set()


@torch.no_grad()
def _randomise(parameters: Sequence[nn.Parameter], generator: torch.Generator) -> None:
    for parameter in parameters:
        values = parameter.detach().float()
        spread = values.std(correction=0) if values.numel() > 1 else values.abs().mean()
        drawn = torch.randn(values.shape, generator=generator).to(values.device)
        parameter.copy_(values.mean() + spread * drawn)
