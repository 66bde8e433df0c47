"""Run several tasks at once, in processes of this machine that share its cores and the pixel store."""

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from trustcxr import console
from trustcxr.console import Progress, log
from trustcxr.data.worker_pool import end_with_parent
from trustcxr.study.engines.base import Engine, Failure, Order, Outcome, Outcomes, Task, Work, attempt

# Slow imports of the steps, done once for all forked processes.
IMPORTED: tuple[str, ...] = (
    "trustcxr.study.run_study",
    "trustcxr.training.fit_run",
    "trustcxr.explain.evaluate",
    "trustcxr.explain.saliency_summary",
    "trustcxr.evaluation.trained_run",
    "trustcxr.models.factory",
    "timm",
    "pytorch_lightning",
    "pyarrow.dataset",
)


class ProcessesEngine(Engine):
    """Run `jobs` tasks in parallel, each in a process of its own; one line of progress for all.

    A process that dies (out of memory, killed) fails its task alone. A script needs `if __name__ == "__main__":`.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def map(self, work: Work, tasks: Sequence[Task], after: Callable[[], object] = lambda: None) -> Outcomes:
        """Do every task; the outcomes in their order, None for one that was done."""
        order = Order(tasks)
        busy: dict[_Worker, int] = {}
        idle: list[_Worker] = []
        try:
            with Progress(f"{self.jobs} runs at once", len(tasks), timed=False) as bar:
                while order.left or busy:
                    while len(busy) < self.jobs and (index := order.next()) is not None:
                        worker = idle.pop() if idle else _Worker()
                        worker.connection.send((work, tasks[index]))
                        busy[worker] = index
                    ready = wait([worker.connection for worker in busy])
                    for worker in [w for w in busy if w.connection in ready]:
                        kind, content = worker.receive()
                        if kind == "say":
                            log(content)
                            continue
                        index = busy.pop(worker)
                        if kind == "lost":
                            content = Failure.of_lost(tasks[index], content)
                            log(f"{content.name}: {content.reason}")
                        else:
                            idle.append(worker)
                        order.settle(index, content, after, bar)
        finally:
            for worker in (*busy, *idle):
                worker.kill()
        return order.outcomes()


class _Worker:
    """A process that does one task after another, and ends when this one ends."""

    def __init__(self) -> None:
        self.connection, other = multiprocessing.Pipe()
        self.process = _start(other, dict(os.environ))
        other.close()

    def receive(self) -> tuple[str, Any]:
        """Wait for a line ("say"), the outcome of its task ("done"), or the end of its process ("lost")."""
        try:
            message: tuple[str, Any] = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return "lost", f"its process ended with code {self.process.exitcode} (killed, or out of memory?)"
        return message

    def kill(self) -> None:
        """End it at once: whatever it writes is written whole or not at all."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _start(*arguments: object) -> Any:
    """Start a process that does `_serve(*arguments)`."""
    import torch

    if sys.platform == "linux" and not torch.cuda.is_available():
        # From a process that only imports: a fork of this one, with torch's threads in it, may never end.
        forks = multiprocessing.get_context("forkserver")
        forks.set_forkserver_preload([*IMPORTED])
        with suppress(OSError):  # the temporary folder has no room for its socket, or too long a name
            forked = forks.Process(target=_serve, args=arguments, daemon=False)
            forked.start()
            return forked
    anew = multiprocessing.get_context("spawn").Process(target=_serve, args=arguments, daemon=False)
    anew.start()
    return anew


def _serve(connection: Connection, environment: dict[str, str]) -> None:
    """Do the tasks that come, in the environment of the engine, until nothing can come any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine hears Ctrl-C, and ends its processes
    end_with_parent()
    gc.freeze()  # what was imported, or the first look for garbage copies all of it from the process that was forked
    os.environ.clear()
    os.environ.update(environment)
    console.redirect(lambda text: connection.send(("say", text)))
    while True:
        try:
            work, task = connection.recv()
        except EOFError:
            return
        outcome: Outcome = attempt(work, task)
        connection.send(("done", outcome))
