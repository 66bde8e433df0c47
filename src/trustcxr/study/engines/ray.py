"""Runs on the nodes of a Ray cluster, a Ray Core task a step; what is done is in the files, and nowhere else."""

import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from trustcxr.console import Progress
from trustcxr.study.engines import failures, ray_cluster
from trustcxr.study.engines.contract import Needs, Order, Outcome, Outcomes, Task, Work

RETRIES = 3  # of a task whose process or node was lost; what it had written is kept, so it goes on there


class RayEngine:
    """As many tasks at once as the cluster has room for, or `jobs`; the cluster at `address`, or one started here."""

    def __init__(self, needs: Needs, *, jobs: int | None = None, address: str | None = None) -> None:
        self.needs, self.jobs, self.address = needs, jobs, address

    def preflight(self, study: Path) -> None:
        """UserError where no cluster answers or can be started, or no node of it has what a run needs.

        One that is started here takes seconds to come up: it is kept for what follows, and ends with the engine.
        """
        with ExitStack() as joined:
            ray_cluster.room(joined.enter_context(ray_cluster.connected(self.address)), self.needs)
            if self.address is None:
                weakref.finalize(self, joined.pop_all().close)

    def map(self, work: Work, tasks: Sequence[Task], after: Callable[[], object] = lambda: None) -> Outcomes:
        """What became of every task, in their order: None where it was done."""
        order = Order(tasks)
        busy: dict[Any, int] = {}
        if not tasks:
            return []
        with (
            ray_cluster.connected(self.address) as ray,
            Progress("runs on the cluster", len(tasks), timed=False) as bar,
        ):
            needs = ray_cluster.check(ray, tasks[0].study, self.needs)
            do = ray.remote(num_cpus=needs.cpus, num_gpus=needs.gpus, max_retries=RETRIES)(ray_cluster.do)
            try:
                while order.left or busy:
                    while (self.jobs is None or len(busy) < self.jobs) and (place := order.next()) is not None:
                        busy[do.remote(work, tasks[place], needs.cpus)] = place
                    (ready, *_), _ = ray.wait(list(busy))
                    place = busy.pop(ready)
                    settled = order.end(place, _outcome(ray, ready, tasks[place]))
                    after()
                    bar.advance(settled, note=f"{tasks[place].step} {tasks[place].run}")
            finally:
                for left in busy:
                    ray.cancel(left, force=True)
        return order.outcomes()


def _outcome(ray: Any, ready: Any, task: Task) -> Outcome:
    try:
        found: Outcome = ray.get(ready)
        return found
    except ray.exceptions.RayError as problem:  # a node or a process that was lost once too often
        return failures.lost(task, f"lost {RETRIES + 1} times: {ray_cluster.reason(problem)}")
