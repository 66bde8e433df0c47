"""Combine several strong attacks, made for few classes, into the worst case of each image.

AutoAttack's standard version needs four classes (for its DLR loss and its targets); this suite needs two.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trustcxr.attacks import base
from trustcxr.attacks.apgd import apgd
from trustcxr.attacks.fab import fab
from trustcxr.attacks.grid import pgd_on_grid, round_inwards
from trustcxr.attacks.square import square
from trustcxr.errors import UserError
from trustcxr.models.preserve_state import preserve_state

ROUNDED = ", 8-bit"  # after the name of an attack in `broken_by`


@dataclass(frozen=True)
class WorstCase:
    """Result of the suite.

    `images` (B, 1, H, W): the image that broke the answer, else the input of highest cross-entropy that was tried.
    `broken_by` names for each image what broke it: "clean" (wrong without an attack), "start" (an image given as a
    start), an attack, or None if it withstood all. ", 8-bit" follows if only its rounding to whole grey levels did.
    """

    images: Tensor
    broken_by: tuple[str | None, ...]

    @property
    def accuracy(self) -> float:
        """Share of the images that withstood all attacks; NaN without images."""
        return self.broken_by.count(None) / len(self.broken_by) if self.broken_by else float("nan")


def worst_case(model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float | Tensor, **options: Any) -> Tensor:
    """Return the worst of several attacks for each image: the `images` of `worst_case_report`, which has the options.

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
    precision: base.Precision | None = None,
    ends: float = 1.0,
) -> WorstCase:
    """Run several attacks, L-infinity, and return the worst image of each and which attack made it; 2 classes or more.

    The order is: APGD on the margin toward each wrong class, APGD on the cross-entropy, PGD on whole grey levels, FAB
    toward each wrong class (Croce and Hein 2020), Square (Andriushchenko et al. 2020). Each result is tried as floats
    and as an 8-bit file (`grid.round_inwards`). A broken image leaves the batch. Common arguments: see `fgsm`.

    Args:
        steps: of APGD, PGD and FAB.
        queries: of Square.
        restarts: of APGD and FAB.
        start: images (B, 1, H, W) within epsilon, from a smaller epsilon or another attack. Those that break the answer
            count, so accuracy cannot rise with epsilon.
        precision: "bf16" lets APGD and Square search in bfloat16 and confirms each success in the caller's precision.
            It halves the time if the processor has bfloat16; Square finds a little less.
        ends: see `square`.

    Raises UserError as the attacks do, and for a start outside the ball.

    >>> import torch, trustcxr as tx
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    >>> report = tx.attacks.worst_case_report(model, images, labels, epsilon=0.02, steps=5, queries=20)
    >>> report.images.shape, len(report.broken_by)
    (torch.Size([2, 1, 8, 8]), 2)
    """
    base.check_input(images, labels, epsilon)
    base.check_counts("worst-case", steps=steps, queries=queries, restarts=restarts)
    images = images.detach()
    starts = [start] if isinstance(start, Tensor) else list(start)
    size = base.radii(epsilon, images)
    for candidate in starts:
        _check_start(candidate, images, size)
    with preserve_state(model):
        logits = base.checked_logits(model, images, labels)
        search = _Search(model, images.clone(), labels, logits)
        search.record("clean", torch.arange(len(images), device=images.device), images, logits)
        for candidate in starts:
            # In one batch, as the final judgement will be, so that rounding is the same.
            rows, logits = search.todo, base.logits_of(model, candidate)
            search.record("start", rows, candidate.detach()[rows], logits[rows])
            _record_rounded(search, model, "start", candidate.detach(), images)
        for name, attack in _attacks(model, steps, queries, restarts, seed, precision, ends):
            if len(rows := search.todo) == 0 or not bool(size.any()):
                break
            tried = attack(images[rows], labels[rows], size[rows])
            search.record(name, rows, tried, base.logits_of(model, tried))
            every = images.clone()
            every[rows] = tried
            _record_rounded(search, model, name, every, images)
    return WorstCase(search.images, tuple(search.broken_by))


class _Search:
    """State of the suite: what broke each image, or the worst input tried."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, logits: Tensor) -> None:
        self.images, self.labels = images, labels
        self.loss = torch.full((len(images),), -torch.inf, device=images.device)
        self.broken_by: list[str | None] = [None] * len(images)
        self.todo = torch.arange(len(images), device=images.device)

    def record(self, name: str, rows: Tensor, tried: Tensor, logits: Tensor) -> None:
        """Store the results of one attack on `rows`; drop misclassified images from the queue."""
        labels = self.labels[rows].long()
        wrong, loss = logits.argmax(1) != labels, base.cross_entropy(logits, labels)
        worse = wrong | (loss > self.loss[rows])
        self.images[rows[worse]], self.loss[rows[worse]] = tried[worse], loss[worse]
        for row in rows[wrong].tolist():
            self.broken_by[row] = name
        self.todo = rows[~wrong]


def _record_rounded(search: _Search, model: nn.Module, name: str, tried: Tensor, images: Tensor) -> None:
    """Try the images of an attack (B, 1, H, W) as 8-bit files, where they failed as floats."""
    rows = search.todo
    rounded = round_inwards(tried[rows], images[rows])
    if len(rows) and not torch.equal(rounded, tried[rows]):
        search.record(f"{name}{ROUNDED}", rows, rounded, base.logits_of(model, rounded))


def _attacks(
    model: nn.Module, steps: int, queries: int, restarts: int, seed: int, precision: base.Precision | None, ends: float
) -> Iterator[tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]]:
    """Yield the attacks of the suite, the most effective for its cost first."""
    climb = partial(apgd, model, steps=steps, restarts=restarts, precision=precision)
    yield "apgd-margin", lambda x, y, e: climb(x, y, epsilon=e, loss="margin", seed=seed)
    yield "apgd-ce", lambda x, y, e: climb(x, y, epsilon=e, loss="ce", seed=seed + 1)
    yield "pgd-8bit", lambda x, y, e: pgd_on_grid(model, x, y, epsilon=e, steps=steps, seed=seed + 4)
    near = partial(fab, model, steps=steps, restarts=restarts)
    yield "fab", lambda x, y, e: near(x, y, epsilon=e, seed=seed + 2)
    search = partial(square, model, queries=queries, precision=precision, ends=ends)
    yield "square", lambda x, y, e: search(x, y, epsilon=e, seed=seed + 3)


def _check_start(start: Tensor, images: Tensor, radius: Tensor) -> None:
    if start.shape != images.shape:
        raise UserError(f"worst-case: start must have the shape of the images, not {tuple(start.shape)}")
    low, high = base.ball(images, radius)
    if not bool(((start >= low - base.ROUNDING) & (start <= high + base.ROUNDING)).all()):
        raise UserError("worst-case: start must lie within epsilon of the images and in [0, 1]")
