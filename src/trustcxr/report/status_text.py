"""Describe the state, cost and verification of a study for the terminal."""

from collections.abc import Iterator

from trustcxr.console import plural
from trustcxr.report import formatting, html
from trustcxr.storage.layout import STEP_FILES
from trustcxr.storage.os_errors import megabytes, shell_quote
from trustcxr.storage.schemas import CostDocument, PruneDocument, RunPlan, StudyPlan, VerifiedDocument

_UNITS = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"))


def list_states(plan: StudyPlan) -> list[dict[str, str]]:
    """Return a row for each run: its state, and the time left if any run has an estimate."""
    timed = any(one.left for one in plan.runs)
    return [
        {"run": one.run, "stands": f"{one.state}: {one.at}" if one.at else str(one.state)}
        | ({"left": _time_left(one)} if timed else {})
        for one in plan.runs
    ]


def list_costs(plan: StudyPlan) -> list[dict[str, str]]:
    """Return a row for each run: the steps left, or the times if they were measured."""
    rows = []
    for one in plan.runs:
        row = {"run": one.run if one.state == "waiting" else f"{one.run} ({one.state})"}
        if plan.costs is None:
            every = "every step" if len(one.seconds) == len(STEP_FILES) else ", ".join(one.seconds)
            rows.append(row | {"epochs": str(one.epochs), "steps": every or formatting.DASH})
            continue
        others = sum(seconds or 0.0 for step, seconds in one.seconds.items() if step != "train")
        train, evaluation = _time(one.seconds.get("train")), _time(others or None)
        rows.append(row | {"train": train, "evaluate": evaluation, "total": _time_left(one)})
    return rows


def _time_left(one: RunPlan) -> str:
    return formatting.DASH if one.state == "done" else _time(one.left)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return formatting.DASH
    return next((f"{seconds / size:.1f} {unit}" for size, unit in _UNITS if seconds >= size), f"{seconds:.0f} s")


def describe_status(plan: StudyPlan) -> list[str]:
    """Return the number of runs by state, locks, failures with reasons, and the time left, a line each."""
    parts = {"plan": plan, "plural": plural, "folder": shell_quote(plan.folder or "FOLDER")}
    return html.fill_lines("status", parts)


def describe_timing(costs: CostDocument) -> Iterator[str]:
    """Yield the basis of the estimates of a dry run."""
    machine = costs.hardware
    accelerator = f", {machine.accelerator}" if machine.accelerator not in (None, "none") else ""
    yield (
        f"measured {costs.measured} on {machine.processor} ({plural(machine.threads or 0, 'thread')}{accelerator}) "
        f"at {costs.size} pixels, with random weights, on noise"
    )
    yield "images: " + ", ".join(f"{count:,} {role.replace('_', ' in ')}" for role, count in costs.counts.items())
    yield from costs.notes


def describe_verification(result: VerifiedDocument) -> list[str]:
    """Return the results of `verify`, a line for each figure that differs."""
    return html.fill_lines("verification", {"result": result, "plural": plural})


def list_prunable(document: PruneDocument) -> list[dict[str, str]]:
    """Return a row for each cache and checkpoint: size, age, and why it remains."""
    return [
        {
            "what": f"{one.kind}: {one.what}",
            "size": megabytes(one.bytes),
            "days": f"{one.days:.0f}",
            "": "removed" if one.removed else f"held by {one.user}" if one.user else one.why or "old",
            "where": one.path,
        }
        for one in document.entries
    ]
