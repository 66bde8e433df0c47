"""Adversarial attacks in pixel space.

One contract: (model, images, labels, *, epsilon, ...) -> adversarial images. Images are (B, 1, H, W), float, in [0, 1];
labels are (B,), int; epsilon is the L-infinity radius in [0, 1]. The result is clamped to [0, 1], has no gradient, and
the model is left exactly as it was found: mode of every module, gradients, running statistics, random state.
"""

from collections.abc import Callable

from torch import Tensor

from trustcxr.attacks.contract import (
    Attack,
    Loss,
    Mode,
    check_epsilon,
    check_input,
    cross_entropy,
    input_gradient,
    undisturbed,
)
from trustcxr.attacks.gradient import fgsm, pgd
from trustcxr.errors import unknown

ATTACKS: dict[str, Callable[..., Tensor]] = {"fgsm": fgsm, "pgd": pgd}


def get(name: str) -> Callable[..., Tensor]:
    """The attack of that name; UserError with the valid names for any other."""
    if name not in ATTACKS:
        raise unknown("attack", name, ATTACKS)
    return ATTACKS[name]


__all__ = [
    "ATTACKS",
    "Attack",
    "Loss",
    "Mode",
    "check_epsilon",
    "check_input",
    "cross_entropy",
    "fgsm",
    "get",
    "input_gradient",
    "pgd",
    "undisturbed",
]
