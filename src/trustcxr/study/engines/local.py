"""Runs one after another in this process."""

from collections.abc import Callable, Sequence
from pathlib import Path

from trustcxr.console import say
from trustcxr.study.engines.contract import Failure, Outcomes, Task, Work, attempt


class LocalEngine:
    """One task after another in this process, each with all the cores and the accelerator."""

    def preflight(self, study: Path) -> None:
        """Nothing: this process is here."""

    def map(self, work: Work, tasks: Sequence[Task], after: Callable[[], object] = lambda: None) -> Outcomes:
        """What became of every task, in their order: None where it was done."""
        failed: dict[str, Failure] = {}
        found: Outcomes = []
        for number, task in enumerate(tasks, 1):
            if task.run not in failed:
                say(f"[{number}/{len(tasks)}] {task.step} {task.run}")
                outcome = attempt(work, task)
                after()
                if outcome is not None:
                    failed[task.run] = outcome
            found.append(failed.get(task.run))
        return found
