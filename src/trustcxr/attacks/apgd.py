"""Auto-PGD and FAB (Croce and Hein 2020), which need no step size: climb a loss, or approach the decision boundary."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from trustcxr.attacks import base
from trustcxr.errors import UserError
from trustcxr.models.preserve_state import preserve_state

MAX_TARGETS = 9  # wrong classes that a targeted attack tries, the likeliest first
_GAINING = 0.75  # share of the steps between two checkpoints that must raise the loss
_NEW = 0.75  # share of a move that is new; the rest repeats the last one
_OVERSHOOT = 1.05  # of a move, beyond the linearised boundary
_PULL = 0.1  # the most that a move leans toward the original image
_BACK = 0.9  # share of the perturbation that is left after a step back from an adversarial point


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
        if loss != "margin":
            raise UserError("apgd: a target needs the margin. Set loss to 'margin'")
        if target.shape != labels.shape or target.is_floating_point():
            shape = tuple(target.shape)
            raise UserError(f"apgd: target must be whole numbers (B,), a class for each image, not {shape}")
        if bool((target == labels).any()) or bool((target < 0).any()):
            raise UserError("apgd: target must be a wrong class for each image")
    generator = torch.Generator().manual_seed(seed)
    with preserve_state(model):
        logits = base.checked_logits(model, images, labels)
        if target is not None and target.numel() and int(target.max()) >= logits.shape[1]:
            raise UserError(f"apgd: target {int(target.max())}, but the model has {logits.shape[1]} classes")
        result, values = images.clone(), torch.full((len(images),), -math.inf, device=images.device)
        todo = (logits.argmax(1) == labels).nonzero()[:, 0]
        aims: list[Tensor | None] = [target]  # the cross-entropy has none
        if loss == "margin" and target is None:
            aims = list(wrong_classes(logits, labels))
        for _ in range(restarts):
            for aim in aims:
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
        wrong = base.confirm_wrong(model, c.now, c.labels, logits, precision)
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


def fab(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    steps: int = 50,
    restarts: int = 1,
    seed: int = 0,
) -> Tensor:
    """Fast adaptive boundary attack, L-infinity, targeted (Croce and Hein 2020).

    It minimises the perturbation instead of maximising the loss. Each step projects onto the plane on which the
    linearised margin of a wrong class is 0, overshoots by 5 %, and leans toward the original image by at most 10 %. It
    takes `steps` for each wrong class (at most 9, the likeliest first). The first start is the image itself, later
    `restarts` are drawn from the ball. An image leaves the batch when it is misclassified within epsilon. The others
    return the nearest adversarial point, clipped to the ball. Common arguments: see `fgsm`. Raises UserError as fgsm
    does, and for fewer steps or restarts than 1.

    >>> import torch, trustcxr as tx
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    >>> tx.attacks.fab(model, images, labels, epsilon=0.02, steps=5).shape
    torch.Size([2, 1, 8, 8])
    """
    images, radius = base.checked_input(images, labels, epsilon)
    base.check_counts("fab", steps=steps, restarts=restarts)
    generator = torch.Generator().manual_seed(seed)
    with preserve_state(model):
        logits = base.checked_logits(model, images, labels)
        result, distance = images.clone(), images.new_full((len(images),), torch.inf)
        todo = (logits.argmax(1) == labels).nonzero()[:, 0]
        for restart in range(restarts):
            for aim in wrong_classes(logits, labels):
                if len(todo) == 0:
                    break
                start = base.uniform_start(images[todo], radius[todo], generator) if restart else images[todo]
                rows = (images[todo], start, labels[todo], aim[todo], radius[todo])
                nearest, length, within = _approach(model, *rows, steps)
                better = within | (length < distance[todo])
                result[todo[better]], distance[todo[better]] = nearest[better], length[better]
                todo = todo[~within]
    return result


def _approach(
    model: nn.Module, images: Tensor, start: Tensor, labels: Tensor, target: Tensor, radius: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the nearest adversarial points clipped to the ball, their distance, and whether they still succeed."""
    low, high = base.ball(images, radius)
    nearest, distance = images.clone(), images.new_full((len(images),), torch.inf)
    within = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    rows, now = torch.arange(len(images), device=images.device), start
    for number in range(steps + 1):
        original, truth, loss = images[rows], labels[rows], partial(margin, target=target[rows])
        if number < steps:
            gradient, logits = base.input_gradient(model, now, truth, loss=loss)
        else:
            gradient, logits = torch.zeros_like(now), base.logits_of(model, now)
        gradient, gap = gradient.float(), loss(logits.float(), truth)
        wrong = logits.argmax(1) != truth
        point = now
        if bool(wrong.any()):
            length = _largest(now - original)
            inside = wrong & ((now >= low[rows]) & (now <= high[rows])).flatten(1).all(1)
            better = inside | (wrong & (length < distance[rows]))
            nearest[rows[better]], distance[rows[better]] = now[better], length[better]
            within[rows] = inside
            # A step back. The plane stays that of the adversarial point, which is closer to the boundary.
            point = torch.where(wrong[:, None, None, None], original + _BACK * (now - original), now)
            stay = ~within[rows]
            rows, now, point, original, gradient, gap = (t[stay] for t in (rows, now, point, original, gradient, gap))
        if len(rows) == 0 or number == steps:
            break
        now = _move(point, now, original, gradient, gap)
    nearest = base.between(nearest, low, high)
    if len(rows):
        within[rows] = base.is_misclassified(model, nearest[rows], labels[rows])
    return nearest, distance, within


def _move(point: Tensor, seen: Tensor, original: Tensor, gradient: Tensor, gap: Tensor) -> Tensor:
    """Step from `point` beyond the plane on which the margin, `gap` and `gradient` at `seen`, is 0."""
    here, there = (_to_plane(x, gradient, -gap - (gradient * (x - seen)).flatten(1).sum(1)) for x in (point, original))
    far, near = _largest(here), _largest(there)
    lean = (far / (far + near).clamp(min=1e-12)).clamp(max=_PULL)[:, None, None, None].to(point)
    return ((1 - lean) * (point + _OVERSHOOT * here) + lean * (original + _OVERSHOOT * there)).clamp(0, 1)


def _to_plane(point: Tensor, weights: Tensor, need: Tensor) -> Tensor:
    """Return the smallest L-infinity move from `point` that adds `need` (B,) to the sum of weights * pixels, in [0, 1].

    If no such move exists, return the one that adds most. Each pixel moves by the same length or to the end of its
    range. The gain is concave and piecewise linear in that length, so sorting the ranges solves it.
    """
    side = weights.sign() * need.sign()[:, None, None, None]
    room = torch.where(side > 0, 1 - point, point).float()
    room = torch.where(side == 0, torch.zeros_like(room), room)
    reach, order = room.flatten(1).sort(1)
    slope = weights.abs().flatten(1).gather(1, order).double()
    used = (slope * reach).cumsum(1)  # by pixels at the end of their range
    left = slope.sum(1, keepdim=True) - slope.cumsum(1)  # slope of the others
    gain = used + left * reach
    wanted = need.abs().double()[:, None]
    index = torch.searchsorted(gain, wanted).clamp(max=gain.shape[1] - 1)
    before = (index - 1).clamp(min=0)
    first = index == 0
    gained = used.gather(1, before).masked_fill(first, 0)
    moving = left.gather(1, before).where(~first, slope.sum(1, keepdim=True))
    length = ((wanted - gained) / moving.clamp(min=1e-300)).clamp(max=reach[:, -1:].double())
    return side.to(point) * torch.minimum(length.to(room)[:, :, None, None], room).to(point)


def _largest(change: Tensor) -> Tensor:
    """Return the L-infinity norm of each image, (B,)."""
    return change.flatten(1).abs().amax(1)
