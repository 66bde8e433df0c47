"""Where a study stands and what it will cost, as rows and sentences for the terminal."""

from collections import Counter
from collections.abc import Iterator

from trustcxr.console import duration
from trustcxr.report import words
from trustcxr.results.disk import as_typed, megabytes
from trustcxr.results.documents import CostDocument, PruneDocument, RunPlan, StudyPlan, VerifiedDocument
from trustcxr.results.folders import REPORT_FILE

UNMEASURED = "unknown"
_UNITS = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"))


def rows(plan: StudyPlan) -> list[dict[str, str]]:
    """A row a run: where it stands, and the time that it has left."""
    return [
        {"run": one.run, "stands": _stands(one), "left": words.DASH if one.state == "done" else _time(one.left)}
        for one in plan.runs
    ]


def _stands(one: RunPlan) -> str:
    return f"{one.state}: {one.at}" if one.at else one.state


def costs(plan: StudyPlan) -> list[dict[str, str]]:
    """A row a run: what training and judging it (validating, testing, explaining) will take at most."""
    judging = ("validate", "test", "explain", "describe")
    return [
        {"run": one.run if one.state == "waiting" else f"{one.run} ({one.state})"}
        | {"train": _sum(one, ("train",)), "judge": _sum(one, judging)}
        | {"in all": words.DASH if one.state == "done" else _time(one.left)}
        for one in plan.runs
    ]


def _sum(one: RunPlan, steps: tuple[str, ...]) -> str:
    parts = [one.seconds[step] for step in steps if step in one.seconds]
    known = [part for part in parts if part is not None]
    return words.DASH if not parts else _time(sum(known) if len(known) == len(parts) else None)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return UNMEASURED
    return next((f"{seconds / size:.1f} {unit}" for size, unit in _UNITS if seconds >= size), f"{seconds:.0f} s")


def sentences(plan: StudyPlan) -> Iterator[str]:
    """What is done, who works on it, what failed and why, what is left."""
    states = Counter(str(one.state) for one in plan.runs)
    named = ("done", "running", "failed", "waiting")
    yield f"{plan.study}: " + ", ".join(f"{states[state]} {state}" for state in named)
    if plan.to_choose:
        yield f"validation will choose {plan.to_choose} networks, which are then trained robustly too"
    if plan.holder:
        yield f"worked on by {plan.holder}"
    for one in plan.runs:
        if one.state == "running":
            yield f"{one.run}: {one.at}; held by {one.holder}"
        if one.state == "failed":
            yield f"FAILED {one.run}: {one.reason}"
    yield from _left(plan)


def _left(plan: StudyPlan) -> Iterator[str]:
    if not [one for one in plan.runs if one.state not in ("done", "if chosen")] and not plan.to_choose:
        return
    if plan.least is None or plan.most is None:
        known = sum(part or 0.0 for one in plan.runs if one.state != "if chosen" for part in one.seconds.values())
        some = ", ".join(plan.unmeasured[:3]) + (" and others" if len(plan.unmeasured) > 3 else "")
        yield (
            f"time left: not known: a step of {some} was not measured here"
            + (f" ({duration(known)} of those that were)" if known else "")
            + f"; `trustcxr study RECIPE --data PATH --dry-run --out {as_typed(plan.folder or 'FOLDER')}` measures it"
        )
        return
    at_once = max(plan.at_once, 1)
    ends = dict.fromkeys(duration(seconds / at_once) for seconds in (plan.least, plan.most))
    together = f", {at_once} runs at once" if at_once > 1 else ", one run after another"
    yield f"time left, at most: {' to '.join(ends)}{together}" + (", by which are chosen" if len(ends) > 1 else "")


def measured(costs: CostDocument) -> Iterator[str]:
    """What the figures of a dry run rest on."""
    machine = costs.hardware
    accelerator = f", {machine.accelerator}" if machine.accelerator not in (None, "none") else ""
    yield (
        f"measured {costs.measured} on {machine.processor} ({costs.threads} threads{accelerator}) at {costs.size} "
        "pixels, with random weights, on noise"
    )
    images = ", ".join(f"{count:,} {role.replace('_', ' in ')}" for role, count in costs.counts.items())
    yield f"images: {images}"
    if fewer := [(name, way) for name, way in costs.ways.items() if (way.timed or 0) < (way.batch or 0)]:
        name, way = fewer[0]
        yield f"{len(fewer)} were timed with fewer images than a batch, such as {name} with {way.timed} of {way.batch}"
    yield from costs.notes


def verified(found: VerifiedDocument) -> Iterator[str]:
    """What `verify` found, a figure that differs a line."""
    for one in found.differences:
        yield f"DIFFERS {one.file}: {one.key}: said {one.said}, computed {one.computed}"
    for line in found.unchecked:
        yield f"not checked: {line}"
    if {one.file for one in found.differences} == {REPORT_FILE}:
        yield f"only {REPORT_FILE} differs: `trustcxr report {as_typed(found.folder)}` makes it anew from the files"
    if not found.runs and not found.differences:
        yield f"{found.study}: of no run could the figures be computed again"
        return
    count = f"{found.figures:,} figures of {found.files} files computed again"
    agree = "these agree, and the rest was not checked" if found.unchecked else "all agree"
    yield f"{found.study}: {count}: " + (f"{len(found.differences)} differ" if found.differences else agree)


def prunable(found: PruneDocument) -> list[dict[str, str]]:
    """A row a store or checkpoint: how large, how old, and why it stays."""
    return [
        {
            "what": f"{one.kind}: {one.what}",
            "size": megabytes(one.bytes),
            "days": f"{one.days:.0f}",
            "": "removed" if one.removed else f"held by {one.held}" if one.held else one.why or "old",
            "where": one.path,
        }
        for one in found.found
    ]
