"""Attacks as one given model needs them: as they stand, through stand-ins, over draws, or without any gradient."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from trustcxr import attacks
from trustcxr.attacks.adaptive import adaptive
from trustcxr.attacks.stand_ins import Attackable, Traits
from trustcxr.attacks.surrogate import distil
from trustcxr.catalogue import WORST_CASE
from trustcxr.evaluation.predictions import Options
from trustcxr.recipes.testing import AttackRecipe


@dataclass
class CarriedOut:
    """Carries out the attacks of an examination on `model`, by what the door found out about it.

    Where nothing stops gradients an attack is what it is for a run of ours. `films` (N, 1, H, W) are those that a
    surrogate learns from. `whole_climb`: a climb goes on where the answer is wrong already, so that what is left of the
    ranking of films is seen too. What is found is judged on the model itself by whoever calls.
    """

    model: nn.Module
    traits: Traits
    gradients: bool
    films: Tensor
    whole_climb: bool = False

    def ready(self, conditions: Iterable[AttackRecipe]) -> "CarriedOut":
        """Itself, with the surrogate made if one of these attacks needs it: not later, by several threads at once."""
        if not self.plain and any(attack.name == WORST_CASE for attack in conditions):
            _ = self.surrogate
        return self

    def __call__(
        self, attack: AttackRecipe, images: Tensor, labels: Tensor, epsilon: float, options: Options
    ) -> Tensor:
        """Adversarial images (B, 1, H, W) within epsilon."""
        own = attacks.get(attack.name)
        if (self.traits.random or self.whole_climb) and "stop_when_wrong" in options:
            options["stop_when_wrong"] = False
        if self.plain:
            return own(self.model, images, labels, epsilon=epsilon, **options)
        if attack.name != WORST_CASE:
            return own(self.seen, images, labels, epsilon=epsilon, **options)
        start = list(options.pop("start", ()))
        if self.gradients:
            start.append(own(self.seen, images, labels, epsilon=epsilon, start=start, **options))
        return adaptive(
            self.model,
            images,
            labels,
            epsilon=epsilon,
            traits=self.traits,
            surrogate=self.surrogate,
            gradients=self.gradients,
            start=start,
            steps=options["steps"],
            queries=options["queries"],
            seed=options["seed"],
        )

    @property
    def plain(self) -> bool:
        """Whether an attack needs to know nothing of the model."""
        found = self.traits
        return self.gradients and not (found.random or found.scale != 1 or found.needs_stand_ins)

    @cached_property
    def seen(self) -> Attackable:
        """The model as a single attack sees it."""
        if self.gradients:
            return self.traits.variants(self.model)[-1]
        return Attackable(self.model, draws=self.traits.draws, scale=self.traits.scale)

    @cached_property
    def surrogate(self) -> nn.Module | None:
        """A network distilled from the model, where its own gradients are not enough."""
        if self.gradients and not (self.traits.random or self.traits.needs_stand_ins):
            return None
        return distil(self.model, self.films, scale=self.traits.scale)
