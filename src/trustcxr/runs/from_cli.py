"""Build recipes from options of the command line."""

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

from trustcxr.errors import UserError
from trustcxr.recipes.evaluation_recipe import CorruptionsRecipe
from trustcxr.recipes.parsing import assign, validate
from trustcxr.recipes.run_recipe import RunRecipe, check_splits, check_unused


class DefenceOptions(TypedDict):
    """Options of a defence."""

    name: str
    epsilon: NotRequired[float]
    ramp: NotRequired[float]
    clean_weight: NotRequired[float]


def recipe(
    *,
    model: str,
    weights: str,
    defence: DefenceOptions,
    size: int,
    seed: int,
    training: Mapping[str, object],
    data: Mapping[str, object] | None = None,
    options: Sequence[str] = (),
) -> RunRecipe:
    """Build the recipe of a run; `options`, such as "defence.beta=3", override other arguments.

    Raises UserError for an invalid value, and for a key without effect.
    """
    from trustcxr import attacks, defences
    from trustcxr.models import factory

    factory.architectures(model)
    defences.get(defence["name"])
    if "epsilon" in defence:
        attacks.check_epsilon(defence["epsilon"])
    content = {
        "model": {"name": model, "weights": weights},
        "defence": defence,
        "seed": seed,
        "data": {"size": size, **(data or {})},
        "training": training,
    }
    run = validate(RunRecipe, assign(content, options), "options")
    factory.architectures(run.model.name)
    defences.get(run.defence.name)
    check_splits(run.data.splits)
    try:
        check_unused([run.training])
    except UserError as problem:
        raise UserError(f"options: {problem}") from None
    return run


def corruptions_recipe(names: Sequence[str] | None, severities: Sequence[int] | None) -> CorruptionsRecipe | None:
    """Build a recipe of corruptions: all of them without `names`; None if both arguments are empty."""
    if not names and not severities:
        return None
    content = {
        "names": "all" if not names or "all" in names else list(names),
        "severities": list(severities or CorruptionsRecipe().severities),
    }
    return validate(CorruptionsRecipe, content, "--corruption and --severity")
