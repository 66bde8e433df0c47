"""What SLURM is asked for, through submitit, and what came of a job."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trustcxr.console import say
from trustcxr.errors import UserError
from trustcxr.study.engines import failures
from trustcxr.study.engines.contract import Needs, Outcome, Task

FOLDER = ".slurm"  # in the study's: what each job was given, what it said, and its outcome
_CARDS = {"gpus_per_node", "gpus_per_task", "num_gpus", "gres", "additional_parameters"}  # by these sbatch may be asked
_HOURS, _TIMES = 24, 20  # that a job may take, and how often it may need as many again


def executor(
    study: Path, name: str, *, needs: Needs, jobs: int | None, options: Mapping[str, str], cluster: str
) -> Any:
    """What submits jobs. UserError where submitit is not installed, SLURM not there, or an option not sbatch's."""
    try:
        import submitit
    except ImportError:
        raise UserError("the engine slurm needs submitit: pip install '.[slurm]'") from None
    try:
        found = submitit.AutoExecutor(study / FOLDER, cluster=cluster, slurm_max_num_timeout=_TIMES)
        found.update_parameters(name=f"trustcxr-{name}", timeout_min=_HOURS * 60)
        found.update_parameters(cpus_per_task=needs.cpus)
        if needs.gpus is not None:
            found.update_parameters(gpus_per_node=math.ceil(needs.gpus))
        found.update_parameters(**{f"slurm_{key}": value for key, value in options.items()})
        if jobs is not None:
            found.update_parameters(slurm_array_parallelism=jobs)
    except (RuntimeError, NameError, ValueError) as problem:
        raise UserError(f"SLURM cannot be used from here: {' '.join(str(problem).split())}") from None
    return found


def say_without_cards(needs: Needs, options: Mapping[str, str]) -> None:
    """Say that no card is asked for, where that is so and nobody said that it should be."""
    if needs.gpus is None and not _CARDS & {*options}:
        say(
            "SLURM is asked for no card, so runs may be trained without: --gpus 1 asks for one a run, --gpus 0 for none"
        )


def outcome(job: Any, task: Task) -> Outcome:
    """What a job gave back, waited for; a Failure that says where it spoke last where it gave nothing."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        found: Outcome = job.result()
        return found
    except (FailedJobError, UncompletedJobError):
        ended = f"its job {job.job_id} ended without a result (killed, or out of memory?); see {job.paths.stderr}"
        return failures.lost(task, ended)
