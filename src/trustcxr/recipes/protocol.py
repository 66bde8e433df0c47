"""Define the protocol of an audit: a recipe with a version, so that audits compare."""

from typing import Any

from pydantic import Field

from trustcxr.errors import UserError, unknown
from trustcxr.recipes.evaluation_recipe import AttackRecipe, CorruptionsRecipe
from trustcxr.recipes.exams import EXAMS, NEWEST, list_exams
from trustcxr.recipes.parsing import Fraction, Resamples, Strict, read_recipe, validate
from trustcxr.registry import AUDIT_ATTACKS, NEEDS_SURROGATE


class EntryChecksRecipe(Strict):
    """Entry checks, before anything is measured."""

    images: int = Field(120, ge=1, description="images for the check of the declaration, evenly over the classes")
    epsilon: Fraction = 0.02
    planted: int = Field(16, ge=1, description="planted adversarial examples")


class GuardRecipe(Strict):
    """Attacks without gradients of the model, on images that all attacks left right."""

    images: int = Field(64, ge=1, description="most images for Square and the surrogate's adversarial images")
    queries: int = Field(1000, ge=1, description="of Square")
    agreement: Fraction = Field(0.8, description="least agreement with the model, for a surrogate's images to count")
    large_epsilon: Fraction = Field(0.3, description="at which about no answer must stay right")
    large_images: int = Field(16, ge=1, description="most images for it")
    large_queries: int = Field(300, ge=1, description="of Square for it")


class ExamRecipe(Strict):
    """The protocol of an audit. `without_gradients`: the attacks on a model without gradients."""

    version: str | None
    about: str = Field("", description="what of its figures differs from those of the whole protocol")
    images: int | None = Field(None, ge=1, description="most images under attacks and corruptions; default: all")
    attacks: tuple[AttackRecipe, ...]
    without_gradients: tuple[AttackRecipe, ...]
    corruptions: CorruptionsRecipe
    entry_checks: EntryChecksRecipe = EntryChecksRecipe()
    guards: GuardRecipe = GuardRecipe()
    batch_size: int = Field(64, ge=1)
    bootstrap: Resamples = Field(2000, description="resamples behind each interval")

    def changed(self, attacks: tuple[str, ...] = (), epsilons: tuple[float, ...] = ()) -> "ExamRecipe":
        """Return the protocol with other attacks or radii, then without a version. Raises UserError for wrong ones."""
        if not attacks and not epsilons:
            return self
        for name in attacks:
            if name in NEEDS_SURROGATE:
                why = f"an audit has no surrogate to attack in its place; choose of {', '.join(AUDIT_ATTACKS)}"
                raise UserError(f"--attack {name}: {why}")
            if name not in AUDIT_ATTACKS:
                raise UserError(f"--attack {name}: {unknown('attack', name, AUDIT_ATTACKS)}")
        if wrong := [epsilon for epsilon in epsilons if not epsilon > 0]:
            why = "an attack needs a radius above 0; images as they are, without any attack, are examined as well"
            raise UserError(f"--epsilon {wrong[0]:g}: {why}")
        content: dict[str, Any] = self.model_dump(mode="json") | {"version": None}
        for part in ("attacks", "without_gradients"):
            by_name = {attack["name"]: attack for attack in content[part]}
            radii = sorted({e for attack in by_name.values() for e in attack["epsilons"]})
            kept_names = [name for name in by_name if not attacks or name in attacks]
            names = attacks if attacks and part == "attacks" else kept_names
            content[part] = [by_name.get(n, {"name": n, "epsilons": radii}) for n in dict.fromkeys(names)]
            for attack in content[part] if epsilons else []:
                attack["epsilons"] = list(dict.fromkeys(epsilons))
        return validate(ExamRecipe, content, "--attack and --epsilon")


def load_exam(version: str = NEWEST) -> ExamRecipe:
    """Load a protocol by its version; UserError with the valid names for any other."""
    if version not in (names := list_exams()):
        raise unknown("protocol", version, names)
    return read_recipe(ExamRecipe, EXAMS / f"{version}.yaml")
