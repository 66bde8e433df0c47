"""Define the recipe of a study; load recipes, also those of the package (shipped/), and format them with comments."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic.fields import FieldInfo

from trustcxr.errors import UserError, unknown
from trustcxr.recipes.evaluation_recipe import EvaluationRecipe, ExplanationRecipe
from trustcxr.recipes.parsing import Seed, Strict, model_in, read_recipe, validate, without_none
from trustcxr.recipes.run_recipe import DataRecipe, RunRecipe, check_splits, check_unused
from trustcxr.recipes.training_recipe import DefenceRecipe, ModelRecipe, TrainingRecipe
from trustcxr.registry import USUAL_DEFENCE

SHIPPED = Path(__file__).parent / "shipped"


class Selection(Strict):
    """Selection of networks for adversarial training, by the validation split."""

    count: int = Field(6, ge=1)
    by: Literal["accuracy", "f1_macro", "auroc_macro"] = "accuracy"


def _as_model(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class StudyRecipe(Strict):
    """A study: models with standard training, the best trained again with each defence, all tested and explained."""

    name: str
    title: str = ""
    data: DataRecipe = DataRecipe()
    models: tuple[Annotated[ModelRecipe, BeforeValidator(_as_model)], ...] = Field(min_length=1)
    training: TrainingRecipe = TrainingRecipe()
    selection: Selection = Selection()
    defences: tuple[Annotated[DefenceRecipe, BeforeValidator(_as_model)], ...] = (DefenceRecipe(name=USUAL_DEFENCE),)
    evaluation: EvaluationRecipe = EvaluationRecipe()
    explanation: ExplanationRecipe = ExplanationRecipe()
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        """Check training keys of models and defences, and raise UserError for a run that occurs twice."""
        check_splits(self.data.splits)
        defences = (DefenceRecipe(), *self.defences)
        runs = [[run_recipe(self, model, defence, 0) for defence in defences] for model in self.models]
        check_unused([run.training for of_model in runs for run in of_model])
        listed: dict[str, list[object]] = {
            "models": [model.called.lower() for model in self.models],
            "defences": [run.trained_how for run in runs[-1]],  # the baselines come first
            "label": [run.name for of_model in runs for run in of_model],
            "seeds": list(self.seeds),
        }
        for key, names in listed.items():
            if twice := [name for name in names if names.count(name) > 1]:
                hint = f"; the baselines are {twice[0]} already" if str(twice[0]).endswith("standard") else ""
                if not hint and key in ("models", "defences"):
                    hint = "; give each a label, which runs and tables then call it by"
                raise UserError(f"key '{key}': {twice[0]} is there twice{hint}")
        return self


def run_recipe(study: StudyRecipe, model: ModelRecipe, defence: DefenceRecipe, seed: int) -> RunRecipe:
    """Return the run of one model, defence and seed; training keys of the defence win over the model's and study's."""
    merged = study.training.model_dump()
    for keys in (model.training, defence.training):
        edits = keys.get("counterfactuals")  # the only part of a training that two levels of a recipe share
        whole = {"counterfactuals": merged["counterfactuals"] | edits} if isinstance(edits, dict) else {}
        merged |= keys | whole
    training = validate(TrainingRecipe, merged, f"training of {model.called}, {defence.called}")
    content = {"model": model, "defence": defence, "seed": seed, "data": study.data, "training": training}
    return validate(RunRecipe, content, f"{model.called}, {defence.called}")


def list_runs(study: StudyRecipe, defences: Sequence[DefenceRecipe] = (DefenceRecipe(),)) -> list[RunRecipe]:
    """Return the runs of every network and seed with each of these defences, by default the standard ones."""
    return [run_recipe(study, m, defence, seed) for defence in defences for m in study.models for seed in study.seeds]


def with_seeds(study: StudyRecipe, count: int) -> StudyRecipe:
    """Return the study with `count` seeds: the study's first, then the next numbers."""
    if count < 1:
        raise UserError(f"--seeds {count}: expected 1 or more")
    more = range(max(study.seeds) + 1, max(study.seeds) + 1 + count)
    seeds = (*study.seeds, *more)[:count]
    return validate(StudyRecipe, study.model_dump(mode="json") | {"seeds": seeds}, f"--seeds {count}")


def with_tracker(study: StudyRecipe, **keys: str) -> StudyRecipe:
    """Return the study with every training followed in a tracker: `track`, and its server `tracking_uri`."""
    content = study.model_dump(mode="json")
    return validate(StudyRecipe, content | {"training": content["training"] | keys}, "--track") if keys else study


def without_tracker(study: StudyRecipe) -> StudyRecipe:
    """Return the study without a tracker."""
    return study.model_copy(update={"training": study.training.without_tracker()})


def adds_seeds(before: StudyRecipe, now: StudyRecipe) -> bool:
    """Return True if `now` is the study `before` with more seeds and no other change."""
    more = set(before.seeds) < set(now.seeds)
    return more and without_tracker(before).model_copy(update={"seeds": now.seeds}) == without_tracker(now)


def removed_models(before: StudyRecipe, now: StudyRecipe) -> list[ModelRecipe]:
    """Return the networks that `now` removes from the study `before`; empty if anything else differs."""
    remaining = tuple(model for model in before.models if model in now.models)
    unchanged = without_tracker(before).model_copy(update={"models": remaining}) == without_tracker(now)
    return [model for model in before.models if model not in now.models] if unchanged else []


def format_seeds(study: StudyRecipe) -> str:
    """Return the number of seeds and the seeds as text."""
    count = len(study.seeds)
    return f"{count} seed{'s' * (count > 1)} ({', '.join(map(str, study.seeds))})"


def shipped_recipes() -> list[str]:
    """Return the names of the recipes in the package."""
    return sorted(p.stem for p in SHIPPED.glob("*.yaml"))


def load_study(recipe: str | Path) -> StudyRecipe:
    """Load a recipe by its name in the package, or from a YAML file; raise UserError if it is not valid."""
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        path = SHIPPED / f"{recipe}.yaml"
        if not path.is_file():
            raise UserError(f"{unknown('recipe', recipe, shipped_recipes())}, or a path that ends in .yaml")
    return read_recipe(StudyRecipe, path)


def recipe_titles() -> dict[str, str]:
    """Return the titles of the shipped recipes by name."""
    return {name: load_study(name).title for name in shipped_recipes()}


def format_recipe(name: str) -> str:
    """Return a recipe as commented YAML, which reads as the same recipe. Raises UserError for an unknown name."""
    study = load_study(name)
    head = [
        f"# The recipe '{name}' of TrustCXR, with every key. A key that is left out has its default.",
        "# What is written in `training` of a model or a defence takes the place of the study's own.",
    ]
    return "\n".join([*head, *_keys(study.model_dump(mode="json"), StudyRecipe, ""), ""])


def _keys(content: Mapping[str, Any], kind: type[BaseModel] | None, indent: str) -> Iterator[str]:
    """Yield a mapping's lines; `kind` has the meaning of its keys. In a list, only the first mapping has comments."""
    for key, value in content.items():
        field = kind.model_fields.get(key) if kind is not None else None
        inner = model_in(field.annotation) if field is not None else None
        says = f"  # {meaning}" if (meaning := _meaning(field, value)) else ""
        parts = value if isinstance(value, list) else [value]
        if not value or not all(isinstance(part, dict) for part in parts):
            yield f"{indent}{key}: {_inline(value)}{says}"
            continue
        yield f"{indent}{key}:{says}"
        for index, part in enumerate(parts):
            lines = _keys(part, inner if index == 0 else None, indent + "  " * (1 + (parts is value)))
            yield f"{indent}  - {next(lines).lstrip()}" if parts is value else next(lines)
            yield from lines


def _inline(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def _meaning(field: FieldInfo | None, value: Any) -> str:
    """Return the meaning of a key, its words if these are a choice, and its default if the recipe differs."""
    if field is None:
        return ""
    default, description = field.get_default(call_default_factory=True), field.description or ""
    kind = without_none(field.annotation)
    words = [str(word) for word in get_args(kind)] if get_origin(kind) is Literal else []
    choice = f"one of {', '.join(words)}" if any(word not in description for word in words) else ""
    shown = isinstance(default, str | int | float | bool) and default not in (value, "")
    return "; ".join(filter(None, (description, choice, f"default: {_inline(default)}" if shown else "")))
