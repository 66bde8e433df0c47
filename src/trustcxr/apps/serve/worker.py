"""Answer images in separate processes, so that a hostile file can only harm its own. Ended processes are replaced."""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from trustcxr.apps.serve.api_models import Reply, ServedRun, WorkItem
from trustcxr.errors import UserError

RETRY_AFTER = 2  # seconds until a refused client may retry
TOO_LONG = Reply(422, code="too-slow", message="reading this file takes too long: send it as an 8-bit grey PNG")
BROKE = Reply(422, code="unreadable", message="reading this file broke its decoder: send the image as a PNG")
OVERLOADED = Reply(503, code="busy", message="the answer took too long: try again in a moment")


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    most_bytes: size of an upload. upload, reading, answer: seconds to receive, decode and classify an image.
    queue: seconds to wait for a worker. workers: processes, each with all runs in memory. waiting: queued requests.
    memory: bytes that a worker may allocate after its start.
    """

    most_bytes: int = 64 << 20
    upload: float = 30.0
    reading: float = 20.0
    answer: float = 300.0  # long, because restarting a worker on a busy machine makes it busier
    queue: float = 60.0
    workers: int = field(default_factory=lambda: max(2, min(os.cpu_count() or 1, 4)))
    waiting: int = 6
    memory: int = 3 << 30


class Worker:
    """A worker process, as the server sees it. alive: True if it can answer or is busy."""

    def __init__(self, folders: Sequence[Path], limits: Limits, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process with threads may deadlock
        self.limits, self.alive = limits, False
        self.connection, other = context.Pipe()
        arguments = (other, list(folders), threads, limits.memory)
        self.process = context.Process(target=_work, args=arguments, daemon=True, name="trustcxr-image")
        self.process.start()
        other.close()

    def load(self) -> list[ServedRun]:
        """Wait until the runs are loaded, and return them. Raises UserError if they cannot be."""
        runs: list[ServedRun] | str = "a worker's process ended while it loaded the runs (out of memory?)"
        with suppress(EOFError, OSError):
            if self.connection.poll(300.0):
                runs = self.connection.recv()
        if isinstance(runs, str):
            self.kill()
            raise UserError(runs)
        self.alive = True
        return runs

    def ask(self, item: WorkItem) -> Reply:
        """Answer an item. A worker that takes too long or breaks is killed; `alive` is then False."""
        fault = BROKE
        with suppress(EOFError, OSError):
            self.connection.send(item)
            if self.connection.poll(self.limits.reading):
                first = self.connection.recv()
                if isinstance(first, Reply):
                    return first
                fault = OVERLOADED
                if self.connection.poll(self.limits.answer):
                    return self.connection.recv()
            else:
                fault = TOO_LONG
        self.kill()
        return fault

    def kill(self) -> None:
        """Kill the process. It writes no files."""
        self.alive = False
        self.process.kill()
        self.process.join()
        self.connection.close()


def _work(connection: Connection, folders: list[Path], threads: int, memory: int) -> None:
    """Load the runs, then answer until the server ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server handles Ctrl-C and ends this process
    from trustcxr.apps.serve import inference

    inference.answer_items(connection, folders, threads, memory)


class Pool:
    """Worker processes with the runs in memory: one request each at a time. restarts: number of workers replaced."""

    def __init__(self, folders: Sequence[Path], limits: Limits) -> None:
        self.folders, self.limits, self.restarts = list(folders), limits, 0
        self.runs: list[ServedRun] = []
        self._free: asyncio.Queue[Worker] = asyncio.Queue()
        self._all: set[Worker] = set()
        self._starting: set[asyncio.Task[None]] = set()

    @property
    def alive(self) -> int:
        """Number of workers that can answer or are busy."""
        return sum(worker.alive for worker in self._all)

    async def start(self) -> None:
        """Start the workers one by one, so that an error is reported once. Raises UserError if a run does not load."""
        for _ in range(self.limits.workers):
            await self._start_one()

    async def ask(self, item: WorkItem) -> Reply:
        """Wait for a worker and its reply."""
        try:
            worker = await asyncio.wait_for(self._free.get(), self.limits.queue)
        except TimeoutError:
            return OVERLOADED
        try:
            return await asyncio.to_thread(worker.ask, item)
        finally:
            self._release(worker)

    async def stop(self) -> None:
        """End every worker."""
        for task in self._starting:
            task.cancel()
        for worker in self._all:
            worker.kill()
        self._all.clear()

    def _release(self, worker: Worker) -> None:
        if worker.alive:
            self._free.put_nowait(worker)
            return
        self._all.discard(worker)
        self.restarts += 1
        task = asyncio.create_task(self._replace())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _replace(self) -> None:
        """Start a new worker, and retry until that succeeds."""
        while True:
            try:
                return await self._start_one()
            except (UserError, OSError):
                await asyncio.sleep(5.0)

    async def _start_one(self) -> None:
        worker = Worker(self.folders, self.limits, max(1, (os.cpu_count() or 1) // self.limits.workers))
        self._all.add(worker)
        try:
            self.runs = await asyncio.to_thread(worker.load)
        except UserError:
            self._all.discard(worker)
            raise
        self._free.put_nowait(worker)
