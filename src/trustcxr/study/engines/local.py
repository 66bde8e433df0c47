"""Run tasks one after another in this process."""

from collections.abc import Callable, Sequence
from pathlib import Path

from trustcxr.console import log
from trustcxr.study.engines.base import Failure, Outcomes, Task, Work, attempt


class LocalEngine:
    """Run one task after another in this process."""

    @property
    def threads(self) -> int:
        """Return the threads that torch has here."""
        import torch

        return torch.get_num_threads()

    def preflight(self, study: Path) -> None:
        """Accept everything."""

    def map(self, work: Work, tasks: Sequence[Task], after: Callable[[], object] = lambda: None) -> Outcomes:
        """Do every task; the outcomes in their order, None for one that was done."""
        failed: dict[str, Failure] = {}
        outcomes: Outcomes = []
        for number, task in enumerate(tasks, 1):
            if task.run not in failed:
                log(f"[{number}/{len(tasks)}] {task.step} {task.run}")
                outcome = attempt(work, task)
                after()
                if outcome is not None:
                    failed[task.run] = outcome
            outcomes.append(failed.get(task.run))
        return outcomes
