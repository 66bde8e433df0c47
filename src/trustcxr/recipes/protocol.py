"""The examination of a given model: one recipe with a version, so that two audits compare."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from trustcxr.errors import UserError, unknown
from trustcxr.recipes.evaluation_recipe import AttackRecipe, CorruptionsRecipe
from trustcxr.recipes.parsing import Fraction, Resamples, Strict, read_recipe, validate
from trustcxr.registry import AUDITED, NEEDS_SURROGATE

EXAMS = Path(__file__).parent / "exams"
NEWEST = "exam-1"


class EntryChecksRecipe(Strict):
    """Settings of the entry checks, which run before anything is measured."""

    images: int = Field(120, ge=1, description="on which the declaration is tried, the classes evenly among them")
    epsilon: Fraction = 0.02
    planted: int = Field(16, ge=1, description="adversarial examples that are planted")


class EffortRecipe(Strict):
    """How hard else is tried: what attacks of an audit take for themselves, whichever of them are asked for.

    These numbers stand in the code where they are used, and a test holds both equal: whoever changes one there writes
    another version of the examination.
    """

    threshold_steps: int = Field(10, ge=1, description="at most, of the climb against each class at its threshold")
    longer: int = Field(10, ge=1, description="times the steps of a climb through stand-ins, on what a first one left")
    climbs: int = Field(6, ge=1, description="such climbs, at most, while they help")
    draws: int = Field(16, ge=1, description="by which a model that answers at random is judged")
    surrogate_images: int = Field(256, ge=1, description="training images that a surrogate learns from, at most")
    surrogate_steps: int = Field(300, ge=1, description="of its training")
    planted_steps: int = Field(40, ge=1, description="of the attack that looks for planted examples")
    planted_found: Fraction = Field(0.95, description="share of them that it must find")


class ExamRecipe(Strict):
    """What a model is examined with. `without_gradients`: the attacks where the model has no gradients."""

    version: str | None
    attacks: tuple[AttackRecipe, ...]
    without_gradients: tuple[AttackRecipe, ...]
    corruptions: CorruptionsRecipe
    entry_checks: EntryChecksRecipe = EntryChecksRecipe()
    effort: EffortRecipe = EffortRecipe()
    seeds: Literal["batch"] = Field(
        "batch", description="the number of a batch is the seed of its attacks, from 0; corruptions are drawn by name"
    )
    batch_size: int = Field(64, ge=1)
    bootstrap: Resamples = Field(2000, description="resamples behind each interval")

    def changed(self, attacks: tuple[str, ...] = (), epsilons: tuple[float, ...] = ()) -> "ExamRecipe":
        """The same with other attacks or radii, and then without a version; itself where nothing is changed.

        UserError for an attack that there is not, or a radius that cannot be.
        """
        if not attacks and not epsilons:
            return self
        _refuse(attacks, epsilons)
        content: dict[str, Any] = self.model_dump(mode="json") | {"version": None}
        for part in ("attacks", "without_gradients"):
            known = {attack["name"]: attack for attack in content[part]}
            radii = sorted({e for attack in known.values() for e in attack["epsilons"]})
            names = attacks if attacks and part == "attacks" else tuple(n for n in known if not attacks or n in attacks)
            content[part] = [known.get(n, {"name": n, "epsilons": radii}) for n in dict.fromkeys(names)]
            for attack in content[part] if epsilons else []:
                attack["epsilons"] = list(dict.fromkeys(epsilons))
        return validate(ExamRecipe, content, "--attack and --epsilon")


def _refuse(attacks: Iterable[str], epsilons: Iterable[float]) -> None:
    """UserError for an attack that no audit has, or a radius within which nothing may be changed."""
    for name in (name for name in attacks if name not in AUDITED):
        if name in NEEDS_SURROGATE:
            why = f"an audit has no surrogate to attack in its place; choose of {', '.join(AUDITED)}"
            raise UserError(f"--attack {name}: {why}")
        raise UserError(f"--attack {name}: {unknown('attack', name, AUDITED)}")
    for epsilon in (epsilon for epsilon in epsilons if not epsilon > 0):
        why = "an attack needs a radius above 0; images as they are, without any attack, are examined as well"
        raise UserError(f"--epsilon {epsilon:g}: {why}")


def load_exam(version: str = NEWEST) -> ExamRecipe:
    """An examination by its version."""
    return read_recipe(ExamRecipe, EXAMS / f"{version}.yaml")
