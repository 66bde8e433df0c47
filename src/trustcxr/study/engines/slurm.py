"""Run tasks as jobs of SLURM through submitit: one array job a step; a preempted job is queued again and goes on."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trustcxr.console import Progress, log
from trustcxr.errors import UserError
from trustcxr.study.engines.base import Engine, Failure, Needs, Order, Outcome, Outcomes, Task, Work, attempt

FOLDER = ".slurm"  # in the study's: what each job was given, what it said, and its outcome
_GPU_OPTIONS = {"gpus_per_node", "gpus_per_task", "num_gpus", "gres", "additional_parameters"}
_HOURS, _TIMES = 24, 20  # that a job may take, and how often it may need as many again


class SlurmEngine(Engine):
    """A step of all runs at once, or of `jobs`; `options` are sbatch's (partition, account, time in minutes)."""

    def __init__(
        self, needs: Needs, *, jobs: int | None = None, options: Mapping[str, str] = {}, cluster: str = "slurm"
    ) -> None:
        self.needs, self.jobs, self.options, self.cluster = needs, jobs, options, cluster
        self.threads = needs.cpus

    def preflight(self, study: Path) -> None:
        """Raise UserError if SLURM cannot be used as asked; log if no GPU is asked for."""
        self.executor(study, "preflight")
        if self.needs.gpus is None and not _GPU_OPTIONS & {*self.options}:
            log("SLURM is asked for no GPU: --gpus 1 asks for one a run, --gpus 0 for none")

    def map(self, work: Work, tasks: Sequence[Task], after: Callable[[], object] = lambda: None) -> Outcomes:
        """Do every task; the outcomes in their order, None for one that was done."""
        order = Order(tasks)
        with Progress("runs on SLURM", len(tasks), timed=False) as bar:
            while indices := list(iter(order.next, None)):  # the next step of every run
                executor = self.executor(tasks[indices[0]].study, tasks[indices[0]].step)
                jobs = executor.map_array(_Step(work), [tasks[index] for index in indices])
                try:
                    for index, job in zip(indices, jobs, strict=True):
                        order.settle(index, _outcome(job, tasks[index]), after, bar)
                finally:
                    for job in (job for job in jobs if not job.done()):
                        job.cancel()
        return order.outcomes()

    def executor(self, study: Path, name: str) -> Any:
        """Return submitit's executor. UserError if it is not installed, SLURM is missing, or an option is unknown."""
        try:
            import submitit
        except ImportError:
            raise UserError("the engine slurm needs submitit: pip install 'trustcxr[slurm]'") from None
        parameters: dict[str, Any] = {"name": f"trustcxr-{name}", "timeout_min": _HOURS * 60}
        parameters["cpus_per_task"] = self.needs.cpus
        if self.needs.gpus is not None:
            parameters["gpus_per_node"] = math.ceil(self.needs.gpus)
        if self.jobs is not None:
            parameters["slurm_array_parallelism"] = self.jobs
        try:
            executor = submitit.AutoExecutor(study / FOLDER, cluster=self.cluster, slurm_max_num_timeout=_TIMES)
            executor.update_parameters(**parameters, **{f"slurm_{key}": value for key, value in self.options.items()})
        except (RuntimeError, NameError, ValueError) as problem:
            raise UserError(f"SLURM cannot be used from here: {' '.join(str(problem).split())}") from None
        return executor


class _Step:
    """Run one task as a job; queued again, it resumes from the files."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def __call__(self, task: Task) -> Outcome:
        return attempt(self.work, task)

    def checkpoint(self, task: Task) -> Any:
        """Queue the task again; submitit calls this if SLURM takes the machine away."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, task)


def _outcome(job: Any, task: Task) -> Outcome:
    """Wait for the outcome of a job; a Failure that names its log if it left none."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        outcome: Outcome = job.result()
    except (FailedJobError, UncompletedJobError):
        ended = f"its job {job.job_id} ended without a result (killed, or out of memory?); see {job.paths.stderr}"
        return Failure.of_lost(task, ended)
    return outcome
