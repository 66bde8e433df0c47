"""Several runs at once, in processes of this machine that share its cores and the pixel store."""

from collections.abc import Callable, Sequence
from multiprocessing.connection import wait

from trustcxr.console import Progress, say
from trustcxr.errors import CannotWrite
from trustcxr.study.engines.contract import Failure, Outcomes, Task, Work
from trustcxr.study.engines.workers import Worker


class ProcessesEngine:
    """`jobs` tasks at once, each in a process of its own with its share of the threads; one line of progress for all.

    A process that dies (out of memory, killed) fails its task alone. A script that uses this guards its main part with
    `if __name__ == "__main__":`, as whatever starts processes afresh asks for.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def map(self, work: Work, tasks: Sequence[Task], after: Callable[[], object] = lambda: None) -> Outcomes:
        """What became of every task, in their order: None where it was done."""
        left = dict(enumerate(tasks))
        failed: dict[str, Failure] = {}
        busy: dict[Worker, int] = {}
        idle: list[Worker] = []
        try:
            with Progress(f"{self.jobs} runs at once", len(tasks)) as bar:
                while left or busy:
                    while (place := self._next(left, tasks, busy)) is not None:
                        worker = idle.pop() if idle else Worker(self.jobs)
                        worker.begin(work, left.pop(place))
                        busy[worker] = place
                    ready = wait([worker.connection for worker in busy])
                    for worker in [w for w in busy if w.connection in ready]:
                        for text in worker.hear():
                            say(text)
                        if worker.task is not None:
                            continue  # it said something, and is not done
                        task = tasks[busy.pop(worker)]
                        if isinstance(worker.outcome, CannotWrite):
                            raise worker.outcome
                        if worker.outcome is not None:
                            failed[task.run] = worker.outcome
                            for place in [p for p, other in left.items() if other.run == task.run]:
                                left.pop(place)
                                bar.advance()
                        if worker.alive:
                            idle.append(worker)
                        after()
                        bar.advance(note=f"{task.step} {task.run}")
        finally:
            for worker in (*busy, *idle):
                worker.kill()
        return [failed.get(task.run) for task in tasks]

    def _next(self, left: dict[int, Task], tasks: Sequence[Task], busy: dict[Worker, int]) -> int | None:
        """The place of the next task whose run nobody works on; None where there is none, or every process is busy."""
        taken = {tasks[place].run for place in busy.values()}
        return next((p for p, task in left.items() if task.run not in taken), None) if len(busy) < self.jobs else None
