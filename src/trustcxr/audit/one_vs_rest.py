"""Each class against the rest, at its own threshold, as a decision that is attacked.

An attack on the answer stops once another class is the highest, and leaves alone the images that are answered wrongly
already. What it leaves of the class says little about a threshold that lies elsewhere.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trustcxr.audit.attack_runner import AttackRunner
from trustcxr.audit.multilabel import Decision
from trustcxr.evaluation.operating_points import Threshold
from trustcxr.evaluation.predictions import CarryOut, Options
from trustcxr.recipes.evaluation_recipe import AttackRecipe
from trustcxr.registry import WORST_CASE

STEPS = 10


class AgainstRest(nn.Module):
    """One class of a model against the others: the logit of its probability, or its lead over the highest of them."""

    def __init__(self, model: nn.Module, place: int, *, highest: bool = False) -> None:
        super().__init__()
        self.model, self.place, self.highest = model, place, highest
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W) in [0, 1] -> how far the class is above the others, (B, 1)."""
        logits = self.model(images)
        own = torch.arange(logits.shape[1], device=logits.device) == self.place
        others = logits.masked_fill(own, -torch.inf)
        return logits[:, self.place, None] - (others.amax(1) if self.highest else others.logsumexp(1))[:, None]


def decision(model: nn.Module, place: int, threshold: Threshold) -> Decision:
    """Whether an image is of a class, as a network of two classes: absent and present."""
    if threshold.value is None:
        return Decision(AgainstRest(model, place, highest=True), 0, 0.5)
    return Decision(AgainstRest(model, place), 0, threshold.value)


def against(carried: AttackRunner, place: int) -> CarryOut:
    """The attacks of `carried`, whose model is the decision of the class at `place`, for labels of all classes."""

    def carry_out(attack: AttackRecipe, images: Tensor, labels: Tensor, epsilon: float, options: Options) -> Tensor:
        return carried(attack, images, (labels == place).long(), epsilon, options)

    return carry_out


def attacks(asked: Sequence[AttackRecipe], *, gradients: bool) -> tuple[AttackRecipe, ...]:
    """What each decision is attacked by where worst-case is asked for, at its radii: PGD, or Square without gradients.

    With as many queries as worst-case has, and at most STEPS of its steps: it is done once a class, on every image, and
    never stops early, so that with all of them an audit of a network that breaks at once would take twice as long.
    """
    worst = [attack for attack in asked if attack.name == WORST_CASE]
    if gradients:
        return tuple(AttackRecipe(name="pgd", epsilons=a.epsilons, steps=min(STEPS, a.steps or STEPS)) for a in worst)
    return tuple(AttackRecipe(name="square", epsilons=a.epsilons, queries=a.queries) for a in worst)


def places(count: int) -> range:
    """The classes that are aimed at: of two classes one, since what moves one moves the other as far."""
    return range(1 if count == 2 else count)
