"""Find the smallest epsilon that flips each image, by bisection."""

import math
from collections.abc import Callable, Iterable
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from trustcxr.attacks.base import ROUNDING, check_epsilon, check_input, checked_logits, logits_of
from trustcxr.attacks.worst_case import worst_case_report
from trustcxr.errors import UserError, unknown
from trustcxr.models.preserve_state import preserve_state
from trustcxr.registry import WORST_CASE

_LADDER = (1 / 64, 1 / 16, 1 / 4, 1)  # shares of the highest radius, climbed before the bisection


def minimal_perturbation(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attack: str = "pgd",
    highest: float = 0.3,
    tolerance: float = 5e-4,
    **options: Any,
) -> Tensor:
    """Return the smallest L-infinity radius at which `attack` flips each image, (B,) float32, by bisection.

    It is 0 if the model is already wrong, and infinite if nothing up to `highest` flips the image. At each returned
    radius an adversarial image was found, and at most `tolerance` below it none was. So it is an upper bound, as tight
    as the attack is strong. `options` go to the attack, such as steps.

    Raises UserError for an attack without an L-infinity radius, for options that it does not take, and as it does.

    >>> import torch, trustcxr as tx
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    >>> tx.attacks.minimal_perturbation(model, images, labels).shape
    torch.Size([2])
    """
    return nearest(model, images, labels, attack=attack, highest=highest, tolerance=tolerance, **options)[0]


def nearest(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attack: str = "pgd",
    highest: float = 0.3,
    tolerance: float = 5e-4,
    start: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Return `minimal_perturbation`, (B,), and the images that flip the answer there, (B, 1, H, W).

    If the model is already wrong, or nothing flips the answer, that is the image itself. `start` (B, 1, H, W) are
    another attack's images: if they flip the answer within `highest`, the search starts there and goes down.
    """
    from trustcxr.attacks import get

    check_input(images, labels, highest)
    if not tolerance > 0:
        raise UserError(f"minimal_perturbation: tolerance must be above 0, not {tolerance:g}")
    run = get(attack)
    _check_attack(attack, run, options)
    images = images.detach()
    if attack in ("pgd", "momentum"):
        options = {"stop_when_wrong": True} | options
    with preserve_state(model):
        right = checked_logits(model, images, labels).argmax(1) == labels
    fails = torch.zeros(len(images), device=images.device)
    flips, flipped = torch.where(right, math.inf, 0.0), images.clone()

    def record(rows: Tensor, candidates: Tensor, radius: Tensor) -> Tensor:
        with preserve_state(model):
            wrong = logits_of(model, candidates).argmax(1) != labels[rows]
        # A candidate may lie well inside its radius.
        length = (candidates.float() - images[rows].float()).flatten(1).abs().amax(1)
        wrong &= length <= radius + ROUNDING  # of x + r in float32
        flips[rows[wrong]] = torch.minimum(radius, length)[wrong]
        flipped[rows[wrong]] = candidates[wrong]
        return wrong

    def attempt(rows: Tensor, radius: Tensor) -> None:
        size = radius[:, None, None, None]
        wrong = record(rows, run(model, images[rows], labels[rows], epsilon=size, **options), radius)
        fails[rows[~wrong]] = radius[~wrong]

    if start is not None:
        rows = right.nonzero()[:, 0]
        record(rows, start[rows].to(images), torch.full((len(rows),), check_epsilon(highest), device=images.device))
    for share in _LADDER:
        rows = flips.isinf().nonzero()[:, 0]
        if len(rows):
            attempt(rows, torch.full((len(rows),), check_epsilon(highest) * share, device=images.device))
    while True:
        middle = (flips + fails) / 2  # equals one of them if no number lies between
        rows = (flips.isfinite() & (flips - fails > tolerance) & (middle > fails) & (middle < flips)).nonzero()[:, 0]
        if not len(rows):
            return flips, flipped
        attempt(rows, middle[rows])


def _check_attack(attack: str, run: Callable[..., Tensor], options: Iterable[str]) -> None:
    """Raise UserError for an attack without L-infinity radii, an unknown option, or a missing one."""
    if attack == "pgd-l2":
        raise UserError("minimal_perturbation: pgd-l2 has no L-infinity radius. Use pgd or another attack")
    described: Callable[..., object] = worst_case_report if attack == WORST_CASE else run
    parameters = {name: each for name, each in signature(described).parameters.items() if name != "epsilon"}
    keywords = [name for name, each in parameters.items() if each.kind is Parameter.KEYWORD_ONLY]
    for name in options:
        if name not in parameters and all(each.kind is not Parameter.VAR_KEYWORD for each in parameters.values()):
            raise unknown(f"option of {attack}", name, keywords)
    for name in keywords:
        if parameters[name].default is Parameter.empty and name not in options:
            raise UserError(f"minimal_perturbation: {attack} needs {name}. Add it")
