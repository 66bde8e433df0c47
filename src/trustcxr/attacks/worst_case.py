"""Combine several strong attacks into the worst case of each image, and find the smallest epsilon that flips it.

AutoAttack's standard version needs four classes (for its DLR loss and its targets); this suite needs two.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from trustcxr.attacks import base
from trustcxr.attacks.apgd import apgd, fab
from trustcxr.attacks.pgd import pgd_on_grid, round_inwards
from trustcxr.attacks.square import square
from trustcxr.errors import UserError, unknown
from trustcxr.models.preserve_state import preserve_state
from trustcxr.registry import WORST_CASE

ROUNDED = ", 8-bit"  # after the name of an attack in `broken_by`
_LADDER = (1 / 64, 1 / 16, 1 / 4, 1)  # shares of the highest radius, climbed before the bisection


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
    >>> tx.attacks.worst_case(model, images, labels, epsilon=0.02, steps=5, queries=20).shape
    torch.Size([2, 1, 8, 8])
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
    images, size = base.checked_input(images, labels, epsilon)
    base.check_counts("worst-case", steps=steps, queries=queries, restarts=restarts)
    starts = [start] if isinstance(start, Tensor) else list(start)
    low, high = base.ball(images, size)
    for candidate in starts:
        if candidate.shape != images.shape:
            raise UserError(f"worst-case: start must have the shape of the images, not {tuple(candidate.shape)}")
        if not bool(((candidate >= low - base.ROUNDING) & (candidate <= high + base.ROUNDING)).all()):
            raise UserError("worst-case: start must lie within epsilon of the images and in [0, 1]")
    climb = partial(apgd, model, steps=steps, restarts=restarts, precision=precision)
    attacks = {  # the most effective for its cost first
        "apgd-margin": partial(climb, loss="margin", seed=seed),
        "apgd-ce": partial(climb, loss="ce", seed=seed + 1),
        "pgd-8bit": partial(pgd_on_grid, model, steps=steps, seed=seed + 4),
        "fab": partial(fab, model, steps=steps, restarts=restarts, seed=seed + 2),
        "square": partial(square, model, queries=queries, precision=precision, ends=ends, seed=seed + 3),
    }
    with preserve_state(model):
        search = _Search(model, images, labels)
        search.record("clean", search.todo, images, base.checked_logits(model, images, labels))
        for candidate in starts:
            # In one batch, as the final judgement will be, so that rounding is the same.
            rows, logits = search.todo, base.logits_of(model, candidate)
            search.record_both("start", rows, candidate.detach()[rows], logits[rows])
        for name, attack in attacks.items():
            if len(rows := search.todo) == 0 or not bool(size.any()):
                break
            tried = attack(images[rows], labels[rows], epsilon=size[rows])
            search.record_both(name, rows, tried, base.logits_of(model, tried))
    return WorstCase(search.images, tuple(search.broken_by))


class _Search:
    """State of the suite: what broke each image, or the worst input tried."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor) -> None:
        self.model, self.clean, self.images, self.labels = model, images, images.clone(), labels
        self.loss = torch.full((len(images),), -torch.inf, device=images.device)
        self.broken_by: list[str | None] = [None] * len(images)
        self.todo = torch.arange(len(images), device=images.device)

    def record(self, name: str, rows: Tensor, tried: Tensor, logits: Tensor) -> Tensor:
        """Store the results of one attack on `rows`; misclassified images leave the queue. Return the other images."""
        labels = self.labels[rows].long()
        wrong, loss = logits.argmax(1) != labels, base.cross_entropy(logits, labels)
        worse = wrong | (loss > self.loss[rows])
        self.images[rows[worse]], self.loss[rows[worse]] = tried[worse], loss[worse]
        for row in rows[wrong].tolist():
            self.broken_by[row] = name
        self.todo = rows[~wrong]
        return tried[~wrong]

    def record_both(self, name: str, rows: Tensor, tried: Tensor, logits: Tensor) -> None:
        """Store the results of one attack as floats and, of the images that failed, as 8-bit files."""
        failed = self.record(name, rows, tried, logits)
        rounded = round_inwards(failed, self.clean[self.todo])
        if not torch.equal(rounded, failed):
            self.record(f"{name}{ROUNDED}", self.todo, rounded, base.logits_of(self.model, rounded))


def minimal_perturbation(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attack: str = "pgd",
    highest: float = 0.3,
    tolerance: float = 5e-4,
    **options: Any,
) -> Tensor:
    """Return the smallest L-infinity radius at which `attack` flips each image, (B,) float32, by bisection.

    It is 0 if the model is already wrong, and infinite if nothing up to `highest` flips the image. At each returned
    radius an adversarial image was found, and at most `tolerance` below it none was. So it is an upper bound, as tight
    as the attack is strong. `options` go to the attack, such as steps.

    Raises UserError for an attack without an L-infinity radius, for options that it does not take, and as it does.

    >>> import torch, trustcxr as tx
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    >>> tx.attacks.minimal_perturbation(model, images, labels).shape
    torch.Size([2])
    """
    return nearest(model, images, labels, attack=attack, highest=highest, tolerance=tolerance, **options)[0]


def nearest(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attack: str = "pgd",
    highest: float = 0.3,
    tolerance: float = 5e-4,
    start: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Return `minimal_perturbation`, (B,), and the images that flip the answer there, (B, 1, H, W).

    If the model is already wrong, or nothing flips the answer, that is the image itself. `start` (B, 1, H, W) are
    another attack's images: if they flip the answer within `highest`, the search starts there and goes down.
    """
    from trustcxr.attacks import get

    base.check_input(images, labels, highest)
    if not tolerance > 0:
        raise UserError(f"minimal_perturbation: tolerance must be above 0, not {tolerance:g}")
    run = get(attack)
    _check_attack(attack, run, options)
    images = images.detach()
    if attack in ("pgd", "momentum"):
        options = {"stop_when_wrong": True} | options
    with preserve_state(model):
        right = base.checked_logits(model, images, labels).argmax(1) == labels
    fails = torch.zeros(len(images), device=images.device)
    flips, flipped = torch.where(right, math.inf, 0.0), images.clone()

    def record(rows: Tensor, candidates: Tensor, radius: Tensor) -> Tensor:
        with preserve_state(model):
            wrong = base.logits_of(model, candidates).argmax(1) != labels[rows]
        # A candidate may lie well inside its radius.
        length = (candidates.float() - images[rows].float()).flatten(1).abs().amax(1)
        wrong &= length <= radius + base.ROUNDING  # of x + r in float32
        flips[rows[wrong]] = torch.minimum(radius, length)[wrong]
        flipped[rows[wrong]] = candidates[wrong]
        return wrong

    def attempt(rows: Tensor, radius: Tensor) -> None:
        size = radius[:, None, None, None]
        wrong = record(rows, run(model, images[rows], labels[rows], epsilon=size, **options), radius)
        fails[rows[~wrong]] = radius[~wrong]

    if start is not None:
        rows = right.nonzero()[:, 0]
        record(rows, start[rows].to(images), torch.full_like(flips[rows], highest))
    for share in _LADDER:
        if len(rows := flips.isinf().nonzero()[:, 0]):
            attempt(rows, torch.full_like(flips[rows], highest * share))
    while True:
        middle = (flips + fails) / 2  # equals one of them if no number lies between
        rows = (flips.isfinite() & (flips - fails > tolerance) & (middle > fails) & (middle < flips)).nonzero()[:, 0]
        if not len(rows):
            return flips, flipped
        attempt(rows, middle[rows])


def _check_attack(attack: str, run: Callable[..., Tensor], options: Iterable[str]) -> None:
    """Raise UserError for an attack without L-infinity radii, an unknown option, or a missing one."""
    if attack == "pgd-l2":
        raise UserError("minimal_perturbation: pgd-l2 has no L-infinity radius. Use pgd or another attack")
    described: Callable[..., object] = worst_case_report if attack == WORST_CASE else run
    parameters = {name: each for name, each in signature(described).parameters.items() if name != "epsilon"}
    keywords = [name for name, each in parameters.items() if each.kind is Parameter.KEYWORD_ONLY]
    for name in options:
        if name not in parameters and all(each.kind is not Parameter.VAR_KEYWORD for each in parameters.values()):
            raise unknown(f"option of {attack}", name, keywords)
    for name in keywords:
        if parameters[name].default is Parameter.empty and name not in options:
            raise UserError(f"minimal_perturbation: {attack} needs {name}. Add it")
