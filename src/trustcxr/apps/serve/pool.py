"""Manage the worker processes: one request each at a time; ended workers are replaced."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from trustcxr.apps.serve.limits import Limits
from trustcxr.apps.serve.worker import OVERLOADED, ModelInfo, Reply, Worker, WorkItem
from trustcxr.errors import UserError

_RETRY_AFTER = 5.0  # seconds until a failed start is repeated


class Pool:
    """Worker processes with the runs in memory. restarts: number of workers replaced."""

    def __init__(self, folders: Sequence[Path], limits: Limits) -> None:
        self.folders, self.limits, self.restarts = list(folders), limits, 0
        self.runs: list[ModelInfo] = []
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
                await asyncio.sleep(_RETRY_AFTER)

    async def _start_one(self) -> None:
        threads = max(1, (os.cpu_count() or 1) // self.limits.workers)
        worker = Worker(self.folders, self.limits, threads)
        self._all.add(worker)
        models = await asyncio.to_thread(worker.ready)
        if isinstance(models, str):
            self._all.discard(worker)
            raise UserError(models)
        self.runs = models
        self._free.put_nowait(worker)
