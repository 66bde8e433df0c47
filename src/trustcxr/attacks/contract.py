"""What every attack keeps to: pixel space in and out, the model left as it was found, errors in one line."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr.errors import UserError

Mode = Literal["eval", "train"]
Loss = Callable[[Tensor, Tensor], Tensor]  # (logits (B, C), labels (B,)) -> a loss for each image (B,)


class Attack(Protocol):
    """What every attack looks like."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float) -> Tensor:
        """Adversarial images within epsilon of `images`."""
        ...


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


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image (B,), from logits (B, C) and labels (B,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def input_gradient(
    model: nn.Module, images: Tensor, labels: Tensor, *, check: bool = False, loss: Loss | None = None
) -> tuple[Tensor, Tensor]:
    """Gradient of the summed loss in the images alone (B, 1, H, W), and the logits (B, C). No weight gradient is made.

    `loss` takes logits (B, C) in float32 and labels (B,), and gives one value for each image (B,); cross-entropy unless
    said. With `check` a model that does not return logits for these labels raises UserError. The model runs in the
    mode that it is in: call this inside `undisturbed`.
    """
    # A caller may be in no_grad or inference_mode; the gradient is ours alone.
    with torch.inference_mode(False), torch.enable_grad():
        leaf = images.detach().clone().requires_grad_(True)
        logits = model(leaf)
        if check:
            check_logits(logits, labels)
        # Summed, not averaged: in half precision an averaged loss can underflow to a zero gradient.
        total = (loss or cross_entropy)(logits.float(), labels.long().clone()).sum()
        (gradient,) = torch.autograd.grad(total, leaf)
    return gradient, logits.detach()


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """UserError unless the model gave logits (B, 2 or more classes) that the labels fit."""
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
