"""While an engine works: a line now and then that says where the study stands, read off its files."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trustcxr.console import duration, say
from trustcxr.errors import UserError
from trustcxr.recipes.study import StudyRecipe
from trustcxr.results.documents import StudyPlan
from trustcxr.study import standing

EVERY = 120.0  # seconds


@contextmanager
def watched(recipe: StudyRecipe, study: Path) -> Iterator[None]:
    """Say every two minutes, where anything has changed, which runs are done, what is trained, and the time left."""
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(recipe, study, over), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _watch(recipe: StudyRecipe, study: Path, over: threading.Event) -> None:
    before = ""
    while not over.wait(EVERY):
        with suppress(UserError, OSError):  # a file that is being replaced: the next time will do
            now = line(standing.plan(recipe, study))
            if now != before:
                say(now)
            before = now


def line(plan: StudyPlan) -> str:
    """Where a study stands, in one line; no time where a run was not measured."""
    runs = [one for one in plan.runs if one.state != "if chosen"]
    later = f", before validation chooses {plan.to_choose} networks" if plan.to_choose else ""
    said = [f"{sum(one.state == 'done' for one in runs)} of {len(runs)} runs done{later}"]
    said += [f"{one.run}: {one.at}" for one in runs if one.state == "running"]
    if plan.least is not None and plan.most is not None:
        ends = dict.fromkeys(duration(seconds / max(plan.at_once, 1)) for seconds in (plan.least, plan.most))
        said.append(f"at most {' to '.join(ends)} left")
    return f"{plan.study}: " + "; ".join(said)
