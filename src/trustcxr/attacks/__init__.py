"""Adversarial attacks in pixel space.

One signature: (model, images, labels, *, epsilon, ...) -> adversarial images. Images are (B, 1, H, W) floats in [0, 1],
labels (B,) integers. Epsilon is the L-infinity radius in [0, 1] (the L2 radius for `pgd-l2`), or a tensor of radii that
broadcasts to the images.

The result is clamped to [0, 1] and has no gradient. The model's modes, gradients, running statistics and random state
are preserved. The same seed gives the same images.
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
from trustcxr.attacks.surrogate import transfer
from trustcxr.attacks.worst_case import WorstCase, worst_case, worst_case_report
from trustcxr.errors import lookup
from trustcxr.models.preserve_state import Mode, preserve_state

ATTACKS: dict[str, Callable[..., Tensor]] = {}
for _name, _entry in registry.ATTACKS.items():
    _function = registry.load_function("attacks", _entry.function)
    ATTACKS[_name] = partial(_function, **_entry.fixed) if _entry.fixed else _function


def get(name: str) -> Callable[..., Tensor]:
    """Return the attack of that name; UserError with the valid names for any other."""
    return lookup(ATTACKS, "attack", name)
