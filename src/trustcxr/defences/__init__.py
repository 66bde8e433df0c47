"""Train models to be robust. One signature: (model, images, labels) -> loss, logits."""

from collections.abc import Callable

from torch import Tensor

from trustcxr import registry
from trustcxr.defences.adversarial import fgsm, fgsm_rs, free, n_fgsm, pgd, trades
from trustcxr.defences.base import Defence, standard
from trustcxr.defences.bound_training import crown_ibp, ibp
from trustcxr.defences.noise import cutout, gaussian, mixup
from trustcxr.errors import lookup

DEFENCES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    name: registry.load_function("defences", entry.function) for name, entry in registry.DEFENCES.items()
}


def get(name: str) -> Defence:
    """Return the defence of that name; UserError with the valid names for any other."""
    return lookup(DEFENCES, "defence", name)
