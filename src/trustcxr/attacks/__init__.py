"""Adversarial attacks in pixel space.

One signature: (model, images, labels, *, epsilon, ...) -> adversarial images. Images are (B, 1, H, W) floats in [0, 1],
labels (B,) integers. Epsilon is the L-infinity radius in [0, 1] (the L2 radius for `pgd-l2`), or a tensor of radii that
broadcasts to the images.

The result is clamped to [0, 1] and has no gradient. The model's modes, gradients, running statistics and random state
are preserved. The same seed gives the same images.
"""

from collections.abc import Callable
from functools import partial
from inspect import signature

from torch import Tensor

from trustcxr import registry
from trustcxr.attacks.adaptive import transfer
from trustcxr.attacks.apgd import apgd, fab
from trustcxr.attacks.base import check_epsilon, computes_in_bfloat16, input_gradient
from trustcxr.attacks.pgd import fgsm, fgsm_rs, momentum, pgd, pgd_l2
from trustcxr.attacks.square import square
from trustcxr.attacks.worst_case import WorstCase, minimal_perturbation, nearest, worst_case, worst_case_report
from trustcxr.errors import UserError, lookup
from trustcxr.models.preserve_state import Mode, preserve_state


def load_attack(entry: registry.Attack) -> Callable[..., Tensor]:
    """Return the function of an entry; UserError unless it takes the seed and the options of the entry."""
    function = registry.load_function("attacks", entry.function)
    parameters = signature(function).parameters
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    wanted = [*entry.options, *entry.fixed, *(["seed"] if entry.seeded else [])]
    if missing := [name for name in wanted if name not in parameters and not takes_any]:
        hint = ", or seeded=False to its entry" if missing == ["seed"] else ""
        problem = f"attack {entry.name}: {entry.function} does not take {', '.join(missing)}"
        raise UserError(f"{problem}. Add it to the function{hint}")
    return partial(function, **entry.fixed) if entry.fixed else function


ATTACKS = {name: load_attack(entry) for name, entry in registry.ATTACKS.items()}


def get(name: str) -> Callable[..., Tensor]:
    """Return the attack of that name; UserError with the valid names for any other.

    >>> import trustcxr as tx
    >>> tx.attacks.get("pgd") is tx.attacks.pgd
    True
    """
    return lookup(ATTACKS, "attack", name)
