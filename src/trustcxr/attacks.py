"""Adversarial attacks in pixel space.

One contract: (model, images, labels, *, epsilon, ...) -> adversarial images. Images are (B, 1, H, W), float, in [0, 1];
labels are (B,), int; epsilon is the L-infinity radius in [0, 1]. The result is clamped to [0, 1], has no gradient, and
the model is left exactly as it was found: mode of every module, gradients, running statistics, random state.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr.errors import UserError, unknown

Mode = Literal["eval", "train"]


class Attack(Protocol):
    """What every attack looks like."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float) -> Tensor:
        """Adversarial images within epsilon of `images`."""
        ...


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, mode: Mode = "eval") -> Tensor:
    """Fast gradient sign method (Goodfellow et al. 2015): one step of size epsilon up the cross-entropy.

    `mode` "train" attacks the model with batch statistics, as some adversarial training does; nothing is updated.
    Raises UserError for images outside [0, 1], labels that do not fit, or an epsilon outside [0, 1].
    """
    check_input(images, labels, epsilon)
    images = images.detach()
    with undisturbed(model, mode):
        gradient, _ = _input_gradient(model, images, labels, check=True)
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


ATTACKS: dict[str, Callable[..., Tensor]] = {"fgsm": fgsm, "pgd": pgd}


def get(name: str) -> Callable[..., Tensor]:
    """The attack of that name; UserError with the valid names for any other."""
    if name not in ATTACKS:
        raise unknown("attack", name, ATTACKS)
    return ATTACKS[name]


def check_epsilon(epsilon: float) -> float:
    """The epsilon itself; UserError where it is not an L-infinity radius in pixel space."""
    if not 0 <= epsilon <= 1:
        hint = f" (did you mean {epsilon:g}/255 = {epsilon / 255:.4g}?)" if 1 < epsilon <= 255 else ""
        raise UserError(
            f"epsilon {epsilon:g} is outside [0, 1]: images are in [0, 1], so 0.02 is 5.1 grey levels of 255{hint}"
        )
    return epsilon


def check_input(images: Tensor, labels: Tensor, epsilon: float) -> None:
    """UserError unless images are (B, 1 or more, H, W) floats in [0, 1], labels (B,) int, and epsilon in [0, 1]."""
    check_epsilon(epsilon)
    if images.ndim != 4 or not images.is_floating_point():
        raise UserError(f"attack: images must be floats (B, 1, H, W), not {images.dtype} {tuple(images.shape)}")
    if labels.shape != images.shape[:1]:
        raise UserError(f"attack: {len(images)} images but labels of shape {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise UserError(f"attack: labels must be whole numbers, the place of each class, not {labels.dtype}")
    if images.numel():
        low, high = (float(v) for v in images.detach().aminmax())
        if not (low >= 0 and high <= 1):  # a NaN fails this too
            raise UserError(f"attack: images must lie in [0, 1] (pixel space), but these span [{low:g}, {high:g}]")


@contextmanager
def undisturbed(model: nn.Module, mode: Mode = "eval") -> Iterator[None]:
    """Run the model in `mode` and leave no trace: flags of every module, running statistics, random state.

    Modules are put back one by one: `model.train()` would thaw a BatchNorm that was frozen on purpose.
    """
    flags = [(module, module.training) for module in model.modules()]
    # In training mode buffers move (running statistics, counters), so copies stand in for them.
    buffers = [(m, name, b) for m in model.modules() for name, b in m._buffers.items()] if mode == "train" else []
    cpu_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        model.train(mode == "train")
        for module, name, buffer in buffers:
            module._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
        for module, was_training in flags:
            module.training = was_training
        torch.set_rng_state(cpu_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


def _input_gradient(model: nn.Module, images: Tensor, labels: Tensor, *, check: bool = False) -> tuple[Tensor, Tensor]:
    """Gradient of the summed cross-entropy in the images alone, and the logits. No weight gradient is computed."""
    # A caller may be in no_grad or inference_mode; the gradient is ours alone.
    with torch.inference_mode(False), torch.enable_grad():
        leaf = images.detach().clone().requires_grad_(True)
        logits = model(leaf)
        if check:
            _check_logits(logits, labels)
        # Summed, not averaged: in half precision an averaged loss can underflow to a zero gradient.
        loss = F.cross_entropy(logits.float(), labels.long().clone(), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient, logits.detach()


def _check_logits(logits: Tensor, labels: Tensor) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(labels) or logits.shape[1] < 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"attack: the model must return logits (B, 2 or more classes), not {found}")
    if not len(labels):
        return
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise UserError(f"attack: labels span [{low}, {high}], but the model has {logits.shape[1]} classes")
    values = logits.detach().float()
    if bool(((values >= 0) & (values <= 1)).all() & ((values.sum(1) - 1).abs() < 1e-5).all()):
        # Cross-entropy of probabilities has gradients that vanish where the model is sure: the attack would flatter it.
        raise UserError("attack: the model returns probabilities; it must return logits (leave its softmax out)")


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
        gradient, logits = _input_gradient(model, current, labels[active], check=number == 0)
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
