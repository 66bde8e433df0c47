"""What the whole page has to agree on: the epsilon of its headline, the order of its rows, and chance."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from trustcxr.catalogue import DEFENCES
from trustcxr.report import words
from trustcxr.report.study_folder import Run

_USUAL_EPSILON = 0.02  # arXiv 2311.14227; taken where the recipe names none


@dataclass(frozen=True)
class Headline:
    """The attacks and the epsilon that the leaderboard and the summary speak of."""

    epsilon: float | None
    attacks: tuple[str, ...]  # in order of strength as far as known: fgsm, pgd, then others
    names: dict[str, str]  # fgsm -> FGSM, pgd -> PGD-20
    split: str
    classes: tuple[str, ...]

    @property
    def strongest(self) -> str | None:
        """The attack that the order of the rows rests on: worst-case, else PGD, else the last there is."""
        for name in ("worst-case", "pgd"):
            if name in self.attacks:
                return name
        return self.attacks[-1] if self.attacks else None

    def grey_levels(self) -> str:
        """Epsilon in the 255 grey levels of an image file."""
        return words.decimal(None if self.epsilon is None else 255 * self.epsilon, 1)


def headline(study: dict[str, Any], runs: list[Run]) -> Headline:
    """Choose the epsilon that the recipe trains against if tested, else the usual 0.02, else the one tested most."""
    tested = Counter(round(float(e["epsilon"]), 9) for run in runs for e in run.attacks)
    wanted = _recipe_epsilon(study.get("recipe")) or _USUAL_EPSILON
    chosen = min(tested, key=lambda e: (abs(e - wanted) > 1e-9, -tested[e], abs(e - wanted))) if tested else None
    found: dict[str, Any] = {}
    for run in runs:
        for entry in run.attacks:
            if chosen is not None and abs(float(entry["epsilon"]) - chosen) < 1e-9:
                found[entry["attack"]] = found.get(entry["attack"]) or entry.get("steps")
    known = ("fgsm", "pgd", "worst-case")
    order = [a for a in known if a in found] + sorted(a for a in found if a not in known)
    splits = [str(run.metrics["split"]) for run in runs if run.metrics.get("split")]
    classes: Any = study.get("classes") or next((r.metrics["classes"] for r in runs if r.metrics.get("classes")), [])
    return Headline(
        epsilon=chosen,
        attacks=tuple(order),
        names={name: words.attack(name, steps) for name, steps in found.items()},
        split=Counter(splits).most_common(1)[0][0] if splits else words.DASH,
        classes=tuple(str(c) for c in classes) if isinstance(classes, list) else (),
    )


def _recipe_epsilon(recipe: Any) -> float | None:
    """The first `epsilon` that is a plain number, looking under the defences before the rest of the recipe."""
    if isinstance(recipe, list):
        return next((e for e in map(_recipe_epsilon, recipe) if e), None)
    if not isinstance(recipe, dict):
        return None
    direct = words.finite(recipe.get("epsilon"))
    if direct:
        return direct
    deeper = sorted(recipe.items(), key=lambda item: not str(item[0]).startswith(("defence", "robust", "train")))
    return next((e for e in (_recipe_epsilon(value) for _, value in deeper) if e), None)


def ordered(runs: list[Run], head: Headline) -> list[Run]:
    """By accuracy under the strongest attack in whole percent, so that noise does not rank, then by clean accuracy."""

    def key(run: Run) -> tuple[float, float, str]:
        under = words.finite(run.attacked(head.strongest, head.epsilon).get("accuracy")) if head.strongest else None
        clean = words.finite(run.clean("accuracy"))
        return (-round(100 * under) if under is not None else 1, -clean if clean is not None else 1, run.label)

    return sorted(runs, key=key)


def by_model(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs under their network, networks in the order given, `standard` first within each."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.model, []).append(run)
    for group in groups.values():
        group.sort(key=lambda run: (_place(run.defence), run.label))
    return groups


def defences(runs: list[Run]) -> list[str]:
    """The defences of these runs, `standard` first."""
    return sorted({run.defence for run in runs}, key=lambda name: (_place(name), name))


def ways(runs: list[Run]) -> list[str]:
    """The ways of training of these runs, standard first: defences, each with each of its backgrounds."""
    return list(dict.fromkeys(run.way for run in sorted(runs, key=lambda r: (_place(r.defence), r.defence, r.way))))


def _place(defence: str) -> int:
    return list(DEFENCES).index(defence) if defence in DEFENCES else len(DEFENCES)


def constant_answer(run: Run) -> float | None:
    """Accuracy of always answering with the commonest class of the test images, from the confusion matrix or n."""
    rows = run.clean("confusion")
    if isinstance(rows, list) and rows and all(isinstance(r, list) for r in rows):
        sizes = [sum(words.finite(v) or 0.0 for v in r) for r in rows]
    else:
        per_class = run.clean("per_class")
        documents = per_class.values() if isinstance(per_class, dict) else []
        sizes = [words.finite(words.get(d, "n")) or 0.0 for d in documents]
    return max(sizes) / sum(sizes) if sizes and sum(sizes) > 0 else None


def shared_constant_answer(runs: list[Run]) -> float | None:
    """The constant answer's accuracy if it is the same for every run, else None."""
    values = {round(v, 6) for v in map(constant_answer, runs) if v is not None}
    return values.pop() if len(values) == 1 else None
