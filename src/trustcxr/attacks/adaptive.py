"""An attack that adapts to the model: through stand-ins, over draws, by way of a surrogate; the worst for each image.

Tramer et al. 2020 ("On adaptive attacks to adversarial example defenses"): an attack that does not look at how a model
defends itself says little about it. Everything found is judged on the model itself.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trustcxr.attacks.apgd import apgd
from trustcxr.attacks.base import check_input, logits_of, radii
from trustcxr.attacks.bpda import AttackView, GradientTraits, probe_gradients
from trustcxr.attacks.pgd import pgd
from trustcxr.attacks.square import square
from trustcxr.models.preserve_state import preserve_state
from trustcxr.registry import STOCHASTIC_DRAWS

LONGER, CLIMBS = 10, 6  # times the steps of a climb through stand-ins on what a first one left; so many while they help


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
) -> Tensor:
    """The worst of PGD and APGD through every variant of the model, of a surrogate's images and of `start`.

    `traits`: what `look` found, looked for on these images unless given. `surrogate`: a model distilled from this one
    (`surrogate.distil`), whose adversarial images are tried. `gradients`: False where the model has none at all.
    `queries`: of Square, tried on what is left; 0 for none. Of a random model the image that is misjudged most often
    over draws is kept. Raises UserError as the attacks do.
    """
    check_input(images, labels, epsilon)
    images = images.detach()
    traits = traits or probe_gradients(model, images[:32])
    worst = _Worst(model, images, labels, random=traits.random)
    for found in start:
        worst.try_all(found.detach())
    variants = traits.variants(model) if gradients else []
    for variant in variants:
        worst.climb(variant, epsilon, steps, seed, stop=not traits.random)
    if gradients and traits.needs_stand_ins:  # whose gradient is a guess: what stands needs longer climbs
        for another in range(1, CLIMBS + 1):
            before = worst.wrong.clone()
            worst.climb(variants[-1], epsilon, LONGER * steps, seed + another, stop=not traits.random)
            if torch.equal(worst.wrong, before):
                break
    if surrogate is not None:
        worst.climb(AttackView(surrogate), epsilon, steps, seed, stop=False)
    if queries and len(rows := worst.standing()):
        seen = AttackView(model, draws=traits.draws, scale=traits.scale)
        radius = radii(epsilon, images)[rows]
        worst.try_some(rows, square(seen, images[rows], labels[rows], epsilon=radius, queries=queries, seed=seed))
    return worst.images


def wrong_share(model: nn.Module, images: Tensor, labels: Tensor, *, draws: int = 1, seed: int = 0) -> Tensor:
    """How often the model is wrong on each image, (B,) in [0, 1], over so many draws from a fixed seed."""
    return _over_draws(model, images, labels, draws, seed)[0]


def _over_draws(model: nn.Module, images: Tensor, labels: Tensor, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """How often the model is wrong on each image, and the mean lead of its label over the next class, both (B,)."""
    with preserve_state(model):
        torch.manual_seed(seed)
        wrong, lead = (torch.zeros(len(images), device=images.device) for _ in range(2))
        for _ in range(draws):
            logits = logits_of(model, images).float()
            wrong += (logits.argmax(1) != labels).float()
            own = logits.gather(1, labels[:, None])[:, 0]
            lead += own - logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return wrong / draws, lead / draws


class _Worst:
    """The worst image so far for each, by how often the model is wrong on it.

    Of a random model, of two on which it is wrong as often the one with the smaller lead: draws that are still to come
    tell them apart, and a few that were tried do not.
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, *, random: bool) -> None:
        self.model, self.clean, self.labels = model, images, labels
        self.draws = STOCHASTIC_DRAWS if random else 1
        self.images = images.clone()
        self.wrong, self.lead = self._judged(images, torch.arange(len(images), device=images.device))

    def standing(self) -> Tensor:
        """Rows on which the model is not always wrong."""
        return (self.wrong < 1).nonzero()[:, 0]

    def try_all(self, found: Tensor) -> None:
        self.try_some(torch.arange(len(found), device=found.device), found)

    def try_some(self, rows: Tensor, found: Tensor) -> None:
        wrong, lead = self._judged(found, rows)
        worse = wrong > self.wrong[rows]
        if self.draws > 1:
            worse |= (wrong == self.wrong[rows]) & (lead < self.lead[rows])
        kept = rows[worse]
        self.images[kept], self.wrong[kept], self.lead[kept] = found[worse], wrong[worse], lead[worse]

    def climb(self, variant: nn.Module, epsilon: float | Tensor, steps: int, seed: int, *, stop: bool) -> None:
        """PGD, and APGD on the margin on what is left, seen through `variant`."""
        radius = radii(epsilon, self.clean)
        rows = self.standing()
        if len(rows):
            own, size, labels = self.clean[rows], radius[rows], self.labels[rows]
            self.try_some(rows, pgd(variant, own, labels, epsilon=size, steps=steps, seed=seed, stop_when_wrong=stop))
        rows = self.standing()
        if len(rows):
            own, size, labels = self.clean[rows], radius[rows], self.labels[rows]
            self.try_some(rows, apgd(variant, own, labels, epsilon=size, steps=steps, loss="margin", seed=seed))

    def _judged(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        # Another seed than that of whoever judges the result, so that no draw is chosen by.
        return _over_draws(self.model, images, self.labels[rows], self.draws, 977)
