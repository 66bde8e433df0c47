"""Two documents held against each other, figure by figure: where what is said is not what is computed."""

import json
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from trustcxr.results.files import to_json

_NOTHING: tuple[object, ...] = (None, "", [], {})
_RELATIVE, _ABSOLUTE = 1e-6, 1e-9  # what another order of adding up may move a figure by
HOW_MANY = " (how many)"  # after the key of a list that has more or fewer entries
_IDENTITY = ("run", "attack", "corruption", "method", "measure", "model", "defence", "kind", "fill", "control", "class")
_FURTHER = ("epsilon", "steps", "severity", "seed", "condition", "stage", "name")


class Found(NamedTuple):
    """A figure that differs: its key, what the file says and what was computed."""

    key: str
    said: object
    computed: object


def plain(document: object) -> object:
    """A document as JSON has it."""
    return json.loads(to_json(document))


def figures(computed: object, *, but: re.Pattern[str] | None = None, at: str = "") -> int:
    """How many numbers, words and answers a document holds, `but` those whose key is like this."""
    if isinstance(computed, dict):
        return sum(figures(part, but=but, at=f"{at}.{key}".strip(".")) for key, part in computed.items())
    if isinstance(computed, list):
        return sum(figures(part, but=but, at=f"{at}[]") for part in computed)
    return int(but is None or not but.search(at))


def between(said: object, computed: object, at: str = "") -> Iterator[Found]:
    """Where a document does not say what was computed; what it says beyond that is `unbacked`."""
    if isinstance(said, dict) and isinstance(computed, dict):
        for key, value in computed.items():
            if key in said or value not in _NOTHING:
                yield from between(said.get(key), value, f"{at}.{key}".strip("."))
    elif isinstance(said, list) and isinstance(computed, list):
        if len(said) != len(computed):
            yield Found(at + HOW_MANY, len(said), len(computed))
        for name, one, other in _pairs(said, computed):
            yield from between(one, other, f"{at}[{name}]")
    elif not _same(said, computed):
        yield Found(at, said, computed)


def unbacked(said: object, computed: object, at: str = "") -> Iterator[Found]:
    """What a document says where nothing at all was computed: of a part with parts of its own, how many figures."""
    if isinstance(said, dict) and isinstance(computed, dict):
        for key, value in said.items():
            here, other = f"{at}.{key}".strip("."), computed.get(key)
            if value in _NOTHING:
                continue
            if key not in computed or (isinstance(value, dict) and other == {}):
                yield Found(here, _short(value), None)
            else:
                yield from unbacked(value, other, here)
    elif isinstance(said, list) and isinstance(computed, list) and len(said) == len(computed):
        for place, (one, other) in enumerate(zip(said, computed, strict=True)):
            yield from unbacked(one, other, f"{at}[{_name(one, place)}]")


def _pairs(said: list[object], computed: list[object]) -> Iterator[tuple[str, object, object]]:
    """Entries of two lists that belong together: by their places, or, where one has more of them, by what they are."""
    if len(said) == len(computed):
        yield from ((_name(b, place), a, b) for place, (a, b) in enumerate(zip(said, computed, strict=True)))
        return
    known = {_name(one, place): one for place, one in enumerate(said) if isinstance(one, dict)}
    for place, other in enumerate(computed):
        if isinstance(other, dict) and (name := _name(other, place)) in known:
            yield name, known[name], other


def _short(value: object) -> object:
    if not isinstance(value, dict | list):
        return value
    count = figures(value)
    return f"{count} figures" if count != 1 else "1 figure"


def _same(said: object, computed: object) -> bool:
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (said, computed)]
    if all(numbers):
        return math.isclose(float(str(said)), float(str(computed)), rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    return said == computed


def _name(record: object, place: int) -> str:
    """What an entry of a list is called: the words that tell it from its neighbours, or its place."""
    if not isinstance(record, dict):
        return str(place)
    said = [str(record[key]) for key in (*_IDENTITY, *_FURTHER) if isinstance(record.get(key), str | int | float)]
    return " ".join(said) or str(place)
