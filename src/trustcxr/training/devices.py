"""Train one run in several processes, on several GPUs or machines: ranks, start and end of processes, shared sums.

Every process works on its part of each batch. PyTorch's DistributedDataParallel averages the gradients in the backward
pass of the training step. Attacks need gradients of the images alone, so nothing is synchronised for them. Without GPUs
the processes share this machine's cores.
"""

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from trustcxr import console
from trustcxr.data.worker_pool import end_with_parent
from trustcxr.errors import UserError, unknown
from trustcxr.recipes.run_recipe import RunRecipe

STRATEGIES = ("ddp", "ddp_find_unused_parameters_true")
_DOES_NOT_FIT = 75  # exit code of a process whose part of a batch did not fit in memory
_ENDS = 60.0  # seconds for the other processes to end after the last epoch


@dataclass(frozen=True)
class Devices:
    """The processes of a training: `devices` on each of `nodes` machines; each splits its batch into `parts`."""

    devices: int = 1
    nodes: int = 1
    strategy: str = "ddp"
    parts: int = 1

    @property
    def world(self) -> int:
        """Return the number of processes that train together."""
        return self.devices * self.nodes

    @property
    def rank(self) -> int:
        """Return the number of this process; 0 is the one that writes."""
        return int(os.environ.get(rank_variable() or "LOCAL_RANK", 0)) if self.world > 1 else 0

    def split_batches(self) -> dict[str, int | str]:
        """Return how each batch is split, for run.yaml; empty if it is whole."""
        split: dict[str, int | str] = {} if self.parts == 1 else {"parts": self.parts}
        return split if self.world == 1 else split | {"world": self.world, "strategy": self.strategy}

    def check_recipe(self, recipe: RunRecipe, images: int) -> None:
        """Raise UserError if these devices cannot train the recipe on that many images."""
        for option, count in (("--devices", self.devices), ("--nodes", self.nodes)):
            if count < 1:
                raise UserError(f"{option} {count}: expected 1 or more")
        if self.strategy not in STRATEGIES:
            raise unknown("strategy", self.strategy, STRATEGIES)
        if self.world == 1:
            return
        gpus = torch.cuda.device_count()
        if gpus and self.devices > gpus:
            raise UserError(f"--devices {self.devices}: this machine has {gpus} GPU{'s' * (gpus > 1)}")
        if min(recipe.training.batch_size, images) < self.world:
            raise UserError(f"{self.world} processes share each batch, and training.batch_size is smaller; raise it")
        if recipe.defence.name == "free":
            raise UserError("free keeps a state for each process: train it on one device")
        if self.nodes > 1 and rank_variable() is None:
            raise UserError(f"--nodes {self.nodes}: start the same command on every machine, by srun or by torchrun")

    def share(self, count: int) -> tuple[int, int]:
        """Return start and end of this process's part of a batch of `count` images."""
        return count * self.rank // self.world, count * (self.rank + 1) // self.world

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.world > 1:
            distributed.all_reduce(values)
        return values

    def wait(self) -> None:
        """Wait for every process."""
        if self.world > 1 and distributed.is_initialized():
            distributed.barrier()

    def trainer_options(self) -> dict[str, Any]:
        """Return the options of Lightning's Trainer."""
        if self.world == 1:
            return {"devices": 1}
        return {"devices": self.devices, "num_nodes": self.nodes, "strategy": self.strategy}

    def share_statistics(self, model: nn.Module) -> nn.Module:
        """Replace each BatchNorm by one whose statistics are those of all processes; this needs GPUs."""
        if self.world == 1 or not torch.cuda.is_available():
            return model
        from timm.layers import convert_sync_batchnorm  # torch's own, which Lightning uses, loses timm's activations

        return convert_sync_batchnorm(model)


ALONE = Devices()


@contextmanager
def start_processes(devices: Devices, work: Callable[..., object], *arguments: object) -> Iterator[None]:
    """Start this machine's other processes, each with `work(*arguments)`; the block is the work of the first.

    Raises UserError if one fails, and torch.OutOfMemoryError if its part of a batch does not fit. Afterwards all have
    ended, and the environment is restored.
    """
    if devices.world == 1:
        yield
        return
    others: list[Any] = []
    before, threads = dict(os.environ), torch.get_num_threads()
    try:
        if rank_variable() is None:
            os.environ |= {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
            torch.set_num_threads(max(1, threads // devices.devices))
            context = multiprocessing.get_context("spawn")
            for rank in range(1, devices.devices):
                process_arguments = (rank, torch.get_num_threads(), work, arguments)
                others.append(context.Process(target=_serve, args=process_arguments))
                others[-1].start()
        yield
        _end(others, _ENDS)
    except UserError:
        raise
    except Exception as problem:
        for process in others:
            process.join(timeout=5)
        codes = [process.exitcode for process in others if process.exitcode]
        if does_not_fit(problem) or not codes:
            raise
        if _DOES_NOT_FIT in codes:
            raise torch.OutOfMemoryError("another process had too little memory") from problem
        ended = f"ended with code {codes[0]} (killed, or out of memory?)"
        raise UserError(f"a process of the training {ended}; the same command resumes from the last epoch") from problem
    finally:
        _end(others, 0)
        if distributed.is_initialized():
            distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(before)
        torch.set_num_threads(threads)


def _end(processes: list[Any], wait: float) -> None:
    """End processes after at most `wait` seconds each."""
    for process in processes:
        process.join(timeout=wait)
        process.kill()
        process.join()


def does_not_fit(problem: BaseException) -> bool:
    """Return True if a GPU or the machine ran out of memory."""
    return isinstance(problem, torch.OutOfMemoryError) or "can't allocate memory" in str(problem)


def _serve(rank: int, threads: int, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    """Run the work of a process other than the first: silent, and ended with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(threads)
    console.redirect(lambda _: None)
    try:
        work(*arguments)
    except Exception as problem:
        os._exit(_DOES_NOT_FIT if does_not_fit(problem) else 1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_variable() -> str | None:
    """Return the variable that holds this process's rank if torchrun or srun started it; else None."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "RANK"
    return "SLURM_PROCID" if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in os.environ else None
