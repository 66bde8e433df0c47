"""Adversarial attacks in pixel space.

One contract: (model, images, labels, *, epsilon, ...) -> adversarial images. Images are (B, 1, H, W), float, in [0, 1];
labels are (B,), int; epsilon is the L-infinity radius in [0, 1] (of `pgd-l2` alone the L2 radius), or a tensor of radii
that broadcasts to the images. The result is clamped to [0, 1], has no gradient, and the model is left exactly as it was
found: mode of every module, gradients, running statistics, random state. The same seed gives the same images.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from trustcxr import registry
from trustcxr.attacks.apgd import apgd
from trustcxr.attacks.base import (
    Attack,
    Loss,
    Precision,
    check_epsilon,
    check_input,
    computes_in_bfloat16,
    cross_entropy,
    input_gradient,
)
from trustcxr.attacks.fab import fab
from trustcxr.attacks.fgsm import fgsm, fgsm_rs
from trustcxr.attacks.minimal_perturbation import minimal_perturbation, nearest
from trustcxr.attacks.pgd import momentum, pgd, pgd_l2
from trustcxr.attacks.square import square
from trustcxr.attacks.transfer import transfer
from trustcxr.attacks.worst_case import WorstCase, worst_case, worst_case_report
from trustcxr.errors import lookup
from trustcxr.models.preserve_state import Mode, preserve_state


def _found(entry: registry.Attack) -> Callable[..., Tensor]:
    function = registry.load_function("attacks", entry.function)
    return partial(function, **entry.fixed) if entry.fixed else function


ATTACKS: dict[str, Callable[..., Tensor]] = {name: _found(entry) for name, entry in registry.ATTACKS.items()}


def get(name: str) -> Callable[..., Tensor]:
    """The attack of that name; UserError with the valid names for any other."""
    return lookup(ATTACKS, "attack", name)
