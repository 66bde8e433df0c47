"""Run tasks one after another in this process."""

from collections.abc import Callable, Sequence
from pathlib import Path

from trustcxr.console import log
from trustcxr.study.engines.base import Order, Outcomes, Task, Work, attempt


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
        order = Order(tasks)
        while (index := order.next()) is not None:
            log(f"[{index + 1}/{len(tasks)}] {tasks[index].step} {tasks[index].run}")
            order.end(index, attempt(work, tasks[index]))
            after()
        return order.outcomes()
