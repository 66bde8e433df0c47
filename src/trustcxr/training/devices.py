"""One training on several cards or machines: who is who, the processes beside this one, what they tell each other.

Every process works on its part of each batch, and the gradients are averaged once, in the backward pass of the training
step (PyTorch's DistributedDataParallel through Lightning). An attack takes the gradient in its images alone, of the
network as it is within, so nothing is synchronised for it. Without cards the processes share this machine's cores.
"""

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed

from trustcxr import console
from trustcxr.data.worker_pool import end_with_parent
from trustcxr.errors import UserError, unknown
from trustcxr.recipes.run_recipe import RunRecipe

STRATEGIES = ("ddp", "ddp_find_unused_parameters_true")
_DOES_NOT_FIT = 75  # exit code of a process whose part of a batch did not fit in memory
_ENDS = 60.0  # seconds that the others have to end after the last epoch


@dataclass(frozen=True)
class Devices:
    """`devices` cards of each of `nodes` machines; `parts`: how many each process works its batch off in."""

    devices: int = 1
    nodes: int = 1
    strategy: str = "ddp"
    parts: int = 1

    @property
    def world(self) -> int:
        """How many processes train together."""
        return self.devices * self.nodes

    @property
    def rank(self) -> int:
        """Which of them this is; 0 is the one that writes."""
        if self.world == 1:
            return 0
        return int(os.environ.get(_launched() or "LOCAL_RANK", 0))

    @property
    def apart(self) -> bool:
        """Whether some were started by another than this one, which cannot have them work in smaller parts."""
        return self.world > 1 and _launched() is not None

    def split_batches(self) -> dict[str, int | str]:
        """How each batch is split, as run.yaml has it; empty where it is whole."""
        split: dict[str, int | str] = {} if self.parts == 1 else {"parts": self.parts}
        return split if self.world == 1 else split | {"world": self.world, "strategy": self.strategy}

    def check_recipe(self, recipe: RunRecipe, images: int) -> None:
        """UserError for what cannot be trained so."""
        for option, count in (("--devices", self.devices), ("--nodes", self.nodes)):
            if count < 1:
                raise UserError(f"{option} {count}: expected 1 or more")
        if self.strategy not in STRATEGIES:
            raise unknown("strategy", self.strategy, STRATEGIES)
        if self.world == 1:
            return
        cards = torch.cuda.device_count()
        if cards and self.devices > cards:
            raise UserError(f"--devices {self.devices}: this machine has {cards} card{'s' * (cards > 1)}")
        if min(recipe.training.batch_size, images) < self.world:
            raise UserError(f"{self.world} processes share each batch, and training.batch_size is smaller; raise it")
        if recipe.defence.name == "free":
            raise UserError("free keeps a state of its own for each process: train it on one card")
        if self.nodes > 1 and _launched() is None:
            raise UserError(f"--nodes {self.nodes}: start the same command on every machine, by srun or by torchrun")

    def share(self, count: int) -> tuple[int, int]:
        """From where to where in a batch of `count` images this process works."""
        return count * self.rank // self.world, count * (self.rank + 1) // self.world

    def summed(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.world > 1:
            distributed.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1 and distributed.is_initialized():
            distributed.barrier()

    def for_lightning(self) -> dict[str, Any]:
        """Options of its Trainer."""
        if self.world == 1:
            return {"devices": 1}
        options = {"devices": self.devices, "num_nodes": self.nodes, "strategy": self.strategy}
        return options | {"sync_batchnorm": torch.cuda.is_available()}

    def environment(self) -> list[Any]:
        """Return Lightning's plugin for processes that were started here; none for those of torchrun or srun."""
        from pytorch_lightning.plugins.environments import LightningEnvironment

        return [] if self.world == 1 or _launched() else [LightningEnvironment()]


@dataclass
class Team:
    """The processes that train beside this one on this machine."""

    processes: list[Any] = field(default_factory=list)

    def lost(self) -> list[int]:
        """The exit codes of those that ended badly."""
        for process in self.processes:
            process.join(timeout=5)
        return [process.exitcode for process in self.processes if process.exitcode]

    @property
    def did_not_fit(self) -> bool:
        """Whether one had too little memory for its part of a batch."""
        return _DOES_NOT_FIT in self.lost()

    def end(self, wait: float) -> None:
        """Have them end, at once or when they are done."""
        for process in self.processes:
            process.join(timeout=wait)
            process.kill()
            process.join()


@contextmanager
def start_processes(cards: Devices, work: Callable[..., object], *arguments: object) -> Iterator[Team]:
    """Start the processes of this machine that do `work(*arguments)` beside the block, which is the first one's.

    UserError where one of them is lost. Afterwards they are gone, and the environment is as it was.
    """
    team = Team()
    if cards.world == 1:
        yield team
        return
    before, threads = dict(os.environ), torch.get_num_threads()
    try:
        if _launched() is None:
            os.environ |= {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
            torch.set_num_threads(max(1, threads // cards.devices))
            context = multiprocessing.get_context("spawn")
            for rank in range(1, cards.devices):
                process_arguments = (rank, torch.get_num_threads(), work, arguments)
                team.processes.append(context.Process(target=_serve, args=process_arguments))
                team.processes[-1].start()
        yield team
        team.end(_ENDS)
    except UserError:
        raise
    except Exception as problem:
        if team.did_not_fit or does_not_fit(problem) or not (codes := team.lost()):
            raise
        ended = f"ended with code {codes[0]} (killed, or out of memory?)"
        raise UserError(f"a process of the training {ended}; the same command goes on from the last epoch") from problem
    finally:
        team.end(0)
        if distributed.is_initialized():
            distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(before)
        torch.set_num_threads(threads)


def does_not_fit(problem: BaseException) -> bool:
    """Whether memory ran out, of a card or of the machine."""
    return isinstance(problem, torch.OutOfMemoryError) or "can't allocate memory" in str(problem)


def _serve(rank: int, threads: int, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    """What a process beside the first one does; it says nothing, and ends with it."""
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


def _launched() -> str | None:
    """Return the variable that holds this process's rank if torchrun or srun started it; else None."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "RANK"
    return "SLURM_PROCID" if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in os.environ else None
