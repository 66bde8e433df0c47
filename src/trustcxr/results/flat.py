"""What every document is made of: a figure is one value with its interval here, and several keys side by side on disk.

On disk `accuracy`, `accuracy_ci` and `accuracy_chance` stand beside each other; here they are one `Share` or `Figure`.
A document is read from that shape and written back to it, keys that it does not know included.
"""

import math
from collections.abc import Iterator, KeysView, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

BESIDE = (
    "ci",
    "chance",
    "centre",
    "lung",
    "brightness",
    "edges",
    "mean_mask",
    "noise",
    "activation",
    "randomised",
)  # endings of keys beside a figure


def _lost(info: ValidationInfo) -> list[str] | None:
    """Where what cannot be understood is noted; None where it is an error."""
    return info.context.get("lost") if isinstance(info.context, dict) else None


_NO_NUMBER = "no number"  # stands among what is lost until the field around it puts its own name there


def _number(value: Any, info: ValidationInfo) -> float | None:
    """A finite number, or None: a document knows no NaN."""
    lost = _lost(info)
    try:
        number = None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        if lost is None:
            raise ValueError(f"{value!r} is not a number") from None
        number = None
    number = None if number is None or not math.isfinite(number) else number
    if number is None and value is not None and lost is not None:
        lost.append(_NO_NUMBER)
    return number


def _ends(value: Any, info: ValidationInfo) -> Any:
    known = isinstance(value, list | tuple) and len(value) == 2
    return value if known or _lost(info) is None else None


def _mappings(value: Any, info: ValidationInfo) -> Any:
    """Of a list or mapping those that are documents; all of them where a stranger among them is an error."""
    if _lost(info) is None:
        return value
    if isinstance(value, dict):
        return {key: part for key, part in value.items() if isinstance(part, dict)}
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else value


Number = Annotated[float | None, BeforeValidator(_number)]
Ends = Annotated[tuple[Number, Number] | None, BeforeValidator(_ends)]
_D = TypeVar("_D", bound="Document")
Records = Annotated[list[_D], BeforeValidator(_mappings)]
Named = Annotated[dict[str, _D], BeforeValidator(_mappings)]


class Share(BaseModel):
    """A figure and its 95 % interval: on disk `accuracy` and `accuracy_ci`."""

    value: Number = None
    ci: Ends = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the interval; None where either is missing."""
        low, high = self.ci or (None, None)
        return None if low is None or high is None else (low, high)

    def keys_under(self, name: str) -> Iterator[tuple[str, Any]]:
        """What stands on disk for this figure: `name`, and `name_ci` and the like where it has them."""
        for part in type(self).model_fields:
            if part in self.model_fields_set:
                value = getattr(self, part)
                yield (
                    (name if part == "value" else f"{name}_{part}"),
                    list(value) if isinstance(value, tuple) else value,
                )


class Figure(Share):
    """A measure of saliency beside what it must be better than.

    Chance, maps that look at no model, the activation of its own layer, and the network with random weights.
    """

    chance: Number = None
    centre: Number = None
    lung: Number = None
    brightness: Number = None
    edges: Number = None
    mean_mask: Number = None
    noise: Number = None
    activation: Number = None
    randomised: Number = None

    def beside(self, reference: str) -> float | None:
        """What stands beside it, by a name of REFERENCES."""
        return getattr(self, reference)

    @property
    def against_chance(self) -> str:
        """Where the whole interval lies: `above` or `below` chance, `around` it, or `` where a number is missing."""
        if self.interval is None or self.chance is None:
            return ""
        low, high = self.interval
        return "above" if low > self.chance else "below" if high < self.chance else "around"


class Document(BaseModel):
    """A part of metrics.json, training.json or study.json. Everything may be missing; what is new is kept.

    Also read by the keys that stand on disk: `document["accuracy_ci"]`, `document.get("steps")`, `"steps" in document`.
    """

    model_config = ConfigDict(extra="allow", populate_by_name=True)
    _shares: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Note which fields are figures."""
        kinds = {name: field.annotation for name, field in cls.model_fields.items()}
        cls._shares = tuple(n for n, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Share))

    @model_validator(mode="before")
    @classmethod
    def _fold(cls, content: Any) -> Any:
        """The keys of a figure become one."""
        if not isinstance(content, dict):
            return content
        content = dict(content)
        for name in cls._shares:
            if not isinstance(content.get(name), Share):
                found = {"value": content.pop(name)} if name in content else {}
                found |= {end: content.pop(f"{name}_{end}") for end in BESIDE if f"{name}_{end}" in content}
                if found:
                    content[name] = found
        return content

    @field_validator("*", mode="wrap")
    @classmethod
    def _understood(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """The value, or on reading a file the default, noted, where it is not what belongs there."""
        lost, place = _lost(info), f"{cls.__name__}.{info.field_name}"
        try:
            found = handler(value)
        except ValidationError:
            if lost is None:
                raise
            if value is not None:
                lost.append(place)
            found = cls.model_fields[str(info.field_name)].get_default(call_default_factory=True)
        if lost is not None:
            lost[:] = [place if one == _NO_NUMBER else one for one in lost]
        return found

    def over(self: _D, other: _D) -> _D:
        """This document, with what it lacks from another one of its kind."""
        return other.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})

    def items(self) -> Iterator[tuple[str, Any]]:
        """The keys as they stand on disk, with documents as values."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name not in self.model_fields_set:
                continue
            if isinstance(value, Share):
                yield from value.keys_under(name)
            else:
                yield field.alias or name, value
        yield from (self.model_extra or {}).items()

    def shares(self) -> Iterator[tuple[str, Share]]:
        """Its figures that have an interval, by name."""
        for name in self._shares:
            found = getattr(self, name)
            if found.ci is not None:
                yield name, found

    def keys(self) -> KeysView[str]:
        """The keys as they stand on disk."""
        return dict(self.items()).keys()

    def get(self, key: str, default: Any = None) -> Any:
        """What stands under a key on disk, or the default."""
        return dict(self.items()).get(key, default)

    def __getitem__(self, key: str) -> Any:
        return dict(self.items())[key]

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    @model_serializer(mode="plain")
    def plain(self) -> dict[str, object]:
        """The document as it stands on disk: numbers, text, lists and mappings."""
        return {key: _plain(value) for key, value in self.items()}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema of what stands on disk."""
        schema = handler(core_schema)
        inside = handler.resolve_ref_schema(schema)
        inside["properties"] = dict(_flat_properties(inside.get("properties", {}), cls))
        return schema


class Measured(Document):
    """A document with measures of any name, each a `Figure`: on disk `infection_energy`, `infection_energy_ci`, ..."""

    figures: dict[str, Figure] = {}

    def figure(self, name: str) -> Figure:
        """One measure; an empty figure where it was not measured."""
        return self.figures.get(name) or Figure()

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, content: Any) -> Any:
        """Numbers that no field claims are measures."""
        if not isinstance(content, dict) or isinstance(content.get("figures"), dict):
            return content
        fields = cls.model_fields
        known = {*fields, *(field.alias for field in fields.values())}
        rest, figures = dict(content), dict[str, dict[str, object]]()
        for key, value in content.items():
            base, part = _measure(key, content)
            if key not in known and (part == "ci" or value is None or isinstance(value, int | float)):
                figures.setdefault(base, {})[part] = rest.pop(key)
        return rest | {"figures": figures} if figures else rest

    def items(self) -> Iterator[tuple[str, Any]]:
        """The keys as they stand on disk, the measures after the rest."""
        yield from ((key, value) for key, value in super().items() if key != "figures")
        for name, figure in self.figures.items():
            yield from figure.keys_under(name)


def _measure(key: str, content: Mapping[str, object]) -> tuple[str, str]:
    """The measure that a key is of, and which part: `infection_energy_given_lung` is a measure, not a lung mask's."""
    ending = max((end for end in BESIDE if key.endswith(f"_{end}")), key=len, default="")
    base = key.removesuffix(f"_{ending}")
    ends = ending != "" and (base in content or ending == "ci")
    return (base, ending) if ends else (key, "value")


def _plain(value: Any) -> Any:
    if isinstance(value, Document):
        return value.plain()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


_SCHEMAS = {
    "value": {"type": ["number", "null"]},
    "ci": {"type": ["array", "null"], "items": {"type": ["number", "null"]}, "minItems": 2, "maxItems": 2},
}


def _flat_properties(properties: Mapping[str, object], kind: type[Document]) -> Iterator[tuple[str, object]]:
    for name, schema in properties.items():
        if name in kind._shares:
            yield name, _SCHEMAS["value"]
            yield f"{name}_ci", _SCHEMAS["ci"]
        elif name != "figures":
            yield name, schema


def understood(kind: type[_D], content: Any) -> tuple[_D, list[str]]:
    """A document as far as it can be understood, and the fields whose content could not be; these have their default.

    Raises TypeError where `content` is no mapping.
    """
    if not isinstance(content, dict):
        raise TypeError(f"expected keys and values, found {type(content).__name__}")
    lost: list[str] = []
    return kind.model_validate(content, context={"lost": lost}), sorted(set(lost))
