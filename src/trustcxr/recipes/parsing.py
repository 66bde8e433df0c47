"""Parse a mapping as a recipe, or name the wrong key and the nearest right one."""

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trustcxr.errors import UserError, unknown
from trustcxr.storage.atomic import parse_yaml, read_yaml

_LONGEST = 80  # characters of a wrong value that a message repeats

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Resamples = Annotated[int, Field(ge=100, le=100_000)]  # each holds a number for every patient
Fraction = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A part of a recipe: frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=Strict)


def read_recipe(kind: type[Model], path: Path) -> Model:
    """Read a recipe from a YAML file; raise UserError, with file and key, if it is not valid."""
    advice = "trustcxr recipe quick prints a recipe to start from"
    return validate(kind, read_yaml(path, what="recipe file", advice=advice), str(path))


def validate(kind: type[Model], content: object, where: str) -> Model:
    """Return `content` as a recipe; raise UserError with the first wrong key, and the nearest right one."""
    try:
        return kind.model_validate(content)
    except UserError as problem:  # from a validator over several keys
        raise UserError(f"{where}: {problem}") from None
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(map(str, first["loc"]))
        at = f"key '{key}': " if key else ""
        if first["type"] == "extra_forbidden":
            *parents, last = first["loc"]
            complaint = str(unknown("key", last, _recipe_at(kind, parents).model_fields))
            raise UserError(f"{where}: " + complaint.replace(f"'{last}'", f"'{key}'", 1)) from None
        if first["type"] == "value_error":  # ours, about several keys together
            raise UserError(f"{where}: {at}{first['ctx']['error']}") from None
        if first["type"] == "literal_error" and len(words := re.findall(r"'([^']*)'", first["ctx"]["expected"])) > 1:
            raise UserError(f"{where}: key '{key}': {unknown('value', first['input'], words)}") from None
        more = f" (and {problem.error_count() - 1} more)" if problem.error_count() > 1 else ""
        text = repr(first["input"])
        shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
        raise UserError(f"{where}: {at}{_expected(kind, first)}, not {shown}{more}") from None


def assign(content: Mapping[str, object], pairs: Iterable[str]) -> dict[str, object]:
    """Return a copy of `content` with keys set by pairs such as "defence.beta=3", the value read as YAML.

    Raises UserError for a pair without a key or with a value that is not YAML; `validate` checks the keys.
    """
    result = copy.deepcopy(dict(content))
    for pair in pairs:
        dotted, equals, text = pair.partition("=")
        *parents, last = dotted.split(".")
        if not equals or not all((*parents, last)):
            raise UserError(f"--set {pair}: write KEY=VALUE, such as defence.beta=3 or training.augment.flip=0.5")
        at: Any = result
        for parent in parents:
            at = at.setdefault(parent, {})
            if not isinstance(at, dict):
                raise UserError(f"--set {pair}: '{parent}' holds a value, not keys")
        try:
            at[last] = parse_yaml(text)
        except (ValueError, yaml.YAMLError) as problem:
            raise UserError(f"--set {pair}: not readable as YAML: {' '.join(str(problem).split())}") from None
    return result


def _expected(kind: type[BaseModel], fault: "ErrorDetails") -> str:
    """Return what a key may hold, in plain words."""
    if fault["type"] == "tuple_type":
        return "expected a list"
    if fault["type"] != "model_type":
        message = fault["msg"].split(", unable to parse")[0]
        return re.sub(r"^Input should be (?=less|greater)", "expected a number ", message).replace(
            "Input should be", "expected"
        )
    if not fault["loc"]:
        return f"expected keys with values ({', '.join(kind.model_fields)})"
    *parents, last = fault["loc"]
    field = _recipe_at(kind, parents).model_fields.get(str(last))
    left_out = "" if field is None or field.is_required() else ", or the key left out"
    return f"expected keys with values ({', '.join(_recipe_at(kind, fault['loc']).model_fields)}){left_out}"


def _recipe_at(kind: type[BaseModel], location: Iterable[int | str]) -> type[BaseModel]:
    """Return the part of a recipe at `location`."""
    at = kind
    for part in location:
        if isinstance(part, str) and part in at.model_fields:
            at = model_in(at.model_fields[part].annotation) or at
    return at


def without_none(annotation: Any) -> Any:
    """Return X of the annotation X | None, and any other as it is."""
    parts = [part for part in get_args(annotation) if part is not type(None)]
    return parts[0] if type(None) in get_args(annotation) else annotation


def model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the recipe class that a key holds, alone or in a list; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        if model := model_in(part):
            return model
    return None
