"""Define the parts of a recipe for testing: attacks, corruptions, saliency."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from trustcxr.errors import UserError, unknown
from trustcxr.recipes.parsing import Fraction, Resamples, Strict
from trustcxr.registry import ATTACKS, CORRUPTIONS, USUAL_ATTACKS, Attack, Method, format_steps


def _check_attack(attack: str) -> str:
    if attack not in ATTACKS:
        raise ValueError(str(unknown("attack", attack, ATTACKS)))
    return attack


class AttackRecipe(Strict):
    """One attack of the evaluation; an option that the attack does not take must be None."""

    name: Annotated[str, AfterValidator(_check_attack)] = Field(description=f"one of {', '.join(ATTACKS)}")
    epsilons: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.02,),
        min_length=1,
        description="L-infinity radii in pixel space, in [0, 1]; for pgd-l2, L2 radii, which may be above 1",
    )
    steps: int | None = Field(None, ge=1, description=f"gradient steps: {format_steps()}")
    queries: int | None = Field(None, ge=1, description="forward passes of Square; default: 1000")
    restarts: int | None = Field(None, ge=1, description="random restarts; default: 1")
    precision: Literal["bf16"] | None = Field(None, description="bf16: search in bfloat16, confirm in full precision")
    surrogate: str | None = Field(None, description="folder of the run that the transfer attack attacks")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, content: Any) -> Any:
        """Fill in the defaults of the attack's options."""
        entry = ATTACKS.get(str(content.get("name"))) if isinstance(content, dict) else None
        taken = entry.options if entry else {}
        return {**content, **{k: v for k, v in taken.items() if content.get(k) is None}} if taken else content

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        taken = self.entry.options
        for option in ("steps", "queries", "restarts", "precision", "surrogate"):
            if getattr(self, option) is not None and option not in taken:
                takes = f"it takes {', '.join(taken)}" if taken else "it takes none"
                raise ValueError(f"{self.name} has no option '{option}'; {takes}")
        if "surrogate" in taken and self.surrogate is None:
            raise ValueError(f"{self.name} needs a surrogate (--surrogate): the folder of the run to attack")
        if self.entry.norm == "linf" and any(e > 1 for e in self.epsilons):
            raise ValueError(f"epsilon of {self.name} is an L-infinity radius in pixel space: at most 1")
        return self

    @property
    def entry(self) -> Attack:
        """Return the attack's entry in the registry."""
        return ATTACKS[self.name]

    @property
    def effort(self) -> int:
        """Return steps, else queries, else 1: the column `steps` of the predictions."""
        return self.steps or self.queries or 1

    def options(self) -> dict[str, object]:
        """Return the options that the attack takes, without the surrogate."""
        return {k: getattr(self, k) for k in self.entry.options if k != "surrogate"}


def check_repeats(attacks: Sequence[AttackRecipe]) -> None:
    """Raise UserError if a condition occurs twice: its rows would count as one condition of twice the images."""
    conditions: set[tuple[str, float, int]] = set()
    for attack in attacks:
        for epsilon in map(float, attack.epsilons):
            if (attack.name, epsilon, attack.effort) in conditions:
                effort = f" with {attack.effort} {'steps' if attack.steps else 'queries'}" if attack.effort > 1 else ""
                raise UserError(f"key 'evaluation.attacks': {attack.name} at {epsilon:g}{effort} is there twice")
            conditions.add((attack.name, epsilon, attack.effort))


class CorruptionsRecipe(Strict):
    """Corruptions at severities 1 to 5."""

    names: Literal["all"] | tuple[str, ...] = "all"
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field((1, 2, 3, 4, 5), min_length=1)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for name in () if self.names == "all" else self.names:
            if name not in CORRUPTIONS:
                raise ValueError(str(unknown("corruption", name, CORRUPTIONS)))
        return self

    def conditions(self) -> tuple[tuple[str, int], ...]:
        """Return every (name, severity), each once."""
        names = tuple(CORRUPTIONS) if self.names == "all" else dict.fromkeys(self.names)
        return tuple((name, severity) for name in names for severity in sorted(set(self.severities)))


class EvaluationRecipe(Strict):
    """Attacks and corruptions that a run is tested with."""

    attacks: tuple[AttackRecipe, ...] = tuple(AttackRecipe(name=name) for name in USUAL_ATTACKS)
    corruptions: CorruptionsRecipe | None = Field(None, description="{names: all or a list, severities: [1, 3, 5]}")
    batch_size: int = Field(64, ge=1)
    bootstrap: Resamples = Field(2000, description="resamples behind each interval")

    @model_validator(mode="after")
    def _check_repeats(self) -> Self:
        check_repeats(self.attacks)
        return self

    def conditions(self) -> set[tuple[str, float, int, int]]:
        """Return the conditions of predictions.parquet, besides clean and views: attack, epsilon, steps, severity."""
        attacked = {(attack.name, float(e), attack.effort, 0) for attack in self.attacks for e in attack.epsilons}
        named = self.corruptions.conditions() if self.corruptions else ()
        return attacked | {(name, 0.0, 0, severity) for name, severity in named}


class ExplanationRecipe(Strict):
    """Saliency methods and their measures."""

    methods: tuple[Annotated[str, AfterValidator(lambda name: str(Method.parse(name)))], ...] = Field(
        ("gradcam", "layercam"),
        min_length=1,
        description="names of saliency methods; a CAM of an earlier layer is layercam@-2 or layercam@layer3",
    )
    epsilon: Fraction = Field(0.02, description="of the FGSM and PGD images for stability")
    corruptions: Literal["all"] | tuple[str, ...] = Field("all", description="corruptions for stability")
    severity: int = Field(3, ge=1, le=5, description="of the corruptions")
    sample: int = Field(32, ge=0, description="images drawn for PGD stability, faithfulness and sanity; 0: none")
    panels: int = Field(6, ge=0, description="images drawn at random for the report; the best and worst come on top")
