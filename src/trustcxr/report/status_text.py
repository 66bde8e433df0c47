"""Describe the state, time and verification of a study for the terminal."""

from trustcxr.console import plural
from trustcxr.report import formatting, html
from trustcxr.storage.layout import STEP_FILES
from trustcxr.storage.os_errors import megabytes, shell_quote
from trustcxr.storage.schemas import PruneDocument, RunPlan, StudyPlan, VerifiedDocument

_UNITS = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"))


def list_states(plan: StudyPlan) -> list[dict[str, str]]:
    """Return a row for each run: its state, and the time left if any run has an estimate, else the steps left."""
    timed = any(one.left for one in plan.runs)
    return [
        {"run": one.run, "stands": f"{one.state}: {one.at}" if one.at else str(one.state)}
        | {"left": _time_left(one) if timed else _steps_left(one)}
        for one in plan.runs
    ]


def _steps_left(one: RunPlan) -> str:
    every = f"every step, {plural(one.epochs or 0, 'epoch')}"
    return every if len(one.seconds) == len(STEP_FILES) else ", ".join(one.seconds) or formatting.DASH


def _time_left(one: RunPlan) -> str:
    if one.state == "done" or one.left is None:
        return formatting.DASH
    return next((f"{one.left / size:.1f} {unit}" for size, unit in _UNITS if one.left >= size), f"{one.left:.0f} s")


def describe_status(plan: StudyPlan) -> list[str]:
    """Return the number of runs by state, locks, failures with reasons, and the time left, a line each."""
    parts = {"plan": plan, "plural": plural, "folder": shell_quote(plan.folder or "FOLDER")}
    return html.fill_lines("status", parts)


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
