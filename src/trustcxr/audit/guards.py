"""Guard an audit by attacks that need no gradient of the model: a long Square, a surrogate, and a large epsilon.

They are tried on images that every attack of the protocol left right. What breaks more of them than chance shows that
gradients misled the attacks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from trustcxr.attacks.adaptive import wrong_share
from trustcxr.attacks.pgd import pgd
from trustcxr.audit.attack_runner import AttackRunner
from trustcxr.audit.audit_data import OneFinding, load_pixels
from trustcxr.audit.entry_checks import STRONGER, Check
from trustcxr.console import Progress
from trustcxr.data.dataset import Dataset
from trustcxr.evaluation.gradient_masking import ABOUT_ZERO
from trustcxr.evaluation.predictions import Options
from trustcxr.models.preserve_state import preserve_state
from trustcxr.recipes.evaluation_recipe import AttackRecipe
from trustcxr.recipes.protocol import GuardRecipe
from trustcxr.registry import STOCHASTIC_DRAWS, WORST_CASE, is_linf
from trustcxr.statistics import wilson
from trustcxr.storage.prediction_table import CLEAN, right

_SEED = 1_000_000  # not that of a batch
_STEPS = 20  # of PGD


@dataclass(frozen=True)
class Guards:
    """Counts of images, which add up over findings. `left`: right after all attacks, of `total`.

    Of these, `by_square` of `searched` and `by_surrogate` of `transferred` were broken; `agreeing` of `compared`:
    answered by the surrogate as by the model. `large_pgd` and `large_square` of `large` stayed right at the large
    epsilon.
    """

    total: int = 0
    left: int = 0
    searched: int = 0
    by_square: int = 0
    transferred: int = 0
    by_surrogate: int = 0
    agreeing: int = 0
    compared: int = 0
    large: int = 0
    large_pgd: int = 0
    large_square: int = 0

    def __add__(self, other: "Guards") -> "Guards":
        return Guards(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


def try_guards(
    runner: AttackRunner,
    dataset: Dataset | OneFinding,
    table: pd.DataFrame,
    recipe: GuardRecipe,
    device: torch.device,
    *,
    surrogate: bool = True,
) -> Guards:
    """Try the guards on images of `dataset` that are right in the predictions `table` under its attacks.

    Nothing is tried if the worst case was not.
    """
    epsilon = float(table.loc[table["attack"] == WORST_CASE, "epsilon"].max())
    if not epsilon > 0:
        return Guards()
    within = (table["attack"].map(is_linf) & (table["epsilon"] > 0) & (table["epsilon"] <= epsilon)).to_numpy()
    attacked, clean = table[within], table[(table["attack"] == CLEAN).to_numpy()]
    unbroken = _find_right(attacked, dataset)
    some, trial = _spread(unbroken, recipe.images), _Trial(runner, dataset, device)
    guards = Guards(total=attacked["sample_id"].nunique(), left=len(unbroken))
    with Progress("attacks without gradients of the model", 3) as bar:
        guards += trial.square(some, epsilon, recipe.queries)
        bar.advance(note="a surrogate")
        if surrogate:
            guards += trial.surrogate(some, _spread(np.arange(len(dataset)), recipe.images), epsilon, recipe)
        bar.advance(note=f"epsilon {recipe.large_epsilon:g}")
        right = _find_right(clean, dataset) if len(clean) else unbroken
        guards += trial.large(_spread(right, recipe.large_images), recipe)
        bar.advance()
    return guards


def _find_right(rows: pd.DataFrame, dataset: Dataset | OneFinding) -> np.ndarray:
    """Return the images of the data that are right in all these predictions."""
    every = rows.assign(right=right(rows)).groupby("sample_id")["right"].all()
    return np.flatnonzero(every.reindex(dataset.sample_ids, fill_value=False).to_numpy(dtype=bool))


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    """Return `count` of the rows, evenly."""
    return rows if len(rows) <= count else rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]


@dataclass(frozen=True)
class _Trial:
    runner: AttackRunner
    dataset: Dataset | OneFinding
    device: torch.device

    def square(self, rows: np.ndarray, epsilon: float, queries: int) -> Guards:
        if not len(rows):
            return Guards()
        images, labels = self._load(rows)
        return Guards(searched=len(rows), by_square=self._wrong(self._square(images, labels, epsilon, queries), labels))

    def surrogate(self, rows: np.ndarray, others: np.ndarray, epsilon: float, recipe: GuardRecipe) -> Guards:
        """Compare the surrogate's answers on `others`, and try its images of `rows` if it agrees."""
        images, net = self._load(others)[0], self.runner.distilled
        with preserve_state(self.runner.model, seed=0), torch.no_grad():
            agreeing = int((_answers(self.runner.model, images) == _answers(net, images)).sum())
        compared = Guards(agreeing=agreeing, compared=len(others))
        if agreeing < recipe.agreement * len(others) or not len(rows):
            return compared
        images, labels = self._load(rows)
        perturbed = pgd(net, images, labels, epsilon=epsilon, steps=_STEPS, seed=_SEED)
        return compared + Guards(transferred=len(rows), by_surrogate=self._wrong(perturbed, labels))

    def large(self, rows: np.ndarray, recipe: GuardRecipe) -> Guards:
        if not len(rows):
            return Guards()
        (images, labels), epsilon = self._load(rows), recipe.large_epsilon
        searched = self._square(images, labels, epsilon, recipe.large_queries)
        guards = Guards(large=len(rows), large_square=len(rows) - self._wrong(searched, labels))
        if not self.runner.gradients:
            return guards + Guards(large_pgd=guards.large_square)
        climb = AttackRecipe(name="pgd", epsilons=(epsilon,), steps=_STEPS)
        options: Options = {**climb.options(), "seed": _SEED, "stop_when_wrong": True}
        perturbed = self.runner(climb, images, labels, epsilon, options)
        return guards + Guards(large_pgd=len(rows) - self._wrong(perturbed, labels))

    def _load(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        labels = torch.from_numpy(np.asarray(self.dataset.labels)[rows]).long()
        return load_pixels(self.dataset, rows, self.device), labels.to(self.device)

    def _square(self, images: Tensor, labels: Tensor, epsilon: float, queries: int) -> Tensor:
        recipe = AttackRecipe(name="square", epsilons=(epsilon,), queries=queries)
        return self.runner(recipe, images, labels, epsilon, {**recipe.options(), "seed": _SEED})

    def _wrong(self, images: Tensor, labels: Tensor) -> int:
        draws = STOCHASTIC_DRAWS if self.runner.traits.random else 1
        return int((wrong_share(self.runner.model, images, labels, draws=draws) > 0.5).sum())


def _answers(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part).argmax(1) for part in images.split(64)])


def describe_guards(guards: Guards, recipe: GuardRecipe, learned_from: str, *, gradients: bool) -> Iterator[Check]:
    """Yield the checks; `learned_from`: the images of the surrogate, in words."""
    if not guards.total:
        return
    text, counts = f"Square with {recipe.queries:,} queries breaks", (guards.by_square, guards.searched)
    yield _compare("long Square", guards, counts, text)
    agreement = guards.agreeing / max(guards.compared, 1)  # of several findings it is of the first
    text = f"a surrogate learned from {learned_from}. "
    text += f"It agrees with the model on {agreement:.0%} of {guards.compared} images"
    if agreement < recipe.agreement:
        text += f", less than {recipe.agreement:.0%}, so nothing follows from its adversarial images"
        yield Check("surrogate", None, text)
    else:
        text += "; its adversarial images break"
        yield _compare("surrogate", guards, (guards.by_surrogate, guards.transferred), text)
    if guards.large:
        yield _check_large(guards, recipe, gradients=gradients)


def _compare(name: str, guards: Guards, counts: tuple[int, int], text: str) -> Check:
    """Check that an attack with `counts` (broken, tried) lowers accuracy by no more than STRONGER and chance."""
    broken, tried = counts
    lead = wilson(broken / tried, tried)[0] * guards.left / guards.total if tried else 0.0
    text += f" {broken} of {tried}, among the {guards.left} of {guards.total} images that all other attacks left right"
    if lead > STRONGER:
        text += ": these attacks were misled, and accuracy under attack is lower"
    return Check(name, lead <= STRONGER, text, grave=True)


def _check_large(guards: Guards, recipe: GuardRecipe, *, gradients: bool) -> Check:
    """Check that about no answer stays right at an epsilon that may change every image into any other."""
    text = f"at epsilon {recipe.large_epsilon:g}, of {guards.large} right answers "
    text += f"PGD leaves {guards.large_pgd} and " if gradients else ""
    text += f"Square with {recipe.large_queries:,} queries {'' if gradients else 'leaves '}{guards.large_square}"
    share = guards.large_pgd / guards.large
    failed = wilson(share, guards.large)[0] > ABOUT_ZERO
    if failed:
        text += ", but about none must be left: the attacks do not work on this model"
    return Check("large epsilon", not failed, text, grave=gradients)
