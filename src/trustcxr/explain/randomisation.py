"""Does the saliency depend on what the model has learnt? Cascading randomisation (Adebayo et al. 2018)."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trustcxr.explain import measures, methods
from trustcxr.explain.contract import SaliencyMethod, Target, target_classes
from trustcxr.models.untouched import as_found


class Stage(NamedTuple):
    """How like the maps are to the trained model's, once this part and all after it are random."""

    part: str
    """The dotted name of the part of the network that was made random last."""
    ssim: Tensor
    """(B,): structural similarity with the trained model's map."""
    rank_correlation: Tensor
    """(B,): Spearman's rank correlation with it."""
    null: Tensor
    """(B,), bool: the map has vanished, so that nothing was compared."""


def cascading_randomisation(
    model: nn.Module, x: Tensor, method: SaliencyMethod, target: Target = None, *, depth: int = 1, seed: int = 0
) -> Iterator[Stage]:
    """Make the network random part by part, from the logits down to the pixels, and compare maps as it goes.

    A method whose maps stay as they were does not explain the model. `x`: images (B, 1, H, W) in [0, 1]. `method`: any
    of `METHODS`. `target`: None for the class that the trained model predicts; it stays the same throughout. `depth`:
    parts are the network's modules at this depth of dotted names (1: stages; 2: blocks). `seed`: of the random weights.

    Weights are drawn from a normal distribution with the mean and spread that each tensor had, so that the signal keeps
    about its scale and maps do not differ for that reason; statistics of BatchNorm stay. The model itself is not
    touched: a copy is. Yields a `Stage` a part.
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
    for part, found in _cascade(model, x, maps, target, depth, seed) if names else ():
        yield part, {name: dict(zip(keys, values, strict=True)) for name, values in zip(names, found, strict=True)}


def _cascade(
    model: nn.Module,
    x: Tensor,
    maps: Callable[[nn.Module, Tensor], list[Tensor]],
    target: Target,
    depth: int,
    seed: int,
) -> Iterator[tuple[str, list[tuple[Tensor, Tensor, Tensor]]]]:
    with as_found(model, x.device), torch.inference_mode(False), torch.no_grad():
        classes = target_classes(target, model(x.clone()))
        network = deepcopy(model)
    trained = maps(network, classes)
    generator = torch.Generator().manual_seed(seed)
    for part, parameters in _parts(network, depth):
        with torch.no_grad():
            for parameter in parameters:
                _randomise(parameter, generator)
        pairs = zip(trained, maps(network, classes), strict=True)
        yield part, [(measures.ssim(a, b), measures.rank_correlation(a, b), measures.null_map(b)) for a, b in pairs]


def _parts(model: nn.Module, depth: int) -> list[tuple[str, list[nn.Parameter]]]:
    """Parameters by part, the last part first."""
    # A Classifier's network is one module, `net`: its parts are one level further down.
    prefix = "net." if hasattr(model, "net") else ""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        path = name.removeprefix(prefix).split(".")[:-1][:depth]
        parts.setdefault(prefix + ".".join(path), []).append(parameter)
    return list(reversed(parts.items()))


def _randomise(parameter: nn.Parameter, generator: torch.Generator) -> None:
    values = parameter.detach().float()
    spread = values.std(correction=0) if values.numel() > 1 else values.abs().mean()
    drawn = torch.randn(values.shape, generator=generator).to(values.device)
    parameter.copy_(values.mean() + spread * drawn)
