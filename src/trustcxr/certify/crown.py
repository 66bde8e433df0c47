"""CROWN (Zhang et al. 2018): bound the margins by an affine function of the image, from the logits backwards.

If a ReLU's input lies in [l, u] around 0, its output lies above the line a z, a in [0, 1], and below the line through
(l, 0) and (u, u). Going back, each value takes the line that its coefficient's sign needs. At the image the minimum
over the box is exact. It is tighter than intervals if the network was not trained by them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trustcxr.certify.affine_graph import Affine, Layer, ReLU, margins
from trustcxr.certify.ibp import Interval, last_margins, pulled

Slopes = dict[int, Tensor]  # index of a ReLU -> a in [0, 1] for each of its inputs (B, R or 1, ...)


def tightened(layers: Sequence[Layer], images: Interval, *, neurons: int = 0, chunk: int = 32) -> list[Interval]:
    """Return intervals before each layer and after the last, by CROWN too for ReLUs with at most `neurons` inputs.

    Each end is the better of both methods; later layers start from it. 0 uses intervals only.
    """
    intervals = [images]
    for index, layer in enumerate(layers):
        entries = intervals[-1].centre[0].numel()
        if isinstance(layer, ReLU) and entries <= neurons:
            intervals[-1] = _by_crown(layers[:index], intervals, chunk)
        intervals.append(intervals[-1].through(layer))
    return intervals


def least_margins(
    layers: Sequence[Layer], images: Interval, labels: Tensor, *, neurons: int = 0, steps: int = 0, rate: float = 0.2
) -> Tensor:
    """Return lower bounds (B, C) of the margin of each label over every class, over all images of the interval.

    Each entry is the better of CROWN and intervals. `neurons` as in `tightened`. With `steps`, Adam improves the slopes
    a for that many gradients (alpha-CROWN; Xu et al. 2021); the bound of each step is valid.
    """
    with torch.no_grad():
        intervals = tightened(layers, images, neurons=neurons)
        best = last_margins(layers, intervals, labels)
        rows = margins(best.shape[1], labels, best)
        slopes = first_slopes(layers, intervals)
    return torch.maximum(best, climbed(layers, intervals, rows, slopes, steps=steps, rate=rate))


def backward(layers: Sequence[Layer], intervals: Sequence[Interval], rows: Tensor, slopes: Slopes) -> Tensor:
    """Return lower bounds (B, R) of rows (B, R, *output) of the last layer's output, from all layers' intervals."""
    constant = rows.new_zeros(rows.shape[:2])
    for index in reversed(range(len(layers))):
        layer, interval = layers[index], intervals[index]
        if isinstance(layer, Affine):
            rows, shift = pulled(layer, rows, interval.centre.shape[1:])
        else:
            rows, shift = _through_relu(rows, interval, slopes[index])
        constant = constant + shift
    return constant + intervals[0].least(rows)


def first_slopes(layers: Sequence[Layer], intervals: Sequence[Interval]) -> Slopes:
    """Return CROWN's default slopes: a is 1 if most of the interval is positive, else 0."""
    return {
        p: (intervals[p].centre > 0).to(intervals[p].centre)[:, None]
        for p, x in enumerate(layers)
        if isinstance(x, ReLU)
    }


def _through_relu(rows: Tensor, at: Interval, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Move rows (B, R, ...) before a ReLU with input in `at`, and return what its upper lines add (B, R)."""
    low, high = at.low, at.high
    unsure = (low < 0) & (high > 0)
    rise = torch.where(unsure, high / (high - low).clamp(min=torch.finfo(low.dtype).tiny), (low >= 0).to(low))
    start = torch.where(unsure, -low * rise, torch.zeros_like(low))
    lower = torch.where(unsure[:, None], slope, rise[:, None])
    above, below = rows.clamp(min=0), rows.clamp(max=0)
    return above * lower + below * rise[:, None], (below * start[:, None]).flatten(2).sum(2)


def _by_crown(layers: Sequence[Layer], intervals: Sequence[Interval], chunk: int) -> Interval:
    """Return the interval after some layers by CROWN, never wider than the last of `intervals`."""
    last, slopes = intervals[-1], first_slopes(layers, intervals)
    entries = last.centre[0].numel()
    every = torch.eye(entries, dtype=last.centre.dtype, device=last.centre.device)
    low, high = last.low.flatten(1).clone(), last.high.flatten(1).clone()
    for start in range(0, entries, chunk):
        rows = every[start : start + chunk].reshape(1, -1, *last.centre.shape[1:])
        rows = rows.expand(len(last.centre), *rows.shape[1:])
        part = slice(start, start + chunk)
        low[:, part] = torch.maximum(low[:, part], backward(layers, intervals, rows, slopes))
        high[:, part] = torch.minimum(high[:, part], -backward(layers, intervals, -rows, slopes))
    return Interval.from_ends(low.view_as(last.centre), torch.maximum(low, high).view_as(last.centre))


def climbed(
    layers: Sequence[Layer],
    intervals: Sequence[Interval],
    rows: Tensor,
    slopes: Slopes,
    *,
    steps: int,
    rate: float = 0.2,
) -> Tensor:
    """Return the best of `backward`'s bounds (B, R) with these slopes and with those of `steps` gradient steps."""
    moving = {p: slope.repeat_interleave(rows.shape[1], 1).requires_grad_(True) for p, slope in slopes.items()}
    with torch.no_grad():
        best = backward(layers, intervals, rows, slopes)
    if not moving or not steps:
        return best
    optimiser = torch.optim.Adam(moving.values(), lr=rate, maximize=True)
    for _ in range(steps):
        with torch.enable_grad():
            sum_of_bounds = backward(layers, intervals, rows, moving).sum()
        gradients = torch.autograd.grad(sum_of_bounds, list(moving.values()))
        for slope, gradient in zip(moving.values(), gradients, strict=True):
            slope.grad = gradient
        optimiser.step()
        with torch.no_grad():
            for slope in moving.values():
                slope.clamp_(0, 1)
            best = torch.maximum(best, backward(layers, intervals, rows, moving))
    return best
