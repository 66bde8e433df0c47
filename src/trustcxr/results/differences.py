"""Two documents held against each other, figure by figure: where what is said is not what is computed."""

import json
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from trustcxr.results.files import to_json

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
    """Where a document does not say what was computed; what it says beyond that is not looked at."""
    if isinstance(said, dict) and isinstance(computed, dict):
        for key, value in computed.items():
            if key in said or value not in (None, "", [], {}):
                yield from between(said.get(key), value, f"{at}.{key}".strip("."))
    elif isinstance(said, list) and isinstance(computed, list):
        if len(said) != len(computed):
            yield Found(at + HOW_MANY, len(said), len(computed))
        for place, (one, other) in enumerate(zip(said, computed, strict=False)):
            yield from between(one, other, f"{at}[{_name(other, place)}]")
    elif not _same(said, computed):
        yield Found(at, said, computed)


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
