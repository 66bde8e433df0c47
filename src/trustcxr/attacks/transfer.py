"""Try adversarial images of another model on this one."""

from typing import Any

from torch import Tensor, nn

from trustcxr.attacks.base import check_input, checked_logits
from trustcxr.errors import UserError
from trustcxr.models.preserve_state import preserve_state


def transfer(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    surrogate: nn.Module,
    attack: str = "momentum",
    **options: Any,
) -> Tensor:
    """Return images that `attack` makes against another model, `surrogate` (Papernot et al. 2016), to try on `model`.

    `options` go to the attack. UserError unless both models have the same number of classes.

    >>> import torch, trustcxr as tx
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    >>> other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> adversarial = tx.attacks.transfer(model, images, labels, epsilon=0.02, surrogate=other)
    >>> bool((adversarial - images).abs().max() < 0.02 + 1e-6)
    True
    """
    from trustcxr.attacks import get

    check_input(images, labels, epsilon if attack != "pgd-l2" else 0.0)
    with preserve_state(model), preserve_state(surrogate):
        counts = [checked_logits(m, images[:1], labels[:1]).shape[1] for m in (model, surrogate)]
    if counts[0] != counts[1]:
        raise UserError(f"transfer: the model has {counts[0]} classes and the surrogate {counts[1]}")
    return get(attack)(surrogate, images, labels, epsilon=epsilon, **options)
