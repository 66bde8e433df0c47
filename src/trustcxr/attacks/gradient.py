"""Attacks that follow the gradient in few steps: FGSM and PGD."""

import torch
from torch import Tensor, nn

from trustcxr.attacks.contract import Mode, check_input, input_gradient, undisturbed
from trustcxr.errors import UserError


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, mode: Mode = "eval") -> Tensor:
    """Fast gradient sign method (Goodfellow et al. 2015): one step of size epsilon up the cross-entropy.

    `mode` "train" attacks the model with batch statistics, as some adversarial training does; nothing is updated.
    Raises UserError for images outside [0, 1], labels that do not fit, or an epsilon outside [0, 1].
    """
    check_input(images, labels, epsilon)
    images = images.detach()
    with undisturbed(model, mode):
        gradient, _ = input_gradient(model, images, labels, check=True)
    return (images + epsilon * gradient.sign()).clamp(0, 1)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int = 20,
    step_size: float | None = None,
    random_start: bool = True,
    restarts: int = 1,
    seed: int = 0,
    stop_when_wrong: bool = False,
    mode: Mode = "eval",
) -> Tensor:
    """Projected gradient descent in the L-infinity ball (Madry et al. 2018).

    `step_size` defaults to 2.5 * epsilon / steps. With several `restarts`, an image keeps the first start that misleads
    the model. With `stop_when_wrong` an image leaves the batch once the model is wrong on it: what the whole climb
    misleads stays misled, and on a model that is not robust most of the time is saved. It needs mode "eval", where an
    image's verdict does not depend on its neighbours. The same `seed` gives the same images.
    Raises UserError as fgsm does, and for steps, restarts or a step size that make no climb.
    """
    check_input(images, labels, epsilon)
    images = images.detach()
    if steps < 1 or restarts < 1:
        raise UserError(f"pgd: steps and restarts must be at least 1, not {steps} and {restarts}")
    if step_size is not None and not step_size > 0:
        raise UserError(f"pgd: step_size must be above 0, not {step_size:g}")
    if stop_when_wrong and mode == "train":
        raise UserError("pgd: stop_when_wrong needs mode 'eval': batch statistics change when images leave the batch")
    step = 2.5 * epsilon / steps if step_size is None else step_size
    generator = torch.Generator().manual_seed(seed)
    result = images.clone()
    todo = torch.arange(len(images), device=images.device)
    with undisturbed(model, mode):
        for restart in range(restarts):
            start = images[todo]
            if random_start:
                # Drawn on the CPU so that one seed gives the same start on every device.
                noise = torch.rand(start.shape, generator=generator) * 2 - 1
                start = (start + epsilon * noise.to(start)).clamp(0, 1)
            found = _climb(model, images[todo], start, labels[todo], epsilon, steps, step, stop_when_wrong)
            result[todo] = found
            if restart + 1 < restarts:
                todo = todo[_right(model, found, labels[todo])]
                if len(todo) == 0:
                    break
    return result


def _climb(
    model: nn.Module,
    originals: Tensor,
    start: Tensor,
    labels: Tensor,
    epsilon: float,
    steps: int,
    step: float,
    stop_when_wrong: bool,
) -> Tensor:
    low, high = (originals - epsilon).clamp(0, 1), (originals + epsilon).clamp(0, 1)
    result = start.clone()
    active = torch.arange(len(start), device=start.device)
    for number in range(steps):
        current = result[active]
        gradient, logits = input_gradient(model, current, labels[active], check=number == 0)
        if stop_when_wrong:
            right = logits.argmax(1) == labels[active]
            active, current, gradient = active[right], current[right], gradient[right]
            if len(active) == 0:
                break
        moved = current + step * gradient.sign()
        result[active] = torch.minimum(torch.maximum(moved, low[active]), high[active])
    return result


def _right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(1) == labels
