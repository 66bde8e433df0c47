"""Attacks as one given model needs them: as they stand, through stand-ins, over draws, or without any gradient."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial

from torch import Tensor, nn

from trustcxr import attacks
from trustcxr.attacks.adaptive import adaptive
from trustcxr.attacks.base import is_misclassified
from trustcxr.attacks.bpda import AttackView, GradientTraits
from trustcxr.attacks.surrogate import distil
from trustcxr.evaluation.predictions import Options
from trustcxr.models.fuse_batchnorm import make_fused_copy
from trustcxr.models.preserve_state import preserve_state
from trustcxr.recipes.evaluation_recipe import AttackRecipe
from trustcxr.registry import ONE_STEP, WORST_CASE

COMPARED = 8  # images on which the faster model must answer as the model does


@dataclass
class AttackRunner:
    """Carries out the attacks of an examination on `model`, by what the door found out about it.

    Where nothing stops gradients an attack is what it is for a run of ours; it looks for images on the model with
    BatchNorm folded away, and what it claims is confirmed on the model itself, else looked for there. `images` (N, 1,
    H, W) are those that this is tried on. `taught` gets the images that a surrogate learns from; None: it is those.
    `whole_climb`: a climb goes on where the answer is wrong already, so that what is left of the ranking of images is
    seen too. What is found is judged on the model itself by whoever calls.
    """

    model: nn.Module
    traits: GradientTraits
    gradients: bool
    images: Tensor
    whole_climb: bool = False
    taught: Callable[[], Tensor] | None = None

    def ready(self, conditions: Iterable[AttackRecipe]) -> "AttackRunner":
        """Itself, with what these attacks need made: not later, by several threads at once."""
        if self.plain:
            _ = self.fast
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
            search = partial(own, epsilon=epsilon, **options)
            return self._plainly(search, images, labels, one_step=attack.name in ONE_STEP)
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

    def _plainly(self, search: partial[Tensor], images: Tensor, labels: Tensor, *, one_step: bool) -> Tensor:
        """What the attack finds on the faster model, and on the model itself where that is not misled by it."""
        if one_step or self.fast is self.model:
            return search(self.model, images, labels)
        found, start = search(self.fast, images, labels), list(search.keywords.get("start", ()))
        with preserve_state(self.model), preserve_state(self.fast):
            rows = (~is_misclassified(self.model, found, labels)).nonzero()[:, 0]
            if len(rows):
                claimed = is_misclassified(self.fast, found[rows], labels[rows])
                for given in start:
                    claimed |= is_misclassified(self.model, given[rows], labels[rows])
                rows = rows[claimed]
        if len(rows):
            known = {"start": [given[rows] for given in start]} if start else {}
            found[rows] = search(self.model, images[rows], labels[rows], **known)
        return found

    @cached_property
    def fast(self) -> nn.Module:
        """The model to search on where nothing stops gradients: the same, with BatchNorm folded away."""
        return make_fused_copy(self.model, self.images[:COMPARED])

    @property
    def plain(self) -> bool:
        """Whether an attack needs to know nothing of the model."""
        found = self.traits
        return self.gradients and not (found.random or found.scale != 1 or found.needs_stand_ins)

    @cached_property
    def seen(self) -> AttackView:
        """The model as a single attack sees it."""
        if self.gradients:
            return self.traits.variants(self.model)[-1]
        return AttackView(self.model, draws=self.traits.draws, scale=self.traits.scale)

    @cached_property
    def surrogate(self) -> nn.Module | None:
        """A network distilled from the model, where its own gradients are not enough."""
        if not needs_surrogate(self.traits, self.gradients):
            return None
        images = self.images if self.taught is None else self.taught()
        return distil(self.model, images, scale=self.traits.scale)


def needs_surrogate(traits: GradientTraits, gradients: bool) -> bool:
    """Whether the model's own gradients are not enough for worst-case; `gradients`: whether attacks can use any."""
    return not gradients or traits.random or traits.needs_stand_ins
