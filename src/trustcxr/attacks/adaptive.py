"""Attack a model according to its defence: through BPDA, over random draws, from a surrogate.

Tramer et al. 2020 ("On adaptive attacks to adversarial example defenses"). The model itself judges every candidate.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from trustcxr.attacks.apgd import apgd
from trustcxr.attacks.base import check_input, logits_of, radii
from trustcxr.attacks.bpda import AttackView, GradientTraits, probe_gradients
from trustcxr.attacks.grid import round_inwards
from trustcxr.attacks.pgd import pgd
from trustcxr.attacks.square import square
from trustcxr.models.preserve_state import preserve_state
from trustcxr.registry import STOCHASTIC_DRAWS

LONGER, CLIMBS = 10, 6  # with approximate gradients: factor of steps, and most repeats while they help


def adaptive(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    traits: GradientTraits | None = None,
    surrogate: nn.Module | None = None,
    gradients: bool = True,
    start: Sequence[Tensor] = (),
    steps: int = 50,
    queries: int = 0,
    seed: int = 0,
    ends: float = 1.0,
) -> Tensor:
    """Return the worst of PGD and APGD through each variant of the model, of a surrogate's images and of `start`.

    Each is tried as floats and as an 8-bit file (`grid.round_inwards`). For a random model, that is the image which is
    misclassified most often over draws. Common arguments: see `fgsm`.

    Args:
        traits: what `probe_gradients` returned; by default it probes these images.
        surrogate: a model distilled from this one (`surrogate.distil`), attacked too.
        gradients: False if the model has none.
        start: adversarial candidates (B, 1, H, W) to try.
        queries: of Square on the images that remain; 0 for none.
        ends: see `square`.

    Raises UserError as the attacks do.
    """
    check_input(images, labels, epsilon)
    images = images.detach()
    if not len(images):
        return images.clone()
    traits = traits or probe_gradients(model, images[:32])
    worst = _Worst(model, images, labels, random=traits.random)
    for candidates in start:
        worst.add(torch.arange(len(images), device=images.device), candidates.detach())
    variants = traits.variants(model) if gradients else []
    for variant in variants:
        worst.climb(variant, epsilon, steps, seed, stop=not traits.random)
    if gradients and traits.needs_bpda:  # the gradient is approximate: climb longer
        for repeat in range(1, CLIMBS + 1):
            before = worst.wrong.clone()
            worst.climb(variants[-1], epsilon, LONGER * steps, seed + repeat, stop=not traits.random)
            if torch.equal(worst.wrong, before):
                break
    if surrogate is not None:
        worst.climb(AttackView(surrogate), epsilon, steps, seed, stop=False)
    if queries and len(rows := worst.remaining()):
        seen = AttackView(model, draws=traits.draws, scale=traits.scale)
        radius = radii(epsilon, images)[rows]
        options = {"epsilon": radius, "queries": queries, "seed": seed, "ends": ends}
        worst.add(rows, square(seen, images[rows], labels[rows], **options))  # type: ignore[arg-type]
    return worst.images


def wrong_share(model: nn.Module, images: Tensor, labels: Tensor, *, draws: int = 1, seed: int = 0) -> Tensor:
    """Return how often the model is wrong on each image, (B,) in [0, 1], over `draws` from a fixed seed."""
    return _over_draws(model, images, labels, draws, seed)[0]


def _over_draws(model: nn.Module, images: Tensor, labels: Tensor, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return for each image how often the model is wrong, and the mean lead of its label over the next class."""
    with preserve_state(model):
        torch.manual_seed(seed)
        wrong, lead = (torch.zeros(len(images), device=images.device) for _ in range(2))
        for _ in range(draws):
            logits = logits_of(model, images).float()
            wrong += (logits.argmax(1) != labels).float()
            label_logit = logits.gather(1, labels[:, None])[:, 0]
            lead += label_logit - logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return wrong / draws, lead / draws


class _Worst:
    """The worst candidate of each image: most often wrong, then (for a random model) of the smallest lead."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, *, random: bool) -> None:
        self.model, self.clean, self.labels = model, images, labels
        self.draws = STOCHASTIC_DRAWS if random else 1
        self.images = images.clone()
        self.wrong, self.lead = self._measure(images, torch.arange(len(images), device=images.device))

    def remaining(self) -> Tensor:
        """Return the rows on which the model is not always wrong."""
        return (self.wrong < 1).nonzero()[:, 0]

    def add(self, rows: Tensor, candidates: Tensor) -> None:
        """Keep candidates (N, 1, H, W) for these rows, as floats or on whole greys, if they are worse."""
        self._keep(rows, candidates)
        self._keep(rows, round_inwards(candidates, self.clean[rows]))

    def _keep(self, rows: Tensor, candidates: Tensor) -> None:
        wrong, lead = self._measure(candidates, rows)
        worse = wrong > self.wrong[rows]
        if self.draws > 1:
            worse |= (wrong == self.wrong[rows]) & (lead < self.lead[rows])
        replaced = rows[worse]
        self.images[replaced], self.wrong[replaced], self.lead[replaced] = candidates[worse], wrong[worse], lead[worse]

    def climb(self, variant: nn.Module, epsilon: float | Tensor, steps: int, seed: int, *, stop: bool) -> None:
        """Run PGD through `variant`, then APGD on the margin on what remains."""
        radius = radii(epsilon, self.clean)
        for attack in (partial(pgd, stop_when_wrong=stop), partial(apgd, loss="margin")):
            if len(rows := self.remaining()):
                images, labels = self.clean[rows], self.labels[rows]
                self.add(rows, attack(variant, images, labels, epsilon=radius[rows], steps=steps, seed=seed))

    def _measure(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        # Not the seed of the final judgement: candidates must not be selected on its draws.
        return _over_draws(self.model, images, self.labels[rows], self.draws, 977)
