"""Attack the decision of each class against the rest at its own threshold.

An attack on the answer stops once another class is the highest, and skips misclassified images. So it says little about
a threshold that lies elsewhere.
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
    """One class against the rest: the logit of its probability, or with `highest` its lead over the next class."""

    def __init__(self, model: nn.Module, index: int, *, highest: bool = False) -> None:
        super().__init__()
        self.model, self.index, self.highest = model, index, highest
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Return how far the class is above the others, (B, 1), for images (B, 1, H, W) in [0, 1]."""
        logits = self.model(images)
        target = torch.arange(logits.shape[1], device=logits.device) == self.index
        others = logits.masked_fill(target, -torch.inf)
        return logits[:, self.index, None] - (others.amax(1) if self.highest else others.logsumexp(1))[:, None]


def decision(model: nn.Module, index: int, threshold: Threshold) -> Decision:
    """Return the decision whether an image is of a class, as a network of two classes: absent and present."""
    if threshold.value is None:
        return Decision(AgainstRest(model, index, highest=True), 0, 0.5)
    return Decision(AgainstRest(model, index), 0, threshold.value)


def with_class_labels(runner: AttackRunner, index: int) -> CarryOut:
    """Return the attacks of `runner`, on the decision of class `index`, for labels of all classes."""

    def carry_out(attack: AttackRecipe, images: Tensor, labels: Tensor, epsilon: float, options: Options) -> Tensor:
        return runner(attack, images, (labels == index).long(), epsilon, options)

    return carry_out


def attacks(protocol: Sequence[AttackRecipe], *, gradients: bool) -> tuple[AttackRecipe, ...]:
    """Return the attacks on each decision at the radii of worst-case: PGD, or Square without gradients.

    They have the queries of worst-case and at most STEPS of its steps: they run for each class on every image, and
    never stop early.
    """
    worst = [attack for attack in protocol if attack.name == WORST_CASE]
    if gradients:
        return tuple(AttackRecipe(name="pgd", epsilons=a.epsilons, steps=min(STEPS, a.steps or STEPS)) for a in worst)
    return tuple(AttackRecipe(name="square", epsilons=a.epsilons, queries=a.queries) for a in worst)
