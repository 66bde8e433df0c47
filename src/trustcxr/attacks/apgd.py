"""Auto-PGD (Croce and Hein 2020): gradient ascent that adapts its step size, on cross-entropy or on a margin."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trustcxr.attacks import base
from trustcxr.errors import UserError
from trustcxr.models.preserve_state import preserve_state

MAX_TARGETS = 9  # wrong classes that a targeted attack tries, the likeliest first
_GAINING = 0.75  # share of the steps between two checkpoints that must raise the loss
_NEW = 0.75  # share of a move that is new; the rest repeats the last one


def apgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    loss: Literal["ce", "margin"] = "ce",
    target: Tensor | None = None,
    steps: int = 50,
    restarts: int = 1,
    seed: int = 0,
    precision: base.Precision | None = None,
) -> Tensor:
    """Auto-PGD in the L-infinity ball (Croce and Hein 2020, "Reliable evaluation of adversarial robustness").

    Each step is z = P(x + s * sign(gradient)), x' = P(x + 0.75 (z - x) + 0.25 (x - x_before)), P the projection onto
    the ball. The step size s starts at 2 epsilon. At checkpoints it is halved if the loss has stopped rising. A
    misclassified image leaves the batch; the others return the input of highest loss. Common arguments: see `fgsm`.

    Args:
        loss: "ce" is the cross-entropy. "margin" is logit of a wrong class - logit of the true one (2 or more classes).
        target: (B,) wrong classes for "margin"; by default each wrong class in turn (at most 9, the likeliest first).
        precision: "bf16" searches in bfloat16 and confirms each success in the caller's precision.

    Raises UserError as fgsm does, and for invalid options.

    >>> import torch, trustcxr as tx
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    >>> tx.attacks.apgd(model, images, labels, epsilon=0.02, steps=5).shape
    torch.Size([2, 1, 8, 8])
    """
    images, radius = base.checked_input(images, labels, epsilon)
    base.check_counts("apgd", steps=steps, restarts=restarts)
    if loss not in ("ce", "margin"):
        raise UserError(f"apgd: loss must be 'ce' or 'margin', not {loss!r}")
    if target is not None:
        _check_target(target, labels, loss)
    generator = torch.Generator().manual_seed(seed)
    with preserve_state(model):
        logits = base.checked_logits(model, images, labels)
        if target is not None and target.numel() and int(target.max()) >= logits.shape[1]:
            raise UserError(f"apgd: target {int(target.max())}, but the model has {logits.shape[1]} classes")
        result, values = images.clone(), torch.full((len(images),), -math.inf, device=images.device)
        todo = (logits.argmax(1) == labels).nonzero()[:, 0]
        for _ in range(restarts):
            for aim in _aims(logits, labels, loss, target):
                if len(todo) == 0:
                    break
                start = base.uniform_start(images[todo], radius[todo], generator)
                goal = None if aim is None else aim[todo]
                rows = (images[todo], start, labels[todo], goal, radius[todo])
                found, wrong, reached = climb(model, *rows, steps, precision)
                better = wrong | (reached > values[todo])
                result[todo[better]], values[todo[better]] = found[better], reached[better]
                todo = todo[~wrong]
    return result


def wrong_classes(logits: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """Yield the wrong classes of each image, (B,) at a time, the likeliest first."""
    order = logits.scatter(1, labels.long()[:, None], -math.inf).argsort(dim=1, descending=True, stable=True)
    for rank in range(min(logits.shape[1] - 1, MAX_TARGETS)):
        yield order[:, rank]


def margin(logits: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Return the logit of `target` minus the logit of the label, (B,)."""
    # Clones: the backward pass cannot save tensors of inference_mode.
    pair = torch.stack([target.long().clone(), labels.long().clone()], 1)
    both = logits.gather(1, pair)
    return both[:, 0] - both[:, 1]


@dataclass
class _Climbers:
    """State of the images still in the batch; every attribute is indexed by image."""

    labels: Tensor
    target: Tensor
    low: Tensor
    high: Tensor
    step: Tensor
    now: Tensor

    def __post_init__(self) -> None:
        none = torch.full((len(self.now),), -math.inf, device=self.now.device)
        self.index = torch.arange(len(self.now), device=self.now.device)  # in the original batch
        self.before = self.best = self.now
        self.best_gradient = torch.zeros_like(self.now)
        self.best_value = self.value_at_check = none
        self.last_value = -none  # nothing exceeds infinity: the start is no gain
        self.gains = torch.zeros_like(none)  # steps since the last checkpoint that raised the loss
        self.halved_at_check = torch.ones_like(none, dtype=torch.bool)

    def select(self, rows: Tensor) -> None:
        for name, values in vars(self).items():
            setattr(self, name, values[rows])


def climb(
    model: nn.Module,
    images: Tensor,
    start: Tensor,
    labels: Tensor,
    target: Tensor | None,
    radius: Tensor,
    steps: int,
    precision: base.Precision | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Climb once from `start`: the margin toward `target` (B,), or the cross-entropy if that is None.

    Returns images (B, 1, H, W), whether each is misclassified (B,), and its loss (B,).
    """

    def loss(logits: Tensor, truth: Tensor) -> Tensor:
        return base.cross_entropy(logits, truth) if target is None else margin(logits, truth, c.target)

    low, high = base.ball(images, radius)
    c = _Climbers(labels, labels if target is None else target, low, high, 2 * radius, start)
    result, failed, values = start.clone(), torch.zeros_like(c.halved_at_check), c.best_value.clone()
    checkpoints, since = _checkpoints(steps), 0
    for number in range(steps + 1):
        with base.lowered(precision, images):
            if number < steps:
                gradient, logits = base.input_gradient(model, c.now, c.labels, loss=loss)
            else:
                gradient, logits = c.best_gradient, base.logits_of(model, c.now)
        value = loss(logits.float(), c.labels.long())
        wrong = base.is_misclassified(model, c.now, c.labels, precision=precision, logits=logits)
        _note(c, value, gradient)
        if bool(wrong.any()):
            out = c.index[wrong]
            result[out], failed[out], values[out] = c.now[wrong], True, value[wrong]
            gradient = gradient[~wrong]
            c.select(~wrong)
        if len(c.index) == 0 or number == steps:
            break
        if number in checkpoints:
            gradient = _check(c, gradient, number - since)
            since = number
        ahead = base.between(c.now + c.step * gradient.sign().to(c.now), c.low, c.high)
        new = base.between(c.now + _NEW * (ahead - c.now) + (1 - _NEW) * (c.now - c.before), c.low, c.high)
        c.before, c.now = c.now, new if number else ahead
    result[c.index], values[c.index] = c.best, c.best_value
    return result, failed, values


def _note(c: _Climbers, value: Tensor, gradient: Tensor) -> None:
    """Update the best input, and count whether this step rose."""
    rose = value > c.best_value
    where = rose[:, None, None, None]
    c.best = torch.where(where, c.now, c.best)
    c.best_gradient = torch.where(where, gradient.to(c.best_gradient), c.best_gradient)
    c.best_value = torch.where(rose, value, c.best_value)
    c.gains = c.gains + (value > c.last_value)
    c.last_value = value


def _check(c: _Climbers, gradient: Tensor, steps: int) -> Tensor:
    """Halve the step and return to the best input for images whose climb oscillates or stalls; return the gradient."""
    halve = (c.gains < _GAINING * steps) | (~c.halved_at_check & (c.value_at_check >= c.best_value))
    where = halve[:, None, None, None]
    c.step = torch.where(where, c.step / 2, c.step)
    c.now = torch.where(where, c.best, c.now)
    c.before = torch.where(where, c.best, c.before)
    c.last_value = torch.where(halve, c.best_value, c.last_value)
    c.value_at_check, c.halved_at_check, c.gains = c.best_value, halve, torch.zeros_like(c.gains)
    return torch.where(where, c.best_gradient.to(gradient), gradient)


def _checkpoints(steps: int) -> set[int]:
    """Return the steps at which the step size is checked: 22 % of them, then at shrinking distances down to 6 %."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return {math.ceil(share * steps) for share in shares[1:]}


def _aims(logits: Tensor, labels: Tensor, loss: str, target: Tensor | None) -> Iterable[Tensor | None]:
    if loss == "ce":
        return [None]
    return wrong_classes(logits, labels) if target is None else [target]


def _check_target(target: Tensor, labels: Tensor, loss: str) -> None:
    if loss != "margin":
        raise UserError("apgd: a target needs the margin. Set loss to 'margin'")
    if target.shape != labels.shape or target.is_floating_point():
        raise UserError(f"apgd: target must be whole numbers (B,), a class for each image, not {tuple(target.shape)}")
    if bool((target == labels).any()) or bool((target < 0).any()):
        raise UserError("apgd: target must be a wrong class for each image")
