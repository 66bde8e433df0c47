"""What was typed, as recipes."""

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

from trustcxr.errors import UserError
from trustcxr.recipes.evaluation_recipe import CorruptionsRecipe
from trustcxr.recipes.parsing import assign, validate
from trustcxr.recipes.run_recipe import RunRecipe, check_splits, check_unused


class Defending(TypedDict):
    """What is typed of a defence beside its other keys."""

    name: str
    epsilon: float
    ramp: NotRequired[float]
    clean_weight: NotRequired[float]


def recipe(
    *,
    model: str,
    weights: str,
    defence: Defending,
    size: int,
    seed: int,
    training: Mapping[str, object],
    data: Mapping[str, object] | None = None,
    options: Sequence[str] = (),
) -> RunRecipe:
    """The recipe of a run from what was typed; `options` are any of its keys, as "defence.beta=3", and win.

    Raises UserError for what it cannot be, and for a key that would do nothing.
    """
    from trustcxr import attacks, defences
    from trustcxr.models import zoo

    zoo.architectures(model)
    defences.get(defence["name"])
    attacks.check_epsilon(defence["epsilon"])
    content = {
        "model": {"name": model, "weights": weights},
        "defence": defence,
        "seed": seed,
        "data": {"size": size, **(data or {})},
        "training": training,
    }
    made = validate(RunRecipe, assign(content, options), "options")
    zoo.architectures(made.model.name)
    defences.get(made.defence.name)
    check_splits(made.data.splits)
    try:
        check_unused([made.training])
    except UserError as problem:
        raise UserError(f"options: {problem}") from None
    return made


def corruptions_recipe(names: Sequence[str] | None, severities: Sequence[int] | None) -> CorruptionsRecipe | None:
    """The corruptions by name, "all" or none typed for all of them; None where neither was typed."""
    if not names and not severities:
        return None
    content = {
        "names": "all" if not names or "all" in names else list(names),
        "severities": list(severities or CorruptionsRecipe().severities),
    }
    return validate(CorruptionsRecipe, content, "--corruption and --severity")
