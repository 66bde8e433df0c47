"""`worst-case`: several strong attacks, made for few classes, and the worst of them for each image.

AutoAttack's standard version needs four classes (its DLR loss and its targets do). This suite needs two, and is
another: APGD on the margin toward each wrong class, APGD on the cross-entropy, FAB toward each wrong class, Square.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn

from trustcxr.attacks.apgd import apgd
from trustcxr.attacks.base import (
    ROUNDING,
    Precision,
    ball,
    check_counts,
    check_input,
    checked_logits,
    cross_entropy,
    logits_of,
    radii,
)
from trustcxr.attacks.fab import fab
from trustcxr.attacks.square import square
from trustcxr.errors import UserError
from trustcxr.models.preserve_state import preserve_state


@dataclass(frozen=True)
class WorstCase:
    """What the suite found.

    `images` (B, 1, H, W): for an image that was broken what broke it, otherwise the input of highest cross-entropy that
    was tried. `broken_by` names for each image what broke it: "clean" where the model is wrong without an attack,
    "start" for one of the images given as a start, the attack otherwise, and None where the image held out.
    """

    images: Tensor
    broken_by: tuple[str | None, ...]

    @property
    def accuracy(self) -> float:
        """Share of the images that held out; NaN where there are none."""
        return self.broken_by.count(None) / len(self.broken_by) if self.broken_by else float("nan")


class Options(TypedDict, total=False):
    """What `worst_case_report` may be told, and `worst_case` with it."""

    steps: int
    queries: int
    restarts: int
    seed: int
    start: Tensor | Sequence[Tensor]
    precision: Precision | None


def worst_case(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    **options: Unpack[Options],
) -> Tensor:
    """The worst of several attacks for each image, L-infinity: the `images` of `worst_case_report`, and its options.

    >>> import torch, trustcxr as tx
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    >>> adversarial = tx.attacks.worst_case(model, images, labels, epsilon=0.02, steps=5, queries=20)
    >>> bool((adversarial - images).abs().max() < 0.02 + 1e-6)
    True
    """
    return worst_case_report(model, images, labels, epsilon=epsilon, **options).images


def worst_case_report(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    steps: int = 50,
    queries: int = 1000,
    restarts: int = 1,
    seed: int = 0,
    start: Tensor | Sequence[Tensor] = (),
    precision: Precision | None = None,
) -> WorstCase:
    """The worst of several attacks for each image, and which of them it was; for 2 classes or more.

    In this order: APGD on the margin toward each wrong class and on the cross-entropy, FAB toward each wrong class
    (`steps` and `restarts` each; Croce and Hein 2020), Square (`queries`; Andriushchenko et al. 2020). An image that is
    broken leaves the batch at once, so each attack works on what is left. `start` holds images (B, 1, H, W) within
    epsilon that are known already, from a smaller epsilon or another attack: those that mislead the model are kept, so
    that accuracy cannot rise with epsilon. `precision` "bf16" lets APGD and Square search in bfloat16 and confirms what
    they find in the caller's: half of the time where the processor has it, and Square finds a little less.
    Raises UserError as the attacks do, and for a start outside the ball.

    >>> import torch, trustcxr as tx
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    >>> found = tx.attacks.worst_case_report(model, images, labels, epsilon=0.02, steps=5, queries=20)
    >>> found.images.shape, len(found.broken_by)
    (torch.Size([2, 1, 8, 8]), 2)
    """
    check_input(images, labels, epsilon)
    check_counts("worst-case", steps=steps, queries=queries, restarts=restarts)
    images = images.detach()
    known = [start] if isinstance(start, Tensor) else list(start)
    for given in known:
        _check_start(given, images, radii(epsilon, images))
    size = radii(epsilon, images)
    with preserve_state(model):
        logits = checked_logits(model, images, labels)
        search = _Search(model, images.clone(), labels, logits)
        search.record("clean", torch.arange(len(images), device=images.device), images, logits)
        for given in known:
            # The whole batch at once, as whoever judges the result will: rounding then falls alike.
            search.record("start", search.todo, given.detach()[search.todo], logits_of(model, given)[search.todo])
        for name, attack in _attacks(model, steps, queries, restarts, seed, precision):
            if len(rows := search.todo) == 0 or not bool(size.any()):
                break
            tried = attack(images[rows], labels[rows], size[rows])
            search.record(name, rows, tried, logits_of(model, tried))
    return WorstCase(search.images, tuple(search.broken_by))


class _Search:
    """The state of the suite: what broke each image, or the worst input tried."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, logits: Tensor) -> None:
        self.images, self.labels = images, labels
        self.loss = torch.full((len(images),), -torch.inf, device=images.device)
        self.broken_by: list[str | None] = [None] * len(images)
        self.todo = torch.arange(len(images), device=images.device)

    def record(self, name: str, rows: Tensor, tried: Tensor, logits: Tensor) -> None:
        """Judge what `name` tried on `rows`, which are among those still to do; those misled leave."""
        own = self.labels[rows].long()
        wrong, loss = logits.argmax(1) != own, cross_entropy(logits, own)
        worse = wrong | (loss > self.loss[rows])
        self.images[rows[worse]], self.loss[rows[worse]] = tried[worse], loss[worse]
        for row in rows[wrong].tolist():
            self.broken_by[row] = name
        self.todo = rows[~wrong]


def _attacks(
    model: nn.Module, steps: int, queries: int, restarts: int, seed: int, precision: Precision | None
) -> Iterator[tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]]:
    """The attacks of the suite, the one that breaks most for its cost first."""
    climb = partial(apgd, model, steps=steps, restarts=restarts, precision=precision)
    yield "apgd-margin", lambda x, y, e: climb(x, y, epsilon=e, loss="margin", seed=seed)
    yield "apgd-ce", lambda x, y, e: climb(x, y, epsilon=e, loss="ce", seed=seed + 1)
    near = partial(fab, model, steps=steps, restarts=restarts)
    yield "fab", lambda x, y, e: near(x, y, epsilon=e, seed=seed + 2)
    yield "square", lambda x, y, e: square(model, x, y, epsilon=e, queries=queries, seed=seed + 3, precision=precision)


def _check_start(given: Tensor, images: Tensor, radius: Tensor) -> None:
    if given.shape != images.shape:
        raise UserError(f"worst-case: start must have the shape of the images, not {tuple(given.shape)}")
    low, high = ball(images, radius)
    if not bool(((given >= low - ROUNDING) & (given <= high + ROUNDING)).all()):
        raise UserError("worst-case: start must lie within epsilon of the images and in [0, 1]")
