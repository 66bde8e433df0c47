"""Choose what the whole page uses: the epsilon of its headline, the order of its rows, and chance."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trustcxr.registry import DEFENCES, HEADLINE_ATTACKS, Effort, is_linf
from trustcxr.report import formatting
from trustcxr.report.load import Run
from trustcxr.storage.schemas import StudyDocument
from trustcxr.storage.schemas.run_document import CONSTANT

_USUAL_EPSILON = 0.02  # arXiv 2311.14227; used if the recipe names none


@dataclass(frozen=True)
class Headline:
    """The attacks and the epsilon of the leaderboard and the summary."""

    epsilon: float | None
    attacks: tuple[Effort, ...]  # weakest first, as far as known
    split: str
    classes: tuple[str, ...]
    strongest: Effort | None = None  # the attack with the lowest mean accuracy over the runs


def choose_headline(study: StudyDocument, runs: list[Run]) -> Headline:
    """Choose the epsilon that the recipe trains against if tested, else the usual 0.02, else the one tested most."""
    tested = Counter(round(e.epsilon, 9) for run in runs for e in run.attacks if e.epsilon is not None)
    wanted = _recipe_epsilon(study.recipe) or _USUAL_EPSILON
    chosen = min(tested, key=lambda e: (abs(e - wanted) > 1e-9, -tested[e], abs(e - wanted)), default=None)
    attacks = _list_attacks(runs, chosen)
    splits = Counter(run.metrics.split for run in runs if run.metrics.split)
    split = max(splits, key=lambda name: splits[name], default=formatting.DASH)
    classes = study.classes or next((run.metrics.classes for run in runs if run.metrics.classes), [])
    return Headline(chosen, attacks, split, tuple(classes), _find_strongest(runs, attacks, chosen))


def _list_attacks(runs: Sequence[Run], epsilon: float | None) -> tuple[Effort, ...]:
    """Return the attacks tried at an epsilon; each effort is one, such as PGD-10 and PGD-40."""
    efforts = {entry.effort for run in runs for entry in run.at(epsilon)}
    usual = {name: index for index, name in enumerate(HEADLINE_ATTACKS)}
    order = lambda e: (usual.get(e.attack, len(usual)), e.attack, e.steps or 0, e.queries or 0)  # noqa: E731
    return tuple(sorted(efforts, key=order))


def _find_strongest(runs: list[Run], attacks: Sequence[Effort], epsilon: float | None) -> Effort | None:
    """Return the attack with the lowest mean accuracy over the runs that it was tried on; the later of equals."""
    means: dict[Effort, float] = {}
    for effort in attacks:
        values = [v for run in runs if (v := run.attacked(effort, epsilon).accuracy.value) is not None]
        if values and (is_linf(effort.attack) or len(attacks) == 1):
            means[effort] = sum(values) / len(values)
    return min(reversed(list(means)), key=lambda effort: means[effort], default=None)


def _recipe_epsilon(recipe: Mapping[str, Any]) -> float | None:
    """Return the epsilon of the first defence that trains on an attack; other defences have the key too."""
    for defence in recipe.get("defences") or [recipe.get("defence") or {}]:
        entry = DEFENCES.get(defence.get("name"))
        if entry is not None and entry.attacks:
            return defence.get("epsilon")
    return None


def rank_runs(runs: list[Run], head: Headline) -> list[Run]:
    """Return runs by lowest accuracy under attack in whole percent, so that noise does not rank, then by clean.

    Then come runs with failing gradients, and last those not shown to be better than a constant answer.
    """

    def key(run: Run) -> tuple[bool, bool, float, float, str]:
        under, clean = run.strongest(head.epsilon).accuracy.value, run.clean.accuracy.value
        order = (-round(100 * under) if under is not None else 1, -clean if clean is not None else 1, run.label)
        return (not better_than_constant(run), run.masked is True, *order)

    return sorted(runs, key=key)


def group_by_model(runs: list[Run]) -> dict[str, list[Run]]:
    """Return runs by network, networks in the order given, `standard` first within each."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.model, []).append(run)
    for group in groups.values():
        group.sort(key=lambda run: (_defence_index(run.defence), run.label))
    return groups


def list_defences(runs: list[Run]) -> list[str]:
    """Return the defences of these runs, `standard` first."""
    return sorted({run.defence for run in runs}, key=lambda name: (_defence_index(name), name))


def _defence_index(defence: str) -> int:
    return list(DEFENCES).index(defence) if defence in DEFENCES else len(DEFENCES)


def better_than_constant(run: Run) -> bool:
    """Return False if clean accuracy may be that of a constant answer, which resists every attack."""
    return not run.alarmed(CONSTANT)
