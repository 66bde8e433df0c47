"""Run attacks in the form that a model needs: plain, with BPDA, over draws, without gradients, or on one decision."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from trustcxr import attacks
from trustcxr.attacks.adaptive import AttackView, GradientTraits, adaptive, distil
from trustcxr.attacks.base import is_misclassified
from trustcxr.attacks.pgd import keep_worse
from trustcxr.audit.multilabel import Decision
from trustcxr.evaluation.operating_points import Threshold
from trustcxr.evaluation.predictions import CarryOut, Options
from trustcxr.models.fuse_batchnorm import make_fused_copy
from trustcxr.models.preserve_state import preserve_state
from trustcxr.recipes.evaluation_recipe import AttackRecipe
from trustcxr.registry import ONE_STEP, WORST_CASE

ENDS = 0.9  # of epsilon: the least move of Square
THRESHOLD_STEPS = 10  # most steps of an attack on the threshold of one class
COMPARED = 8  # images on which the faster model must answer as the model does


@dataclass
class AttackRunner:
    """Runs the attacks of a protocol on `model`, by the results of its entry checks.

    If nothing stops gradients, an attack searches on the model with BatchNorm fused. Its results are confirmed on the
    model itself, else searched there. The caller evaluates the adversarial images on the model.
    """

    model: nn.Module
    traits: GradientTraits
    gradients: bool
    images: Tensor  # (N, 1, H, W), to verify the fused model, and for a surrogate if it has no others
    whole_climb: bool = False  # whether a climb goes on after the answer has changed
    load_surrogate_images: Callable[[], Tensor] | None = None

    def prepare(self, conditions: Iterable[AttackRecipe]) -> "AttackRunner":
        """Compute what these attacks need, in one thread, and return the runner."""
        if self.plain:
            _ = self.fast
        elif any(attack.name == WORST_CASE for attack in conditions):
            _ = self.surrogate
        return self

    def __call__(
        self, attack: AttackRecipe, images: Tensor, labels: Tensor, epsilon: float, options: Options
    ) -> Tensor:
        """Return adversarial images (B, 1, H, W) within epsilon, as floats or rounded to 8 bits, whichever is worse."""
        perturbed = self._attack(attack, images, labels, epsilon, options)
        if self.traits.random or attack.name == WORST_CASE or attack.entry.norm != "linf":
            return perturbed
        return keep_worse(self.model, images, perturbed, labels)

    def _attack(self, attack: AttackRecipe, images: Tensor, labels: Tensor, epsilon: float, options: Options) -> Tensor:
        """Return adversarial images (B, 1, H, W) within epsilon."""
        function = attacks.get(attack.name)
        if "queries" in attack.entry.options:
            options["ends"] = ENDS
        if (self.traits.random or self.whole_climb) and "stop_when_wrong" in options:
            options["stop_when_wrong"] = False
        if not self.traits.bfloat16:
            options.pop("precision", None)
        if self.plain:
            search = partial(function, epsilon=epsilon, **options)
            return self._search(search, images, labels, one_step=attack.name in ONE_STEP)
        if attack.name != WORST_CASE:
            return function(self.view, images, labels, epsilon=epsilon, **options)
        start = list(options.pop("start", ()))
        if self.gradients:
            start.append(function(self.view, images, labels, epsilon=epsilon, start=start, **options))
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
            ends=ENDS,
        )

    def _search(self, search: partial[Tensor], images: Tensor, labels: Tensor, *, one_step: bool) -> Tensor:
        """Return what an attack finds on the faster model, or on the model if that result does not carry over."""
        if one_step or self.fast is self.model:
            return search(self.model, images, labels)
        result, starts = search(self.fast, images, labels), list(search.keywords.get("start", ()))
        with preserve_state(self.model), preserve_state(self.fast):
            rows = (~is_misclassified(self.model, result, labels)).nonzero()[:, 0]
            if len(rows):
                claimed = is_misclassified(self.fast, result[rows], labels[rows])
                for start in starts:
                    claimed |= is_misclassified(self.model, start[rows], labels[rows])
                rows = rows[claimed]
        if len(rows):
            options = {"start": [start[rows] for start in starts]} if starts else {}
            result[rows] = search(self.model, images[rows], labels[rows], **options)
        return result

    @cached_property
    def fast(self) -> nn.Module:
        """Return the model with BatchNorm fused."""
        return make_fused_copy(self.model, self.images[:COMPARED])

    @property
    def plain(self) -> bool:
        """Return whether attacks need no adaptation to the model."""
        return self.gradients and self.traits.plain

    @cached_property
    def view(self) -> AttackView:
        """Return the model as a single attack sees it."""
        if self.gradients:
            return self.traits.variants(self.model)[-1]
        return AttackView(self.model, draws=self.traits.draws, scale=self.traits.scale)

    @cached_property
    def surrogate(self) -> nn.Module | None:
        """Return a network distilled from the model, if its own gradients are not enough."""
        enough = self.gradients and not (self.traits.random or self.traits.needs_bpda)
        return None if enough else self.distilled

    @cached_property
    def distilled(self) -> nn.Module:
        """Return a network distilled from the model."""
        images = self.images if self.load_surrogate_images is None else self.load_surrogate_images()
        return distil(self.model, images, scale=self.traits.scale)


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


def threshold_attacks(protocol: Sequence[AttackRecipe], *, gradients: bool) -> tuple[AttackRecipe, ...]:
    """Return the attacks on each decision at the radii of worst-case: PGD, or Square without gradients.

    They have its queries and at most THRESHOLD_STEPS of its steps: they run for each class on every image to the end.
    PGD has the precision of the protocol's PGD.
    """
    worst = [attack for attack in protocol if attack.name == WORST_CASE]
    if not gradients:
        return tuple(AttackRecipe(name="square", epsilons=a.epsilons, queries=a.queries) for a in worst)
    precision = next((attack.precision for attack in protocol if attack.name == "pgd"), None)
    steps = [min(THRESHOLD_STEPS, attack.steps or THRESHOLD_STEPS) for attack in worst]
    options = [{"epsilons": a.epsilons, "steps": n, "precision": precision} for a, n in zip(worst, steps, strict=True)]
    return tuple(AttackRecipe(name="pgd", **each) for each in options)
