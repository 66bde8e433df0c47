"""Record on what each segment of a training ran: a resumed training may have other versions or another machine.

run.yaml lists `segments` with `from_epoch`, `versions`, `hardware`, `source`, and `split_batches` if a batch was split.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trustcxr.errors import UserError
from trustcxr.storage import atomic, layout

Segment = dict[str, Any]
_UNKNOWN = "not noted"


def read_segments(run: Mapping[str, Any]) -> list[Segment]:
    """Return the segments of a run.yaml, in their order."""
    return list(run.get("segments") or [])


def last_segment(run: Mapping[str, Any]) -> Segment:
    """Return the last segment of a run.yaml; an empty one if there is none."""
    return (read_segments(run) or [Segment()])[-1]


def append_segment(before: Mapping[str, Any], now: Mapping[str, Any], done: int | None) -> list[Segment]:
    """Append a segment to those of `before`, unless it is like the last one.

    `done`: the epochs that training continues from; later segments are dropped. None if no epoch is left to do.
    """
    segments = [segment for segment in read_segments(before) if done is None or segment["from_epoch"] < done]
    segment = {"from_epoch": done or 0} | atomic.plain(now)
    if not segments or (done is not None and segment | {"from_epoch": segments[-1]["from_epoch"]} != segments[-1]):
        segments.append(segment)
    return segments


def read_split(run: Path) -> dict[str, int | str]:
    """Return the largest `parts`, `world` and `strategy` of the split batches of any segment of a run."""
    splits: list[dict[str, Any]] = [atomic.section(segment, "split_batches") for _, segment in _with_refit(run)]
    values = {key: [split[key] for split in splits if key in split] for key in ("parts", "world", "strategy")}
    return {key: max(each) for key, each in values.items() if each}


def describe_split(parts: int | None, world: int | None, strategy: str | None) -> str:
    """Describe how batches were split; empty if they were not."""
    shared = f"shared by {world} processes ({strategy or _UNKNOWN})" if (world or 1) > 1 else ""
    worked = f"worked off in {parts} parts" + " by each" * bool(shared) if (parts or 1) > 1 else ""
    return ", ".join(part for part in (shared, worked) if part)


def describe_segments(run: Path) -> str:
    """Describe in one line what changed between the segments of a run; empty if nothing did."""
    parts = [(which, segment["from_epoch"], dict(_facts(segment))) for which, segment in _with_refit(run)]
    names = dict.fromkeys(name for *_, facts in parts for name in facts)
    differing = [name for name in names if len({facts.get(name) for *_, facts in parts}) > 1]
    if not differing:
        return ""
    return "; ".join(
        f"{which}from epoch {first + 1} with {', '.join(f'{n} {facts.get(n, _UNKNOWN)}' for n in differing)}"
        for which, first, facts in parts
    )


def machines(run: Mapping[str, Any]) -> list[str]:
    """Return the processors that a run was trained on, each once."""
    names = (atomic.section(segment, "hardware").get("processor") for segment in read_segments(run))
    return list(dict.fromkeys(str(name) for name in names if name))


def elsewhere(runs: Sequence[Path], hardware: Mapping[str, Any], source: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the machines and commits of a study's runs with counts; empty if all are those of its last start."""
    trained = []
    for run in runs:
        with suppress(UserError):
            trained.append([segment for _, segment in _with_refit(run)])
    texts, start = {}, {"hardware": hardware, "source": source}
    for name, label in (("on", _machine), ("from", _commit)):
        counts = Counter(", then ".join(dict.fromkeys(filter(None, map(label, each)))) or _UNKNOWN for each in trained)
        if set(counts) - {label(start), _UNKNOWN}:
            texts[name] = ", ".join(f"{text} ({count})" for text, count in sorted(counts.items()))
    return texts


def _with_refit(run: Path) -> list[tuple[str, Segment]]:
    """Return the segments before a refit and of the run, each with its purpose."""
    first = run / layout.BEFORE_REFIT / layout.RUN_FILE
    before = read_segments(atomic.read_yaml(first)) if first.is_file() else []
    after = read_segments(atomic.read_yaml(run / layout.RUN_FILE))
    return [("for validation ", one) for one in before] + [("once more " * bool(before), one) for one in after]


def _facts(segment: Segment) -> Iterator[tuple[str, str]]:
    yield from (
        (name, str(value)) for key in ("versions", "hardware") for name, value in atomic.section(segment, key).items()
    )
    if _commit(segment):
        yield "commit", _commit(segment) + " (changed)" * bool(segment["source"].get("changed"))
    split: dict[str, Any] = atomic.section(segment, "split_batches")
    yield "batches", describe_split(split.get("parts"), split.get("world"), split.get("strategy")) or "whole"


def _machine(segment: Mapping[str, Any]) -> str:
    hardware = atomic.section(segment, "hardware")
    named = (hardware.get("processor"), hardware.get("accelerator"))
    return " with ".join(str(name) for name in named if name not in (None, "", "none"))


def _commit(segment: Mapping[str, Any]) -> str:
    return str(atomic.section(segment, "source").get("commit") or "")[:7]
