"""What a run was trained on, stretch by stretch: whoever goes on with one may have other versions or another machine.

A run.yaml of one stretch says it once (`versions`, `hardware`, `source`, and `split_batches` where a batch was split);
one of several lists them all under `stretches`, each with the epoch that it begins with, and says the last once more.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from trustcxr.errors import UserError
from trustcxr.results import files, folders

Stretch = dict[str, object]


class Split(TypedDict, total=False):
    """How batches were split, as training.json has it; what was not is left out."""

    parts: int
    world: int
    strategy: str


_WHAT = ("versions", "hardware", "source", "split_batches")
_UNKNOWN = "not noted"


def of(run: Mapping[str, object]) -> list[Stretch]:
    """Those of a run.yaml, the first at epoch 0; one where it lists none, as versions before did not."""
    listed = run.get("stretches")
    found = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return found or [{"from_epoch": 0} | _what(run)]


def gone_on(before: Mapping[str, object], now: Mapping[str, object], done: int | None) -> dict[str, object]:
    """What a run.yaml says of them where a training begins or goes on, after what it said `before`.

    `done`: epochs of before that it goes on from, so that those after are trained anew; None where it has none to do.
    A stretch like the one before it is no new one.
    """
    now = _what(now)
    if done is None and "versions" in before:
        return {key: before[key] for key in (*_WHAT, "stretches") if key in before}
    kept = [one for one in of(before) if _first(one) < (done or 0)]
    if not kept or not _alike(kept[-1], now):
        kept.append({"from_epoch": done or 0} | now)
    return now | (Stretch(stretches=kept) if len(kept) > 1 else {})


def split_of(run: Path) -> Split:
    """How a run's batches were split, the most of any stretch; with a refit of both trainings."""
    return _split([one for _, one in _both(run)])


def told(run: Path) -> str:
    """Wherein a run's stretches differ, in one line; with a refit those of both trainings; empty where none do."""
    parts = _both(run)
    facts = [dict(_facts(one)) for _, one in parts]
    names = [name for name in dict.fromkeys(name for one in facts for name in one) if _differs(name, facts)]
    if not names:
        return ""
    said = (", ".join(f"{name} {one.get(name, _UNKNOWN)}" for name in names) for one in facts)
    return "; ".join(
        f"{which}from epoch {_first(one) + 1} with {text}" for (which, one), text in zip(parts, said, strict=True)
    )


def machines(run: Mapping[str, object]) -> list[str]:
    """The processors that it was trained on, in their order, each once; empty where none was noted."""
    named = (files.part(one, "hardware").get("processor") for one in of(run))
    return list(dict.fromkeys(str(name) for name in named if name))


def commits(run: Mapping[str, object]) -> list[str]:
    """The commits that it was trained from, shortened, in their order, each once; empty where none was noted."""
    return list(dict.fromkeys(name for one in of(run) if (name := _commit(one))))


def elsewhere(
    runs: Sequence[Path], hardware: Mapping[str, object], source: Mapping[str, object] | None
) -> dict[str, str]:
    """On what and from what a study's runs were trained, each with how many; empty where all were as its last start.

    Of a run with a refit that of both trainings counts. A run that says nothing, or is damaged, tells nothing.
    """
    noted = []
    for run in runs:
        with suppress(UserError, OSError):
            noted.append([one for _, one in _both(run)])
    found = {}
    own = {"hardware": dict(hardware), "source": dict(source or {})}
    for name, label in (("on", _machine), ("from", _commit)):
        told = (dict.fromkeys(text for one in of_run if (text := label(one))) for of_run in noted)
        counts = Counter(", then ".join(each) or _UNKNOWN for each in told)
        if set(counts) - {label(own), _UNKNOWN}:
            found[name] = ", ".join(f"{said} ({count})" for said, count in sorted(counts.items()))
    return found


def _machine(stretch: Mapping[str, object]) -> str:
    """Processor, and accelerator where there is one."""
    hardware = files.part(stretch, "hardware")
    named = (hardware.get("processor"), hardware.get("accelerator"))
    return " with ".join(str(name) for name in named if name not in (None, "", "none"))


def _commit(stretch: Mapping[str, object]) -> str:
    return str(files.part(stretch, "source").get("commit") or "")[:7]


def split_told(parts: int | None, world: int | None, strategy: str | None) -> str:
    """How batches were split, in words; empty where they were not."""
    shared = f"shared by {world} processes ({strategy or _UNKNOWN})" if (world or 1) > 1 else ""
    worked = f"worked off in {parts} parts" + " by each" * bool(shared) if (parts or 1) > 1 else ""
    return ", ".join(part for part in (shared, worked) if part)


def _both(run: Path) -> list[tuple[str, Stretch]]:
    """The stretches of a run, with a refit those before it first, each with what it was for."""
    first = run / folders.BEFORE_REFIT / folders.RUN_FILE
    before = of(files.read_yaml(first)) if first.is_file() else []
    last = of(files.read_yaml(run / folders.RUN_FILE))
    return [("for validation ", one) for one in before] + [("once more " * bool(before), one) for one in last]


def _split(stretches: Sequence[Mapping[str, object]]) -> Split:
    found = Split()
    for said in (files.part(one, "split_batches") for one in stretches):
        parts, world = said.get("parts"), said.get("world")
        if isinstance(parts, int) and parts > found.get("parts", 1):
            found["parts"] = parts
        if isinstance(world, int) and world > found.get("world", 1):
            found |= Split(world=world, strategy=str(said.get("strategy", "")))
    return found


def _what(content: Mapping[str, object]) -> Stretch:
    return {key: files.plain(content[key]) for key in _WHAT if key in content}


def _first(stretch: Mapping[str, object]) -> int:
    found = stretch.get("from_epoch")
    return found if isinstance(found, int) else 0


def _alike(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    return all(one.get(key) == other.get(key) for key in _WHAT)


def _facts(stretch: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """What can be told of a stretch, by name."""
    for key in ("versions", "hardware"):
        yield from ((name, str(value)) for name, value in files.part(stretch, key).items() if value is not None)
    source, cut = files.part(stretch, "source"), _split([stretch])
    if source.get("commit"):
        yield "commit", f"{str(source['commit'])[:7]}{' (changed)' if source.get('changed') else ''}"
    yield "batches", split_told(cut.get("parts"), cut.get("world"), cut.get("strategy")) or "whole"


def _differs(name: str, facts: Sequence[Mapping[str, str]]) -> bool:
    return len({one.get(name) for one in facts}) > 1
