"""FAB (Croce and Hein 2020): approach the nearest point of the decision boundary toward each wrong class."""

from functools import partial

import torch
from torch import Tensor, nn

from trustcxr.attacks import base
from trustcxr.attacks.apgd import margin, wrong_classes
from trustcxr.models.preserve_state import preserve_state

_OVERSHOOT = 1.05  # of a move, beyond the linearised boundary
_PULL = 0.1  # the most that a move leans toward the original image
_BACK = 0.9  # share of the perturbation that is left after a step back from an adversarial point


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
