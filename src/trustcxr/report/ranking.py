"""What the whole page has to agree on: the epsilon of its headline, the order of its rows, and chance."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trustcxr.registry import DEFENCES, HEADLINE_ATTACKS, is_linf
from trustcxr.report import formatting
from trustcxr.report.load import Run
from trustcxr.storage.schemas import StudyDocument
from trustcxr.storage.schemas.test_figures import CONSTANT

_USUAL_EPSILON = 0.02  # arXiv 2311.14227; taken where the recipe names none


@dataclass(frozen=True)
class Headline:
    """The attacks and the epsilon that the leaderboard and the summary speak of."""

    epsilon: float | None
    attacks: tuple[str, ...]  # in order of strength as far as known
    names: dict[str, str]  # fgsm -> FGSM, pgd -> PGD-20; with several numbers of steps, of which the lowest is shown
    split: str
    classes: tuple[str, ...]
    strongest: str | None = None  # the attack that leaves the lowest accuracy, over the runs

    def grey_levels(self) -> str:
        """Epsilon in the 255 grey levels of an image file."""
        return formatting.decimal(None if self.epsilon is None else 255 * self.epsilon, 1)


def choose_headline(study: StudyDocument, runs: list[Run]) -> Headline:
    """Choose the epsilon that the recipe trains against if tested, else the usual 0.02, else the one tested most."""
    tested = Counter(round(e.epsilon, 9) for run in runs for e in run.attacks if e.epsilon is not None)
    wanted = _recipe_epsilon(study.recipe) or _USUAL_EPSILON
    chosen = min(tested, key=lambda e: (abs(e - wanted) > 1e-9, -tested[e], abs(e - wanted))) if tested else None
    names = attacks_at(runs, chosen)
    splits = [run.metrics.split for run in runs if run.metrics.split]
    classes = study.classes or next((run.metrics.classes for run in runs if run.metrics.classes), [])
    return Headline(
        epsilon=chosen,
        attacks=tuple(names),
        names=names,
        split=Counter(splits).most_common(1)[0][0] if splits else formatting.DASH,
        classes=tuple(classes),
        strongest=_strongest(runs, list(names), chosen),
    )


def attacks_at(runs: Sequence[Run], epsilon: float | None) -> dict[str, str]:
    """The attacks that were tried at an epsilon, in order of strength as far as known, and what tables call them."""
    steps_of: dict[str, set[int]] = {}
    for entry in (entry for run in runs for entry in run.at(epsilon)):
        steps_of.setdefault(entry.attack, set()).update([entry.steps] if entry.steps else [])
    order = [a for a in HEADLINE_ATTACKS if a in steps_of] + sorted(a for a in steps_of if a not in HEADLINE_ATTACKS)
    return {name: _name(name, sorted(steps_of[name])) for name in order}


def _name(attack: str, steps: list[int]) -> str:
    """PGD-20, or PGD-10/40 where the lowest of several is shown."""
    return formatting.attack(attack, steps[0] if steps else None) + "".join(f"/{more}" for more in steps[1:])


def _strongest(runs: list[Run], names: list[str], epsilon: float | None) -> str | None:
    """The attack with the lowest mean accuracy over the runs that it was tried on, the later of equals."""
    means: dict[str, float] = {}
    for name in names:
        accuracies = [run.attacked(name, epsilon).accuracy.value for run in runs]
        values = [value for value in accuracies if value is not None]
        if values and (is_linf(name) or len(names) == 1):
            means[name] = sum(values) / len(values)
    return min(reversed(list(means)), key=lambda name: means[name]) if means else None


def _recipe_epsilon(recipe: Any) -> float | None:
    """The first `epsilon` that is a plain number, looking under the defences before the rest of the recipe.

    A defence that trains against no radius, as mixup, has the key too where the recipe is written out; it is not read.
    """
    if isinstance(recipe, list):
        return next((e for e in map(_recipe_epsilon, recipe) if e), None)
    if not isinstance(recipe, dict):
        return None
    named = str(recipe.get("name"))
    if named in DEFENCES and not DEFENCES[named].attacks:
        return None
    direct = formatting.finite(recipe.get("epsilon"))
    if direct:
        return direct
    deeper = sorted(recipe.items(), key=lambda item: not str(item[0]).startswith(("defence", "robust", "train")))
    return next((e for e in (_recipe_epsilon(value) for _, value in deeper) if e), None)


def rank_runs(runs: list[Run], head: Headline) -> list[Run]:
    """By the lowest accuracy under any attack in whole percent, so that noise does not rank, then by clean accuracy.

    Behind them those whose gradients fail, so that what attacks leave says nothing; last those that are not shown to
    be better than a constant answer, which no attack changes.
    """

    def key(run: Run) -> tuple[bool, bool, float, float, str]:
        under, clean = run.strongest(head.epsilon).accuracy.value, run.clean.accuracy.value
        order = (-round(100 * under) if under is not None else 1, -clean if clean is not None else 1, run.label)
        return (not better_than_constant(run), run.masked is True, *order)

    return sorted(runs, key=key)


def main_method(methods: Mapping[str, object]) -> str:
    """Return the saliency method that the page speaks of: the first of the recipe; empty without any."""
    return next(iter(methods), "")


def group_by_model(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs under their network, networks in the order given, `standard` first within each."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.model, []).append(run)
    for group in groups.values():
        group.sort(key=lambda run: (_place(run.defence), run.label))
    return groups


def list_defences(runs: list[Run]) -> list[str]:
    """The defences of these runs, `standard` first."""
    return sorted({run.defence for run in runs}, key=lambda name: (_place(name), name))


def _place(defence: str) -> int:
    return list(DEFENCES).index(defence) if defence in DEFENCES else len(DEFENCES)


def constant_answer(run: Run) -> float | None:
    """Accuracy of always answering with the commonest class of the test images."""
    return run.metrics.clean.constant_answer


def better_than_constant(run: Run) -> bool:
    """Whether its clean accuracy is not in question; a network that answers always the same resists every attack."""
    return not run.alarmed(CONSTANT)


def shared_constant_answer(runs: list[Run]) -> float | None:
    """The constant answer's accuracy if it is the same for every run, else None."""
    values = {round(v, 6) for v in map(constant_answer, runs) if v is not None}
    return values.pop() if len(values) == 1 else None
