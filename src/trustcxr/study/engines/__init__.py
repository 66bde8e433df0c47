"""Choose the engine of a study: this process, several processes, a Ray cluster, or SLURM."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from trustcxr.errors import UserError, lookup
from trustcxr.study.engines.base import Engine, Failure, LocalEngine, Needs, Task, forget_failure, read_failure
from trustcxr.study.engines.multiprocess import ProcessesEngine
from trustcxr.study.engines.ray import RayEngine
from trustcxr.study.engines.slurm import SlurmEngine

__all__ = [
    *("ENGINES", "Engine", "EngineOptions", "Failure", "LocalEngine", "Needs", "Task"),
    *("forget_failure", "get", "read_failure"),
]


@dataclass(frozen=True)
class EngineOptions:
    """Options of an engine: parallel runs, needs of each, the cluster's address, sbatch's options.

    `devices` of this machine share each training, one run at a time.
    """

    jobs: int | None = None
    needs: Needs = field(default_factory=Needs)
    address: str | None = None
    slurm: Mapping[str, str] = field(default_factory=dict)
    devices: int = 1


def get(name: str, jobs: int | None = None, options: EngineOptions | None = None) -> Engine:
    """Return the engine of a name with `jobs` parallel runs, or with `options`.

    Raises UserError for an unknown name or an option of another engine.
    """
    engine, options = lookup(ENGINES, "engine", name), options or EngineOptions(jobs)
    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: expected 1 or more")
    if options.needs.cpus < 1:
        raise UserError(f"--cpus {options.needs.cpus:g}: expected 1 or more")
    if (options.needs.gpus or 0) < 0:
        raise UserError(f"--gpus {options.needs.gpus:g}: expected 0 or more")
    for option, owner, value in (("--ray-address", "ray", options.address), ("--slurm", "slurm", options.slurm)):
        if value and name != owner:
            raise UserError(f"{option} is of --engine {owner}, and this is --engine {name}")
    if options.devices != 1 and (name != "local" or (options.jobs or 1) > 1):
        raise UserError("--devices shares one training among the GPUs of this machine: with --engine local, one --jobs")
    if name == "local" and options.needs != Needs():
        raise UserError("--cpus and --gpus are of --engine ray and slurm; here runs share all cores (see --jobs)")
    return engine(options)


ENGINES: dict[str, Callable[[EngineOptions], Engine]] = {
    "local": lambda options: LocalEngine() if options.jobs in (None, 1) else ProcessesEngine(options.jobs or 1),
    "ray": lambda options: RayEngine(options.needs, jobs=options.jobs, address=options.address),
    "slurm": lambda options: SlurmEngine(options.needs, jobs=options.jobs, options=options.slurm),
}
