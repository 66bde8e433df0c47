"""Format a shipped recipe with every key and its meaning, to start a new recipe from."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trustcxr.recipes.parsing import model_in
from trustcxr.recipes.study_recipe import StudyRecipe, load_study, shipped_recipes

_INDENT = "  "


def recipe_titles() -> dict[str, str]:
    """Return the titles of the shipped recipes by name."""
    return {name: load_study(name).title for name in shipped_recipes()}


def format_recipe(name: str) -> str:
    """Return the recipe of that name as commented YAML, which reads as the same recipe.

    Raises UserError, with the nearest name, for an unknown one.
    """
    study = load_study(name)
    head = [
        f"# The recipe '{name}' of TrustCXR, with every key. A key that is left out has its default.",
        "# What is written in `training` of a model or a defence takes the place of the study's own.",
    ]
    return "\n".join([*head, *_keys(study.model_dump(mode="json"), StudyRecipe, ""), ""])


def _keys(content: Mapping[str, Any], kind: type[BaseModel] | None, indent: str) -> Iterator[str]:
    """Yield a mapping's lines; `kind` has the meaning of its keys."""
    for key, value in content.items():
        field = kind.model_fields.get(key) if kind is not None else None
        inner = model_in(field.annotation) if field is not None else None
        says = f"  # {meaning}" if (meaning := _meaning(field, value)) else ""
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:{says}"
            yield from _keys(value, inner, indent + _INDENT)
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            yield f"{indent}{key}:{says}"
            yield from _items(value, inner, indent + _INDENT)
        else:
            yield f"{indent}{key}: {_inline(value)}{says}"


def _items(values: Sequence[Any], kind: type[BaseModel] | None, indent: str) -> Iterator[str]:
    """Yield the lines of a list of mappings; only the first has comments."""
    for index, value in enumerate(values):
        lines = list(_keys(value, kind if index == 0 else None, indent + _INDENT))
        yield f"{indent}- {lines[0].lstrip()}"
        yield from lines[1:]


def _inline(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def _meaning(field: FieldInfo | None, value: Any) -> str:
    """Return the meaning of a key, and its default if the recipe differs."""
    if field is None:
        return ""
    default = field.get_default(call_default_factory=True) if not field.is_required() else None
    plain = isinstance(default, str | int | float | bool) and default != value
    words = [str(word) for word in _choices(field.annotation)]
    description = field.description or ""
    parts = [
        description,
        f"one of {', '.join(words)}" if any(word not in description for word in words) else "",
        f"default: {_inline(default)}" if plain and default != "" else "",
    ]
    return "; ".join(part for part in parts if part)


def _choices(annotation: Any) -> tuple[Any, ...]:
    """Return the values of `Literal["a", "b"] | None` (a, b); empty if a key may hold anything else."""
    inner = [part for part in get_args(annotation) if part is not type(None)]
    if get_origin(annotation) is Literal:
        return tuple(inner)
    return _choices(inner[0]) if len(inner) == 1 else ()
