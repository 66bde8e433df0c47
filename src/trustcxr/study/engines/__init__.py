"""Choose where the runs of a study are worked on: in this process, in several, on a Ray cluster, or by SLURM."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from trustcxr.errors import UserError, lookup
from trustcxr.study.engines.base import Engine, Failure, Needs, Task
from trustcxr.study.engines.local import LocalEngine
from trustcxr.study.engines.multiprocess import ProcessesEngine
from trustcxr.study.engines.ray import RayEngine
from trustcxr.study.engines.slurm import SlurmEngine

__all__ = ["ENGINES", "Engine", "EngineOptions", "Failure", "LocalEngine", "Needs", "Task", "get"]


@dataclass(frozen=True)
class EngineOptions:
    """What a person may ask of an engine: runs at once, what each needs, where the cluster is, sbatch's options.

    `devices`: cards that share each training, here and one run at a time.
    """

    jobs: int | None = None
    needs: Needs = field(default_factory=Needs)
    address: str | None = None
    slurm: Mapping[str, str] = field(default_factory=dict)
    devices: int = 1


def get(name: str, jobs: int | None = None, asked: EngineOptions | None = None) -> Engine:
    """Return the engine of that name with so many runs at once, or all that was `asked`; UserError for an unknown name.

    An engine for a cluster imports its package when it is used.
    """
    engine, asked = lookup(ENGINES, "engine", name), asked or EngineOptions(jobs)
    if asked.jobs is not None and asked.jobs < 1:
        raise UserError(f"--jobs {asked.jobs}: expected 1 or more")
    if asked.needs.cpus < 1:
        raise UserError(f"--cpus {asked.needs.cpus:g}: expected 1 or more")
    if (asked.needs.gpus or 0) < 0:
        raise UserError(f"--gpus {asked.needs.gpus:g}: expected 0 or more")
    for option, owner, said in (("--ray-address", "ray", asked.address), ("--slurm", "slurm", asked.slurm)):
        if said and name != owner:
            raise UserError(f"{option} is of --engine {owner}, and this is --engine {name}")
    if asked.devices != 1 and (name != "local" or (asked.jobs or 1) > 1):
        raise UserError(
            "--devices shares one training among the cards of this machine: with --engine local, one --jobs"
        )
    if name == "local" and asked.needs != Needs():
        raise UserError("--cpus and --gpus are of --engine ray and slurm; here runs share all cores (see --jobs)")
    return engine(asked)


def _local(asked: EngineOptions) -> Engine:
    return LocalEngine() if asked.jobs in (None, 1) else ProcessesEngine(asked.jobs or 1)


ENGINES: dict[str, Callable[[EngineOptions], Engine]] = {
    "local": _local,
    "ray": lambda asked: RayEngine(asked.needs, jobs=asked.jobs, address=asked.address),
    "slurm": lambda asked: SlurmEngine(asked.needs, jobs=asked.jobs, options=asked.slurm),
}
