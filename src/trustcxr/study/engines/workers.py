"""A process that does one task after another for the engine that started it, and ends when that ends."""

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection

from trustcxr import console
from trustcxr.data.workers import end_with
from trustcxr.study.engines.contract import Failure, Outcome, Task, Work, told


class Worker:
    """The engine's end: what a process is at, and what became of it."""

    def __init__(self, jobs: int) -> None:
        import torch

        context = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may never end
        self.connection, other = context.Pipe()
        threads = max(1, torch.get_num_threads() // jobs)
        self.process = context.Process(target=_serve, args=(other, threads, os.getpid()), daemon=False)
        self.process.start()
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
            self.outcome, self.alive = Failure(self.task.run, f"{self.task.step}: {ended}"), False
            self.task = None
            return [f"{self.outcome.name}: {self.outcome.reason}"]
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


def _serve(connection: Connection, threads: int, engine: int) -> None:
    """The process's end: do what comes, until nothing can come any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine hears Ctrl-C, and ends its processes
    end_with(engine)
    console.tell(lambda text: connection.send(("say", text)))
    while True:
        try:
            work, task = connection.recv()
        except EOFError:
            return
        connection.send(("done", told(work, task, threads)))
