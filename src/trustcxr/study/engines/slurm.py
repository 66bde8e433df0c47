"""Runs as jobs of SLURM through submitit: one array job a step; one that is preempted is queued again and goes on."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trustcxr.console import Progress
from trustcxr.study.engines import slurm_jobs, slurm_queue
from trustcxr.study.engines.contract import Needs, Order, Outcome, Outcomes, Task, Work, told


class SlurmEngine:
    """A step of all runs at once, or of `jobs`; `options` are sbatch's (partition, account, time in minutes)."""

    def __init__(
        self, needs: Needs, *, jobs: int | None = None, options: Mapping[str, str] = {}, cluster: str = "slurm"
    ) -> None:
        self.needs, self.options = needs, options
        self.executor = partial(slurm_jobs.executor, needs=needs, jobs=jobs, options=options, cluster=cluster)

    def preflight(self, study: Path) -> None:
        """UserError where SLURM or submitit is not here, or an option is not sbatch's; says where no card is asked."""
        self.executor(study, "preflight")
        slurm_jobs.say_without_cards(self.needs, self.options)

    def map(self, work: Work, tasks: Sequence[Task], after: Callable[[], object] = lambda: None) -> Outcomes:
        """What became of every task, in their order: None where it was done."""
        order = Order(tasks)
        slurm_queue.wait_for_earlier(tasks)
        with Progress("runs on SLURM", len(tasks), timed=False) as bar:
            while places := list(iter(order.next, None)):  # the next step of every run
                executor = self.executor(tasks[places[0]].study, tasks[places[0]].step)
                array = executor.map_array(_Step(work, self.needs.cpus), [tasks[p] for p in places])
                try:
                    for place, job in zip(places, array, strict=True):
                        settled = order.end(place, slurm_jobs.outcome(job, tasks[place]))
                        after()
                        bar.advance(settled, note=f"{tasks[place].step} {tasks[place].run}")
                finally:
                    for job in (job for job in array if not job.done()):
                        job.cancel()
        return order.outcomes()


class _Step:
    """What a job does, and what it does when it is queued again: the same, which goes on from the files."""

    def __init__(self, work: Work, threads: int) -> None:
        self.work, self.threads = work, threads

    def __call__(self, task: Task) -> Outcome:
        return told(self.work, task, self.threads)

    def checkpoint(self, task: Task) -> Any:
        """submitit asks for this where SLURM takes the machine away."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, task)
