"""Run attacks in the form that a model needs: plain, with BPDA, over draws, without gradients, or on one decision.

Guards are attacks without gradients of the model on images that all others left right: a long Square, a surrogate, and
a large epsilon. What breaks more of them than chance shows that gradients misled the attacks.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from trustcxr import attacks
from trustcxr.attacks.adaptive import AttackView, GradientTraits, adaptive, distil, wrong_share
from trustcxr.attacks.base import is_misclassified
from trustcxr.attacks.pgd import keep_worse, pgd
from trustcxr.audit.audit_data import load_pixels
from trustcxr.audit.declaration_check import predict_parts
from trustcxr.audit.entry_checks import STRONGER, Check
from trustcxr.audit.multilabel import Decision
from trustcxr.console import Progress
from trustcxr.data.dataset import Dataset
from trustcxr.evaluation.gradient_masking import ABOUT_ZERO
from trustcxr.evaluation.operating_points import Threshold
from trustcxr.evaluation.predictions import Options
from trustcxr.models.fuse_batchnorm import make_fused_copy
from trustcxr.models.preserve_state import preserve_state
from trustcxr.recipes.evaluation_recipe import AttackRecipe
from trustcxr.recipes.protocol import GuardRecipe
from trustcxr.registry import ONE_STEP, STOCHASTIC_DRAWS, WORST_CASE, is_linf
from trustcxr.statistics import wilson
from trustcxr.storage.prediction_table import CLEAN, right

ENDS = 0.9  # of epsilon: the least move of Square
THRESHOLD_STEPS = 10  # most steps of an attack on the threshold of one class
COMPARED = 8  # images on which the faster model must answer as the model does
_GUARD_SEED = 1_000_000  # not that of a batch
_GUARD_STEPS = 20  # of PGD
# Counts of images, which add up over findings. `left`: right after all attacks, of `total`. Of these, `by_square` of
# `searched` and `by_surrogate` of `transferred` were broken, and `untried` were not searched; `agreeing` of `compared`:
# answered by the surrogate as by the model. `large_pgd` and `large_square` of `large` stayed right at a large epsilon.
Guards = Counter[str]


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
    target_class: int | None = None  # of the decision that is attacked, if labels are those of all classes
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
        labels = labels if self.target_class is None else (labels == self.target_class).long()
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
        effort = {name: options[name] for name in ("steps", "queries", "seed", "ends")}
        model, about = self.model, {"traits": self.traits, "surrogate": self.surrogate, "gradients": self.gradients}
        return adaptive(model, images, labels, epsilon=epsilon, start=start, **about, **effort)  # type: ignore[arg-type]

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


def threshold_attacks(protocol: Sequence[AttackRecipe], *, gradients: bool) -> tuple[AttackRecipe, ...]:
    """Return the attacks on each decision at the radii of worst-case: PGD, or Square without gradients.

    They have its queries and at most THRESHOLD_STEPS of its steps: they run for each class on every image to the end.
    """
    worst = [attack for attack in protocol if attack.name == WORST_CASE]
    if not gradients:
        return tuple(AttackRecipe(name="square", epsilons=a.epsilons, queries=a.queries) for a in worst)
    precision = next((attack.precision for attack in protocol if attack.name == "pgd"), None)
    steps = [min(THRESHOLD_STEPS, attack.steps or THRESHOLD_STEPS) for attack in worst]
    options = [{"epsilons": a.epsilons, "steps": n, "precision": precision} for a, n in zip(worst, steps, strict=True)]
    return tuple(AttackRecipe(name="pgd", **each) for each in options)


def try_guards(
    runner: AttackRunner, dataset: Dataset, table: pd.DataFrame, recipe: GuardRecipe, *, surrogate: bool = True
) -> Guards:
    """Try the guards on images that are right in the predictions `table` under its attacks, one of them worst-case."""
    epsilon = float(table.loc[table["attack"] == WORST_CASE, "epsilon"].max())
    if not epsilon > 0:
        return Guards()
    within = (table["attack"].map(is_linf) & (table["epsilon"] > 0) & (table["epsilon"] <= epsilon)).to_numpy()
    attacked, clean = table[within], table[(table["attack"] == CLEAN).to_numpy()]
    unbroken = _find_right(attacked, dataset)
    some, trial = _spread(unbroken, recipe.images), _GuardTrial(runner, dataset)
    guards = Guards(total=attacked["sample_id"].nunique(), left=len(unbroken))
    with Progress("attacks without gradients of the model", 3) as bar:
        # If so many stay right, the check passes whatever becomes of the others.
        enough = next(k for k in range(len(some) + 1) if _lead(guards, len(some) - k, len(some)) <= STRONGER)
        for rows in np.split(some, [max(1, enough)]) if len(some) < recipe.images else [some]:
            if not guards["searched"] or guards["by_square"]:
                guards.update(searched=len(rows), by_square=trial.square(rows, epsilon, recipe.queries))
        guards["untried"] = len(some) - guards["searched"]
        bar.advance(note="a surrogate")
        if surrogate:
            guards += trial.surrogate(some, _spread(np.arange(len(dataset)), recipe.images), epsilon, recipe)
        bar.advance(note=f"epsilon {recipe.large_epsilon:g}")
        large = _spread(_find_right(clean, dataset) if len(clean) else unbroken, recipe.large_images)
        square = len(large) - trial.square(large, recipe.large_epsilon, recipe.large_queries)
        climbed = len(large) - trial.climb(large, recipe.large_epsilon) if runner.gradients else square
        guards.update(large=len(large), large_square=square, large_pgd=climbed)
        bar.advance()
    return guards


def _find_right(rows: pd.DataFrame, dataset: Dataset) -> np.ndarray:
    """Return the images of the data that are right in all these predictions."""
    every = rows.assign(right=right(rows)).groupby("sample_id")["right"].all()
    return np.flatnonzero(every.reindex(dataset.sample_ids, fill_value=False).to_numpy(dtype=bool))


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    """Return `count` of the rows, evenly."""
    return rows if len(rows) <= count else rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]


@dataclass(frozen=True)
class _GuardTrial:
    """Attacks on some rows of a data set; `square` and `climb` return how many images they mislead."""

    runner: AttackRunner
    dataset: Dataset

    def square(self, rows: np.ndarray, epsilon: float, queries: int) -> int:
        return self._attack(rows, AttackRecipe(name="square", epsilons=(epsilon,), queries=queries))

    def climb(self, rows: np.ndarray, epsilon: float) -> int:
        return self._attack(
            rows, AttackRecipe(name="pgd", epsilons=(epsilon,), steps=_GUARD_STEPS), stop_when_wrong=True
        )

    def surrogate(self, rows: np.ndarray, others: np.ndarray, epsilon: float, recipe: GuardRecipe) -> Guards:
        """Compare the surrogate's answers on `others`, and try its images of `rows` if it agrees."""
        images, net = self._load(others)[0], self.runner.distilled
        with preserve_state(self.runner.model, seed=0):
            answers, others_ = (predict_parts(model, images).argmax(1) for model in (self.runner.model, net))
            agreeing = int((answers == others_).sum())
        compared = Guards(agreeing=agreeing, compared=len(others))
        if agreeing < recipe.agreement * len(others) or not len(rows):
            return compared
        images, labels = self._load(rows)
        perturbed = pgd(net, images, labels, epsilon=epsilon, steps=_GUARD_STEPS, seed=_GUARD_SEED)
        return compared + Guards(transferred=len(rows), by_surrogate=self._count_wrong(perturbed, labels))

    def _attack(self, rows: np.ndarray, recipe: AttackRecipe, **options: Any) -> int:
        if not len(rows):
            return 0
        images, labels = self._load(rows)
        options = {**recipe.options(), "seed": _GUARD_SEED, **options}
        perturbed = self.runner(recipe, images, labels, recipe.epsilons[0], options)
        return self._count_wrong(perturbed, labels)

    def _load(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        labels, device = torch.from_numpy(np.asarray(self.dataset.labels)[rows]).long(), self.runner.images.device
        return load_pixels(self.dataset, rows, device), labels.to(device)

    def _count_wrong(self, images: Tensor, labels: Tensor) -> int:
        draws = STOCHASTIC_DRAWS if self.runner.traits.random else 1
        return int((wrong_share(self.runner.model, images, labels, draws=draws) > 0.5).sum())


def describe_guards(guards: Guards, recipe: GuardRecipe, learned_from: str, *, gradients: bool) -> Iterator[Check]:
    """Yield the checks; `learned_from`: the images of the surrogate, in words."""
    if not guards["total"]:
        return
    text, counts = f"Square with {recipe.queries:,} queries breaks", (guards["by_square"], guards["searched"])
    more = f". If it broke the {n} others too, the result would be the same" if (n := guards["untried"]) else ""
    yield _compare("long Square", guards, counts, text, more)
    agreement = guards["agreeing"] / max(guards["compared"], 1)  # of several findings it is of the first
    text = f"a surrogate learned from {learned_from}. "
    text += f"It agrees with the model on {agreement:.0%} of {guards['compared']} images"
    if agreement < recipe.agreement:
        text += f", less than {recipe.agreement:.0%}, so nothing follows from its adversarial images"
        yield Check("surrogate", None, text)
    else:
        text += "; its adversarial images break"
        yield _compare("surrogate", guards, (guards["by_surrogate"], guards["transferred"]), text)
    if guards["large"]:  # about no answer may stay right at an epsilon that may change every image into any other
        text = f"at epsilon {recipe.large_epsilon:g}, of {guards['large']} right answers "
        text += f"PGD leaves {guards['large_pgd']} and " if gradients else ""
        text += f"Square with {recipe.large_queries:,} queries {'' if gradients else 'leaves '}{guards['large_square']}"
        failed = wilson(guards["large_pgd"] / guards["large"], guards["large"])[0] > ABOUT_ZERO
        text += ", but about none must be left: the attacks do not work on this model" if failed else ""
        yield Check("large epsilon", not failed, text, grave=gradients)


def _lead(guards: Guards, broken: int, tried: int) -> float:
    """Return by how much an attack that breaks so many surely lowers accuracy, in [0, 1]."""
    return wilson(broken / tried, tried)[0] * guards["left"] / guards["total"] if tried else 0.0


def _compare(name: str, guards: Guards, counts: tuple[int, int], text: str, more: str = "") -> Check:
    """Check that an attack with `counts` (broken, tried) lowers accuracy by no more than STRONGER and chance."""
    broken, tried = counts
    lead = _lead(guards, broken, tried)
    among = f"the {guards['left']} of {guards['total']} images that all other attacks left right"
    text += f" {broken} of {tried}, among {among}{more}"
    if lead > STRONGER:
        text += ": these attacks were misled, and accuracy under attack is lower"
    return Check(name, lead <= STRONGER, text, grave=True)
