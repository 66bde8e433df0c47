"""The Square attack (Andriushchenko et al. 2020): random search that uses only the model's outputs."""

import math
from bisect import bisect_left

import torch
from torch import Tensor, nn

from trustcxr.attacks import base
from trustcxr.errors import UserError
from trustcxr.models.preserve_state import preserve_state

_FIRST_SHARE = 0.8  # of the image, covered by the first squares
# Queries of a search of 10,000 at which the share is halved; shorter searches scale them.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    queries: int = 1000,
    seed: int = 0,
    precision: base.Precision | None = None,
    ends: float = 1.0,
) -> Tensor:
    """Square attack, L-infinity (Andriushchenko et al. 2020). Black box: at most `queries` forward passes
    after one of the images.

    It starts from vertical stripes of +- epsilon. Then it moves one square at a time to +- epsilon, in shrinking sizes.
    A move is accepted if it reduces the margin: logit of the true class - the highest other. An image leaves the batch
    when it is misclassified. `precision` "bf16" queries in bfloat16 and confirms each success in the caller's
    precision; it finds a little less. `ends` below 1 draws the size of each move from [ends, 1] epsilon, so that no
    pixel at the end of the ball tells what was changed. Common arguments: see `fgsm`. Raises UserError as fgsm does,
    for fewer queries than 1, and for ends outside (0, 1].

    >>> import torch, trustcxr as tx
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    >>> tx.attacks.square(model, images, labels, epsilon=0.02, queries=20).shape
    torch.Size([2, 1, 8, 8])
    """
    images, radius = base.checked_input(images, labels, epsilon)
    base.check_counts("square", queries=queries)
    if not 0 < ends <= 1:
        raise UserError(f"square: ends must be above 0 and at most 1, not {ends:g}")
    generator = torch.Generator().manual_seed(seed)
    with preserve_state(model):
        logits = base.checked_logits(model, images, labels)
        result, rows = images.clone(), (logits.argmax(1) == labels).nonzero()[:, 0]
        if len(rows) == 0:
            return result
        original, truth, size = images[rows], labels[rows], radius[rows]
        low, high = base.ball(original, size)
        now, lead = original, torch.full((len(rows),), math.inf, device=images.device)
        for query in range(queries):
            if query == 0:
                stripes = _signs((*original.shape[:2], 1, original.shape[3]), original, generator, ends)
                tried = base.between(original + size * stripes, low, high)
            else:
                window = _windows(now, _side(query / queries, images.shape[-2:]), generator)
                change = size * _signs((*now.shape[:2], 1, 1), now, generator, ends)
                ends_of_ball = (base.between(original + c, low, high) for c in (change, -change))
                moved, other = (torch.where(window, end, now) for end in ends_of_ball)
                # If the square is already at that value, the other sign saves the query.
                tried = torch.where((moved == now).flatten(1).all(1)[:, None, None, None], other, moved)
            with base.lowered(precision, images):
                logits = base.logits_of(model, tried)
            wrong = base.confirm_wrong(model, tried, truth, logits, precision)
            ahead = base.lead(logits, truth)
            better = (ahead < lead) | wrong
            now, lead = torch.where(better[:, None, None, None], tried, now), torch.where(better, ahead, lead)
            result[rows] = now
            if bool(wrong.any()):
                rows, truth, lead = rows[~wrong], truth[~wrong], lead[~wrong]
                now, original, size, low, high = (t[~wrong] for t in (now, original, size, low, high))
                if len(rows) == 0:
                    break
    return result


def _signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator, ends: float) -> Tensor:
    """Draw signs, times a size in [ends, 1]."""
    # Drawn on the CPU so that one seed gives the same search on every device.
    signs = (torch.randint(0, 2, shape, generator=generator) * 2 - 1).to(like)
    return signs if ends == 1 else signs * (ends + (1 - ends) * torch.rand(shape, generator=generator)).to(like)


def _side(done: float, shape: torch.Size) -> int:
    """Return the side in pixels of the squares after this share of the search."""
    share = _FIRST_SHARE / 2 ** bisect_left(_HALVINGS, int(done * 10_000))
    return max(1, min(round(math.sqrt(share * shape[0] * shape[1])), min(shape) - 1))


def _windows(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Draw a square of each image, bool (B, 1, H, W)."""
    count, _, height, width = images.shape
    corners = [torch.randint(0, max(1, n - side + 1), (count, 1), generator=generator) for n in (height, width)]
    rows, columns = (
        ((torch.arange(n) >= corner) & (torch.arange(n) < corner + side)).to(images.device)
        for n, corner in zip((height, width), corners, strict=True)
    )
    return rows[:, None, :, None] & columns[:, None, None, :]
