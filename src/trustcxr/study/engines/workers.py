"""A process that does one task after another for the engine that started it, and ends when that ends."""

import gc
import multiprocessing
import os
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from trustcxr import console
from trustcxr.data.workers import end_with_parent
from trustcxr.study.engines import failures
from trustcxr.study.engines.contract import Outcome, Task, Work, told

# What the steps of a run import, and what takes long to: once for all processes that are forked.
IMPORTED: tuple[str, ...] = (
    "trustcxr.study.steps",
    "trustcxr.training.loop",
    "trustcxr.explain.scores",
    "trustcxr.explain.summary",
    "trustcxr.evaluation.run",
    "trustcxr.models.factory",
    "timm",
    "pytorch_lightning",
    "pyarrow.dataset",
)


class Worker:
    """The engine's end: what a process is at, and what became of it."""

    def __init__(self, jobs: int) -> None:
        import torch

        self.connection, other = multiprocessing.Pipe()
        threads = max(1, torch.get_num_threads() // jobs)
        self.process = _started(other, threads, dict(os.environ))
        other.close()
        self.task: Task | None = None
        self.outcome: Outcome = None
        self.alive = True

    def begin(self, work: Work, task: Task) -> None:
        """Have a task done."""
        self.task, self.outcome = task, None
        self.connection.send((work, task))

    def hear(self) -> list[str]:
        """What it says next; `task` is None once it is done with it, however it ended."""
        assert self.task is not None
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            ended = f"its process ended with code {self.process.exitcode} (killed, or out of memory?)"
            self.outcome, self.alive = (failure := failures.lost(self.task, ended)), False
            self.task = None
            return [f"{failure.name}: {failure.reason}"]
        if kind == "say":
            return [content]
        self.outcome = content
        self.task = None
        return []

    def kill(self) -> None:
        """End it at once: whatever it writes is written whole or not at all."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _started(*given: object) -> Any:
    """A process that does `_serve(*given)`.

    Forked, within 0.1 s, from one that has done nothing but import, for which a process of Python and torch started
    anew needs seconds; anew where there are cards, which a fork must find untouched, and elsewhere than on Linux. Never
    forked from this process: with torch's threads in it a fork may never end.
    """
    import torch

    if sys.platform == "linux" and not torch.cuda.is_available():
        forks = multiprocessing.get_context("forkserver")
        forks.set_forkserver_preload([*IMPORTED])
        with suppress(OSError):  # the temporary folder has no room for its socket, or too long a name
            forked = forks.Process(target=_serve, args=given, daemon=False)
            forked.start()
            return forked
    anew = multiprocessing.get_context("spawn").Process(target=_serve, args=given, daemon=False)
    anew.start()
    return anew


def _serve(connection: Connection, threads: int, environment: dict[str, str]) -> None:
    """The process's end: do what comes, until nothing can come any more. Its environment is the engine's, as of now."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine hears Ctrl-C, and ends its processes
    end_with_parent()
    gc.freeze()  # what was imported, or the first look for garbage copies all of it from the process that was forked
    os.environ.clear()
    os.environ.update(environment)
    console.tell(lambda text: connection.send(("say", text)))
    while True:
        try:
            work, task = connection.recv()
        except EOFError:
            return
        connection.send(("done", told(work, task, threads)))
